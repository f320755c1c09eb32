"""Mixtures of experts: each expert is compressed on the tokens that reach it, in memory and streamed alike."""

import pytest
import torch

from crosscal.disk import compress_folder
from crosscal.engine.driver import compress
from crosscal.engine.gather import gather_statistics, load_statistics
from crosscal.errors import InputError
from crosscal.models import inventory, load_model
from crosscal.types import Grid, LowRank, NofM, SparseGrid, Unstructured
from tests.unit.families import random_windows, save_tiny, tiny_model

HALF = Unstructured(0.5)
QUIET = {"progress": False}
TEXT = {"a": random_windows(6, 32), "b": random_windows(4, 32, seed=1)}
MIXTURES = ("qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3", "llama4_text", "glm4_moe", "granitemoe")
METHODS = {
    "magnitude": HALF,
    "wanda": HALF,
    "sparsegpt": SparseGrid(NofM(2, 4), Grid(4)),
    "gptq": Grid(4),
    "awq": Grid(4),
    "dpruner": HALF,
    "asvd": LowRank(0.5),
}


def equal(model, other):
    return all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("kind", MIXTURES)
@pytest.mark.parametrize("schedule", ["sublayer", "parallel"])
def test_every_expert_is_compressed_in_memory_and_streamed_alike(kind, schedule, tmp_path):
    save_tiny(tmp_path / "dense", kind)
    options = {"calibration": TEXT, "micro_batch": 2, "schedule": schedule} | QUIET
    for method, target in (("wanda", HALF), ("gptq", Grid(4))):
        streamed = compress_folder(tmp_path / "dense", tmp_path / method, method, target, **options)
        loaded = load_model(tmp_path / "dense", dtype="float32")
        report = compress(loaded, method, target, **options)
        assert report.layers == streamed.layers
        assert report.inventory == streamed.inventory
        assert equal(load_model(tmp_path / method, dtype="float32").model, loaded.model)
        parts = inventory(loaded.model)
        assert parts.share > 0.95
        names = [f"{n}.{layer.name}" for n, block in enumerate(parts.layers) for layer in block]
        assert sorted(layer.name for layer in report.layers) == sorted(names)
        if method == "wanda":
            assert all(abs(layer.sparsity - 0.5) < 0.03 for layer in report.layers)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("schedule", ["sublayer", "block", "parallel"])
def test_every_method_takes_experts_that_few_tokens_reach(method, schedule):
    model = tiny_model("qwen3_moe")
    few = {"a": random_windows(1, 6), "b": random_windows(1, 3, seed=1)}
    report = compress(model, method, METHODS[method], calibration=few, schedule=schedule, **QUIET)
    experts = [layer for layer in report.layers if ".experts." in layer.name]
    assert {layer.name.split(".experts.")[1].split(".")[0] for layer in experts} == set("0123")
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    if method != "magnitude":
        assert {"experts of the layer"} <= {layer.fallback for layer in experts} <= {"", "experts of the layer"}
    assert not {layer.fallback for layer in report.layers if layer not in experts} - {""}
    routed = [sum(layer.tokens.values()) for layer in experts if layer.name.startswith("0.") and "down" in layer.name]
    assert sum(routed) == 2 * 9  # two experts for each token


def test_experts_without_any_text_are_compressed_by_their_weights():
    model, magnitude = tiny_model("qwen3_moe"), tiny_model("qwen3_moe")
    for one in (model, magnitude):
        one.model.layers[0].mlp.gate.weight[2:] = -1e9
        one.model.layers[0].mlp.gate.weight[:2] = 1e-9
    text = {"a": random_windows(4, 16)}
    before = model.model.layers[0].mlp.experts.down_proj[3].clone()
    report = compress(model, "wanda", HALF, calibration=text, **QUIET)
    after = model.model.layers[0].mlp.experts.down_proj[3]
    assert (after == 0).float().mean() == pytest.approx(0.5, abs=0.03)
    assert torch.equal(after[after != 0], before[after != 0])
    unreached = [layer for layer in report.layers if layer.fallback]
    assert all(not sum(layer.tokens.values()) or sum(layer.tokens.values()) < 64 for layer in unreached)


def test_statistics_of_experts_serve_many_runs(tmp_path):
    gather_statistics(tiny_model("mixtral"), TEXT, folder=tmp_path, **QUIET)
    for method in ("wanda", "gptq"):
        direct, model = tiny_model("mixtral"), tiny_model("mixtral")
        expected = compress(direct, method, METHODS[method], calibration=TEXT, schedule="parallel", **QUIET)
        report = compress(model, method, METHODS[method], statistics=load_statistics(tmp_path), **QUIET)
        assert equal(model, direct)
        assert report.layers == expected.layers


def test_layers_are_left_out_and_alone_compressed():
    model, dense = tiny_model("qwen3_moe"), tiny_model("qwen3_moe")
    report = compress(model, "magnitude", HALF, skip=["*.experts.*"], **QUIET)
    assert not [layer for layer in report.layers if "experts" in layer.name]
    assert torch.equal(model.model.layers[0].mlp.experts.down_proj, dense.model.layers[0].mlp.experts.down_proj)
    assert report.inventory["left_out"]["asked to be left out"]["names"]
    report = compress(tiny_model("qwen3_moe"), "magnitude", HALF, only=["0.*"], **QUIET)
    assert {layer.name.split(".")[0] for layer in report.layers} == {"0"}
    with pytest.raises(InputError, match="no layer matches"):
        compress(model, "magnitude", HALF, skip=["nothing.*"], **QUIET)


def test_a_model_most_of_which_cannot_be_compressed_is_refused(monkeypatch):
    monkeypatch.setattr("crosscal.engine.request.LEAST_SHARE", 1.01)
    with pytest.raises(InputError, match=r"only .* are compressed; left out: .*partial=True"):
        compress(tiny_model("qwen3_moe"), "magnitude", HALF, **QUIET)
    compress(tiny_model("qwen3_moe"), "magnitude", HALF, partial=True, **QUIET)


def test_packed_experts_are_refused_before_anything_is_written(tmp_path):
    pytest.importorskip("compressed_tensors")
    save_tiny(tmp_path / "dense", "qwen3_moe")
    with pytest.raises(InputError, match="which compressed-tensors cannot store"):
        compress_folder(tmp_path / "dense", tmp_path / "out", "rtn", Grid(4), storage="compressed-tensors", **QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]
