"""Anchored calibration and refinements in the loop: against whole-model passes, on disk, and what is refused."""

import copy
import json

import pytest
import torch

from crosscal.calibration import InputStats, mix
from crosscal.disk import compress_folder
from crosscal.engine import driver
from crosscal.engine.driver import compress
from crosscal.engine.gather import gather_statistics
from crosscal.errors import InputError
from crosscal.methods import sparsegpt
from crosscal.methods.balance import balanced
from crosscal.methods.registry import METHODS
from crosscal.models import decoder_blocks, linear_layers, load_model
from crosscal.types import Grid, NofM, Unstructured
from tests.oracles import refinement as oracle
from tests.unit.disk.common import contents, in_memory, same_weights
from tests.unit.families import random_windows, save_tiny, tiny_model

HALF = Unstructured(0.5)
TEXT = {"a": random_windows(), "b": random_windows(seed=1)}
QUIET = {"progress": False}


def flat_inputs(model, module, tokens):
    """What enters a module, [tokens, d_in]."""
    seen = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(tokens)
    handle.remove()
    return seen[0].reshape(-1, seen[0].shape[-1])


def anchored_by_hand(model, tokens, strength):
    """SparseGPT with the schedule `block`, each weight moved by the oracle: a pass of both models for every layer."""
    dense = tiny_model("llama")
    for block, twin in zip(decoder_blocks(model), decoder_blocks(dense), strict=True):
        pairs = list(zip(linear_layers(block), linear_layers(twin), strict=True))
        seen = [(flat_inputs(dense, b.module, tokens), flat_inputs(model, a.module, tokens)) for a, b in pairs]
        for (layer, _), (x, y) in zip(pairs, seen, strict=True):
            aim = oracle.anchored(layer.weight, x, y, strength, 0.1).float()
            layer.write(sparsegpt(aim, InputStats(y.T @ y, len(y)), HALF))


def test_anchored_block_equals_whole_passes():
    fast, slow = tiny_model("llama"), tiny_model("llama")
    compress(fast, "sparsegpt", HALF, calibration={"a": TEXT["a"]}, schedule="block", anchor=0.25, **QUIET)
    with torch.no_grad():
        anchored_by_hand(slow, TEXT["a"], 0.25)
    for a, b in zip(fast.parameters(), slow.parameters(), strict=True):
        assert ((a - b).abs() > 1e-3).double().mean() < 2e-3  # a threshold may fall between two weights


def test_first_block_has_no_drift_and_later_ones_have():
    plain, moved = tiny_model("llama"), tiny_model("llama")
    for model, anchor in ((plain, 0.0), (moved, 0.25)):
        report = compress(model, "wanda", HALF, calibration=TEXT, schedule="block", anchor=anchor, **QUIET)
    first, last = [equal_block(plain, moved, index) for index in (0, -1)]
    assert first
    assert not last
    assert {layer.facts["anchor"] for layer in report.layers} == {0.25}


def equal_block(a, b, index):
    pair = (decoder_blocks(model)[index].parameters() for model in (a, b))
    return all(torch.allclose(x, y, atol=1e-5) for x, y in zip(*pair, strict=True))


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "gptq", "awq", "asvd", "fisher"])
def test_passes_and_parked_batches_give_the_same_bits(method, monkeypatch):
    target = METHODS[method].targets[0](*{"gptq": (3,), "awq": (3,), "asvd": (0.5,)}.get(method, (0.5,)))
    one, other = tiny_model("llama"), tiny_model("llama")
    options = {"calibration": TEXT, "anchor": 0.25, "micro_batch": 2, **QUIET}
    compress(one, method, target, **options)
    monkeypatch.setitem(driver._SCHEDULES, "sublayer", driver._SCHEDULES["sublayer in passes"])
    compress(other, method, target, **options)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("schedule", ["sublayer", "block"])
