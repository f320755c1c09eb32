"""Studies end to end on a tiny model: rows, intervals, and a kill in the middle."""

import math
import os
import signal
import subprocess
import sys
import time

import pytest

from crosscal.errors import InputError
from crosscal.study.chapter1 import chapter_configs, run_study
from crosscal.study.parameters import Settings
from crosscal.study.presets import PRESETS
from crosscal.study.store import load_runs
from crosscal.types import RunConfig, Unstructured
from tests.unit.families import save_tiny

STUDY = """
from crosscal.study.chapter1 import run_study
from crosscal.study.parameters import Settings
run_study(Settings(preset="smoke", model={model!r}, device="cpu"))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny(folder)
    return str(folder)


@pytest.fixture(scope="module")
def stored(model, tmp_path_factory):
    """A finished smoke study, made in two processes: the first is killed once its first run is stored."""
    results = tmp_path_factory.mktemp("results")
    environment = os.environ | {"CROSSCAL_RESULTS": str(results), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", STUDY.format(model=model)]
    first = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    folder = results / "smoke"
    while not list(folder.glob("*.json")) and first.poll() is None:
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL, "the study ended before it could be killed"
    survived = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return folder, survived


def test_a_killed_study_continues_without_repeating_a_run(stored):
    folder, survived = stored
    configs = chapter_configs(Settings(preset="smoke"))
    assert 1 <= len(survived) < len(configs)
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    assert len(after) == len(configs)
    assert all(after[name] == modified for name, modified in survived.items())


def test_rows_are_tidy(stored):
    runs = load_runs(stored[0], with_items=True)
    preset = PRESETS["smoke"]
    for run in runs:
        dense = run.config["method"] == "dense"
        sets = {row.eval_set for row in run.rows}
        assert sets == {*preset.texts, *preset.tasks} == set(run.items)
        assert len(run.rows) == len(preset.texts) * (1 if dense else 5) + len(preset.tasks)
        for row in run.rows:
            assert row.lo <= row.value <= row.hi or row.metric == "auc"
            assert math.isfinite(row.value)
            assert row.commit
            assert "torch" in row.versions
        assert len(run.layers) == (0 if dense else 21)


def test_the_dense_weights_are_restored_between_runs(stored):
    """Each method starts from the dense weights: all losses differ, and sparsity is that of one run, not of two."""
    runs = {run.config["method"]: run for run in load_runs(stored[0])}
    losses = {method: run.rows[0].value for method, run in runs.items()}
    assert len(set(losses.values())) == 4
    assert runs["sparsegpt"].rows[0].sparsity == pytest.approx(0.5, abs=0.01)


def test_stored_runs_are_found_without_computing(stored, model, monkeypatch):
    monkeypatch.setenv("CROSSCAL_RESULTS", str(stored[0].parent))
    settings = Settings(preset="smoke", model=model, compute="never")
    found = run_study(settings)
    assert sorted(found.run_ids) == sorted(path.stem for path in stored[0].glob("*.json"))
    with pytest.raises(InputError, match="holds no run of magnitude 60%"):
        run_study(Settings(preset="smoke", model=model, sparsity=0.6, compute="never"))


def test_a_config_refuses_sizes_that_make_no_sense():
    good = chapter_configs(Settings(preset="smoke"))[1]
    for change, sentence in [
        ({"n_windows": 0}, "n_windows is 0"),
        ({"eval_window": 2.5}, "eval_window is 2.5"),
        ({"seed": -3}, "seed is -3"),
        ({"calibration": (("c4", 0.5),)}, "do not sum to 1"),
    ]:
        with pytest.raises(InputError, match=sentence):
            RunConfig(**{**vars(good), **change})
    assert good.pattern == Unstructured(0.5)
