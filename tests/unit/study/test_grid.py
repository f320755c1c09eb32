"""Studies end to end on a tiny model: rows, intervals, and a kill in the middle."""

import math
import os
import signal
import subprocess
import sys
import time

import pytest

from crosscal.errors import InputError
from crosscal.plan.chapters import CHAPTERS, Maker
from crosscal.plan.parameters import PRESETS, PruningSettings, Settings
from crosscal.results.store import load_runs
from crosscal.study.grid import run_chapter
from crosscal.types import RunConfig, Unstructured
from tests.unit.families import save_tiny

STUDY = """
from crosscal.study.grid import run_chapter
from crosscal.plan.parameters import PruningSettings, Settings
run_chapter("perplexity", PruningSettings(preset="smoke", model={model!r}, device="cpu"))
"""


def chapter_configs(settings):
    """The runs of chapter 1."""
    return CHAPTERS["perplexity"].configs(Maker(settings))


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


@pytest.mark.slow
def test_a_killed_study_continues_without_repeating_a_run(stored):
    folder, survived = stored
    configs = chapter_configs(PruningSettings(preset="smoke"))
    assert 1 <= len(survived) < len(configs)
    after = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    assert len(after) == len(configs)
    assert all(after[name] == modified for name, modified in survived.items())


@pytest.mark.slow
def test_rows_are_tidy(stored):
    runs = load_runs(stored[0], with_items=True)
    preset = PRESETS["smoke"]
    for run in runs:
        dense = run.config["method"] == "dense"
        sets = {row.eval_set for row in run.rows}
        assert sets == {*preset.texts, *preset.tasks} | (set() if dense else {"layers"})
        quantiles = set() if dense else {f"{text} tokens" for text in preset.texts}
        assert set(run.items) == {*preset.texts, *preset.tasks} | quantiles
        assert len(run.rows) == len(preset.texts) * (1 if dense else 8) + len(preset.tasks) + (not dense)
        for row in run.rows:
            assert row.lo <= row.value <= row.hi or row.metric == "auc"
            assert math.isfinite(row.value)
            assert row.commit
            assert "torch" in row.versions
        assert len(run.layers) == (0 if dense else 21)


@pytest.mark.slow
def test_the_dense_weights_are_restored_between_runs(stored):
    """Each method starts from the dense weights: all losses differ, and sparsity is that of one run, not of two."""
    runs = {run.config["method"]: run for run in load_runs(stored[0])}
    losses = {method: run.rows[0].value for method, run in runs.items()}
    assert len(set(losses.values())) == 4
    assert runs["sparsegpt"].rows[0].sparsity == pytest.approx(0.5, abs=0.01)


@pytest.mark.slow
def test_stored_runs_are_found_without_computing(stored, model, monkeypatch):
    monkeypatch.setenv("CROSSCAL_RESULTS", str(stored[0].parent))
    settings = PruningSettings(preset="smoke", model=model, compute="never")
    found = run_chapter("perplexity", settings)
    assert sorted(found.run_ids) == sorted(path.stem for path in stored[0].glob("*.json"))
    assert found.planned == len(found.run_ids)
    more = run_chapter("perplexity", PruningSettings(preset="smoke", model=model, sparsity=0.6, compute="never"))
    assert (more.run_ids, more.planned) == (found.run_ids, found.planned + 3)
    with pytest.raises(InputError, match="holds no run of sparsegpt 50%"):  # the dense run has no draw of text
        run_chapter("perplexity", PruningSettings(preset="smoke", model=model, seed=7, compute="never"))


def test_a_config_refuses_sizes_that_make_no_sense():
    good = chapter_configs(PruningSettings(preset="smoke"))[1]
    for change, sentence in [
        ({"n_windows": 0}, "n_windows is 0"),
        ({"eval_window": 2.5}, "eval_window is 2.5"),
        ({"seed": -3}, "seed is -3"),
        ({"calibration": (("c4", 0.5),)}, "do not sum to 1"),
    ]:
        with pytest.raises(InputError, match=sentence):
            RunConfig(**{**vars(good), **change})
    assert good.target == Unstructured(0.5)


def test_runs_asked_other_tasks_read_no_task_prompts():
    """Prompts are made of the tasks a run is asked: with other tasks they are another text, nothing to compare."""
    make = Maker(Settings(preset="full"), "cpu", "float32")
    all_tasks, fewer = make.dense(), make.dense(tasks=("sciq",))
    assert "task_prompts" in all_tasks.texts
    assert fewer.texts == tuple(text for text in all_tasks.texts if text != "task_prompts")
    assert make.dense(tasks=("sciq",), texts=("news", "task_prompts")).texts == ("news", "task_prompts")
