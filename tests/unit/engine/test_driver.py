"""The loop over a model: what changes, what does not, and what the next block sees."""

import copy

import pytest
import torch

from crosscal.calibration import InputStats
from crosscal.engine.driver import compress
from crosscal.engine.streams import Streams
from crosscal.errors import InputError
from crosscal.methods import wanda
from crosscal.models import decoder_blocks, inventory, linear_layers
from crosscal.types import Grid, NofM, Unstructured
from tests.unit.families import FAMILIES, random_windows, tiny_model

QUIET = {"progress": False}


def inputs_of(model, tokens, modules):
    """The first argument of each module in one forward pass of the whole model."""
    seen = {}

    def keep(module, args, kwargs):
        seen[module] = args[0] if args else kwargs["hidden_states"]

    hooks = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in modules]
    model(tokens)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_streams_carry_what_the_model_computes(family):
    model, tokens = tiny_model(family), random_windows(5)
    blocks = decoder_blocks(model)
    seen = inputs_of(model, tokens, blocks)
    batches = Streams(model, inventory(model), {"text": tokens}, micro_batch=2).batches
    for index, block in enumerate(blocks):
        torch.testing.assert_close(torch.cat([batch.hidden for batch in batches]), seen[block])
        for batch in batches:
            batch.hidden = batch.run(index, block)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("pattern", [Unstructured(0.5), NofM(2, 4)], ids=str)
def test_only_linear_layers_of_blocks_change(family, method, pattern):
    model = tiny_model(family)
    before = {name: p.clone() for name, p in model.named_parameters()}
    report = compress(model, method, pattern, calibration={"text": random_windows()}, **QUIET)
    inside = {id(layer.module.weight) for block in decoder_blocks(model) for layer in linear_layers(block)}
    assert len(report.layers) == len(inside)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (id(parameter) not in inside), name
    # SparseGPT's threshold takes one weight more in each block; tiny layers show it.
    assert report.sparsity == pytest.approx(0.5, abs=2e-3)
    assert all(0 < (layer.relative_error or 0.5) < 1 for layer in report.layers)


def test_each_block_sees_the_compressed_output_of_the_block_before():
    """Against a plain loop: run the model itself, catch one layer's inputs, prune, go on to the next block."""
    tokens, pattern = random_windows(), Unstructured(0.5)
    fast, slow = tiny_model("llama"), tiny_model("llama")
    compress(fast, "wanda", pattern, calibration={"text": tokens}, schedule="block", **QUIET)
    for block in decoder_blocks(slow):
        layers = linear_layers(block)
        seen = inputs_of(slow, tokens, [layer.module for layer in layers])
        for layer in layers:
            inputs = seen[layer.module].flatten(0, 1)
            layer.write(wanda(layer.weight, InputStats(inputs.T @ inputs, tokens.numel()), pattern))
    for mine, plain in zip(fast.parameters(), slow.parameters(), strict=True):
        assert torch.equal(mine == 0, plain == 0)


def test_the_size_of_a_micro_batch_does_not_matter():
    models = [tiny_model("llama") for _ in range(2)]
    for model, size in zip(models, (1, 6), strict=True):
        compress(model, "sparsegpt", NofM(2, 4), calibration={"t": random_windows()}, micro_batch=size, **QUIET)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_the_same_run_gives_the_same_bits():
    models = [tiny_model("llama") for _ in range(2)]
    for model in models:
        compress(model, "sparsegpt", Unstructured(0.5), calibration={"text": random_windows()}, **QUIET)
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_half_and_half_is_the_pooled_text():
    a, b = random_windows(), random_windows(seed=1)
    mixed, pooled = tiny_model("llama"), tiny_model("llama")
    compress(mixed, "wanda", Unstructured(0.5), calibration={"a": a, "b": b}, weights={"a": 0.5, "b": 0.5}, **QUIET)
    compress(pooled, "wanda", Unstructured(0.5), calibration={"all": torch.cat([a, b])}, **QUIET)
    assert all(torch.equal(x == 0, y == 0) for x, y in zip(mixed.parameters(), pooled.parameters(), strict=True))


def test_weight_one_is_that_source_alone():
    a, b = random_windows(), random_windows(seed=1)
    mixed, alone = tiny_model("llama"), tiny_model("llama")
    compress(mixed, "wanda", Unstructured(0.5), calibration={"a": a, "b": b}, weights={"a": 1.0, "b": 0.0}, **QUIET)
    compress(alone, "wanda", Unstructured(0.5), calibration={"a": a}, **QUIET)
    assert all(torch.equal(x, y) for x, y in zip(mixed.parameters(), alone.parameters(), strict=True))


def test_tied_embeddings_stay_tied():
    model = tiny_model("gpt2")
    compress(model, "magnitude", Unstructured(0.5), **QUIET)
    assert model.lm_head.weight is model.transformer.wte.weight


def test_bad_input_is_refused_before_anything_changes():
    model = tiny_model("llama")
    before = copy.deepcopy(model.state_dict())
    text = {"a": random_windows()}
    for arguments, sentence in [
        (("wnda", Unstructured(0.5)), "did you mean 'wanda'"),
        (("wanda", Unstructured(0.5)), "needs calibration text"),
        (("wanda", NofM(2, 5), text), "do not divide"),
        (("wanda", Unstructured(0.5), text, {"a": 0.7}), "sum to 1"),
        (("wanda", Unstructured(0.5), text, {"b": 1.0}), "one weight for each source"),
        (("wanda", Grid(4), text), r"to 4 bits per row; give a target such as 50% \(Unstructured\) or 2:4 \(NofM\)"),
        (("gptq", NofM(2, 4), text), r"give a target such as 4 bits g128 \(Grid\)"),
    ]:
        method, pattern, *rest = arguments
        options = dict(zip(("calibration", "weights"), rest, strict=False))
        with pytest.raises(InputError, match=sentence):
            compress(model, method, pattern, **options, **QUIET)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_activations_that_overflow_name_the_layer():
    model = tiny_model("llama").half()
    for layer in (decoder_blocks(model)[1].mlp.up_proj, decoder_blocks(model)[1].mlp.gate_proj):
        layer.weight.fill_(6e4)
    with pytest.raises(InputError, match="NaN or infinite inputs on source 'text'"):
        compress(model, "wanda", Unstructured(0.5), calibration={"text": random_windows()}, **QUIET)


def test_windows_longer_than_the_model_was_made_for_are_refused():
    model = tiny_model("gpt2")
    with pytest.raises(InputError, match="windows of 200 tokens are longer than the 128 this model was made for"):
        compress(model, "wanda", Unstructured(0.5), calibration={"x": random_windows(2, 200)}, progress=False)
