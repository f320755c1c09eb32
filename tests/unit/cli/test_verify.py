"""`crosscal verify`: the same bytes on the same machine, and where and why the ways part otherwise."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.cli.conftest import write_text


@pytest.fixture
def half(compress, room):
    """A folder at half the weights."""
    assert compress("--sparsity", 0.5, "--output", "half").status == 0
    return room / "half"


def rewrite(path, change) -> None:
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_a_folder_made_again_has_the_same_bytes(crosscal, half, room):
    ran = crosscal("verify", "half")
    assert (ran.status, ran.out.startswith("half: the same bytes")) == (0, True)
    assert sorted(path.name for path in room.iterdir() if "half" in path.name) == ["half"]
    found = json.loads(crosscal("verify", "half", "--json", "--quiet").out)
    assert (found["same"], found["exit_status"], len(found["weights"])) == (True, 0, 64)


def test_the_first_layer_that_was_changed_is_named(crosscal, half):
    for path in half.glob("*.safetensors"):
        weights = load_file(path)
        for name in ("model.layers.1.self_attn.k_proj.weight", "model.layers.1.mlp.down_proj.weight"):
            if name in weights:
                weights[name][0, 0] += 1
                save_file(weights, path, {"format": "pt"})
    ran = crosscal("verify", "half")
    assert ran.status == 1
    assert "model.layers.1.self_attn.k_proj.weight, which differs in" in ran.out
    assert "after equal statistics of its inputs" in ran.out
    assert "the folder was changed after it was made" in ran.out


def test_another_text_another_version_and_another_machine_are_told(crosscal, half, room):
    write_text(room / "notes.jsonl", documents=70)
    rewrite(half / "crosscal.json", lambda record: record["made"].update(machine="another", versions="torch 1"))
    ran = crosscal("verify", "half", "--json")
    found = json.loads(ran.out)
    assert ran.status == 1
    assert found["first_difference"]["where"] == "with other statistics of its inputs"
    assert found["reasons"][0] == "the text notes.jsonl has changed"
    assert found["reasons"][1].startswith("versions differs: torch 1 then, crosscal ")
    assert found["reasons"][2].startswith("the machine differs: another then, ")


def test_a_tensor_that_is_missing_or_of_another_type_is_a_difference(crosscal, half):
    path = next(path for path in sorted(half.glob("model*.safetensors")) if "model.norm.weight" in load_file(path))
    weights = load_file(path)
    weights["model.norm.weight"] = weights["model.norm.weight"].to(torch.float64)
    save_file(weights, path, {"format": "pt"})
    found = json.loads(crosscal("verify", "half", "--json").out)["first_difference"]
    assert (found["tensor"], found["layer"]) == ("model.norm.weight", None)
    assert found["what"] == "is torch.float64 [32] there and torch.float32 [32] made again"


def test_a_folder_without_a_record_is_refused(crosscal, half, tiny, room):
    for folder in ("nowhere", str(tiny)):
        ran = crosscal("verify", folder)
        assert (ran.status, ran.out, len(ran.err.splitlines())) == (2, "", 1)
    (room / "notes.jsonl").unlink()
    ran = crosscal("verify", "half", "--quiet")
    assert (ran.status, "notes.jsonl" in ran.err) == (2, True)
    assert (half / "crosscal.json").exists()


def test_a_dry_run_makes_nothing(crosscal, half, room):
    ran = crosscal("verify", "half", "--dry-run")
    assert (ran.status, ran.out.splitlines()[-1]) == (0, "nothing was done: this was a dry run")
    assert not list(room.glob(".half*"))
