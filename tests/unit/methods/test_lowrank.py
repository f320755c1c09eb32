"""Low-rank methods: the float64 oracles, what makes each optimal, storage, and the edges."""

import numpy as np
import pytest
import torch

from crosscal.calibration import InputStats
from crosscal.errors import InputError
from crosscal.methods import lowrank
from crosscal.methods.lowrank import JOINT_RANK, joint_rank
from crosscal.methods.registry import Evidence
from crosscal.types import LowRank
from tests.oracles import lowrank as oracle

SHAPES = [(24, 60), (60, 24), (40, 40), (1, 30), (30, 1)]
RATIOS = [0.05, 0.3, 0.8, 1.0]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gram_of(inputs):
    return InputStats((inputs.double().T @ inputs.double()).float(), len(inputs))


def text_like(d_in, tokens=300, loud=50.0, common=0.0, seed=1):
    """Inputs as layers have them: a decaying spectrum, noise, a part common to all tokens, a few louder channels."""
    spectrum = torch.logspace(0, -2, d_in)
    inputs = (normal(tokens, d_in, seed=seed) * spectrum) @ normal(d_in, d_in, seed=seed + 1)
    inputs += 0.02 * normal(tokens, d_in, seed=seed + 2)
    inputs += common * normal(d_in, seed=seed + 3)
    inputs[:, : max(1, d_in // 20)] *= loud
    return inputs


def gradient_of(d_out, d_in, seed=5):
    """Squared gradients whose columns differ by orders of magnitude."""
    return (normal(d_out, d_in, seed=seed) * torch.logspace(-1, 1, d_in)).square()


def plain(weight, target):
    return lowrank.svd(weight, target)


def fisher(weight, target):
    return lowrank.fwsvd(weight, gradient_of(*weight.shape), target)


def activation(weight, target):
    return lowrank.asvd(weight, gram_of(text_like(weight.shape[1])), target)


def stacked(weight, target):
    return torch.cat(joint_rank(list(weight.split(max(1, len(weight) // 2))), target))


@pytest.fixture(params=[plain, fisher, activation, stacked], ids=lambda f: f.__name__)
def method(request):
    return request.param


def close(new, expected, scale=1e-4):
    np.testing.assert_allclose(new.double().numpy(), expected, atol=scale * max(1e-30, np.abs(expected).max()), rtol=0)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equal_their_oracles(shape, ratio):
    weight, target = normal(*shape), LowRank(ratio)
    squared, inputs = gradient_of(*shape), text_like(shape[1])
    close(plain(weight, target), oracle.svd(weight, ratio))
    close(lowrank.fwsvd(weight, squared, target), oracle.fwsvd(weight, squared, ratio))
    stats = gram_of(inputs)
    close(lowrank.asvd(weight, stats, target), oracle.asvd(weight, stats.gram, ratio), 2e-3)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("rows", [(24, 12), (30, 30), (5, 40, 9)], ids=str)
def test_joint_rank_equals_its_oracle(rows, ratio):
    weights = [normal(n, 20, seed=n + i) for i, n in enumerate(rows)]
    for new, expected in zip(joint_rank(weights, LowRank(ratio)), oracle.joint_rank(weights, ratio), strict=True):
        close(new, expected)


def test_rank_and_storage(method):
    weight, target = normal(36, 48), LowRank(0.5)
    new = method(weight, target)
    assert torch.linalg.matrix_rank(new.double(), rtol=1e-5) == target.rank(36, 48) == 10
    # One rank more would hold more numbers than asked for.
    assert 10 * (36 + 48) <= 0.5 * 36 * 48 < 11 * (36 + 48)


def test_factors_give_the_product_and_hold_no_more_than_the_ratio():
    weight, target, stats = normal(36, 48), LowRank(0.5), gram_of(text_like(48))
    for weighted, dense in (
        (weight, lowrank.svd(weight, target)),
        (weight @ lowrank._gram_root(stats), lowrank.asvd(weight, stats, target)),
    ):
        left, right = lowrank._factors(weight, weighted, target)
        assert torch.equal(left @ right, dense)
        assert left.numel() + right.numel() <= 0.5 * weight.numel()
        torch.testing.assert_close(left.T @ left, torch.eye(10), atol=1e-5, rtol=0)


def test_joint_rank_is_higher_at_equal_storage():
    query, key, target = normal(48, 48), normal(24, 48, seed=1), LowRank(0.5)
    new = torch.cat(joint_rank([query, key], target))
    rank = torch.linalg.matrix_rank(new.double(), rtol=1e-5)
    assert rank == 14 > target.rank(48, 48) == 12 > target.rank(24, 48)
    assert rank * (len(new) + new.shape[1]) <= 0.5 * (query.numel() + key.numel())
    close(new, oracle.svd(torch.cat([query, key]), 0.5))


def test_ratio_one_is_no_identity(method):
    weight = normal(40, 40)
    assert torch.linalg.matrix_rank(method(weight, LowRank(1.0)).double(), rtol=1e-5) == 20


def test_a_weight_of_low_rank_is_kept(method):
    weight = normal(40, 6) @ normal(6, 48, seed=1)
    torch.testing.assert_close(method(weight, LowRank(0.5)), weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
@pytest.mark.parametrize(("loud", "common"), [(1.0, 0.0), (50.0, 0.0), (1000.0, 0.0), (1.0, 10.0), (50.0, 10.0)])
def test_asvd_reaches_the_least_output_error_there_is(shape, loud, common):
    inputs = text_like(shape[1], loud=loud, common=common)
    weight, stats, target = normal(*shape), gram_of(inputs), LowRank(0.5)
    k = target.rank(*shape)
    left, right = (part.double() for part in lowrank._factors(weight, weight @ lowrank._gram_root(stats), target))
    least = oracle.least_output_error(weight, stats.gram, k)
    assert oracle.output_error(weight, left @ right, stats.gram) == pytest.approx(least, rel=1e-4)
    assert least < 0.9 * oracle.output_error(weight, lowrank.svd(weight, target), stats.gram)


def test_nothing_near_the_asvd_solution_is_better():
    weight, stats, target = normal(24, 60), gram_of(text_like(60, loud=5.0)), LowRank(0.5)
    left, right = (part.double() for part in lowrank._factors(weight, weight @ lowrank._gram_root(stats), target))
    best = oracle.output_error(weight, left @ right, stats.gram)
    for seed in range(20):
        step = 1e-2 if seed % 2 else 1e-3
        moved_left = left + step * left.std() * normal(*left.shape, seed=seed)
        moved_right = right + step * right.std() * normal(*right.shape, seed=seed + 100)
        for other in (moved_left @ right, left @ moved_right, moved_left @ moved_right):
            assert oracle.output_error(weight, other, stats.gram) > best


def test_fwsvd_loses_least_where_the_gradient_is_large():
    weight, squared, target = normal(24, 60), gradient_of(24, 60), LowRank(0.5)
    importance = torch.diag(squared.mean(dim=0))
    ours, theirs = fisher(weight, target), plain(weight, target)
    assert oracle.output_error(weight, ours, importance) < 0.8 * oracle.output_error(weight, theirs, importance)
    assert oracle.output_error(weight, ours, torch.eye(60)) > oracle.output_error(weight, theirs, torch.eye(60))


def test_equal_importance_is_the_plain_svd():
    weight, target = normal(24, 60), LowRank(0.5)
    expected = plain(weight, target)
    rows_alone_differ = torch.arange(1.0, 25.0)[:, None].expand(24, 60).contiguous()
    for squared in (torch.zeros(24, 60), rows_alone_differ):
        torch.testing.assert_close(lowrank.fwsvd(weight, squared, target), expected, rtol=1e-4, atol=1e-5)
    for gram in (torch.zeros(60, 60), 7 * torch.eye(60)):
        new = lowrank.asvd(weight, InputStats(gram, 1), target)
        torch.testing.assert_close(new, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_units_change_nothing(scale):
    weight, squared, stats, target = normal(24, 60), gradient_of(24, 60), gram_of(text_like(60)), LowRank(0.5)
    new = lowrank.fwsvd(weight, squared * scale, target)
    torch.testing.assert_close(new, lowrank.fwsvd(weight, squared, target), rtol=1e-4, atol=1e-5)
    new = lowrank.asvd(weight, InputStats(stats.gram * scale, 1), target)
    torch.testing.assert_close(new, lowrank.asvd(weight, stats, target), rtol=1e-3, atol=1e-3)


def test_zero_importances_are_floored_and_the_rank_they_leave_is_used():
    weight, target = normal(24, 60), LowRank(0.5)
    squared = gradient_of(24, 60)
    squared[:, 3:] = 0  # three inputs matter, the rank is eight
    new = lowrank.fwsvd(weight, squared, target)
    close(new, oracle.fwsvd(weight, squared, 0.5), 1e-2)
    torch.testing.assert_close(new[:, :3], weight[:, :3], rtol=1e-4, atol=1e-4)
    rest = lowrank.svd(weight[:, 3:], LowRank(0.01)), new[:, 3:]
    assert (weight[:, 3:] - rest[1]).norm() < (weight[:, 3:] - rest[0]).norm()


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_dead_inputs(shape):
    inputs = text_like(shape[1], loud=5.0)
    inputs[:, [3, 7, 11]] = 0
    weight, stats = normal(*shape), gram_of(inputs)
    new = lowrank.asvd(weight, stats, LowRank(0.5))
    k = LowRank(0.5).rank(*shape)
    assert new.abs().max() < 2 * weight.abs().max()
    least = oracle.least_output_error(weight, stats.gram, k)
    assert oracle.output_error(weight, new, stats.gram) == pytest.approx(least, rel=1e-4)
    close(new, oracle.asvd(weight, stats.gram, 0.5), 2e-3)


def test_rank_that_few_live_inputs_leave_over_goes_to_the_dead_ones():
    inputs = torch.zeros(300, 60)
    inputs[:, [2, 5, 50]] = text_like(3)
    weight, stats = normal(24, 60), gram_of(inputs)
    new = lowrank.asvd(weight, stats, LowRank(0.5))
    torch.testing.assert_close(new[:, [2, 5, 50]], weight[:, [2, 5, 50]], rtol=0, atol=1e-3)
    close(new, oracle.asvd(weight, stats.gram, 0.5), 1e-2)


@pytest.mark.parametrize("tokens", [1, 5, 12])
def test_fewer_tokens_than_inputs(tokens):
    weight, inputs, target = normal(48, 40), text_like(40, tokens=tokens, loud=5.0), LowRank(0.5)
    stats, k = gram_of(inputs), target.rank(48, 40)
    assert k == 10
    new = lowrank.asvd(weight, stats, target)
    total = oracle.output_error(weight, 0 * weight, stats.gram)
    excess = oracle.output_error(weight, new, stats.gram) - oracle.least_output_error(weight, stats.gram, k)
    assert abs(excess) < 1e-5 * total
    assert new.abs().max() < 2 * weight.abs().max()
    if tokens < k:  # rank that the text leaves over is spent on the weights, not on rounding noise
        damped = torch.from_numpy(oracle.damped(stats.gram))
        least = oracle.least_output_error(weight, damped, k)
        assert oracle.output_error(weight, new, damped) < 1.02 * least


def joint_rank_group(weights, target):
    return JOINT_RANK.solve(weights, Evidence(), target)[0]


def test_joint_rank_wins_where_two_weights_read_the_same_directions():
    directions, target = normal(14, 48), LowRank(0.5)
    pair = [normal(48, 14, seed=1) @ directions, normal(48, 14, seed=2) @ directions]
    pair = [weight + 0.05 * normal(48, 48, seed=3 + i) for i, weight in enumerate(pair)]
    apart = sum((weight - lowrank.svd(weight, target)).square().sum() for weight in pair)
    together = sum((w - new).square().sum() for w, new in zip(pair, joint_rank(pair, target), strict=True))
    assert target.rank(48, 48) < 14 <= target.rank(96, 48)
    assert together < 0.2 * apart


def test_layers_are_linked_two_by_two_in_call_order():
    weights, target = [normal(12, 32, seed=n) for n in range(5)], LowRank(0.4)
    for n in range(6):
        pairs = [weights[:n][:2], weights[:n][2:4], weights[:n][4:]]
        expected = [new for pair in pairs if pair for new in joint_rank(pair, target)]
        found = joint_rank_group(weights[:n], target)
        assert len(found) == n
        assert all(map(torch.equal, found, expected))


def test_a_group_is_its_pairs():
    query, key, value = normal(48, 32), normal(16, 32, seed=1), normal(16, 32, seed=2).bfloat16()
    target = LowRank(0.4)
    new = joint_rank_group([query, key, value], target)
    expected = [*joint_rank([query, key], target), lowrank.svd(value, target)]
    assert [part.dtype for part in new] == [torch.float32, torch.float32, torch.bfloat16]
    assert all(torch.equal(one, other) for one, other in zip(new, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_and_rounded_once(method, dtype):
    weight = normal(24, 60).to(dtype)
    new = method(weight, LowRank(0.5))
    assert new.dtype == dtype
    torch.testing.assert_close(new, method(weight.float(), LowRank(0.5)).to(dtype), rtol=0, atol=0)


def test_inputs_are_left_alone_and_calls_repeat(method):
    weight = normal(60, 24)
    before = weight.clone()
    new = method(weight, LowRank(0.5))
    assert torch.equal(new, method(weight, LowRank(0.5)))
    new += 1
    assert torch.equal(weight, before)


def test_statistics_are_left_alone():
    weight, squared, stats = normal(24, 60), gradient_of(24, 60), gram_of(text_like(60))
    kept = squared.clone(), stats.gram.clone()
    lowrank.fwsvd(weight, squared, LowRank(0.5))
    lowrank.asvd(weight, stats, LowRank(0.5))
    assert torch.equal(squared, kept[0])
    assert torch.equal(stats.gram, kept[1])


def test_a_zero_weight_stays_zero(method):
    assert not method(torch.zeros(24, 60), LowRank(0.5)).any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_weights_get_a_sentence(method, bad):
    weight = normal(24, 60)
    weight[20, 1] = bad
    with pytest.raises(InputError, match="weight is NaN or infinite"):
        method(weight, LowRank(0.5))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_bad_statistics_get_a_sentence(bad):
    weight, squared, stats = normal(24, 60), gradient_of(24, 60), gram_of(text_like(60))
    squared[3, 2] = bad
    stats.gram[2, 2] = bad
    with pytest.raises(InputError, match="squared gradient is negative, NaN or infinite"):
        lowrank.fwsvd(weight, squared, LowRank(0.5))
    with pytest.raises(InputError, match="Gram matrix is NaN, infinite or far from"):
        lowrank.asvd(weight, stats, LowRank(0.5))


def test_a_gram_matrix_just_below_positive_is_damped_more_and_one_far_below_refused():
    weight, target = normal(24, 2), LowRank(0.5)
    correlated = [InputStats(torch.tensor([[1.0, c], [c, 1.0]]), 1) for c in (1.0, 1.0005, 1.5)]
    torch.testing.assert_close(
        lowrank.asvd(weight, correlated[1], target), lowrank.asvd(weight, correlated[0], target), rtol=0, atol=0.01
    )
    with pytest.raises(InputError, match="Gram matrix is NaN, infinite or far from"):
        lowrank.asvd(weight, correlated[2], target)
