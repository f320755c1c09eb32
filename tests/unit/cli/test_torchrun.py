"""The command line on several ranks: one voice, one writer, a killed rank, two machines."""

import json
import os
import shutil
import socket
import subprocess

import pytest
import torch
from safetensors.torch import load_file

from tests.unit.cli.conftest import write_text
from tests.unit.disk.common import contents
from tests.unit.engine.test_ranks import ROOT, finished, torchrun

COMPRESS = ["compress", "--method", "sparsegpt", "--sparsity", "0.5", "--sources", "notes.jsonl=0.5,more.jsonl=0.5"]
COMPRESS += ["--windows", "5", "--length", "24", "--dtype", "float32", "--device", "cpu"]
ENDED = "a process of this run ended or was told to"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder with two texts."""
    folder = tmp_path_factory.mktemp("torchrun")
    write_text(folder / "notes.jsonl")
    write_text(folder / "more.jsonl", documents=40)
    return folder


@pytest.fixture(scope="module")
def start(place, tiny):
    """Start a command line on several ranks; a process that may have a module of its own and options of torchrun."""
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": paths, "CROSSCAL_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1"}

    def started(n, *arguments, module="crosscal", more=()):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        full = [*arguments, "--model", tiny] if {"--model", "verify"}.isdisjoint(arguments) else arguments
        return torchrun(n, module, *full, more=more, cwd=place, env=environment, **pipes)

    return started


@pytest.fixture(scope="module")
def halved(start, place):
    """The folder that two ranks made, and all that they said."""
    said = finished(start(2, *COMPRESS, "--output", "out-two"))
    return place / "out-two", said


def made_as(folder):
    """The bytes of every file, but for the folder's own name, which the record tells."""
    return {path: data.replace(folder.name.encode(), b"out") for path, data in contents(folder).items()}


@pytest.mark.slow
def test_two_ranks_write_one_folder_and_speak_with_one_voice(halved):
    folder, (status, out, err) = halved
    assert status == 0, err
    assert out.count("written to out-two") == 1
    assert err.count("read notes.jsonl") == 1
    assert json.loads((folder / "crosscal.json").read_text())["made"]["ranks"] == 2
    assert not [path.name for path in folder.parent.iterdir() if path.name.startswith(".out-two")]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_stops_all_and_the_same_command_goes_on(start, place, halved, rank):
    name = f"out-killed-{rank}"
    full = [*COMPRESS, "--output", name]
    status, _, err = finished(start(2, rank, 1, *full, module="tests.unit.cli.killed_rank"))
    assert status != 0
    assert not (place / name).exists()
    assert err.count(ENDED) == 1
    status, _, err = finished(start(2, *full))
    assert status == 0, err
    assert "after 1 blocks" in err
    assert made_as(place / name) == made_as(halved[0])


@pytest.mark.slow
def test_two_agents_that_meet_make_what_one_makes(start, place, halved):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = f"127.0.0.1:{free.getsockname()[1]}"
    more = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-id", "both", "--rdzv-endpoint", meeting]
    agents = [start(1, *COMPRESS, "--output", "out-agents", more=more) for _ in range(2)]
    ended = [finished(agent) for agent in agents]
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert sum(out.count("written to") for _, out, _ in ended) == 1
    assert made_as(place / "out-agents") == made_as(halved[0])


@pytest.mark.slow
def test_an_error_is_said_once(start, place):
    status, _, err = finished(start(2, *COMPRESS, "--output", "notes.jsonl"))
    assert status != 0
    assert err.count("notes.jsonl exists already") == 1
    status, _, err = finished(start(2, "report", "--domain", "notes.jsonl", "--output", "page.html"))
    assert status != 0
    assert err.count("start crosscal report without it") == 1


@pytest.mark.slow
def test_a_dry_run_tells_the_memory_of_each_rank(start):
    status, out, err = finished(start(2, *COMPRESS, "--output", "dry", "--dry-run", "--json"))
    assert status == 0, err
    assert json.loads(out)["estimate"]["ranks"] == 2
    assert "on each of 2 processes" in json.loads(out)["estimate"]["text"]


@pytest.mark.slow
def test_what_ranks_made_is_verified_by_as_many(start, halved):
    status, out, err = finished(start(2, "verify", str(halved[0])))
    assert status == 0, err
    assert "the same bytes" in out
    status, _, err = finished(start(1, "verify", str(halved[0])))
    assert status != 0
    assert err.count("torchrun --nproc-per-node 2 -m crosscal verify") == 1


@pytest.mark.slow
def test_ranks_evaluate_to_the_numbers_of_one(start, place, tiny, halved):
    texts = ["evaluate", "--model", str(halved[0]), "--dense", str(tiny), "--texts", "notes.jsonl", "--windows", "4"]
    texts += ["--length", "16", "--dtype", "float32", "--device", "cpu", "--json"]
    status, out, err = finished(start(2, *texts, "--output", "two.json"))
    assert status == 0, err
    shutil.rmtree(place / "cache")
    status, one, err = finished(start(1, *texts))
    assert status == 0, err
    assert json.loads(out) == json.loads(one) == json.loads((place / "two.json").read_text())
    status, out, err = finished(start(4, *texts, "--windows", "6"))
    assert status != 0
    assert err.count("has 6 windows for 4 processes") == 1


@pytest.mark.slow
def test_four_ranks_of_which_some_have_no_windows(start, place):
    few = [*COMPRESS, "--windows", "2", "--output"]
    for output in ("out-four", "out-again"):
        status, _, err = finished(start(4, *few, output))
        assert status == 0, err
    assert made_as(place / "out-four") == made_as(place / "out-again")
    status, _, err = finished(start(1, *few, "out-one"))
    assert status == 0, err
    four, one = (load_file(next((place / name).glob("model-00001-*.safetensors"))) for name in ("out-four", "out-one"))
    assert all(torch.equal(four[name] != 0, one[name] != 0) for name in one)
