"""Width: channels against a float64 oracle, and models that are really smaller and put out what they did."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from crosscal import compress
from crosscal.calibration import InputStats
from crosscal.cli import main
from crosscal.disk import compress_folder
from crosscal.errors import InputError
from crosscal.methods.width import channel_energy, width
from crosscal.models import load_model
from crosscal.models.channels import config_entry, feed_forwards, narrow
from crosscal.types import Unstructured, Width, parse_target, storage_bits
from tests.oracles import refinement as oracle
from tests.unit.cli.conftest import write_text
from tests.unit.families import random_windows, save_tiny, tiny_model

TEXT = {"a": random_windows(seed=1), "b": random_windows(seed=2)}
QUIET = {"progress": False, "calibration": TEXT, "weights": {"a": 0.25, "b": 0.75}}
DENSE = ("llama", "gpt2", "opt", "gpt_neox", "phi3", "gemma3_text", "qwen3", "falcon")
TOKENS = torch.arange(1, 17)[None]


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.mark.parametrize("damp", [0.01, 0.3])
@pytest.mark.parametrize("share", [0.25, 0.8, 1.0])
def test_it_is_the_least_squares_of_the_formula(share, damp):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 40, generator=generator) @ torch.randn(40, 40, generator=generator)
    inputs[:, 7] = 0
    down = torch.randn(12, 40, generator=generator)
    stats = InputStats(inputs.T @ inputs, len(inputs))
    new = width(down, stats, Width(share), damp=damp)
    count = Width(share).channels(40)
    torch.testing.assert_close(new.double(), oracle.narrowed(down, inputs, count, damp), rtol=1e-3, atol=1e-3)
    assert int((new != 0).any(dim=0).sum()) == count - (share == 1.0) * int((new[:, 7] == 0).all())
    plain = width(down, stats, Width(share), compensate=False)
    kept = (plain != 0).any(dim=0)
    assert torch.equal(plain[:, kept], down[:, kept])
    assert (
        channel_energy(down, stats)[kept].min() >= channel_energy(down, stats)[~kept].max() if (~kept).any() else True
    )


def test_making_up_pays():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(300, 64, generator=generator) @ torch.randn(64, 64, generator=generator)
    down, stats = torch.randn(8, 64, generator=generator), InputStats(inputs.T @ inputs, 300)
    lost = [(inputs @ (width(down, stats, Width(0.5), compensate=c) - down).T).square().sum() for c in (True, False)]
    assert lost[0] < 0.7 * lost[1]


@pytest.mark.parametrize("text", ["width 80%", "width 0.8", "width 12.5%"])
def test_a_width_is_read_back(text):
    target = parse_target(text)
    assert parse_target(str(target)) == target
    assert storage_bits(target) == 16 * target.share
    assert storage_bits(Width(0.8), 16, (64, 1536)) == 16 * 1216 / 1536
    for wrong in (0, 1.5, -1, float("nan")):
        with pytest.raises(InputError, match="the width is"):
            Width(wrong)


@pytest.mark.parametrize("family", DENSE)
def test_the_smaller_model_puts_out_what_the_zeroed_one_does(family, tmp_path):
    model = tiny_model(family)
    found = feed_forwards(model)
    channels = found[0][0].channels
    for block in found:
        for layer in block:
            layer.down.write(layer.down.weight * (torch.arange(channels) % 3 != 0))
    count = Width(0.75).channels(channels)
    assert count >= channels - len(range(0, channels, 3))
    before, parameters = logits(model), sum(p.numel() for p in model.parameters())
    entry = config_entry(model, channels)
    assert narrow(model, Width(0.75)) == count == getattr(model.config.get_text_config(), entry)
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in model.parameters()) < parameters
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "phi3", "gemma3_text"])
def test_on_disk_and_in_memory_the_same_bits_are_made(family, tmp_path):
    save_tiny(tmp_path / "dense", family)
    report = compress_folder(tmp_path / "dense", tmp_path / "narrow", "width", Width(0.5), dtype="float32", **QUIET)
    loaded = load_model(tmp_path / "dense", dtype="float32")
    own = compress(loaded, "width", Width(0.5), **QUIET)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "narrow")
    assert {n: t.shape for n, t in again.state_dict().items()} == {
        n: t.shape for n, t in loaded.model.state_dict().items()
    }
    assert all(torch.equal(t, loaded.model.state_dict()[n]) for n, t in again.state_dict().items())
    assert [vars(layer) for layer in report.layers] == [vars(layer) for layer in own.layers]
    assert not (tmp_path / "narrow" / "masks.safetensors").exists()
    entry = config_entry(loaded.model, feed_forwards(loaded.model)[0][0].channels)
    assert getattr(AutoConfig.from_pretrained(tmp_path / "narrow"), entry) == report.layers[0].facts["channels kept"]
    assert torch.equal(logits(again), logits(loaded.model))
    narrower = compress_folder(tmp_path / "narrow", tmp_path / "sparse", "wanda", Unstructured(0.5), **QUIET)
    assert narrower.sparsity == pytest.approx(0.5, abs=0.02)  # an ordinary dense model


def test_the_share_1_keeps_every_channel():
    model, dense = tiny_model("llama"), tiny_model("llama")
    compress(model, "width", Width(1.0), **QUIET)
    torch.testing.assert_close(logits(model), logits(dense), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("mixtral", "is a mixture of experts"),
        ("qwen3_moe", "is a mixture of experts"),
        ("bloom", "has no entry for its"),
    ],
)
def test_models_that_cannot_be_cut_are_refused_before_anything_is_done(family, said):
    model = tiny_model(family)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=said):
        compress(model, "width", Width(0.5), **QUIET)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_does_not_go_together_is_refused():
    with pytest.raises(InputError, match="cuts all blocks alike"):
        compress(tiny_model("llama"), "width", Width(0.5), only=["0.*"], **QUIET)
    with pytest.raises(InputError, match="wanda does not compress to width 50%"):
        compress(tiny_model("llama"), "wanda", Width(0.5), **QUIET)
    with pytest.raises(InputError, match=r"give a target such as width 80%"):
        compress(tiny_model("llama"), "width", Unstructured(0.5), **QUIET)


def test_the_command_makes_a_folder_and_measures_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CROSSCAL_CACHE", str(tmp_path / "cache"))
    save_tiny(tmp_path / "tiny")
    write_text(tmp_path / "notes.jsonl")
    line = ["compress", "--model", "tiny", "--method", "width", "--width", "50%", "--sources", "notes.jsonl"]
    line += ["--windows", "4", "--length", "32", "--quiet", "--output"]
    assert main([*line, "no", "--dry-run"]) == 0
    assert "would leave    24 of the 48 channels of 3 feed-forward layers, 16,128 of" in capsys.readouterr().out
    assert main([*line, "narrow"]) == 0
    said = capsys.readouterr().out
    channels = json.loads((tmp_path / "tiny" / "config.json").read_text())["intermediate_size"]
    left = json.loads((tmp_path / "narrow" / "config.json").read_text())["intermediate_size"]
    assert f"{left} of the {channels} channels of 3 feed-forward layers are left" in said
    evaluate = ["evaluate", "--model", "narrow", "--dense", "tiny", "--texts", "notes.jsonl", "--windows", "2"]
    assert main([*evaluate, "--length", "32", "--quiet"]) == 0
    assert main([*line, "both", "--sparsity", "0.5"]) == 1
    assert "--width goes with no other target" in capsys.readouterr().err
    assert main(["verify", "narrow", "--quiet"]) == 0
