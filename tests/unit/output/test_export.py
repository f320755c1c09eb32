"""Folders of compressed models: what is read back is what was written, and nothing is lost on the way."""

import json
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from crosscal.engine.driver import compress
from crosscal.errors import InputError
from crosscal.models import LoadedModel, decoder_blocks, linear_layers, load_model, model_fingerprint
from crosscal.output.export import save_model
from crosscal.output.writer import Place, Writer
from crosscal.types import Unstructured
from tests.unit.families import FAMILIES, random_windows, save_tiny, tiny_model, tiny_tokenizer

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def loaded():
    model = tiny_model("llama")
    return LoadedModel(model, tiny_tokenizer(), "tiny", model_fingerprint(model))


def compressed(loaded):
    """The model at 50 %, and the report of its compression."""
    return compress(loaded.model, "wanda", Unstructured(0.5), calibration={"a": random_windows()}, progress=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_read_back_gives_the_same_logits(family, tmp_path):
    save_tiny(tmp_path / "dense", family)
    loaded = load_model(tmp_path / "dense", dtype="bfloat16")
    model, report = loaded.model, compressed(loaded)
    again = load_model(save_model(loaded, tmp_path / "out", report=report), dtype="bfloat16")
    ids = random_windows(2, 16)
    assert torch.equal(again.model(ids).logits, loaded.model(ids).logits)
    tied = model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    head, embedding = again.model.get_output_embeddings().weight, again.model.get_input_embeddings().weight
    assert (head.data_ptr() == embedding.data_ptr()) == tied
    assert next(again.model.parameters()).dtype == torch.bfloat16


def test_masks_report_and_card_lie_beside_the_weights(loaded, tmp_path):
    report = compressed(loaded)
    made = {"method": "wanda", "target": "50%", "sources": {"c4": 0.5, "notes.jsonl": 0.5}}
    folder = save_model(loaded, tmp_path / "out", report=report, made=made)
    masks = load_file(folder / "masks.safetensors")
    for index, block in enumerate(decoder_blocks(loaded.model)):
        for layer in linear_layers(block):
            bits = np.unpackbits(masks[f"{index}.{layer.name}"])[: layer.weight.numel()]
            assert np.array_equal(bits.reshape(layer.weight.shape), (layer.weight != 0).numpy())
    body = json.loads((folder / "crosscal.json").read_text())
    assert body["made"] == made
    assert len(body["layers"]) == len(masks)
    card = (folder / "README.md").read_text()
    assert "c4 0.5, notes.jsonl 0.5" in card
    assert "50.0 % of their weights are zero" in card


def test_an_existing_folder_is_not_touched_unless_asked(loaded, tmp_path):
    folder = save_model(loaded, tmp_path / "out", made={"run": 1})
    with pytest.raises(InputError, match="exists already"):
        save_model(loaded, folder)
    save_model(loaded, folder, made={"run": 2}, overwrite=True)
    assert json.loads((folder / "crosscal.json").read_text())["made"] == {"run": 2}
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="was not made by crosscal"):
        save_model(loaded, tmp_path / "theirs", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "theirs"]


def test_a_disk_too_small_is_noticed_before_anything_is_written(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10, 10, 100))
    with pytest.raises(InputError, match="free some space"):
        save_model(loaded, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("failing", [(Writer, "finish"), (Place, "put")])
def test_a_failure_on_the_way_leaves_the_earlier_folder(loaded, tmp_path, monkeypatch, failing):
    folder = save_model(loaded, tmp_path / "out", made={"run": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*failing, full)
    with pytest.raises(InputError, match="No space left on device"):
        save_model(loaded, folder, made={"run": 2}, overwrite=True)
    assert json.loads((folder / "crosscal.json").read_text())["made"] == {"run": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
