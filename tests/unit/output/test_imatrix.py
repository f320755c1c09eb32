"""Importance matrices: the sums of the formula, read back by `gguf`, with the names of the model's own GGUF file."""

import json

import gguf
import numpy as np
import pytest
import torch

from crosscal.cli import main
from crosscal.errors import InputError
from crosscal.models import inventory, load_model
from crosscal.output.imatrix import _Names, importance_matrix, write_importance
from crosscal.text import TextWindows, load_text
from tests.unit.cli.conftest import write_text
from tests.unit.families import save_tiny, tiny_config

LAYERS = {
    "self_attn.q_proj": ["attn_q"],
    "self_attn.o_proj": ["attn_output"],
    "mlp.gate_proj": ["ffn_gate"],
    "mlp.down_proj": ["ffn_down"],
}


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """Two texts of unequal length on a tiny model, and that model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CROSSCAL_CACHE", str(tmp_path / "cache"))
    save_tiny(tmp_path / "tiny")
    write_text(tmp_path / "notes.jsonl")
    loaded = load_model("tiny", dtype="float32")
    windows = load_text("notes.jsonl", loaded.tokenizer, n_windows=6, length=24)
    parts = {"a": windows.tokens[:4], "b": windows.tokens[4:]}
    return loaded, {name: TextWindows.of(name, "calibration", "", 0, tokens) for name, tokens in parts.items()}


def energy(loaded, tokens) -> dict[str, tuple[np.ndarray, int]]:
    """The oracle: by layer, the sum over tokens of the squared inputs, in float64, from hooks on the whole model."""
    sums: dict[str, list] = {}
    paths = {id(module): name for name, module in loaded.model.named_modules()}
    layers = [layer for block in inventory(loaded.model).layers for layer in block]

    def hook(module, args):
        inputs = args[0].detach().double().reshape(-1, args[0].shape[-1])
        sums.setdefault(paths[id(module)], []).append((inputs.square().sum(0).numpy(), len(inputs)))

    hooks = [layer.module.register_forward_pre_hook(hook) for layer in layers]
    with torch.no_grad():
        for window in tokens:
            loaded.model(window[None])
    for one in hooks:
        one.remove()
    return {name: (sum(s for s, _ in parts), sum(n for _, n in parts)) for name, parts in sums.items()}


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_mix_is_that_of_means_per_token(texts, share):
    loaded, windows = texts
    shares = {"a": 1 - share, "b": share}
    matrix, unnamed = importance_matrix(loaded, loaded.model.config, windows, shares, progress=False)
    assert unnamed == []
    assert len(matrix) == 7 * loaded.model.config.num_hidden_layers
    of = {name: energy(loaded, part.tokens) for name, part in windows.items()}
    for layer, (stem,) in LAYERS.items():
        found = matrix[f"blk.1.{stem}.weight"]
        means = {
            name: sums[f"model.layers.1.{layer}"][0] / sums[f"model.layers.1.{layer}"][1] for name, sums in of.items()
        }
        expected = sum(shares[name] * means[name] for name in shares)
        np.testing.assert_allclose(found.sums[0] / found.counts[0], expected, rtol=1e-5)
        assert float(found.counts[0]) == pytest.approx(6 * 24)


def test_the_file_is_what_llama_cpp_reads(texts, tmp_path):
    loaded, windows = texts
    shares = {"a": 0.25, "b": 0.75}
    matrix, _ = importance_matrix(loaded, loaded.model.config, windows, shares, progress=False)
    write_importance(tmp_path / "mixed.gguf", matrix, shares, (6, 24))
    read = gguf.GGUFReader(tmp_path / "mixed.gguf")
    fields = {name: field.contents() for name, field in read.fields.items() if not name.startswith("GGUF.")}
    assert fields == {
        "general.type": "imatrix",
        "imatrix.datasets": ["a", "b"],
        "imatrix.chunk_count": 6,
        "imatrix.chunk_size": 24,
        "crosscal.weights": [0.25, 0.75],
    }
    tensors = {tensor.name: tensor for tensor in read.tensors}
    assert set(tensors) == {f"{name}.{part}" for name in matrix for part in ("in_sum2", "counts")}
    for name, part in matrix.items():
        sums, counts = tensors[f"{name}.in_sum2"], tensors[f"{name}.counts"]
        assert (sums.tensor_type, counts.tensor_type) == (gguf.GGMLQuantizationType.F32,) * 2
        assert (list(sums.shape), list(counts.shape)) == ([part.sums.shape[1], 1], [1, 1])
        np.testing.assert_array_equal(sums.data, part.sums.numpy())
        np.testing.assert_array_equal(counts.data[:, 0], part.counts.numpy())


def test_experts_count_the_tokens_routed_to_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "moe", "qwen3_moe")
    loaded = load_model("moe", dtype="float32")
    tokens = torch.randint(1, 100, (3, 16), generator=torch.Generator().manual_seed(0))
    windows = {"a": TextWindows.of("a", "calibration", "", 0, tokens)}
    matrix, unnamed = importance_matrix(loaded, loaded.model.config, windows, {"a": 1.0}, progress=False)
    assert unnamed == []
    config = loaded.model.config
    gate, up = (matrix[f"blk.0.ffn_{name}_exps.weight"] for name in ("gate", "up"))
    assert torch.equal(gate.sums, up.sums)
    assert gate.sums.shape == (config.num_experts, config.hidden_size)
    assert float(gate.counts.sum()) == pytest.approx(48 * config.num_experts_per_tok)


@pytest.mark.parametrize(
    "kind", ["llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma3_text", "gpt2", "gpt_neox", "phi3"]
)
def test_architectures_are_known_by_their_names_in_llama_cpp(kind):
    names = _Names(tiny_config(kind))
    assert names.of({"gpt2": "transformer.h.0.mlp.c_fc", "gpt_neox": "gpt_neox.layers.0.mlp.dense_h_to_4h"}.get(
        kind, "model.layers.0.mlp.down_proj")) in (["blk.0.ffn_down.weight"], ["blk.0.ffn_up.weight"])  # fmt: skip


def test_an_architecture_that_llama_cpp_has_not_is_refused_before_anything_runs():
    with pytest.raises(InputError, match="not known to gguf"):
        _Names(tiny_config("xglm"))


def test_the_command_streams_refuses_and_tells(texts, tmp_path, capsys, monkeypatch):
    line = ["imatrix", "--model", "tiny", "--sources", "notes.jsonl", "--windows", "3", "--length", "20"]
    line += ["--dtype", "float32", "--quiet", "--json"]
    assert main([*line, "--output", "memory.gguf"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["tensors"], told["tokens"], told["unnamed"]) == (21, 60, [])
    assert main([*line, "--output", "memory.gguf"]) == 1  # it exists
    monkeypatch.setattr("crosscal.study.session.free_bytes", lambda device: 0)
    assert main([*line, "--output", "streamed.gguf"]) == 0
    assert (tmp_path / "streamed.gguf").read_bytes() == (tmp_path / "memory.gguf").read_bytes()
    assert main([*line, "--output", "no.gguf", "--dry-run"]) == 0
    assert not (tmp_path / "no.gguf").exists()