def test_streamed_equals_memory(schedule, tmp_path):
    save_tiny(tmp_path / "dense")
    options = {"calibration": TEXT, "anchor": 0.25, "refine": "swaps", "schedule": schedule, **QUIET}
    compress_folder(tmp_path / "dense", tmp_path / "new", "wanda", HALF, **options)
    loaded, _ = in_memory(tmp_path / "dense", "wanda", HALF, **{k: v for k, v in options.items() if k != "progress"})
    assert same_weights(tmp_path / "new", loaded.model)


def test_interrupted_and_continued_gives_the_same_files(tmp_path, monkeypatch):
    save_tiny(tmp_path / "dense")
    options = {"calibration": TEXT, "anchor": 0.25, "micro_batch": 2, **QUIET}
    compress_folder(tmp_path / "dense", tmp_path / "whole", "sparsegpt", HALF, **options)
    original, calls = driver._groups, []

    def stop(*args):
        calls.append(args[3])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(driver, "_groups", stop)
    with pytest.raises(KeyboardInterrupt):
        compress_folder(tmp_path / "dense", tmp_path / "parts", "sparsegpt", HALF, **options)
    compress_folder(tmp_path / "dense", tmp_path / "parts", "sparsegpt", HALF, **options)
    assert calls == [0, 1, 1, 2]
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "fisher", "dpruner", "alps"])
@pytest.mark.parametrize("refine", ["lsq", "swaps"])
@pytest.mark.parametrize("target", [HALF, NofM(2, 4)], ids=str)
def test_refined_zeros_are_those_asked_for(method, refine, target):
    plain, refined = tiny_model("llama"), tiny_model("llama")
    options = {"calibration": TEXT, "schedule": "block", **QUIET}
    before = compress(plain, method, target, **options)
    after = compress(refined, method, target, refine=refine, **options)
    assert after.sparsity == pytest.approx(before.sparsity, abs=1e-3)
    if method == "alps" and refine == "swaps":
        return  # its mask is that of the best repaired weights; a swap looks at the weights without repair
    first = [(a, b) for a, b in zip(before.layers, after.layers, strict=True) if a.name.startswith("0.")]
    assert all(b.relative_error <= a.relative_error * 1.001 for a, b in first)
    assert sum(b.relative_error for _, b in first) < sum(a.relative_error for a, _ in first)


def test_whole_model_masks_keep_the_count_and_differ_by_layer():
    model = tiny_model("llama")
    report = compress(model, "fisher", HALF, calibration=TEXT, **QUIET)
    layers = [layer for block in decoder_blocks(model) for layer in linear_layers(block)]
    zeros, size = sum(int((x.weight == 0).sum()) for x in layers), sum(x.weight.numel() for x in layers)
    assert zeros == size // 2
    assert len({round(layer.sparsity, 3) for layer in report.layers}) > 1
    uniform = compress(tiny_model("llama"), "fisher", HALF, calibration=TEXT, whole_model=False, **QUIET)
    assert all(layer.sparsity == pytest.approx(0.5, abs=1e-3) for layer in uniform.layers)


@pytest.mark.parametrize(
    ("method", "target", "options", "sentence"),
    [
        ("wanda", HALF, {"anchor": 1.0}, "anchor is 1.0; give a number from 0 to 0.5"),
        ("magnitude", HALF, {"anchor": 0.25}, "magnitude reads no inputs that an anchor could correct"),
        ("wanda", HALF, {"anchor": 0.25, "schedule": "parallel"}, "use 'sublayer' or 'block'"),
        ("wanda", HALF, {"refine": "lsqr"}, "unknown refinement 'lsqr'; did you mean 'lsq'"),
        ("gptq", Grid(4), {"refine": "lsq"}, "gptq does not prune"),
        ("wanda", HALF, {"balance": "best"}, "balance is 'best'; give worst or model"),
        ("magnitude", HALF, {"balance": "worst"}, "a method that reads inputs"),
        ("wanda", HALF, {"balance": "worst", "weights": {"a": 0.3, "b": 0.7}}, "give equal ones or none"),
        ("fisher", HALF, {"balance": "model"}, "fisher reads gradients; give 'worst'"),
        ("wanda", HALF, {"rotate": True}, "wanda does not round weights to a grid"),
        ("gptq", Grid(4), {"rotate": True}, "needs a power of 2 that divides 48"),
        ("magnitude", HALF, {"refine": "lsq", "calibration": None}, "magnitude needs calibration text"),
    ],
)
def test_refused_before_any_work(method, target, options, sentence):
    model = tiny_model("llama")
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(InputError, match=sentence):
        compress(model, method, target, **{"calibration": TEXT, **QUIET, **options})
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_stored_statistics_know_no_drift():
    model = tiny_model("llama")
    stored = gather_statistics(model, TEXT, **QUIET)
    with pytest.raises(InputError, match="use 'sublayer' or 'block' and text"):
        compress(model, "sparsegpt", HALF, statistics=stored, anchor=0.25, **QUIET)
    compress(model, "wanda", HALF, statistics=stored, refine="lsq", **QUIET)


