"""Weight gradients against autograd on the model's own loss, and a model that is left as it was."""

import copy
import math

import pytest
import torch

from crosscal.calibration.statistics import WeightGradient, mix_gradients
from crosscal.engine.gather import gather_gradients
from crosscal.errors import InputError
from crosscal.models import decoder_blocks, linear_layers
from tests.unit.families import random_windows, tiny_model


def layers_of(model):
    return [layer for block in decoder_blocks(model) for layer in linear_layers(block)]


def plain(gradient, weight):
    """As a term: the gradient itself, so that its mean is kept."""
    return gradient


def autograd(model, tokens, term=plain):
    """Means over windows of a term and of the square of the gradient of the model's own loss, [d_out, d_in]."""
    model = copy.deepcopy(model).double().requires_grad_(True)
    layers = layers_of(model)
    flipped = type(layers[0].module).__name__ == "Conv1D"
    per_window = []
    for window in tokens:
        loss = model(input_ids=window[None], labels=window[None], use_cache=False).loss
        grads = torch.autograd.grad(loss, [layer.module.weight for layer in layers])
        per_window.append([grad.T if flipped else grad for grad in grads])
    stacked = [torch.stack(grads) for grads in zip(*per_window, strict=True)]
    weights = [layer.weight.detach() for layer in layers]
    terms = [term(grads, weight).mean(dim=0) for grads, weight in zip(stacked, weights, strict=True)]
    return [(mean, grads.square().mean(dim=0)) for mean, grads in zip(terms, stacked, strict=True)]


def assert_close(found, expected, tolerance):
    for got, want in zip((found.term, found.square), expected, strict=True):
        assert (got.dtype, got.shape) == (torch.float32, want.shape)
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance * want.abs().max().item())


def bent(gradient, weight):
    """A term that is linear in neither."""
    return (gradient + weight.square() / 8).abs()


@pytest.mark.parametrize("term", [plain, bent])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_gradients_equal_autograd_for_each_of_two_sources(family, term):
    model = tiny_model(family)
    windows = {"a": random_windows(3), "b": random_windows(2, length=16, seed=1)}
    found = gather_gradients(model, windows, term=term, progress=False)
    layers = layers_of(model)
    assert list(found) == [layer.module for layer in layers]
    for source, tokens in windows.items():
        for layer, expected in zip(layers, autograd(model, tokens, term), strict=True):
            gradient = found[layer.module][source]
            assert gradient.n_windows == len(tokens)
            assert gradient.square.shape == layer.weight.shape
            assert_close(gradient, expected, 1e-4)


def test_the_square_is_per_window_and_not_of_the_mean():
    model = tiny_model("llama")
    found = gather_gradients(model, {"a": random_windows(3)}, term=plain, progress=False)
    gradient = next(iter(found.values()))["a"]
    assert (gradient.square >= gradient.term.square() * 0.999).all()
    assert gradient.square.sum() > 1.2 * gradient.term.square().sum()


def test_a_term_is_per_window_and_kept_only_where_asked_for():
    model, tokens = tiny_model("llama"), {"a": random_windows(3)}
    mean, size = (
        next(iter(gather_gradients(model, tokens, term=term, progress=False).values()))["a"].term
        for term in (plain, lambda gradient, weight: gradient.abs())
    )
    assert size.sum() > 1.2 * mean.abs().sum()
    assert next(iter(gather_gradients(model, tokens, progress=False).values()))["a"].term is None


