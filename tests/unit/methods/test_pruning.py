"""Pruning methods: properties first, then the float64 oracles, then the edges."""

from itertools import pairwise

import pytest
import torch

from crosscal.calibration import InputStats
from crosscal.errors import InputError
from crosscal.methods import magnitude, sparsegpt, wanda
from crosscal.types import NofM, Unstructured
from tests.oracles import pruning as oracle

PATTERNS = [*(Unstructured(s) for s in (0.0, 0.3, 0.5, 1.0)), NofM(2, 4), NofM(4, 8), NofM(1, 4)]
METHODS = {
    "magnitude": lambda w, s, p: magnitude(w, p),
    "wanda": wanda,
    "sparsegpt": sparsegpt,
}


def make(d_out=24, d_in=48, tokens=200, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(tokens, d_in, generator=generator) @ torch.randn(d_in, d_in, generator=generator)
    inputs *= torch.linspace(0.2, 2.0, d_in)  # inputs of unlike size, as in real layers
    weight = torch.randn(d_out, d_in, generator=generator)
    return weight, inputs, InputStats(inputs.T @ inputs, tokens)


def loss(weight, pruned, inputs):
    return ((weight - pruned) @ inputs.T).square().sum().item()


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_sparsity_is_what_was_asked(method, pattern):
    weight, _, stats = make()
    zeros = (method(weight, stats, pattern) == 0).double().mean().item()
    # SparseGPT's threshold takes the weight at the position itself too: one more in each block.
    assert pattern.sparsity - 1 / weight.shape[1] <= zeros <= pattern.sparsity + 1 / weight.numel()


def test_zero_sparsity_is_the_identity_and_one_is_nothing(method):
    weight, _, stats = make()
    assert torch.equal(method(weight, stats, Unstructured(0.0)), weight)
    assert torch.equal(method(weight, stats, NofM(4, 4)), weight)
    assert not method(weight, stats, Unstructured(1.0)).any()
    assert not method(weight, stats, NofM(0, 4)).any()


def test_input_is_left_alone_and_dtype_kept(method):
    weight, _, stats = make()
    weight = weight.bfloat16()
    before = weight.clone()
    assert method(weight, stats, Unstructured(0.5)).dtype == torch.bfloat16
    assert torch.equal(weight, before)


def test_scaling_the_gram_changes_nothing(method):
    weight, _, stats = make()
    scaled = InputStats(stats.gram * 4.0, stats.n_tokens)
    assert torch.equal(method(weight, stats, Unstructured(0.5)), method(weight, scaled, Unstructured(0.5)))


@pytest.mark.parametrize("name", ["magnitude", "wanda"])
def test_masks_nest_as_sparsity_grows(name):
    weight, _, stats = make()
    kept = [METHODS[name](weight, stats, Unstructured(s / 10)) != 0 for s in range(11)]
    assert all((more <= less).all() for less, more in pairwise(kept))


def test_permuting_inputs_permutes_wanda_and_magnitude():
    weight, _, stats = make()
    order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(1))
    moved = InputStats(stats.gram[order][:, order], stats.n_tokens)
    half = Unstructured(0.5)
    assert torch.equal(wanda(weight[:, order], moved, half), wanda(weight, stats, half)[:, order])


def test_rows_do_not_influence_each_other(method):
    weight, _, stats = make()
    pattern = NofM(2, 4)
    torch.testing.assert_close(method(weight[:5], stats, pattern), method(weight, stats, pattern)[:5])


def test_updates_pay_sparsegpt_loses_less_than_wanda_less_than_magnitude():
    weight, inputs, stats = make(64, 96, 500)
    losses = [loss(weight, METHODS[name](weight, stats, Unstructured(0.5)), inputs) for name in METHODS]
    assert losses[2] < losses[1] < losses[0]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_magnitude_and_wanda_equal_their_oracles(pattern):
    weight, _, stats = make(8, 24)
    torch.testing.assert_close(magnitude(weight, pattern).double(), oracle.magnitude(weight, pattern))
    expected = oracle.wanda(weight, stats.gram, stats.n_tokens, pattern)
    torch.testing.assert_close(wanda(weight, stats, pattern).double(), expected)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize(("d_in", "block"), [(48, 24), (48, 48), (96, 24), (72, 48)])
def test_sparsegpt_equals_its_oracle(pattern, d_in, block):
    weight, _, stats = make(16, d_in, 4 * d_in)
    fast = sparsegpt(weight, stats, pattern, block=block)
    torch.testing.assert_close(
        fast.double(), oracle.sparsegpt(weight, stats.gram, pattern, block=block), rtol=2e-3, atol=2e-3
    )


def test_sparsegpt_equals_its_oracle_beyond_one_default_block():
    weight, _, stats = make(16, 320, 2000)
    fast = sparsegpt(weight, stats, Unstructured(0.5))
    torch.testing.assert_close(
        fast.double(), oracle.sparsegpt(weight, stats.gram, Unstructured(0.5)), rtol=5e-3, atol=5e-3
    )


def test_dead_inputs_lose_their_weights_and_trouble_nobody():
    weight, inputs, _ = make()
    inputs[:, [3, 7]] = 0
    stats = InputStats(inputs.T @ inputs, len(inputs))
    pruned = sparsegpt(weight, stats, Unstructured(0.25))
    assert not pruned[:, [3, 7]].any()
    torch.testing.assert_close(
        pruned.double(), oracle.sparsegpt(weight, stats.gram, Unstructured(0.25)), rtol=2e-3, atol=2e-3
    )
    assert wanda(weight, stats, Unstructured(0.5)).isfinite().all()


def test_fewer_tokens_than_inputs():
    weight, _, stats = make(tokens=5)
    assert sparsegpt(weight, stats, Unstructured(0.5)).isfinite().all()


def test_ties_keep_exact_counts():
    weight = torch.ones(4, 8)
    stats = InputStats(torch.eye(8), 1)
    assert (magnitude(weight, Unstructured(0.5)) == 0).sum() == 16
    assert ((wanda(weight, stats, Unstructured(0.25)) == 0).sum(dim=1) == 2).all()
    assert ((wanda(weight, stats, NofM(2, 4)) == 0).sum(dim=1) == 4).all()


def test_same_call_same_bits(method):
    weight, _, stats = make(64, 256, 1000)
    assert torch.equal(method(weight, stats, Unstructured(0.5)), method(weight, stats, Unstructured(0.5)))


def test_bad_input_gets_a_sentence(method):
    weight, _, stats = make()
    with pytest.raises(InputError, match="do not divide 48 inputs"):
        method(weight, stats, NofM(2, 5))
    weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="NaN or infinite"):
        method(weight, stats, Unstructured(0.5))


def test_a_group_that_does_not_divide_the_block_is_refused():
    weight, _, stats = make()
    with pytest.raises(InputError, match="do not divide the block of 128"):
        sparsegpt(weight, stats, NofM(1, 3))


def test_a_hopeless_hessian_gets_a_sentence():
    weight, _, stats = make()
    with pytest.raises(InputError, match="not positive definite"):
        sparsegpt(weight, InputStats(-stats.gram, stats.n_tokens), Unstructured(0.5))
