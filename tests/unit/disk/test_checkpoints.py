"""Checkpoints as they are found: sharded, named otherwise, tied or not, of any dtype, and damaged ones."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from crosscal.disk import StreamedModel, compress_folder, folder
from crosscal.disk.checkpoint import _Checkpoint
from crosscal.errors import InputError
from crosscal.methods.allocation import Owl
from crosscal.models import decoder_blocks, linear_layers, load_model
from tests.unit.disk.common import HALF, TEXT, in_memory, same_weights
from tests.unit.families import FAMILIES, random_windows, save_tiny, tiny_model, tiny_tokenizer

QUIET = {"progress": False}


def wanda(source, output, **options):
    return compress_folder(source, output, "wanda", HALF, calibration=TEXT, **QUIET, **options)


def rewrite(folder, change):
    """Save the one file of a folder with `change` applied to its tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.fixture
def dense(tmp_path):
    save_tiny(tmp_path / "dense")
    return tmp_path / "dense"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_fingerprint_is_that_of_the_loaded_model(family, dtype, tmp_path):
    save_tiny(tmp_path, family)
    weights = StreamedModel(str(tmp_path), dtype=dtype, progress=False)
    loaded = load_model(tmp_path, dtype=dtype)
    assert weights.fingerprint == loaded.fingerprint
    mine, theirs = dict(weights.model.named_buffers()), dict(loaded.model.named_buffers())
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) and mine[name].dtype == theirs[name].dtype for name in mine)


def test_a_sharded_checkpoint_is_read_shard_by_shard(tmp_path):
    save_tiny(tmp_path / "dense", max_shard_size="20KB")
    assert len(list((tmp_path / "dense").glob("model-*.safetensors"))) > 3
    wanda(tmp_path / "dense", tmp_path / "out")
    assert same_weights(tmp_path / "out", in_memory(tmp_path / "dense", "wanda", HALF, calibration=TEXT)[0].model)


