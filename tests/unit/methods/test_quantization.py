"""Rounding to nearest and AWQ: properties first, then the float64 oracles, then the edges."""

import pytest
import scipy.linalg
import torch

from crosscal.calibration import InputStats, mix
from crosscal.errors import InputError
from crosscal.methods.awq import METHOD, awq
from crosscal.methods.compose import composed
from crosscal.methods.fp4 import _scales, _tensor_scale
from crosscal.methods.gptq import METHOD as GPTQ
from crosscal.methods.registry import METHODS as METHODS_BY_NAME
from crosscal.methods.registry import Evidence
from crosscal.methods.rtn import rtn
from crosscal.types import FloatGrid, Grid, PerGroup, PerRow
from tests.oracles import quantization as oracle
from tests.unit.methods.layers import KINDS, layer

GROUPS = [PerRow(), *(PerGroup(size) for size in (16, 24, 64, 128, 500))]
GRIDS = [Grid(bits, group) for bits in (1, 2, 3, 4, 8) for group in GROUPS]
GRIDS += [Grid(bits, group, symmetric=True) for bits in (2, 3, 4, 8) for group in GROUPS]
FEW = [Grid(4), Grid(3, PerGroup(64)), Grid(2, PerGroup(24))]
FLOATS = [FloatGrid("mxfp4"), FloatGrid("nvfp4")]
METHODS = {"rtn": lambda weight, stats, grid: rtn(weight, grid), "awq": awq}


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


def groups_of(weight, grid):
    """The groups of each row, the last one perhaps shorter."""
    return weight.split(grid.group.size if isinstance(grid.group, PerGroup) else weight.shape[1], dim=1)


def awq_group(weights, stats, grid):
    return METHOD.solve(weights, Evidence(stats), grid)


