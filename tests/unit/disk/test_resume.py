"""A compression that was killed, interrupted or ran out of disk goes on where it was, to the same files."""

import errno
import json
import logging
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

import crosscal
from crosscal.disk import compress_folder, journal
from crosscal.disk.states import _load_tree, _save_tree
from crosscal.engine import driver
from crosscal.errors import InputError
from crosscal.output.tensorfile import TensorFile
from crosscal.output.writer import EARLIER, Place
from crosscal.types import NofM
from tests.unit.disk import killed
from tests.unit.disk.common import HALF, TEXT, contents
from tests.unit.families import save_tiny, tiny_model

OPTIONS = {"calibration": TEXT, "micro_batch": 4, "progress": False}
ROOT = killed.__file__.split("/tests/unit/")[0]


@pytest.fixture
def dense(tmp_path):
    save_tiny(tmp_path / "dense")
    return tmp_path / "dense"


def sparsegpt(dense, output, **options):
    return compress_folder(dense, output, "sparsegpt", HALF, **OPTIONS | options)


def blocks_done(monkeypatch):
    """The blocks that are compressed from here on."""
    done, original = [], driver._groups
    monkeypatch.setattr(driver, "_groups", lambda *args: done.append(args[3]) or original(*args))
    return done


def fail_at(monkeypatch, owner, name, call, error):
    """Let the `call`-th call of a function fail."""
    original, count = getattr(owner, name), [0]

    def failing(*args, **kwargs):
        count[0] += 1
        if count[0] == call:
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, failing)


def killed_runs(*arguments):
    paths = [ROOT, os.path.dirname(os.path.dirname(crosscal.__file__))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.unit.disk.killed", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are killed by signals")
