"""Channels of feed-forward layers: which models can be cut, found by trying, and which are refused before any work."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama
from transformers.models.phi3 import modeling_phi3

from crosscal import compress
from crosscal.disk import compress_folder
from crosscal.engine import driver
from crosscal.engine.gather import gather_statistics
from crosscal.errors import InputError
from crosscal.models import inventory, load_model
from crosscal.models.channels import check_channels, config_entry, feed_forwards, narrow
from crosscal.output.writer import Writer
from crosscal.types import Width
from tests.unit.disk.common import contents
from tests.unit.families import random_windows, save_tiny, tiny_model

ASKED = {"calibration": {"a": random_windows(seed=1)}, "progress": False}
ENTRIES = {"llama": "intermediate_size", "gpt2": "n_inner", "opt": "ffn_dim", "bart": "decoder_ffn_dim", "ctrl": "dff"}


@pytest.mark.parametrize("family", ENTRIES)
def test_the_entry_is_the_one_that_the_class_reads(family):
    model = tiny_model(family)
    model.config.update({"unread": feed_forwards(model)[0][0].channels})
    assert config_entry(model, feed_forwards(model)[0][0].channels) == ENTRIES[family]


@pytest.mark.parametrize("family", ["bart", "ctrl", "gpt_neo", "glm", "starcoder2", "nemotron", "cohere", "stablelm"])
def test_unlike_families_are_cut_and_loaded_again(family, tmp_path):
    model, tokens = tiny_model(family).eval(), torch.arange(1, 17)[None]
    channels = feed_forwards(model)[0][0].channels
    count = Width(0.75).channels(channels)
    for block, (one, *_) in zip(feed_forwards(model), feed_forwards(model), strict=True):
        assert len(block) == 1
        one.down.write(one.down.weight * (torch.arange(channels) >= channels - count))
    with torch.no_grad():
        before = model(tokens).logits
        narrow(model, Width(0.75))
        torch.testing.assert_close(model(tokens).logits, before, rtol=1e-4, atol=1e-5)
        model.save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        assert torch.equal(again(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("family", ["bitnet", "blt", "mpt", "gemma3n_text", "mamba", "bert"])
def test_what_no_program_would_load_is_refused(family):
    with pytest.raises(InputError, match="give a sparsity"):
        feed_forwards(tiny_model(family))


def interleaved(self, states):
    gate, up = self.gate_up_proj(states).unflatten(-1, (-1, 2)).unbind(-1)
    return self.down_proj(up * self.activation_fn(gate))


def summed(self, states):
    made = self.act_fn(self.gate_proj(states)) * self.up_proj(states)
    return self.down_proj(made / made.square().mean(dim=-1, keepdim=True).sqrt())


@pytest.mark.parametrize(
    ("family", "owner", "forward"),
    [("phi3", modeling_phi3.Phi3MLP, interleaved), ("llama", modeling_llama.LlamaMLP, summed)],
)
def test_channels_that_depend_on_each_other_are_refused(family, owner, forward, tmp_path, monkeypatch):
    save_tiny(tmp_path / "dense", family)
    monkeypatch.setattr(owner, "forward", forward)
    model = tiny_model(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=f"the channels of {owner.__name__} depend on each other"):
        compress(model, "width", Width(0.5), **ASKED)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(InputError, match="depend on each other"):
        compress_folder(tmp_path / "dense", tmp_path / "out", "width", Width(0.5), **ASKED)
    assert [path.name for path in tmp_path.iterdir()] == ["dense"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "gpt_neox", "falcon", "gemma3_text"])
def test_channels_of_known_families_are_apart_in_every_dtype(family):
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_model(family).to(dtype)
        for block in model.base_model.h if family in ("gpt2", "falcon") else model.base_model.layers:
            check_channels(model, block)


def test_a_width_that_cuts_nothing_is_refused():
    with pytest.raises(InputError, match="width 99% of 48 channels, rounded, is all 48 of them"):
        compress(tiny_model("llama"), "width", Width(0.99), **ASKED)


def test_stored_statistics_of_all_layers_serve_a_width():
    model, direct = tiny_model("llama"), tiny_model("llama")
    statistics = gather_statistics(model, ASKED["calibration"], progress=False)
    report = compress(model, "width", Width(0.5), statistics=statistics, progress=False)
    assert report.layers == compress(direct, "width", Width(0.5), schedule="parallel", **ASKED).layers
    parameters = dict(model.named_parameters())
    assert all(torch.equal(one, parameters[name]) for name, one in direct.named_parameters())
    assert model.config.intermediate_size == 24


@pytest.mark.parametrize("block", [0, 1, 2])
def test_an_interrupted_width_goes_on_to_the_same_files(block, tmp_path, monkeypatch):
    save_tiny(tmp_path / "dense")
    asked = ("width", Width(0.5))
    expected = compress_folder(tmp_path / "dense", tmp_path / "whole", *asked, **ASKED)
    original, seen = driver._groups, []

    def stop(*args):
        seen.append(args)
        if len(seen) == block + 1:
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patched:
        patched.setattr(driver, "_groups", stop)
        with pytest.raises(KeyboardInterrupt):
            compress_folder(tmp_path / "dense", tmp_path / "out", *asked, **ASKED)
    assert not (tmp_path / "out").exists()
    assert compress_folder(tmp_path / "dense", tmp_path / "out", *asked, **ASKED).layers == expected.layers
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("config", "place"),
    [
        ({"intermediate_size": 48}, ()),
        ({}, ()),
        ({"text_config": {"intermediate_size": 48}}, ("text_config",)),
        ({"text_config": {"hidden_size": 32}}, ("text_config",)),
        ({"text_config": None}, ()),
    ],
)
def test_the_entry_is_written_where_the_configuration_has_it(config, place):
    source = type("Source", (), {"width": Width(0.5), "model": tiny_model("llama")})
    writer = Writer.__new__(Writer)
    writer.source, writer.dtype, writer.grid = source, None, None
    changed = json.loads(json.dumps(config | writer._changes(dict(config))))
    for part in place:
        changed = changed[part]
    assert changed["intermediate_size"] == 24


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "opt"])
def test_shares_and_weights_left_are_those_of_the_model(family, tmp_path):
    save_tiny(tmp_path / "dense", family)
    report = compress_folder(tmp_path / "dense", tmp_path / "out", "width", Width(0.5), **ASKED)
    dense, cut = (inventory(load_model(tmp_path / name).model) for name in ("dense", "out"))
    before, left = report.inventory["channels"]
    assert (report.inventory["weights"], report.inventory["weights_left"]) == (dense.n_weights, cut.n_weights)
    assert dense.n_weights - cut.n_weights == report.inventory["compressed"] * (before - left) // before
    assert set(report.inventory["left_out"]) - {"embedding", "head"} == {"of no feed-forward layer"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"- layers: {left} of the {before} channels of {len(dense.blocks)} feed-forward layers are left" in card
    assert "are zero" not in card