def test_names_without_the_models_prefix_are_kept(tmp_path):
    """As in GPT-2's own checkpoint, which was saved from the body alone."""
    save_tiny(tmp_path / "dense", "gpt2")
    tiny_model("gpt2").transformer.save_pretrained(tmp_path / "body")
    shutil.copy(tmp_path / "body" / "model.safetensors", tmp_path / "dense")
    before = load_file(tmp_path / "dense" / "model.safetensors")
    assert "h.0.attn.c_attn.weight" in before
    wanda(tmp_path / "dense", tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == before.keys()
    assert same_weights(tmp_path / "out", in_memory(tmp_path / "dense", "wanda", HALF, calibration=TEXT)[0].model)


def test_names_of_older_releases_are_kept(tmp_path):
    save_tiny(tmp_path / "dense", "gpt_neox")

    def older(tensors):
        if "lm_head.weight" in tensors:  # some releases of transformers save the older name themselves
            tensors["embed_out.weight"] = tensors.pop("lm_head.weight")

    rewrite(tmp_path / "dense", older)
    wanda(tmp_path / "dense", tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert "embed_out.weight" in index
    assert same_weights(tmp_path / "out", in_memory(tmp_path / "dense", "wanda", HALF, calibration=TEXT)[0].model)


@pytest.mark.parametrize("equal", [True, False])
def test_tied_weights_stored_twice_are_written_once_if_equal(equal, tmp_path):
    save_tiny(tmp_path / "dense", "gemma3_text")

    def twice(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + (0 if equal else 1)

    rewrite(tmp_path / "dense", twice)
    wanda(tmp_path / "dense", tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert ("lm_head.weight" in index) != equal
    loaded = in_memory(tmp_path / "dense", "wanda", HALF, calibration=TEXT)[0].model
    again, ids = load_model(tmp_path / "out", dtype="float32").model, random_windows(2, 16)
    assert torch.equal(again(ids).logits, loaded(ids).logits)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("fast", [torch.bfloat16, torch.float32], ids=str)
def test_the_checkpoints_dtype_is_kept_and_computed_in_where_fast(stored, fast, dense, tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "fast_dtype", lambda device: fast)
    tiny_model("llama").to(stored).save_pretrained(dense)
    wanda(dense, tmp_path / "out")
    computed = stored if stored == fast else torch.float32
    loaded, _ = in_memory(dense, "wanda", HALF, dtype=computed, calibration=TEXT)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.dtype == stored
    for mine, theirs in zip(again.parameters(), loaded.model.to(stored).parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_another_dtype_is_written_when_asked_for(dense, tmp_path):
    wanda(dense, tmp_path / "out", dtype="bfloat16")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.dtype == torch.bfloat16
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert {slot.dtype for file in _Checkpoint(tmp_path / "out").files for slot in file.slots.values()} == {again.dtype}


def test_everything_a_reader_needs_lies_beside_the_weights(dense, tmp_path):
    made = {"seed": 3}
    report = wanda(dense, tmp_path / "out", made=made)
    body = json.loads((tmp_path / "out" / "crosscal.json").read_text())
    assert body["fingerprint"] == load_model(dense, dtype="float32").fingerprint
    assert body["made"]["seed"] == 3
    assert body["made"]["method"] == "wanda"
    assert body["made"]["texts"].keys() == TEXT.keys() == body["layers"][0]["statistics"].keys()
    assert all(len(mark) == 16 for layer in body["layers"] for mark in layer["statistics"].values())
    assert body["layers"] == [vars(layer) for layer in report.layers]
    assert "50.0 % of their weights are zero" in (tmp_path / "out" / "README.md").read_text()
    model = load_model(tmp_path / "out", dtype="float32").model
    masks = load_file(tmp_path / "out" / "masks.safetensors")
    for index, block in enumerate(decoder_blocks(model)):
        for layer in linear_layers(block):
            bits = np.packbits((layer.weight != 0).numpy())
            assert masks.pop(f"{index}.{layer.name}").tolist() == bits.tolist()
    assert not masks
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (dense / name).read_bytes()
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads((dense / "config.json").read_text())
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) == len(decoder_blocks(model)) + 1
    assert len(report.layers) == sum(len(linear_layers(block)) for block in decoder_blocks(model))


def test_statistics_are_known_by_what_the_layers_saw(dense, tmp_path):
    first, other = (
        compress_folder(
            dense, tmp_path / str(seed), "wanda", HALF, calibration={"a": random_windows(seed=seed)}, **QUIET
        )
        for seed in (0, 1)
    )
    marks = [layer.statistics["a"] for layer in first.layers]
    assert marks[0] == marks[1] == marks[2]  # query, key and value see the same
    assert len(set(marks)) == 3 * 4
    assert not set(marks) & {layer.statistics["a"] for layer in other.layers}


def test_a_damaged_checkpoint_is_refused_before_anything_is_written(dense, tmp_path):
    cases = {
        "lacks weight model.layers.1.mlp.up_proj.weight": lambda t: t.pop("model.layers.1.mlp.up_proj.weight"),
        r"is \[1, 48\] in the checkpoint and \[32, 48\]": lambda t: t.update(
            {"model.layers.0.mlp.down_proj.weight": torch.zeros(1, 48)}
        ),
        "weight model.layers.2.mlp.gate_proj.weight holds NaN": lambda t: t[
            "model.layers.2.mlp.gate_proj.weight"
        ].fill_(float("nan")),
    }
    whole = (dense / "model.safetensors").read_bytes()
    for sentence, change in cases.items():
        (dense / "model.safetensors").write_bytes(whole)
        rewrite(dense, change)
        with pytest.raises(InputError, match=sentence):
            wanda(dense, tmp_path / "out")
    (dense / "model.safetensors").write_bytes(whole[:-10])
    with pytest.raises(InputError, match="damaged"):
        wanda(dense, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


def test_bad_requests_are_refused_before_anything_is_written(dense, tmp_path):
    for options, sentence in [
        ({"method": "wnda"}, "did you mean 'wanda'"),
        ({"schedule": "blok"}, "did you mean 'block'"),
        ({"storage": "packed"}, "give one of dense"),
        ({"storage": "compressed-tensors"}, "does not round weights to a grid"),
        ({"calibration": None}, "needs calibration text"),
        ({"calibration": {"a": random_windows() + 1000}}, "outside the model's vocabulary of 128"),
        ({"weights": {"a": 0.5, "b": 0.6}}, "sum to 1"),
        ({"dtype": "int8"}, "dtype 'int8' is unknown"),
        ({"bits": 4}, "has no option 'bits'"),
        ({"made": {"target": HALF}}, "cannot hold all of it"),
    ]:
        asked = {"method": "wanda", "target": HALF, "calibration": TEXT} | QUIET | options
        with pytest.raises(InputError, match=sentence):
            compress_folder(dense, tmp_path / "out", **asked)
        assert [path.name for path in tmp_path.iterdir()] == ["dense"]
    config = json.loads((dense / "config.json").read_text())
    for method, options in (
        ("gptq", {}),
        ("fp8", {"weight_block_size": [128, 128]}),
    ):  # of fp8 a CPU makes dense weights
        packing = {"quantization_config": {"quant_method": method} | options}
        (dense / "config.json").write_text(json.dumps(config | packing))
        for allocation in (None, Owl()):
            with pytest.raises(InputError, match="is quantized already"):
                wanda(dense, tmp_path / "out", allocation=allocation)


def test_the_tokenizer_is_kept(dense, tmp_path):
    wanda(dense, tmp_path / "out")
    assert load_model(tmp_path / "out").tokenizer.get_vocab() == tiny_tokenizer().get_vocab()
