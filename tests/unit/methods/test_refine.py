"""Refinements, anchors, ALPS and Fisher masks against their float64 oracles, then their edges."""

import math
from dataclasses import replace

import pytest
import torch

from crosscal.calibration import InputStats
from crosscal.calibration.statistics import WeightGradient, mix_gradients
from crosscal.errors import InputError
from crosscal.methods.alps import METHOD as ALPS
from crosscal.methods.alps import alps
from crosscal.methods.anchor import dense_aims
from crosscal.methods.compose import anchored
from crosscal.methods.fisher import METHOD as FISHER
from crosscal.methods.fisher import fisher, loss_increase, whole_model_masks
from crosscal.methods.refine import least_squares, swap
from crosscal.methods.registry import METHODS, Evidence
from crosscal.methods.sparsegpt import sparsegpt
from crosscal.methods.wanda import wanda
from crosscal.types import NofM, Unstructured
from tests.oracles import refinement as oracle
from tests.unit.methods.layers import KINDS, layer

PATTERNS = [Unstructured(0.5), Unstructured(0.8), NofM(2, 4)]


def error(dense, new, stats):
    change = (new - dense).double()
    return ((change @ stats.gram.double()) * change).sum().item()


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_least_squares_equals_the_oracle(kind, pattern):
    weight, stats = layer(kind)
    keep = wanda(weight, stats, pattern) != 0
    fast = least_squares(weight, weight, keep, stats, damp=0.05, steps=60)
    slow = oracle.least_squares(weight, keep, stats.gram, 0.05)
    torch.testing.assert_close(fast.double(), slow, rtol=2e-3, atol=2e-3)
    assert (fast[~keep] == 0).all()


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_least_squares_beats_the_greedy_sweep(pattern):
    weight, stats = layer("real-like")
    start = sparsegpt(weight, stats, pattern)
    fitted = least_squares(weight, start, start != 0, stats)
    assert error(weight, fitted, stats) < error(weight, start, stats)


def test_least_squares_keeps_what_needs_no_change():
    weight, stats = layer()
    assert torch.equal(least_squares(weight, weight, torch.ones_like(weight, dtype=torch.bool), stats), weight)
    none = torch.zeros_like(weight, dtype=torch.bool)
    assert (least_squares(weight, weight, none, stats) == 0).all()


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_swap_keeps_counts_and_lowers_loss(kind, pattern):
    weight, stats = layer(kind)
    keep = wanda(weight, stats, pattern) != 0
    better = swap(weight, keep, stats, pattern=pattern if isinstance(pattern, NofM) else None)
    assert torch.equal(better.sum(1), keep.sum(1))
    if isinstance(pattern, NofM):
        assert (better.unflatten(1, (-1, pattern.m)).sum(-1) == keep.unflatten(1, (-1, pattern.m)).sum(-1)).all()
    before, after = (oracle.loss(weight, mask, stats.gram) for mask in (keep, better))
    assert (after <= before * (1 + 1e-6)).all()
    assert after.sum() < before.sum()


@pytest.mark.parametrize("pattern", [None, NofM(2, 4)], ids=str)
def test_swap_ends_where_no_pair_gains(pattern):
    weight, stats = layer("real-like", d_out=6, d_in=16)
    keep = wanda(weight, stats, pattern or Unstructured(0.5)) != 0
    done = swap(weight, keep, stats, pattern=pattern)
    first, last = oracle.loss(weight, keep, stats.gram), oracle.loss(weight, done, stats.gram)
    assert (last - oracle.best_swap(weight, done, stats.gram, pattern) <= 2e-5 * first).all()


@pytest.mark.parametrize("strength", [0.0, 0.25, 0.5])
def test_anchor_equals_the_oracle(strength):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, 24, generator=generator)
    y = x + 0.3 * torch.randn(200, 24, generator=generator)
    weight = torch.randn(8, 24, generator=generator)
    (fast,), failed = dense_aims([weight], InputStats(y.T @ y, 200, x.T @ y), strength=strength, damp=0.1)
    assert not failed
    torch.testing.assert_close(fast.double(), oracle.anchored(weight, x, y, strength, 0.1), rtol=1e-4, atol=1e-4)


def test_anchor_changes_nothing_without_drift():
    weight, stats = layer("dead inputs")
    stats = replace(stats, cross=stats.gram)
    assert torch.equal(dense_aims([weight], stats)[0][0], weight)


@pytest.mark.parametrize("strength", [-0.1, 0.51, 1.0, float("nan")])
def test_anchor_refuses_unstable_strengths(strength):
    with pytest.raises(InputError, match=r"anchor is .*; give a number from 0 to 0\.5"):
        anchored(METHODS["wanda"], strength)


