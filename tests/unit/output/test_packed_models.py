"""Packed folders: transformers and `load_model` get the very same model back, and what cannot be stored is refused."""

import json
import shutil
import sys
from collections import namedtuple
from itertools import product

import pytest
import torch
from transformers import AutoModelForCausalLM

from crosscal.engine.driver import compress
from crosscal.errors import InputError
from crosscal.models import LoadedModel, load_model
from crosscal.output.export import save_model
from crosscal.output.packing import check_storage
from crosscal.types import FloatGrid, Grid, LowRank, NofM, PerGroup, SparseGrid, Unstructured
from tests.unit.families import random_windows, save_tiny, tiny_model, tiny_tokenizer

pytest.importorskip("compressed_tensors")
GRID = Grid(4, PerGroup(16))
CASES = {
    "llama": ("gptq", GRID),
    "opt": ("sparsegpt", SparseGrid(NofM(2, 4), Grid(3, symmetric=True))),
    "gpt_neox": ("rtn", Grid(8)),
    "gemma3_text": ("rtn", Grid(2, PerGroup(16), symmetric=True)),
    "qwen3": ("gptq", FloatGrid("nvfp4")),
    "bloom": ("gptq", FloatGrid("mxfp4")),
}
Usage = namedtuple("Usage", "total used free")


def compressed(folder, family, method="rtn", target=GRID, dtype="bfloat16"):
    """A loaded model, compressed, and the report."""
    save_tiny(folder, family)
    loaded = load_model(folder, dtype=dtype)
    return loaded, compress(loaded.model, method, target, calibration={"a": random_windows()}, progress=False)


@pytest.mark.parametrize("family", CASES)
def test_logits_are_equal_after_a_round_trip(family, tmp_path):
    method, target = CASES[family]
    loaded, report = compressed(tmp_path / "dense", family, method, target)
    loaded.model.generation_config.max_length = 77
    grid, ids = check_storage("compressed-tensors", method, target), random_windows(2, 16)
    folder = save_model(loaded, tmp_path / "out", report=report, storage="compressed-tensors", grid=grid)
    again, plain = load_model(folder, dtype="bfloat16"), AutoModelForCausalLM.from_pretrained(folder)
    for model, (name, weight) in product((again.model, plain), loaded.model.named_parameters()):
        assert torch.equal(model.get_parameter(name), weight), name
    assert torch.equal(again.model(ids).logits, loaded.model(ids).logits)
    assert torch.equal(plain(ids).logits, loaded.model(ids).logits)
    assert again.model.generation_config.max_length == 77
    assert len(again.tokenizer) == len(loaded.tokenizer)
    names = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"].keys()
    inside = {name for name, _ in loaded.model.named_parameters() if name.count(".") > 3 and "norm" not in name}
    dense = {name for name in inside if name.endswith("weight") and name in names}
    assert inside
    assert not dense
    assert json.loads((folder / "crosscal.json").read_text())["made"] == {"storage": f"compressed-tensors, {grid}"}
    assert f"storage: compressed-tensors, {grid}" in (folder / "README.md").read_text()


def test_a_packed_folder_is_as_good_as_a_dense_one(tmp_path):
    """In several files, in another dtype, and to be saved again, dense or packed."""
    loaded, _ = compressed(tmp_path / "dense", "llama")
    ids, packing = random_windows(2, 16), {"storage": "compressed-tensors", "grid": GRID}
    packed, dense = save_model(loaded, tmp_path / "packed", **packing), save_model(loaded, tmp_path / "out")
    other = [load_model(folder, dtype="float32").model(ids).logits for folder in (packed, dense)]
    assert torch.equal(*other)
    again = load_model(packed, dtype="bfloat16")
    for n, options in enumerate(({}, packing)):
        folder = save_model(again, tmp_path / f"again{n}", **options)
        assert torch.equal(load_model(folder, dtype="bfloat16").model(ids).logits, loaded.model(ids).logits)
    sizes = [sorted(file.stat().st_size for file in folder.glob("model-*")) for folder in (packed, dense)]
    assert len(sizes[0]) > 1
    assert sum(sizes[0]) < sum(sizes[1])


