"""D-Pruner: the calculus behind its score, the float64 oracle, then the edges."""

from itertools import pairwise

import pytest
import torch

from crosscal.calibration import InputStats
from crosscal.calibration.statistics import WeightGradient
from crosscal.errors import InputError
from crosscal.methods.dpruner import METHOD, _scores, dpruner
from crosscal.methods.linalg import _inverse_factor
from crosscal.methods.registry import Evidence
from crosscal.types import NofM, Unstructured
from tests.oracles import dpruner as oracle

PATTERNS = [*(Unstructured(s) for s in (0.0, 0.25, 0.5, 1.0)), NofM(2, 4), NofM(4, 8), NofM(1, 4), NofM(0, 4)]
HALF = Unstructured(0.5)


def dpruner_scores(weight, stats, gradient, *, strength=0.1, damp=0.01):
    """The scores that `dpruner` compares."""
    return _scores(weight, _inverse_factor(stats, damp), stats.n_tokens, gradient, strength)


def inputs_of(kind, tokens, d_in, generator):
    """Random inputs, or low-rank ones with a few loud channels as in real layers, or fewer than channels, or dead."""
    if kind == "few":
        tokens = d_in // 4
    inputs = torch.randn(tokens, d_in, generator=generator)
    if kind in ("real", "dead"):
        through = torch.randn(d_in, d_in // 6, generator=generator) @ torch.randn(d_in // 6, d_in, generator=generator)
        inputs = inputs @ through / d_in**0.5
        inputs[:, ::11] *= 30
    if kind == "dead":
        inputs[:, [3, 7]] = 0
    return inputs


def make(kind="random", d_out=12, d_in=24, tokens=200, n_windows=5, seed=0):
    """A weight, general statistics and domain gradients, window by window; sizes and tails as in language models."""
    generator = torch.Generator().manual_seed(seed)
    inputs = inputs_of(kind, tokens, d_in, generator)
    weight = 0.05 * torch.randn(d_out, d_in, generator=generator)
    tails = torch.randn(n_windows, d_out, d_in, generator=generator) ** 3
    windows = 1e-3 * tails * torch.rand(d_out, d_in, generator=generator)
    return weight, InputStats(inputs.T @ inputs, len(inputs)), windows


def moments(windows):
    return WeightGradient(windows.square().mean(dim=0), len(windows), windows.mean(dim=0))


KINDS = ["random", "real", "few", "dead"]


@pytest.mark.parametrize("strength", [0.0, 0.1, 10.0])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_the_oracle(kind, strength):
    weight, stats, windows = make(kind)
    for scale in (1.0, 1e5):  # of the gradients; at the larger one the second-order term leads
        fast = dpruner_scores(weight, stats, moments(windows * scale), strength=strength)
        slow = oracle.scores(weight, stats.gram, stats.n_tokens, windows * scale, strength)
        torch.testing.assert_close(fast.double(), slow, rtol=1e-3, atol=1e-4 * slow.mean().item())


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_pruning_equals_the_oracle(kind, pattern):
    weight, stats, windows = make(kind)
    expected = oracle.dpruner(weight, stats.gram, stats.n_tokens, windows, pattern, strength=1.0)
    assert torch.equal(dpruner(weight, stats, moments(windows), pattern, strength=1.0).double(), expected)


def test_default_strength_and_damping_are_the_oracles():
    weight, stats, windows = make("real")
    expected = oracle.scores(weight, stats.gram, stats.n_tokens, windows)
    torch.testing.assert_close(
        dpruner_scores(weight, stats, moments(windows)).double(),
        expected,
        rtol=1e-3,
        atol=1e-4 * expected.mean().item(),
    )


def test_without_regularizer_the_score_is_the_loss_change_of_a_quadratic_loss():
    weight, stats, _ = make()
    slope = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
    curvature = slope.square() * 3  # as if windows differed

    def loss(w):  # one weight at a time, and `weight` the point where the gradient was taken
        return slope * (w - weight) + curvature / 2 * (w - weight).square()

    change = (loss(weight) - loss(torch.zeros_like(weight))).abs()
    found = dpruner_scores(weight, stats, WeightGradient(curvature, 2, slope), strength=0.0)
    torch.testing.assert_close(found, change)


def test_the_regularizer_enters_by_its_derivative():
    weight, stats, _ = make("real")
    slope = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)).double()
    curvature = slope.square() * 3
    general = oracle.general_importance(weight, stats.gram, stats.n_tokens)
    alpha_squared = 1 / (general * curvature).mean()
    point = weight.double().requires_grad_(True)
    moved = point - weight.double()
    loss = (slope * moved + curvature / 2 * moved.square()).sum()
    step_gradient = slope + curvature * moved  # of that loss, as a function of the weight
    penalty = 0.1 * alpha_squared * (general * step_gradient.square()).sum()
    total = torch.autograd.grad(loss + penalty, point)[0]
    first_order = (total * weight).abs()
    tiny = 1e-6  # of the gradient: the second-order term vanishes, the relative size of the penalty stays
    gradient = WeightGradient((tiny**2 * curvature).float(), 2, (tiny * slope).float())
    found = dpruner_scores(weight, stats, gradient, strength=0.1).double() / tiny
    torch.testing.assert_close(found, first_order, rtol=1e-3, atol=1e-6)


def test_general_text_has_a_say():
    weight, stats, windows = make("real")
    generator = torch.Generator().manual_seed(5)
    other = inputs_of("random", 200, weight.shape[1], generator)
    masks = [
        dpruner(weight, s, moments(windows), HALF, strength=1.0) != 0 for s in (stats, InputStats(other.T @ other, 200))
    ]
    assert (masks[0] != masks[1]).any()
    alone = [
        dpruner(weight, s, moments(windows), HALF, strength=0.0) != 0 for s in (stats, InputStats(other.T @ other, 200))
    ]
    assert torch.equal(*alone)