@pytest.mark.parametrize("pattern", [*PATTERNS, Unstructured(0.0), Unstructured(1.0)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_alps_prunes_exactly_and_loses_less(kind, pattern):
    weight, stats = layer(kind)
    new = alps(weight, stats, pattern)
    wanted = int(weight.numel() * pattern.sparsity)
    live = stats.diagonal != 0
    if kind == "dead inputs":
        assert (new == 0).sum() >= wanted
    else:
        assert (new == 0).sum() == wanted
    assert new.isfinite().all()
    if 0 < pattern.sparsity < 1:
        assert error(weight, new, stats) < error(weight, sparsegpt(weight, stats, pattern), stats)
    if pattern.sparsity == 0:
        torch.testing.assert_close(new[:, live], weight[:, live])


def test_alps_solves_each_weight_of_a_group_alone():
    weight, stats = layer("real-like")
    for part, new in zip(
        weight.split(16), ALPS.solve(list(weight.split(16)), Evidence(stats), NofM(2, 4))[0], strict=True
    ):
        torch.testing.assert_close(new, alps(part, stats, NofM(2, 4)))


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.999, 1.0])
def test_masks_of_the_whole_model_are_exact(sparsity):
    generator = torch.Generator().manual_seed(0)
    scores = [torch.rand(4, 6, generator=generator) ** 8, torch.rand(5, 8, generator=generator)]
    scores[0][0, :3] = scores[1][0, :3] = 0.25  # ties over matrices
    scores[1][1, :4] = 0.0
    masks = whole_model_masks(scores, Unstructured(sparsity), floor=0.0)
    slow = oracle.smallest(scores, int(64 * sparsity + 1e-6))
    assert all(torch.equal(~mask, drop) for mask, drop in zip(masks, slow, strict=True))


def test_masks_leave_no_matrix_empty():
    scores = [torch.full((10, 10), 1e-9), torch.ones(10, 10)]
    masks = whole_model_masks(scores, Unstructured(0.5), floor=0.1)
    assert [int(mask.sum()) for mask in masks] == [10, 90]


@pytest.mark.parametrize("sparsity", [0.9, 0.99, 0.995])
def test_no_matrix_is_emptied_where_less_stays_than_the_floor(sparsity):
    scores = [torch.rand(20, 50, generator=torch.Generator().manual_seed(seed)) * 10.0**seed for seed in range(4)]
    masks = whole_model_masks(scores, Unstructured(sparsity))
    assert sum(int(mask.sum()) for mask in masks) == 4000 - math.floor(sparsity * 4000 + 1e-6)
    assert all(int(mask.sum()) >= math.floor(min(0.02, 1 - sparsity) * 1000 + 1e-6) for mask in masks)


@pytest.mark.parametrize("kind", KINDS)
def test_fisher_equals_the_oracle(kind):
    weight, stats = layer(kind)
    gradient = WeightGradient(weight.roll(1, 0).square(), n_windows=4)
    keep = gradient.square * weight.square() > 0.1
    fast = FISHER.solve(
        [weight[:20], weight[20:]], Evidence(stats, keep=[keep[:20], keep[20:]]), Unstructured(0.5), damp=0.05, block=32
    )[0]
    slow = oracle.sweep_on_mask(weight, keep, stats.gram, 0.05)
    torch.testing.assert_close(torch.cat(fast).double(), slow, rtol=2e-3, atol=2e-3)
    alone = fisher(weight, stats, gradient, Unstructured(0.5), damp=0.05)
    drop = oracle.smallest([gradient.square.double() * weight.double().square()], weight.numel() // 2)[0]
    assert (alone[drop] == 0).all()
    torch.testing.assert_close(
        alone.double(), oracle.sweep_on_mask(weight, ~drop, stats.gram, 0.05), rtol=2e-3, atol=2e-3
    )


def test_fisher_keeps_the_best_of_each_group():
    weight, stats = layer("real-like")
    gradient = WeightGradient(weight.roll(1, 0).square(), n_windows=4)
    kept = fisher(weight, stats, gradient, NofM(2, 4)) != 0
    groups = (gradient.square * weight.square()).unflatten(1, (-1, 4))
    best = torch.zeros_like(groups, dtype=torch.bool).scatter_(2, groups.topk(2).indices, True)
    assert torch.equal(kept, best.flatten(1))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_scores_mix_as_the_sources_do(share):
    weight, _ = layer()
    parts = {"a": WeightGradient(weight.roll(1, 0).square(), 4), "b": WeightGradient(weight.roll(2, 1).square(), 2)}
    mixed = loss_increase(weight, mix_gradients(parts, {"a": share, "b": 1 - share}))
    alone = {name: loss_increase(weight, part).double() for name, part in parts.items()}
    torch.testing.assert_close(mixed.double(), share * alone["a"] + (1 - share) * alone["b"], rtol=1e-6, atol=0)
    if share in (0, 1):
        assert torch.equal(mixed, loss_increase(weight, parts["a" if share else "b"]))
