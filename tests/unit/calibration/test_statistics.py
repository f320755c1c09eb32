"""Statistics add, mix, and are gathered once for each shared input."""

import pytest
import torch
from torch import nn

from crosscal.calibration import DiagonalStats, InputStats, mix
from crosscal.calibration.gram import _CPU_PANEL, InputSums, _bf16_products, _GramSum, mirror
from crosscal.engine.batches import _input_groups
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


def test_layers_that_read_one_tensor_share_one_group():
    block = Attention()
    groups = _input_groups(linear_layers(block), lambda: block(random_inputs(5)[None]))
    assert [[layer.name for layer in group] for group in groups] == [["q", "k"], ["o"]]
    assert not block.q._forward_pre_hooks


def test_a_layer_that_does_not_run_belongs_to_no_group():
    block = Attention()
    groups = _input_groups(linear_layers(block), lambda: block.q(random_inputs(5)))
    assert [[layer.name for layer in group] for group in groups] == [["q"]]


@pytest.mark.parametrize("diagonal_only", [False, True])
def test_sources_are_summed_apart(diagonal_only):
    sums = InputSums(diagonal_only, {})
    for source, tokens, seed in (("a", 5, 0), ("b", 7, 1), ("a", 3, 2)):
        sums.add(source, random_inputs(tokens, seed=seed)[None])
    found = sums.stats()
    assert (found["a"].n_tokens, found["b"].n_tokens) == (8, 7)
    together = torch.cat([random_inputs(5), random_inputs(3, seed=2)])
    torch.testing.assert_close(found["a"].diagonal, (together.T @ together).diagonal())
    if not diagonal_only:
        torch.testing.assert_close(found["a"].gram, together.T @ together)


def test_the_half_sum_of_a_wide_input_is_mirrored():
    inputs = random_inputs(300, 3 * _CPU_PANEL + 5)
    total = _GramSum({})
    for part in inputs.split(100):
        total.add(part)
    torch.testing.assert_close(mirror(total.gram), inputs.T @ inputs, rtol=1e-4, atol=1e-3)
    assert torch.equal(total.gram, total.gram.T)


def test_diagonals_mix_as_gram_matrices_do():
    a, b = stats_of(random_inputs(30)), stats_of(random_inputs(50, seed=1))
    thin = {"a": DiagonalStats(a.diagonal, 30), "b": DiagonalStats(b.diagonal, 50)}
    weights = {"a": 0.3, "b": 0.7}
    torch.testing.assert_close(mix(thin, weights).mean_square, mix({"a": a, "b": b}, weights).mean_square)


def test_three_sources_mix_by_their_weights():
    parts = {name: stats_of(random_inputs(30 + seed, seed=seed)) for seed, name in enumerate("abc")}
    weights = {"a": 0.5, "b": 0.3, "c": 0.2}
    expected = sum(weights[name] * part.gram / part.n_tokens for name, part in parts.items())
    torch.testing.assert_close(mix(parts, weights).gram, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gram_is_summed_in_float32(dtype):
    inputs = random_inputs(4096, 32).to(dtype)
    total = _GramSum({})
    total.add(inputs)
    gram = mirror(total.gram)
    exact = inputs.double().T @ inputs.double()
    assert ((gram - exact).abs().max() / exact.abs().max()).item() < 2e-6


def test_the_callers_matmul_precision_is_restored():
    settings = getattr(torch.backends.mkldnn, "matmul", None)
    before = getattr(settings, "fp32_precision", None)
    with pytest.raises(RuntimeError, match="inside"), _bf16_products():
        raise RuntimeError("inside")
    assert getattr(settings, "fp32_precision", None) == before