def same(fast, slow):
    torch.testing.assert_close(fast.double(), slow, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grid", [*GRIDS, *FLOATS], ids=str)
@pytest.mark.parametrize("d_in", [144, 200])
def test_rtn_equals_its_oracle(grid, d_in):
    weight, _ = layer(d_out=8, d_in=d_in)
    weight[0], weight[1], weight[2] = weight[0].abs() + 0.5, -weight[1].abs() - 0.5, 0
    same(rtn(weight, grid), oracle.rtn(weight, grid, ties=rtn(weight, grid)))


def test_halves_round_to_even_and_a_range_widens_to_zero():
    weight = torch.tensor([[0.0, 0.5, 1.5, 2.5, 3.0], [3.0, 1.4, 1.6, 2.0, 2.5], [-3.0, -1.4, -0.5, -2.5, -1.6]])
    expected = [[0.0, 0.0, 2.0, 2.0, 3.0], [3.0, 1.0, 2.0, 2.0, 2.0], [-3.0, -1.0, 0.0, -2.0, -2.0]]
    assert rtn(weight, Grid(2)).tolist() == expected
    assert oracle.rtn(weight, Grid(2)).tolist() == expected


def test_symmetric_levels_have_one_more_below_zero():
    weight = torch.tensor([[-1.5, -1.1, 0.4, 1.5]])  # steps of 1: codes -2 .. 1
    assert rtn(weight, Grid(2, symmetric=True)).tolist() == [[-2.0, -1.0, 0.0, 1.0]]
    assert oracle.rtn(weight, Grid(2, symmetric=True)).tolist() == [[-2.0, -1.0, 0.0, 1.0]]


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_rtn_has_2_to_the_bits_levels_and_errs_by_half_a_step(grid):
    weight, _ = layer(d_out=8, d_in=200)
    for old, new in zip(groups_of(weight, grid), groups_of(rtn(weight, grid), grid), strict=True):
        assert all(len(row.unique()) <= 2**grid.bits for row in new)
        reach = 2 * old.abs().amax(1) if grid.symmetric else old.amax(1).clamp(min=0) - old.amin(1).clamp(max=0)
        step = reach / (2**grid.bits - 1)
        # A range that no whole zero point fits is cut at one end, by half a step at most.
        assert ((old - new).abs().amax(1) <= 1.0001 * step).all()
        assert ((old - new).abs().mean(1) <= 0.5 * step).all()


def test_zeros_stay_zero_and_sixteen_bits_lose_nothing_to_speak_of(method):
    weight, stats = layer()
    weight[:, ::3] = 0
    for grid in (Grid(1), Grid(3, PerGroup(24)), Grid(3, symmetric=True)):
        assert not method(weight, stats, grid)[:, ::3].any()
    torch.testing.assert_close(method(weight, stats, Grid(16)), weight, rtol=0, atol=2e-4)
    assert not method(torch.zeros(2, 8), InputStats(torch.eye(8), 1), Grid(4)).any()


@pytest.mark.parametrize("grid", FEW, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_awq_equals_its_oracle(grid, kind):
    weight, stats = layer(kind, d_out=8)
    new, facts = awq_group([weight], stats, grid)
    slow, ratio, errors = oracle.awq([weight], stats.gram, grid, ties=new)
    assert facts["ratio"].shape == ()
    assert facts["ratio"].item() == pytest.approx(ratio), errors
    same(new[0], slow[0])
    assert oracle.output_error(weight, new[0], stats.gram) == pytest.approx(min(errors), rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_awq_equals_its_oracle_on_a_symmetric_grid(kind):
    # The greatest weight of each group lies halfway between two levels, so errors differ a little with the precision.
    weight, stats = layer(kind, d_out=8)
    grid = Grid(4, PerGroup(24), symmetric=True)
    new, facts = awq_group([weight], stats, grid)
    same(new[0], oracle.scale_and_round([weight], stats.gram, grid, facts["ratio"].item(), ties=new)[0])
    errors = oracle.awq([weight], stats.gram, grid)[2]
    assert oracle.output_error(weight, new[0], stats.gram) <= 1.02 * min(errors)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_awq_is_never_worse_than_rtn_by_its_own_statistics(grid):
    weight, stats = layer("real-like", d_out=8, d_in=200)
    loss = lambda new: oracle.output_error(weight, new, stats.gram)  # noqa: E731
    assert loss(awq(weight, stats, grid)) <= loss(rtn(weight, grid)) * (1 + 1e-5)


def test_awq_pays_where_inputs_are_of_unlike_size():
    weight, stats = layer("real-like", d_out=64)
    grid = Grid(3, PerGroup(64))
    new, facts = awq_group([weight], stats, grid)
    loss = lambda new: oracle.output_error(weight, new, stats.gram)  # noqa: E731
    assert loss(new[0]) < 0.8 * loss(rtn(weight, grid))
    assert 0 < facts["ratio"] < 1


def test_inputs_of_one_size_are_left_alone_and_of_equal_ratios_the_smallest_is_taken():
    weight, _ = layer()
    for gram in (torch.eye(144), 7.3 * torch.eye(144), torch.zeros(144, 144)):
        new, facts = awq_group([weight], InputStats(gram, 1), Grid(3))
        assert facts["ratio"] == 0
        assert torch.equal(new[0], rtn(weight, Grid(3)))


def test_weights_that_share_an_input_share_the_ratio_with_the_least_summed_error():
    _, stats = layer("real-like")
    weights = [layer(d_out=rows, seed=seed)[0] * size for rows, seed, size in [(16, 1, 1.0), (4, 5, 2.0), (8, 3, 0.1)]]
    grid = Grid(3, PerGroup(48))
    new, facts = awq_group(weights, stats, grid)
    slow, ratio, _ = oracle.awq(weights, stats.gram, grid, ties=new)
    assert facts["ratio"].item() == pytest.approx(ratio)
    for fast_part, slow_part in zip(new, slow, strict=True):
        same(fast_part, slow_part)
    alone = [awq_group([weight], stats, grid)[1]["ratio"].item() for weight in weights]
    assert any(other != facts["ratio"].item() for other in alone), "the weights agree anyway: a sum is not tested"


def test_awq_does_not_care_about_the_number_of_tokens_and_takes_mixed_statistics():
    weight, stats = layer("real-like")
    _, other = layer("random", seed=1)
    scaled = InputStats(stats.gram * 4, stats.n_tokens * 3)
    assert torch.equal(awq(weight, stats, Grid(3)), awq(weight, scaled, Grid(3)))
    mixed = mix({"a": stats, "b": other}, {"a": 0.5, "b": 0.5})
    pooled = InputStats(stats.gram + other.gram, stats.n_tokens + other.n_tokens)
    torch.testing.assert_close(awq(weight, mixed, Grid(3)), awq(weight, pooled, Grid(3)))


def test_dead_and_nearly_dead_inputs_do_not_bend_the_scales():
    weight, stats = layer("dead inputs")
    gram = stats.gram.clone()
    new, facts = awq_group([weight], InputStats(gram, 1), Grid(3))
    assert new[0].isfinite().all()
    dead = int((gram.diagonal() == 0).nonzero()[0])
    gram[dead, dead] = 1e-20  # far below the floor: sizes are held at 1e-4 of the largest
    new, facts = awq_group([weight], InputStats(gram, 1), Grid(3))
    slow, ratio, _ = oracle.awq([weight], gram, Grid(3), ties=new)
    assert facts["ratio"].item() == pytest.approx(ratio)
    same(new[0], slow[0])


def test_moving_inputs_moves_the_columns():
    weight, stats = layer("real-like")
    order = torch.randperm(144, generator=torch.Generator().manual_seed(1))
    moved = InputStats(stats.gram[order][:, order], stats.n_tokens)
    torch.testing.assert_close(awq(weight[:, order], moved, Grid(3)), awq(weight, stats, Grid(3))[:, order])


def test_half_precision_is_rounded_in_float32(method):
    weight, stats = layer("real-like")
    weight = weight.bfloat16()
    before, gram = weight.clone(), stats.gram.clone()
    new = method(weight, stats, Grid(3, PerGroup(64)))
    assert torch.equal(new, method(weight.float(), stats, Grid(3, PerGroup(64))).bfloat16())
    assert new.dtype == torch.bfloat16
    assert torch.equal(weight, before)
    assert torch.equal(stats.gram, gram)


def test_input_is_left_alone_and_the_result_is_a_tensor_of_its_own(method):
    weight, stats = layer()
    before = weight.clone()
    new = method(weight, stats, Grid(3, PerGroup(64)))
    assert new.is_contiguous()
    new.zero_()
    assert torch.equal(weight, before)


def test_same_call_same_bits(method):
    weight, stats = layer("real-like")
    assert torch.equal(method(weight, stats, Grid(4, PerGroup(64))), method(weight, stats, Grid(4, PerGroup(64))))


def test_weights_that_are_not_finite_get_a_sentence(method):
    for bad in (float("nan"), float("inf")):
        weight, stats = layer()
        weight[3, 5] = bad
        with pytest.raises(InputError, match="NaN or infinite"):
            method(weight, stats, Grid(4))


def test_float_scales_and_values_are_those_of_the_format():
    weight = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 1, 50)[:, None]
    for grid, size in zip(FLOATS, (32, 16), strict=True):
        groups = weight.unflatten(1, (-1, size))
        scale = _scales(groups, grid, _tensor_scale(weight, grid))
        multiples = rtn(weight, grid).unflatten(1, (-1, size)) / scale
        assert set(multiples.abs().unique().tolist()) <= {0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0}
        if str(grid) == "mxfp4":
            assert torch.equal(torch.frexp(scale).mantissa, torch.full_like(scale, 0.5))
        else:
            parts = scale / _tensor_scale(weight, grid)
            assert torch.equal(parts, parts.to(torch.float8_e4m3fn).float())
            assert 224 < parts.max().item() <= 448
            assert torch.frexp(_tensor_scale(weight, grid)).mantissa == 0.5
            assert torch.equal(rtn(weight, grid), rtn(weight, grid).bfloat16().float())


@pytest.mark.parametrize("grid", [*FLOATS, Grid(3, PerGroup(16))], ids=str)
def test_rotation_is_undone_and_spreads_outliers(grid):
    weight, stats = layer("real-like", d_in=128)
    turned = composed(GPTQ, rotate=True)
    new, plain = (m.solve([weight], Evidence(stats), grid, damp=0.01)[0][0] for m in (turned, GPTQ))
    size = grid.group.size
    turn = torch.block_diag(*[torch.tensor(scipy.linalg.hadamard(size)) / size**0.5] * (128 // size)).double()
    slow = oracle.gptq(weight.double() @ turn, turn @ stats.gram.double() @ turn, grid, ties=new.double() @ turn) @ turn
    assert ((new.double() - slow).abs() > 5e-4 * weight.abs().max()).any(dim=1).sum() <= 1
    assert not torch.equal(new, plain)


def test_rotation_refuses_what_it_cannot_turn():
    with pytest.raises(InputError, match="wanda does not round weights"):
        composed(METHODS_BY_NAME["wanda"], rotate=True)
    for width, grid in ((144, FloatGrid("mxfp4")), (144, Grid(4, PerGroup(24)))):
        with pytest.raises(InputError, match="needs a power of 2 that divides 144"):
            composed(GPTQ, rotate=True).check(width, grid, {})