def test_a_weight_that_general_text_needs_outlives_an_equal_one_that_it_does_not():
    weight = torch.ones(1, 4)
    slope = torch.full((1, 4), 0.1)
    loud_third_input = InputStats(torch.diag(torch.tensor([1.0, 1.0, 9.0, 1.0])), 1)
    pruned = dpruner(weight, loud_third_input, WeightGradient(slope.square(), 1, slope), Unstructured(0.75))
    assert pruned.tolist() == [[0.0, 0.0, 1.0, 0.0]]


@pytest.mark.parametrize("scale", [1e-4, 1e3])
def test_units_do_not_matter(scale):
    weight, stats, windows = make("real")
    gradient = moments(windows * 1e-3)  # small enough that the score is of first order
    expected = dpruner(weight, stats, gradient, HALF)
    repeated = InputStats(stats.gram * 4, stats.n_tokens * 4)
    assert torch.equal(dpruner(weight, repeated, gradient, HALF), expected)
    louder = InputStats(stats.gram * scale, stats.n_tokens)
    torch.testing.assert_close(
        dpruner_scores(weight, louder, gradient), dpruner_scores(weight, stats, gradient), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_exact_counts_also_with_ties(pattern):
    weight, stats, windows = make(d_out=10)
    ties = WeightGradient(torch.ones_like(weight), 1, torch.ones_like(weight))
    same = torch.full_like(weight, 0.5)
    for case in ((weight, stats, moments(windows)), (same, InputStats(torch.eye(24), 1), ties)):
        zeros = dpruner(*case, pattern) == 0
        assert zeros.sum() == int(weight.numel() * pattern.sparsity + 1e-6)
        if isinstance(pattern, NofM):
            assert (zeros.view(-1, pattern.m).sum(dim=1) == pattern.m - pattern.n).all()
    leftmost = dpruner(same, InputStats(torch.eye(24), 1), ties, NofM(2, 4))
    assert not leftmost.view(-1, 4)[:, :2].any()


def test_masks_nest_as_sparsity_grows():
    weight, stats, windows = make("real")
    kept = [dpruner(weight, stats, moments(windows), Unstructured(s / 10)) != 0 for s in range(11)]
    assert all((more <= less).all() for less, more in pairwise(kept))


def test_weights_of_a_group_are_pruned_as_if_alone():
    parts = [make("real", d_out=rows, seed=seed) for seed, rows in enumerate((8, 4, 12))]
    stats = parts[0][1]
    weights, gradients = [part[0] for part in parts], [moments(part[2]) for part in parts]
    for pattern in (HALF, NofM(2, 4)):
        new, facts = METHOD.solve(weights, Evidence(stats, gradients), pattern, strength=1.0, damp=0.02)
        assert facts == {"damp": 0.02, "failed": False}
        for weight, gradient, pruned in zip(weights, gradients, new, strict=True):
            assert torch.equal(pruned, dpruner(weight, stats, gradient, pattern, strength=1.0, damp=0.02))


def test_dtype_is_kept_and_nothing_is_changed():
    weight, stats, windows = make("real")
    weight, gradient = weight.bfloat16(), moments(windows)
    before = [tensor.clone() for tensor in (weight, stats.gram, gradient.term, gradient.square)]
    pruned = dpruner(weight, stats, gradient, HALF)
    assert pruned.dtype == torch.bfloat16
    assert torch.equal(pruned[pruned != 0], weight[pruned != 0])
    assert torch.equal(pruned.double(), oracle.dpruner(weight, stats.gram, stats.n_tokens, windows, HALF))
    assert torch.equal(dpruner_scores(weight, stats, gradient), dpruner_scores(weight.float(), stats, gradient))
    assert all(map(torch.equal, before, (weight, stats.gram, gradient.term, gradient.square)))
    assert torch.equal(dpruner(weight, stats, gradient, HALF), pruned)


def test_dead_inputs_gain_nothing_from_general_text():
    weight, stats, windows = make("dead")
    found = dpruner_scores(weight, stats, moments(windows), strength=10.0)
    domain_alone = dpruner_scores(weight, stats, moments(windows), strength=0.0)
    assert torch.equal(found[:, [3, 7]], domain_alone[:, [3, 7]])
    assert (found > domain_alone).any()


def test_nothing_to_go_by_still_gives_finite_scores_and_exact_counts():
    weight, stats, windows = make()
    silent = WeightGradient(torch.zeros_like(weight), 3, torch.zeros_like(weight))
    assert not dpruner_scores(weight, stats, silent).any()
    assert (dpruner(weight, stats, silent, HALF) == 0).sum() == weight.numel() // 2
    nowhere = InputStats(torch.zeros_like(stats.gram), 0)
    alone = dpruner_scores(weight, stats, moments(windows), strength=0.0)
    assert torch.equal(dpruner_scores(weight, nowhere, moments(windows)), alone)


def test_bad_input_gets_a_sentence():
    weight, stats, windows = make()
    gradient = moments(windows)
    with pytest.raises(InputError, match="do not divide 24 inputs"):
        dpruner(weight, stats, gradient, NofM(2, 5))
    with pytest.raises(InputError, match="give each weight its own gradient"):
        dpruner(weight, stats, moments(windows[:, :4]), HALF)
    with pytest.raises(InputError, match=r"strength is -0\.1"):
        dpruner(weight, stats, gradient, HALF, strength=-0.1)
    with pytest.raises(InputError, match="not positive definite"):
        dpruner(weight, InputStats(-stats.gram, stats.n_tokens), gradient, HALF)
    weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="NaN or infinite"):
        dpruner(weight, stats, gradient, HALF)