def test_a_bfloat16_model_gives_float32_gradients_near_the_exact_ones():
    model, tokens = tiny_model("llama"), random_windows(2)
    expected = autograd(model.bfloat16(), tokens)
    found = gather_gradients(model, {"a": tokens}, term=plain, progress=False)
    for layer, (mean, _) in zip(layers_of(model), expected, strict=True):
        gradient = found[layer.module]["a"]
        assert gradient.term.dtype == gradient.square.dtype == torch.float32
        assert (gradient.term - mean).norm() < 0.05 * mean.norm()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def state(model):
    flags = [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    hooks = [parameter._post_accumulate_grad_hooks for parameter in model.parameters()]
    return flags, [len(found or ()) for found in hooks], model.training


@pytest.mark.parametrize("breaks", [False, True])
def test_the_model_is_left_as_it_was(breaks, monkeypatch):
    model = tiny_model("gpt2")
    model.transformer.wte.weight.requires_grad_(True)  # one that learns and is none of ours
    learner = layers_of(model)[0].module.weight.requires_grad_(True)
    learner.grad = torch.ones_like(learner)
    before, weights = state(model), copy.deepcopy(model.state_dict())
    if breaks:
        monkeypatch.setattr(model.transformer.h[1].mlp.act, "forward", None)  # the forward pass raises TypeError
        with pytest.raises(TypeError):
            gather_gradients(model, {"a": random_windows(2)}, progress=False)
    else:
        gather_gradients(model, {"a": random_windows(2)}, progress=False)
    after = state(model)
    assert after[1:] == before[1:]
    assert all(a[0] is b[0] and a[1] is b[1] for a, b in zip(after[0], before[0], strict=True))
    assert torch.equal(learner.grad, torch.ones_like(learner))
    assert all(torch.equal(weights[name], now) for name, now in model.state_dict().items())


def test_an_error_in_the_backward_pass_leaves_no_gradient():
    model = tiny_model("llama")
    first = layers_of(model)[0].module.weight  # the last to get its gradient
    first.requires_grad_(True)

    def fail(_):
        raise RuntimeError("inside")

    handle = first.register_hook(fail)
    first.requires_grad_(False)
    with pytest.raises(RuntimeError, match="inside"):
        gather_gradients(model, {"a": random_windows(1)}, progress=False)
    handle.remove()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_it_runs_in_any_grad_mode_and_leaves_it(mode):
    model = tiny_model("llama")
    expected = gather_gradients(model, {"a": random_windows(1)}, progress=False)
    with mode():
        grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        found = gather_gradients(model, {"a": random_windows(1)}, progress=False)  # windows of that mode too
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == (grad, inference)
    for module, by_source in found.items():
        assert torch.equal(by_source["a"].square, expected[module]["a"].square)
        assert not by_source["a"].square.requires_grad
        assert not by_source["a"].square.is_inference()


def test_gradients_never_exist_at_the_same_time_nor_for_other_weights(monkeypatch):
    model, most = tiny_model("llama").requires_grad_(True), 0
    original = torch.Tensor.addcmul_

    def counting(self, *args, **kwargs):
        nonlocal most
        most = max(most, sum(parameter.grad is not None for parameter in model.parameters()))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "addcmul_", counting)
    gather_gradients(model, {"a": random_windows(1)}, progress=False)
    assert most == 0


def test_a_training_model_stays_in_training():
    model = tiny_model("llama").train()
    gather_gradients(model, {"a": random_windows(1)}, progress=False)
    assert model.training


def test_trouble_names_the_source():
    model = tiny_model("llama")
    with pytest.raises(InputError, match=r"source 'b'.*at least 2 tokens"):
        gather_gradients(model, {"a": random_windows(1), "b": random_windows(2, length=1)}, progress=False)
    with pytest.raises(InputError, match="source 'b'"):
        gather_gradients(model, {"b": random_windows(1)[:0]}, progress=False)
    model.model.embed_tokens.weight[7] = float("nan")
    good, bad = torch.full((1, 8), 5), torch.full((1, 8), 7)
    with pytest.raises(InputError, match="loss on source 'bad' is NaN"):
        gather_gradients(model, {"good": good, "bad": bad}, progress=False)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_gradient_that_is_not_finite_names_layer_and_source():
    model = tiny_model("llama")
    weight = layers_of(model)[0].module.weight.requires_grad_(True)
    handle = weight.register_hook(lambda grad: grad * math.inf)
    weight.requires_grad_(False)
    with pytest.raises(InputError, match=r"layer 0\.self_attn\.q_proj on source 'a'"):
        gather_gradients(model, {"a": random_windows(1)}, progress=False)
    handle.remove()


def gradient_of(*per_window):
    stacked = torch.tensor(per_window)[:, None, :]
    return WeightGradient(stacked.square().mean(dim=0), len(per_window), stacked.mean(dim=0))


def test_half_and_half_of_equal_numbers_is_pooling():
    a, b, both = gradient_of([1.0, 2.0]), gradient_of([3.0, -2.0]), gradient_of([1.0, 2.0], [3.0, -2.0])
    mixed = mix_gradients({"a": a, "b": b}, {"a": 0.5, "b": 0.5})
    assert torch.equal(mixed.term, both.term)
    assert torch.equal(mixed.square, both.square)
    assert mixed.n_windows == 2


def test_a_source_counts_by_its_weight_and_one_of_weight_zero_not_at_all():
    a, b = gradient_of([1.0, 2.0]), gradient_of([5.0, 0.0], [5.0, 0.0], [5.0, 0.0])
    mixed = mix_gradients({"a": a, "b": b}, {"a": 0.75, "b": 0.25})
    assert mixed.term.tolist() == [[2.0, 1.5]]
    assert mixed.square.tolist() == [[7.0, 3.0]]
    empty = WeightGradient(torch.zeros(1, 2), 0, torch.full((1, 2), float("nan")))
    alone = mix_gradients({"a": a, "b": empty}, {"a": 1.0, "b": 0.0})
    assert torch.equal(alone.term, a.term)
    assert alone.n_windows == 1
    squares = {name: WeightGradient(part.square, part.n_windows) for name, part in (("a", a), ("b", b))}
    assert mix_gradients(squares, {"a": 0.5, "b": 0.5}).term is None


@pytest.mark.parametrize("weights", [{"a": 1.0}, {"a": 0.4, "b": 0.4}, {"a": 1.5, "b": -0.5}, {"a": 0.5, "c": 0.5}])
def test_weights_that_make_no_sense_are_refused(weights):
    part = gradient_of([1.0, 2.0])
    with pytest.raises(InputError):
        mix_gradients({"a": part, "b": part}, weights)