def test_after_a_kill_at_any_step_the_same_call_gives_the_same_files(dense, tmp_path):
    compress_folder(dense, tmp_path / "earlier", "magnitude", HALF, progress=False)
    shutil.copytree(tmp_path / "earlier", tmp_path / "out-0")
    n_steps = int(killed_runs(dense, tmp_path))
    whole = contents(tmp_path / "out-0")
    assert len(whole) > 10
    steps = sorted({*range(1, n_steps, n_steps // 20), *range(n_steps - 12, n_steps + 1)})
    for step in steps:
        shutil.copytree(tmp_path / "earlier", tmp_path / f"out-{step}")
    killed_runs(dense, tmp_path, *steps)
    reached = set()
    for step in steps:
        place = tmp_path / f"out-{step}"
        assert contents(place) in (contents(tmp_path / "earlier"), {}, whole)  # {} between two renames
        reached.add(journal.Journal(Place(place)).done)
        killed.run(dense, place)
        assert contents(place) == whole, f"killed at step {step}"
    assert reached == {0, 1, 2, 3}
    assert {path.name for path in tmp_path.iterdir()} == {
        "dense",
        "earlier",
        "out-0",
        *(f"out-{step}" for step in steps),
    }


@pytest.mark.parametrize("schedule", ["sublayer", "block", "parallel"])
@pytest.mark.parametrize("block", [1, 2])
def test_an_interrupted_run_goes_on_at_the_block_it_had_reached(schedule, block, dense, tmp_path, monkeypatch, caplog):
    expected = sparsegpt(dense, tmp_path / "whole", schedule=schedule)
    with monkeypatch.context() as patched:
        fail_at(patched, driver, "_groups", block + 1, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            sparsegpt(dense, tmp_path / "out", schedule=schedule)
    assert not (tmp_path / "out").exists()
    done = blocks_done(monkeypatch)
    with caplog.at_level(logging.WARNING):
        report = sparsegpt(dense, tmp_path / "out", schedule=schedule)
    assert done == list(range(block, 3))
    assert f"after {block} blocks" in caplog.text
    assert report.layers == expected.layers
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("call", [3, 30, 60])
def test_a_full_disk_keeps_the_earlier_output_and_the_work_so_far(call, dense, tmp_path, monkeypatch):
    sparsegpt(dense, tmp_path / "whole")
    compress_folder(dense, tmp_path / "out", "magnitude", NofM(1, 4), progress=False)
    earlier = contents(tmp_path / "out")
    with monkeypatch.context() as patched:
        fail_at(patched, TensorFile, "write", call, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(InputError, match=r"No space left on device.*start again"):
            sparsegpt(dense, tmp_path / "out", overwrite=True)
    assert contents(tmp_path / "out") == earlier
    sparsegpt(dense, tmp_path / "out", overwrite=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_too_little_room_is_noticed_before_anything_is_written(dense, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 100))
    with pytest.raises(InputError, match="free some space"):
        sparsegpt(dense, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"method": "wanda"}, "method"),
        ({"target": NofM(2, 4)}, "target"),
        ({"calibration": {"a": TEXT["a"]}}, "texts"),
        ({"weights": {"a": 0.25, "b": 0.75}}, "weights"),
        ({"damp": 0.1}, "damp"),
        ({"block": 16}, "options"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"model": "other"}, "model"),
        ({"model": "twin"}, "config"),
    ],
)
def test_work_of_another_request_is_not_continued(other, named, dense, tmp_path, monkeypatch, caplog):
    save_tiny(tmp_path / "other")
    tiny_model("llama", seed=1).save_pretrained(tmp_path / "other")
    shutil.copytree(dense, tmp_path / "twin")
    config = (dense / "config.json").read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05')
    (tmp_path / "twin" / "config.json").write_text(config)
    with monkeypatch.context() as patched:
        fail_at(patched, driver, "_groups", 3, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            sparsegpt(dense, tmp_path / "out")
    asked = {"model": "dense", "method": "sparsegpt", "target": HALF} | OPTIONS | other
    asked["model"] = tmp_path / asked["model"]
    done = blocks_done(monkeypatch)
    with caplog.at_level(logging.WARNING):
        compress_folder(output=tmp_path / "out", **asked)
    assert done == [0, 1, 2]
    assert f"had another {named}; starting afresh" in caplog.text
    compress_folder(output=tmp_path / "whole", **asked)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_an_existing_output_is_not_touched_unless_asked(dense, tmp_path):
    sparsegpt(dense, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(InputError, match="exists already"):
        sparsegpt(dense, tmp_path / "out")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="was not made by crosscal"):
        sparsegpt(dense, tmp_path / "theirs", overwrite=True)
    assert contents(tmp_path / "out") == before
    sparsegpt(dense, tmp_path / "out", overwrite=True, damp=0.5)
    assert contents(tmp_path / "out") != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "out", "theirs"]


def test_what_a_killed_process_left_beside_its_output_is_removed(dense, tmp_path):
    sparsegpt(dense, tmp_path / "out")
    shutil.copytree(dense, Place(tmp_path / "out").work / EARLIER)
    sparsegpt(dense, tmp_path / "out", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "out"]


def test_two_processes_do_not_make_the_same_output(dense, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    work = Place(tmp_path / "out").work
    work.mkdir()
    with open(work / journal.LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is making"):
            sparsegpt(dense, tmp_path / "out")
    sparsegpt(dense, tmp_path / "out")


def test_a_damaged_journal_is_no_journal(dense, tmp_path, monkeypatch):
    sparsegpt(dense, tmp_path / "whole")
    with monkeypatch.context() as patched:
        fail_at(patched, driver, "_groups", 3, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            sparsegpt(dense, tmp_path / "out")
    path = Place(tmp_path / "out").work / journal.JOURNAL
    body = json.loads(path.read_text())
    for damaged in ("", "[]", json.dumps(body)[:-20], json.dumps({**body, "layers": [{"nonsense": 1}]})):
        path.write_text(damaged)
        assert not journal.Journal(Place(tmp_path / "out")).done
    sparsegpt(dense, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_what_blocks_hand_on_is_kept_without_pickle(tmp_path):
    tree = [
        [(0, (1, 2), torch.arange(3)), (1, 0, None)],
        [{3: torch.ones(2, 2).T, "k": (torch.zeros(1), True, 2.5)}, {}],
    ]
    _save_tree(tree, tmp_path / "more.safetensors")
    with safe_open(tmp_path / "more.safetensors", "pt") as file:
        assert len(file.keys()) == 3
    carried, shared = _load_tree(tmp_path / "more.safetensors", torch.device("cpu"))
    assert carried[1] == (1, 0, None)
    assert (carried[0][:2], carried[0][2].tolist()) == ((0, (1, 2)), [0, 1, 2])
    assert (list(shared[0]), shared[0]["k"][1:], shared[1]) == ([3, "k"], (True, 2.5), {})
    with pytest.raises(InputError, match="cannot be kept in a file"):
        _save_tree([{1, 2}], tmp_path / "set.safetensors")
