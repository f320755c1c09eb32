"""`crosscal doctor`: every line says what is there or what to do; estimates need no weights."""

import json
from dataclasses import replace

import pytest

from crosscal.cli import doctor
from crosscal.machine import Machine, facts, samples
from crosscal.machine.facts import _Device as Device
from crosscal.machine.facts import _Disk as Disk

GIB = 2**30


@pytest.fixture
def made_up(monkeypatch):
    """A machine as told: two cores with bfloat16 units, a GPU without, everything installed, nothing else running."""
    packages = {name: "1.0" for names in (facts._CORE, *facts._EXTRAS.values()) for name in names}
    found = Machine(
        devices=(
            Device("cuda:0", "Old GPU", 8 * GIB, 16 * GIB, False),
            Device("cpu", "A CPU", 9 * GIB, 16 * GIB, True),
        ),
        cores=2,
        threads=2,
        load=0.1,
        disks=(Disk("models", facts.cache_dir(), 100 * GIB),),
        packages=packages,
    )

    def tell(**changes):
        monkeypatch.setattr(doctor, "this_machine", lambda: replace(found, **changes))

    tell()
    return tell, packages


def states(body):
    return {check["name"]: check["state"] for check in body["checks"]}


def test_a_line_for_each_device_disk_and_extra(crosscal, made_up):
    found = crosscal("doctor")
    assert found.status == 0
    assert "ok      cpu" in found.out
    assert "slow    cuda:0" in found.out
    assert "no bfloat16 units" in found.out
    assert "2 cores, 2 threads" in found.out
    assert "100.0 GiB free for models" in found.out
    assert "torch 1.0" in found.out


def test_what_is_missing_comes_with_the_command_that_installs_it(crosscal, made_up):
    tell, packages = made_up
    tell(packages=packages | {"lm-eval": None, "compressed-tensors": None})
    found = crosscal("doctor")
    assert "lm-eval not installed, needed for" in found.out
    assert "pip install 'crosscal[study]'" in found.out
    body = json.loads(crosscal("doctor", "--json").out)
    assert states(body) == {
        "cuda:0": "slow",
        "cpu": "ok",
        "disk": "ok",
        "core": "ok",
        "study": "missing",
        "book": "ok",
        "quantized": "missing",
    }


def test_a_busy_machine_without_gpu_and_little_disk_is_said_to_be_slow(crosscal, made_up):
    made_up[0](
        devices=(Device("cpu", "A CPU", GIB, 2 * GIB, True),),
        load=3.0,
        disks=(Disk("x", facts.cache_dir(), GIB),),
    )
    body = json.loads(crosscal("doctor", "--json").out)
    assert {name for name, state in states(body).items() if state == "slow"} == {"cpu", "GPU", "load", "disk"}


def test_an_estimate_from_the_config_alone(crosscal, made_up, tiny, room, monkeypatch):
    monkeypatch.setattr(samples, "_ENOUGH", 0.0)
    (room / "only_config").mkdir()
    (room / "only_config" / "config.json").write_text((tiny / "config.json").read_text())
    arguments = [
        "doctor",
        "--model",
        "only_config",
        "--method",
        "gptq",
        "--windows",
        4,
        "--length",
        24,
        "--device",
        "cpu",
    ]
    body = json.loads(crosscal(*arguments, "--json").out)
    assert body["estimate"]["seconds"] > 0
    assert states(body)["fits"] == "ok"
    assert "an estimate, good to a factor of two" in crosscal(*arguments).out
    made_up[0](devices=(Device("cpu", "A CPU", 1000, 2000, True),))
    found = crosscal(*arguments)
    assert "give fewer --windows" in found.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "./none"], "no model at ./none"),
        (["--model", "TINY", "--method", "wnda"], "did you mean 'wanda'?"),
        (["--model", "TINY", "--method", "gptq", "--sparsity", "0.5"], "gptq does not compress to 50%"),
        (["--model", "TINY", "--schedule", "blok"], "did you mean 'block'?"),
        (["--model", "TINY", "--windows", "0"], "--windows is 0"),
    ],
)
def test_what_is_wrong_is_one_sentence(crosscal, made_up, tiny, arguments, sentence):
    found = crosscal("doctor", *[tiny if argument == "TINY" else argument for argument in arguments])
    assert found.status == 1
    assert sentence in found.err
    assert len(found.err.strip().splitlines()) == 1
