"""Blocks that return more than hidden states, that leave something for each other, and that run several times."""

import logging

import pytest
import torch
from transformers import AutoModelForCausalLM

from crosscal import compress
from crosscal.disk import compress_folder
from crosscal.disk.journal import Journal
from crosscal.engine.batches import _replaced
from crosscal.engine.gather import gather_statistics
from crosscal.engine.streams import WholeModelError, open_streams
from crosscal.models import decoder_blocks, inventory
from crosscal.types import Unstructured
from tests.unit.families import random_windows, save_tiny, tiny_config, tiny_model

TEXT = {"general": random_windows(4, 16), "domain": random_windows(4, 16, seed=1)}
QUIET = {"progress": False}


@pytest.mark.parametrize("family", ["bamba", "openai-gpt", "glm_moe_dsa", "gemma3n_text"])
def test_a_model_is_continued_with_all_that_its_blocks_hand_on(tmp_path, monkeypatch, family):
    save_tiny(tmp_path / "dense", family)
    options = {"calibration": TEXT, "dtype": "float32"} | QUIET
    compress_folder(str(tmp_path / "dense"), tmp_path / "whole", "wanda", Unstructured(0.5), **options)
    record = Journal.record

    def interrupted(self, reports):
        record(self, reports)
        if self.done == len(decoder_blocks(tiny_model(family))) - 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compress_folder(str(tmp_path / "dense"), tmp_path / "part", "wanda", Unstructured(0.5), **options)
    monkeypatch.setattr(Journal, "record", record)
    compress_folder(str(tmp_path / "dense"), tmp_path / "part", "wanda", Unstructured(0.5), **options)
    files = sorted((tmp_path / "whole").glob("*.safetensors"))
    assert files
    assert all(file.read_bytes() == (tmp_path / "part" / file.name).read_bytes() for file in files)


def test_blocks_that_run_several_times_count_all_passes(caplog):
    model, passed = tiny_model("hrm_text"), []
    first = inventory(model).layers[0][0]
    hook = first.module.register_forward_pre_hook(lambda _, args: passed.append(args[0].shape[:-1].numel()))
    model(input_ids=TEXT["general"])
    hook.remove()
    with caplog.at_level(logging.WARNING):
        kept = gather_statistics(model, {"t": TEXT["general"]}, **QUIET)
    group = next(stats for names, stats in kept.block(0) if first.name in names)
    assert len(passed) > 1
    assert group["t"].n_tokens == sum(passed)
    assert "run several times" in caplog.text


@pytest.mark.parametrize("schedule", ["sublayer", "block", "parallel"])
def test_a_model_run_as_a_whole_is_compressed_in_every_schedule(schedule):
    model = tiny_model("hrm_text")
    parts = inventory(model)
    assert open_streams(model, parts, TEXT).whole
    report = compress(model, "wanda", Unstructured(0.5), calibration=TEXT, schedule=schedule, **QUIET)
    assert len(report.layers) == sum(map(len, parts.layers))
    assert report.sparsity == pytest.approx(0.5, abs=0.01)
    assert all(layer.tokens["general"] > 0 for layer in report.layers)


def test_an_error_says_why_a_model_is_run_as_a_whole():
    assert "because it loops" in str(WholeModelError("it loops"))


def test_replacing_leaves_what_holds_none_as_it_is():
    kept, leaf = {"a": [1, 2]}, torch.ones(2)
    new = _replaced(((kept, leaf), {"b": leaf}), lambda value: 0 if value is leaf else value)
    assert new == (({"a": [1, 2]}, 0), {"b": 0})
    assert new[0][0] is kept


def test_weights_of_deep_rwkv_are_not_divided():
    config = tiny_config("rwkv")
    config.num_hidden_layers = 7
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    dense = model.rwkv.blocks[6].attention.output.weight.clone()
    compress(model, "wanda", Unstructured(0.5), calibration=TEXT, **QUIET)
    new = model.rwkv.blocks[6].attention.output.weight
    assert torch.equal(new[new != 0], dense[new != 0])
