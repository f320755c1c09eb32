"""What cannot be streamed is done in memory, and packed output is that of `save_model`."""

import json
import logging

import pytest
import torch
from transformers import LlamaConfig, MixtralConfig, MixtralForCausalLM

from crosscal.disk import compress_folder
from crosscal.disk.checkpoint import _Checkpoint as Checkpoint
from crosscal.methods.allocation import Owl
from crosscal.models import load_model
from crosscal.output.export import save_model
from crosscal.types import Grid, NofM, PerGroup, SparseGrid
from tests.unit.disk.common import HALF, TEXT, in_memory, same_weights
from tests.unit.families import FAMILIES, save_tiny, tiny_tokenizer

OPTIONS = {"calibration": TEXT, "micro_batch": 4}
QUIET = {"progress": False}


@pytest.fixture
def dense(tmp_path):
    save_tiny(tmp_path / "dense")
    return tmp_path / "dense"


@pytest.mark.parametrize(
    ("method", "options", "reason"),
    [("dpruner", {}, "dpruner needs gradients"), ("wanda", {"allocation": Owl(limit=0.2)}, "OWL looks at all blocks")],
)
def test_what_looks_at_all_blocks_is_done_in_memory(method, options, reason, dense, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        report = compress_folder(dense, tmp_path / "out", method, HALF, **OPTIONS, **options, **QUIET)
    assert len(caplog.records) == 1
    assert f"is loaded into memory as a whole, because {reason}" in caplog.text
    loaded, expected = in_memory(dense, method, HALF, **OPTIONS, **options)
    assert same_weights(tmp_path / "out", loaded.model)
    assert report.layers == expected.layers
    body = json.loads((tmp_path / "out" / "crosscal.json").read_text())
    assert body["made"]["texts"].keys() == TEXT.keys()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "out"]


def test_a_checkpoint_in_another_layout_is_streamed(tmp_path, caplog):
    """Mixtral's experts are stored one by one and used as one tensor."""
    sizes = {name: size for name, size in FAMILIES["llama"].items() if name in LlamaConfig().to_dict()}
    config = MixtralConfig(**sizes, num_local_experts=2, num_experts_per_tok=1)
    config.update({"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2})
    MixtralForCausalLM(config).save_pretrained(tmp_path / "dense")
    tiny_tokenizer().save_pretrained(tmp_path / "dense")
    for method in ("wanda", "magnitude"):
        compress_folder(tmp_path / "dense", tmp_path / method, method, HALF, **OPTIONS, **QUIET)
        assert not caplog.records
        assert same_weights(tmp_path / method, in_memory(tmp_path / "dense", method, HALF, **OPTIONS)[0].model)
        stored = Checkpoint(tmp_path / method).home
        assert "model.layers.0.block_sparse_moe.experts.0.w1.weight" in stored


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("method", "target"),
    [("gptq", Grid(4, PerGroup(16))), ("rtn", Grid(3, symmetric=True)), ("sparsegpt", SparseGrid(NofM(2, 4), Grid(4)))],
)
def test_packed_weights_are_those_of_the_dense_output(method, target, dtype, dense, tmp_path):
    pytest.importorskip("compressed_tensors")
    options = OPTIONS | QUIET | {"dtype": dtype}
    compress_folder(dense, tmp_path / "plain", method, target, **options)
    compress_folder(dense, tmp_path / "packed", method, target, storage="compressed-tensors", **options)
    plain = load_model(tmp_path / "plain", dtype=dtype)
    assert same_weights(tmp_path / "packed", plain.model, dtype)
    saved = save_model(plain, tmp_path / "saved", storage="compressed-tensors", grid=getattr(target, "grid", target))
    mine, theirs = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "packed", saved))
    assert mine["quantization_config"] == theirs["quantization_config"]
    assert mine["dtype"] == dtype
    sizes = [sum(f.stat().st_size for f in (tmp_path / name).glob("model*")) for name in ("packed", "plain")]
    assert sizes[0] < sizes[1]


def test_what_has_no_codes_is_refused_before_anything_is_written(dense, tmp_path):
    save_tiny(tmp_path / "transposed", "gpt2")
    for source, method, target, sentence in [
        (dense, "awq", Grid(4), "cannot hold the weights of awq exactly"),
        (dense, "wanda", HALF, "does not round weights to a grid"),
        (dense, "rtn", Grid(4, PerGroup(20)), "do not divide"),
        (tmp_path / "transposed", "rtn", Grid(4), "Conv1D"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            compress_folder(source, tmp_path / "out", method, target, storage="compressed-tensors", **OPTIONS, **QUIET)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "transposed"]


def test_the_callers_torch_settings_stay(dense, tmp_path):
    before = torch.is_grad_enabled(), torch.get_default_dtype(), torch.random.get_rng_state().tolist()
    compress_folder(dense, tmp_path / "out", "sparsegpt", HALF, dtype="bfloat16", **OPTIONS, **QUIET)
    assert before == (torch.is_grad_enabled(), torch.get_default_dtype(), torch.random.get_rng_state().tolist())
