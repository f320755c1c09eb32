"""`crosscal gate`: verdicts on made-up losses, and the command as a pipeline meets it."""

import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from crosscal.cli import gate
from crosscal.cli.gate import OPEN, WITHIN, WORSE, _tested, _verdict

SIZES = ["--texts", "notes.jsonl", "--windows", 6, "--length", 20, "--dtype", "float32"]


def losses(mean: float, spread: float, n: int = 32) -> np.ndarray:
    draws = np.random.default_rng(0).standard_normal(n)
    return mean + spread * (draws - draws.mean()) / draws.std(ddof=1)


def verdict_of(gaps: np.ndarray, margin: float = 0.01) -> str:
    check = _tested("mine", "windows", gaps, margin)
    return _verdict(check | {"p_worse_holm": check["p_worse"]})


@pytest.mark.parametrize(
    ("gaps", "verdict"),
    [
        (losses(0.0, 0.01), WITHIN),
        (losses(-0.5, 0.01), WITHIN),
        (losses(0.03, 0.01), WORSE),
        (losses(0.01, 0.01), OPEN),
        (losses(0.005, 0.05), OPEN),
        (np.zeros(8), WITHIN),
        (np.full(8, 0.02), WORSE),
        (np.full(8, 0.01), OPEN),
        (np.zeros(1), OPEN),
        (np.array([0.0, np.inf, 0.0]), WORSE),
        (np.array([0.0, np.nan, 0.0]), WORSE),
    ],
)
def test_a_loss_is_within_or_worse_or_cannot_be_told(gaps, verdict):
    assert verdict_of(gaps) == verdict


@pytest.mark.parametrize(("mean", "spread"), [(0.005, 0.05), (0.02, 0.06), (0.0, 0.03)])
def test_the_number_that_would_tell_tells_four_times_in_five(mean, spread):
    wanted = _tested("mine", "windows", losses(mean, spread), 0.01)["would_tell"]
    random = np.random.default_rng(1)
    told = [verdict_of(mean + spread * random.standard_normal(wanted)) != OPEN for _ in range(400)]
    assert 0.74 < np.mean(told) < 0.87
    assert _tested("mine", "windows", losses(0.01, 0.05), 0.01)["would_tell"] is None


@pytest.fixture
def ruined(tiny, room):
    """The tiny model with a head that is far too sure of itself."""
    folder = shutil.copytree(tiny, room / "ruined")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] *= 1000
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_the_same_model_is_within_and_a_ruined_one_is_worse(crosscal, tiny, ruined, room):
    ran = crosscal("gate", "--model", tiny, "--dense", tiny, *SIZES, "--json")
    found = json.loads(ran.out)
    assert (ran.status, found["verdict"], found["checks"][0]["loss"]["value"]) == (0, WITHIN, 0.0)
    ran = crosscal("gate", "--model", ruined, "--dense", tiny, *SIZES, "--output", "gate.json")
    assert (ran.status, ran.out.splitlines()[0]) == (1, f"{ruined} loses more than 1 % against {tiny}")
    assert json.loads((room / "gate.json").read_text())["exit_status"] == 1


def test_what_cannot_be_told_says_what_would_tell(crosscal, tiny, ruined):
    ran = crosscal("gate", "--model", ruined, "--dense", tiny, *SIZES[:3], 2, *SIZES[4:])
    assert ran.status == 3
    assert ran.out.splitlines()[0] == f"whether {ruined} is within 1 % of {tiny} cannot be told"
    assert ran.out.splitlines()[3].endswith(" windows")


@pytest.mark.parametrize("more", [["--max-loss", "0%"], ["--max-loss", "one"], ["--max-loss", "150%"], ["--texts", ""]])
def test_wrong_input_has_a_status_of_its_own(crosscal, tiny, more):
    ran = crosscal("gate", "--model", tiny, "--dense", tiny, *SIZES, *more)
    assert (ran.status, ran.out, len(ran.err.splitlines())) == (2, "", 1)


def test_tasks_count_in_points_and_only_where_the_dense_model_knows_something(monkeypatch):
    right = np.tile([1, 1, 1, 0], 50)
    tasks = {name: {"metric": "accuracy", "chance": chance, "lo": 0.7} for name, chance in (("a", 0.25), ("b", 0.75))}
    monkeypatch.setattr(gate, "_tasks", lambda run: tasks)
    monkeypatch.setattr(gate, "_gaps", lambda run, dense, name: 0.0 * right)
    known, guessed = gate._answers(None, None, 0.01)
    assert (known["usable"], known["loss"]["value"], guessed["usable"]) == (True, 0.0, False)
    assert _verdict(known | {"p_worse_holm": 1.0}) == WITHIN
    assert _verdict(guessed | {"p_worse_holm": 1.0}) == OPEN
    assert "guesses" in gate._advice(guessed | {"verdict": OPEN})
