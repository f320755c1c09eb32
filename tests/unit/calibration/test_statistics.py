"""Statistics add, mix, and are gathered once for each shared input."""

import pytest
import torch
from torch import nn

from crosscal.calibration import GramCapture, InputStats, mix
from crosscal.calibration.gram import add_gram, bf16_products
from crosscal.errors import InputError
from crosscal.models import linear_layers


def stats_of(inputs):
    return InputStats(inputs.T @ inputs, len(inputs))


def random_inputs(tokens, d_in=6, seed=0):
    return torch.randn(tokens, d_in, generator=torch.Generator().manual_seed(seed))


def test_statistics_of_disjoint_texts_add():
    inputs = random_inputs(50)
    both = stats_of(inputs[:20]) + stats_of(inputs[20:])
    assert both.n_tokens == 50
    torch.testing.assert_close(both.gram, stats_of(inputs).gram)


def test_half_and_half_of_equal_lengths_is_pooling():
    a, b = stats_of(random_inputs(30)), stats_of(random_inputs(30, seed=1))
    mixed, pooled = mix({"a": a, "b": b}, {"a": 0.5, "b": 0.5}), a + b
    torch.testing.assert_close(mixed.gram / mixed.n_tokens, pooled.gram / pooled.n_tokens)


def test_each_source_counts_by_its_weight_and_not_by_its_length():
    a, b = stats_of(random_inputs(30)), stats_of(random_inputs(3000, seed=1))
    expected = 0.8 * a.gram / 30 + 0.2 * b.gram / 3000
    torch.testing.assert_close(mix({"a": a, "b": b}, {"a": 0.8, "b": 0.2}).gram, expected)


def test_a_source_of_weight_zero_may_be_empty():
    a, nothing = stats_of(random_inputs(30)), InputStats(torch.zeros(6, 6), 0)
    assert torch.equal(mix({"a": a, "b": nothing}, {"a": 1.0, "b": 0.0}).gram, a.gram / 30)


@pytest.mark.parametrize("weights", [{"a": 1.0}, {"a": 0.4, "b": 0.4}, {"a": 1.5, "b": -0.5}, {"a": 0.5, "c": 0.5}])
def test_weights_that_make_no_sense_are_refused(weights):
    part = stats_of(random_inputs(10))
    with pytest.raises(InputError):
        mix({"a": part, "b": part}, weights)


def test_a_gram_matrix_is_square():
    # The tests' shape checker may speak first, with a TypeError.
    with pytest.raises((InputError, TypeError), match=r"square|d_in d_in"):
        InputStats(torch.zeros(2, 3), 1)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.o = nn.Linear(6, 4), nn.Linear(6, 2), nn.Linear(4, 6)

    def forward(self, x):
        return self.o(self.q(x)) + self.k(x).sum()


def test_layers_that_read_one_tensor_share_one_gram():
    block = Attention()
    with GramCapture(linear_layers(block)) as capture:
        for source, tokens, seed in (("a", 5, 0), ("b", 7, 1), ("a", 3, 2)):
            capture.source = source
            block(random_inputs(tokens, seed=seed)[None])
            capture.end_pass()
    assert [[layer.name for layer in group] for group in capture.groups] == [["q", "k"], ["o"]]
    found = capture.stats(capture.groups[0])
    assert (found["a"].n_tokens, found["b"].n_tokens) == (8, 7)
    together = torch.cat([random_inputs(5), random_inputs(3, seed=2)])
    torch.testing.assert_close(found["a"].gram, together.T @ together)
    assert not block.q._forward_pre_hooks


def test_activations_that_are_not_finite_name_the_layer():
    block = Attention()
    with GramCapture(linear_layers(block)) as capture:
        capture.source = "a"
        block(torch.full((1, 2, 6), float("inf")))
    with pytest.raises(InputError, match=r"layer q .* source 'a'"):
        capture.stats(capture.groups[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gram_is_summed_in_float32(dtype):
    inputs = random_inputs(4096, 32).to(dtype)
    gram = torch.zeros(32, 32)
    add_gram(gram, inputs)
    exact = inputs.double().T @ inputs.double()
    assert ((gram - exact).abs().max() / exact.abs().max()).item() < 2e-6


def test_the_callers_matmul_precision_is_restored():
    settings = getattr(torch.backends.mkldnn, "matmul", None)
    before = getattr(settings, "fp32_precision", None)
    with pytest.raises(RuntimeError, match="inside"), bf16_products():
        raise RuntimeError("inside")
    assert getattr(settings, "fp32_precision", None) == before
