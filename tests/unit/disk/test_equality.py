"""Streaming gives, bit for bit, what compressing the loaded model gives."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from crosscal.disk import compress_folder, folder
from crosscal.engine import driver
from crosscal.models import fast_dtype
from crosscal.output import tensorfile
from crosscal.types import Grid, LowRank, NofM, SparseGrid
from tests.unit.disk.common import HALF, TEXT, in_memory, same_weights
from tests.unit.families import FAMILIES, random_windows, save_tiny

QUIET = {"progress": False}
SMALL = {"calibration": TEXT, "micro_batch": 4}


def scarce(monkeypatch):
    """Let no micro-batch be parked."""
    monkeypatch.setattr(folder, "free_bytes", lambda device: 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_same_weights_and_logits(family, tmp_path):
    save_tiny(tmp_path / "dense", family)
    report = compress_folder(tmp_path / "dense", tmp_path / "out", "sparsegpt", HALF, **SMALL, **QUIET)
    loaded, expected = in_memory(tmp_path / "dense", "sparsegpt", HALF, **SMALL)
    assert same_weights(tmp_path / "out", loaded.model)
    assert report.layers == expected.layers
    again, ids = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="sdpa"),
        random_windows(2, 16),
    )
    assert torch.equal(again(ids).logits, loaded.model(ids).logits)
    assert again.dtype == torch.float32
    tied = loaded.model.get_input_embeddings().weight is loaded.model.get_output_embeddings().weight
    assert (again.get_input_embeddings().weight is again.get_output_embeddings().weight) == tied


@pytest.mark.parametrize("room", ["plenty", "scarce"])
@pytest.mark.parametrize("schedule", ["sublayer", "block", "parallel"])
@pytest.mark.parametrize("method", [("sparsegpt", SparseGrid(NofM(2, 4), Grid(4))), ("wanda", HALF), ("gptq", Grid(3))])
def test_every_schedule_gives_the_same_weights(method, schedule, room, tmp_path, monkeypatch):
    if room == "scarce":
        scarce(monkeypatch)
    save_tiny(tmp_path / "dense", "gemma3_text")
    options = SMALL | {"schedule": schedule}
    report = compress_folder(tmp_path / "dense", tmp_path / "out", *method, **options, **QUIET)
    loaded, expected = in_memory(tmp_path / "dense", *method, **options)
    assert same_weights(tmp_path / "out", loaded.model)
    assert report.layers == expected.layers


@pytest.mark.parametrize(
    ("method", "target", "text"),
    [
        ("magnitude", HALF, {}),
        ("magnitude", HALF, SMALL),
        ("rtn", Grid(4), {}),
        ("joint_rank", LowRank(0.5), {}),
        ("joint_rank", LowRank(0.5), SMALL),
        ("awq", Grid(4), SMALL),
        ("wanda", HALF, SMALL | {"measure_loss": False, "weights": {"a": 0.8, "b": 0.2}}),
    ],
)
def test_other_methods_give_the_same_weights(method, target, text, tmp_path):
    save_tiny(tmp_path / "dense", "gpt2")
    report = compress_folder(tmp_path / "dense", tmp_path / "out", method, target, **text, **QUIET)
    loaded, expected = in_memory(tmp_path / "dense", method, target, **text)
    assert same_weights(tmp_path / "out", loaded.model)
    assert report.layers == expected.layers


@pytest.mark.parametrize("scarcity", ["plenty", "scarce"])
def test_damping_is_raised_as_in_memory(scarcity, tmp_path, monkeypatch):
    """A Gram matrix of 8 tokens in 32 inputs is singular: without damping it cannot be factorized."""
    if scarcity == "scarce":
        scarce(monkeypatch)
    save_tiny(tmp_path / "dense")
    options = {"calibration": {"t": random_windows(1, 8)}, "damp": 1e-9}
    report = compress_folder(tmp_path / "dense", tmp_path / "out", "sparsegpt", HALF, **options, **QUIET)
    loaded, expected = in_memory(tmp_path / "dense", "sparsegpt", HALF, **options)
    assert same_weights(tmp_path / "out", loaded.model)
    assert report.layers == expected.layers
    assert max(layer.damp for layer in report.layers) > 1e-9


def test_weights_in_memory_pages_of_their_own_are_no_different(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorfile, "PAGES", 1)
    save_tiny(tmp_path / "dense")
    options = SMALL | {"dtype": "bfloat16"}
    compress_folder(tmp_path / "dense", tmp_path / "out", "gptq", Grid(4), **options, **QUIET)
    loaded, _ = in_memory(tmp_path / "dense", "gptq", Grid(4), dtype=computed_in(torch.bfloat16), **SMALL)
    assert same_weights(tmp_path / "out", loaded.model.to(torch.bfloat16), dtype="bfloat16")


def computed_in(dtype):
    """The dtype that this machine's CPU computes in when asked for `dtype`."""
    return dtype if fast_dtype("cpu") == dtype else torch.float32


def test_with_little_memory_micro_batches_are_not_parked(tmp_path, monkeypatch):
    """Otherwise the tests above would compare the usual schedule with itself."""
    save_tiny(tmp_path / "dense")
    used = []
    original = driver._SCHEDULES["sublayer in passes"]
    passes = {"sublayer in passes": lambda *args: used.append(args[0]) or original(*args)}
    monkeypatch.setattr(driver, "_SCHEDULES", driver._SCHEDULES | passes)
    compress_folder(tmp_path / "dense", tmp_path / "plenty", "wanda", HALF, **SMALL, **QUIET)
    assert not used
    scarce(monkeypatch)
    compress_folder(tmp_path / "dense", tmp_path / "scarce", "wanda", HALF, **SMALL, **QUIET)
    assert used == [0, 1, 2]