def test_balance_lets_the_worst_source_lose_less():
    text = {"a": random_windows(), "b": 3 + random_windows(seed=1) % 7}
    equal, balanced = (
        compress(tiny_model("llama"), "sparsegpt", HALF, calibration=text, schedule="block", balance=balance, **QUIET)
        for balance in ("", "worst")
    )
    for layer in balanced.layers:
        assert sum(layer.facts[f"weight of {name}"] for name in text) == pytest.approx(1)
    assert any(layer.facts["weight of b"] != pytest.approx(0.5, abs=0.01) for layer in balanced.layers)
    assert equal.layers[0].facts.keys() < balanced.layers[0].facts.keys()


def test_one_set_of_weights_for_the_model_is_found_told_and_used(tmp_path):
    text = {"a": random_windows(), "b": 3 + random_windows(seed=1) % 7}
    model, again = tiny_model("llama"), tiny_model("llama")
    report = compress(model, "sparsegpt", HALF, calibration=text, balance="model", **QUIET)
    found = report.mix_weights()
    assert sum(found.values()) == pytest.approx(1)
    assert found["b"] != pytest.approx(0.5, abs=1e-3)
    assert all(layer.facts["weight of b"] == pytest.approx(found["b"]) for layer in report.layers)
    compress(again, "sparsegpt", HALF, calibration=text, weights=found, **QUIET)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_the_weights_of_the_model_are_the_same_on_disk_and_from_stored_statistics(tmp_path):
    save_tiny(tmp_path / "tiny")
    model = load_model(tmp_path / "tiny", dtype="float32")
    stored = gather_statistics(model, TEXT, progress=False)
    more = {"balance": "model", "schedule": "parallel", "progress": False, "measure_loss": False}
    streamed = compress_folder(
        tmp_path / "tiny", tmp_path / "out", "gptq", Grid(3), calibration=TEXT, dtype="float32", **more
    )
    known = compress(copy.deepcopy(model.model), "gptq", Grid(3), statistics=stored, **more)
    own = compress(model, "gptq", Grid(3), calibration=TEXT, **more)
    assert streamed.mix_weights() == own.mix_weights() == known.mix_weights()
    told = json.loads((tmp_path / "out" / "crosscal.json").read_text())["made"]["sources"]
    assert told == pytest.approx(own.mix_weights())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tiny"]


def test_balanced_never_does_worse_than_equal_weights():
    weight = torch.randn(16, 24, generator=torch.Generator().manual_seed(0))
    sources = {}
    for seed, name in enumerate("abc"):
        inputs = torch.randn(99, 24, generator=torch.Generator().manual_seed(seed)) * torch.rand(24) ** 3
        sources[name] = InputStats(inputs.T @ inputs, 99)

    def solve(mixed):
        return [sparsegpt(weight, mixed, HALF)], {}

    def worst(new):
        return max(
            oracle.loss_of(weight, new, part.gram) / oracle.loss_of(weight, 0 * new, part.gram)
            for part in sources.values()
        )

    (new,), _, shares = balanced([weight], sources, solve)
    even = solve(mix(sources, dict.fromkeys(sources, 1 / 3)))[0][0]
    assert worst(new) < worst(even)
    assert torch.equal(new, solve(mix(sources, shares))[0][0])