def test_the_config_names_the_grid_and_what_stays_dense(tmp_path):
    loaded, _ = compressed(tmp_path / "dense", "llama")
    folder = save_model(loaded, tmp_path / "out", storage="compressed-tensors", grid=GRID)
    found = json.loads((folder / "config.json").read_text())["quantization_config"]
    weights = found["config_groups"]["group_0"]["weights"]
    assert (found["quant_method"], found["format"]) == ("compressed-tensors", "pack-quantized")
    assert (weights["num_bits"], weights["strategy"], weights["group_size"]) == (4, "group", 16)
    assert (found["ignore"], found["dequantize"]) == (["lm_head"], True)
    assert weights["symmetric"] is False


@pytest.mark.parametrize(
    ("method", "target", "widths", "said"),
    [
        ("awq", Grid(4), [64], "cannot hold the weights of awq exactly"),
        ("wanda", Unstructured(0.5), [64], "50% does not round weights"),
        ("svd", LowRank(0.5), [64], "does not round weights"),
        ("rtn", Grid(9), [64], "at most 8 bits, not 9"),
        ("gptq", Grid(4, PerGroup(64)), [128, 96], "groups of 64 do not divide a layer's 96 inputs"),
        ("gptq", Grid(4, PerGroup(128)), [64], "groups of 128 do not divide a layer's 64 inputs"),
    ],
)
def test_what_cannot_be_stored_is_refused_by_name(method, target, widths, said):
    with pytest.raises(InputError, match=f"{said}.*use dense storage"):
        check_storage("compressed-tensors", method, target, widths)
    assert check_storage("compressed-tensors", "gptq", Grid(4, PerGroup(32)), [64, 96]) == Grid(4, PerGroup(32))


@pytest.mark.parametrize(
    ("family", "options", "said"),
    [
        ("gpt2", {"storage": "compressed-tensors", "grid": GRID}, "keeps its weights transposed"),
        ("llama", {"storage": "compressed-tensors"}, "needs the grid"),
        ("llama", {"storage": "compressed-tensor", "grid": GRID}, "did you mean 'compressed-tensors'"),
        ("llama", {"storage": "compressed-tensors", "grid": Grid(4, PerGroup(24))}, "groups of 24 do not divide"),
        ("llama", {"storage": "compressed-tensors", "grid": GRID}, "q_proj do not lie on 4 bits g16"),
    ],
)
def test_nothing_is_written_when_a_model_cannot_be_stored(family, options, said, tmp_path):
    loaded = LoadedModel(tiny_model(family), tiny_tokenizer(), "tiny", "0")
    with pytest.raises(InputError, match=said):
        save_model(loaded, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_the_room_asked_for_is_that_of_the_packed_model(tmp_path, monkeypatch):
    loaded, _ = compressed(tmp_path / "dense", "llama", dtype="float32")
    dense = sum(parameter.numel() for parameter in loaded.model.parameters()) * 4
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(dense, 0, dense // 2))
    with pytest.raises(InputError, match="free some space"):
        save_model(loaded, tmp_path / "out")
    save_model(loaded, tmp_path / "out", storage="compressed-tensors", grid=GRID)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    loaded, _ = compressed(tmp_path / "dense", "llama")
    packed = save_model(loaded, tmp_path / "packed", storage="compressed-tensors", grid=GRID)
    for name in [name for name in sys.modules if name.split(".")[0] == "compressed_tensors"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    said = r'pip install "crosscal\[quantized\]"'
    for attempt in (
        lambda: save_model(loaded, tmp_path / "out", storage="compressed-tensors", grid=GRID),
        lambda: check_storage("compressed-tensors", "rtn", GRID, [64]),
        lambda: load_model(packed),
    ):
        with pytest.raises(InputError, match=said):
            attempt()
