"""Parameters matched with the tensors of a checkpoint, read from them and put back."""

import pytest
import torch
from safetensors.torch import load_file

from crosscal.models.layout import stored_parameters
from tests.unit.families import tiny_model

FAMILIES = ("gpt2", "mixtral", "qwen3_moe", "gpt_oss", "llama4_text", "nemotron_h", "olmo_hybrid", "hrm_text", "gemma3")


def checkpoint(folder, family):
    model = tiny_model(family)
    model.save_pretrained(folder)
    return model, load_file(folder / "model.safetensors")


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_read_and_put_back_exactly(tmp_path, family):
    model, tensors = checkpoint(tmp_path, family)
    stored, unmatched, wrong = stored_parameters(model, {key: tuple(part.shape) for key, part in tensors.items()})
    assert not unmatched
    assert not wrong
    values, written = model.state_dict(), {}
    for place in set(stored.values()):
        read = place.read(tensors.__getitem__)
        assert set(read) == set(place.names)
        assert all(torch.equal(part, values[name]) for name, part in read.items())
        written |= place.write(read)
    assert written.keys() == tensors.keys()
    assert all(torch.equal(part, tensors[key]) for key, part in written.items())


def test_experts_are_stored_one_by_one(tmp_path):
    model, tensors = checkpoint(tmp_path, "mixtral")
    place = stored_parameters(model, {key: part.shape for key, part in tensors.items()})[0]
    down = place["model.layers.0.mlp.experts.down_proj"]
    assert down.keys == tuple(f"model.layers.0.block_sparse_moe.experts.{n}.w2.weight" for n in range(4))
    changed = down.write({down.names[0]: torch.arange(4.0)[:, None, None].expand(4, 64, 96)})
    assert [float(changed[key].mean()) for key in down.keys] == [0, 1, 2, 3]


def test_tensors_that_match_nothing_are_named(tmp_path):
    model, tensors = checkpoint(tmp_path, "qwen3_moe")
    shapes = {key: tuple(part.shape) for key, part in tensors.items()} | {"mtp.eh_proj.weight": (64, 128)}
    assert stored_parameters(model, shapes)[1] == ["mtp.eh_proj.weight"]


def test_experts_that_are_missing_are_no_match(tmp_path):
    model, tensors = checkpoint(tmp_path, "mixtral")
    gone = "model.layers.0.block_sparse_moe.experts.1.w1.weight"
    shapes = {key: tuple(part.shape) for key, part in tensors.items() if key != gone}
    assert stored_parameters(model, shapes)[2] == ["model.layers.0.mlp.experts.gate_up_proj"]
