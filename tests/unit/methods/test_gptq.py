"""GPTQ, and SparseGPT on a grid: properties first, then the float64 oracles, then the edges."""

import pytest
import torch

from crosscal.calibration import InputStats
from crosscal.errors import InputError
from crosscal.methods.gptq import METHOD, gptq
from crosscal.methods.registry import Evidence
from crosscal.methods.rtn import rtn
from crosscal.methods.sparsegpt import sparsegpt
from crosscal.types import FloatGrid, Grid, NofM, PerGroup, PerRow, SparseGrid, Unstructured
from tests.oracles import quantization as oracle
from tests.unit.methods.layers import KINDS, layer

# Groups that divide the block of 128, that do not (24), that exceed it without being a multiple (192), or any row.
GROUPS = [PerRow(), *(PerGroup(size) for size in (16, 24, 64, 128, 192, 500))]
ASYMMETRIC = [Grid(bits, group) for group in GROUPS for bits in (1, 3, 8)]
SYMMETRIC = [Grid(bits, group, symmetric=True) for group in GROUPS for bits in (2, 4)]
GRIDS = [*ASYMMETRIC, *SYMMETRIC]
FLOATS = [FloatGrid("mxfp4"), FloatGrid("nvfp4")]
FEW = [Grid(4), Grid(3, PerGroup(16)), Grid(2, PerGroup(24)), Grid(3, PerGroup(192)), Grid(4, PerGroup(64), True)]
WIDTHS = (144, 320, 336)
PATTERNS = [Unstructured(0.5), NofM(2, 4)]
METHODS = {
    "gptq": lambda weight, stats, grid, **options: gptq(weight, stats, grid, act_order=False, **options),
    "act-order": gptq,
    "joint 50%": lambda weight, stats, grid, **options: sparsegpt(weight, stats, PATTERNS[0], grid=grid, **options),
    "joint 2:4": lambda weight, stats, grid, **options: sparsegpt(weight, stats, PATTERNS[1], grid=grid, **options),
}
ORACLES = {
    "gptq": lambda weight, gram, grid, **options: oracle.gptq(weight, gram, grid, act_order=False, **options),
    "act-order": oracle.gptq,
    "joint 50%": lambda weight, gram, grid, **options: oracle.joint(weight, gram, PATTERNS[0], grid, **options),
    "joint 2:4": lambda weight, gram, grid, **options: oracle.joint(weight, gram, PATTERNS[1], grid, **options),
}


@pytest.fixture(params=METHODS)
def name(request):
    return request.param


def loss(weight, new, stats):
    return oracle.output_error(weight, new, stats.gram)


def groups_of(weight, grid):
    """The groups of each row, the last one perhaps shorter."""
    return weight.split(grid.group.size if isinstance(grid.group, PerGroup) else weight.shape[1], dim=1)


def assert_equals_oracle(name, weight, stats, grid, **options):
    """Equal to the oracle in all rows but one, and in loss: nearly in the equal rows, and roughly with that one.

    Rows do not influence each other. A row may differ where the precision decided a near tie of scores, or of a zero
    point, which the oracle cannot follow; everything after it in that row then differs too.
    """
    fast = METHODS[name](weight, stats, grid, **options)
    slow = ORACLES[name](weight, stats.gram, grid, ties=fast, **options)
    wrong = ((fast.double() - slow).abs() > 5e-4 * weight.abs().max()).any(dim=1)
    assert wrong.sum() <= 1, f"{int(wrong.sum())} of {len(wrong)} rows differ"
    for rows, tolerance in ((~wrong, 1e-3), (wrong | True, 1e-2)):
        expected = loss(weight[rows], slow[rows], stats)
        assert loss(weight[rows], fast[rows], stats) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize("grid", [*GRIDS, *FLOATS], ids=str)
def test_equals_its_oracle(name, grid):
    weight, stats = layer(d_in=200, d_out=16)
    assert_equals_oracle(name, weight, stats, grid)


@pytest.mark.parametrize("grid", FEW, ids=str)
@pytest.mark.parametrize("d_in", WIDTHS)
def test_equals_its_oracle_at_every_width(name, grid, d_in):
    weight, stats = layer(d_in=d_in, d_out=16, seed=1)
    assert_equals_oracle(name, weight, stats, grid)


@pytest.mark.parametrize("grid", [*FEW, *FLOATS], ids=str)
@pytest.mark.parametrize("kind", KINDS[1:])
def test_equals_its_oracle_on_all_kinds_of_inputs(name, grid, kind):
    weight, stats = layer(kind, d_in=144, d_out=16, seed=2)
    assert_equals_oracle(name, weight, stats, grid)


@pytest.mark.parametrize("block", [32, 48, 256])
@pytest.mark.parametrize(
    "grid", [Grid(3), Grid(3, PerGroup(16)), Grid(3, PerGroup(24)), Grid(3, PerGroup(80))], ids=str
)
def test_equals_its_oracle_for_any_block(name, grid, block):
    weight, stats = layer(d_in=200, d_out=16, seed=3)
    assert_equals_oracle(name, weight, stats, grid, block=block)


def test_other_damping_reaches_the_hessian(name):
    weight, stats = layer("real-like", d_out=16)
    assert_equals_oracle(name, weight, stats, Grid(3), damp=0.1)


@pytest.mark.parametrize("sparsity", [0.25, 0.9])
@pytest.mark.parametrize("grid", FEW, ids=str)
def test_joint_equals_its_oracle_at_other_sparsities(grid, sparsity):
    weight, stats = layer("real-like", d_in=200, d_out=16)
    for pattern in (Unstructured(sparsity), NofM(1, 4), NofM(4, 8)):
        fast = sparsegpt(weight, stats, pattern, grid=grid)
        slow = oracle.joint(weight, stats.gram, pattern, grid, ties=fast)
        assert ((fast.double() - slow).abs() > 5e-4 * weight.abs().max()).any(dim=1).sum() <= 1
        assert loss(weight, fast, stats) == pytest.approx(loss(weight, slow, stats), rel=1e-3)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_uncorrelated_inputs_leave_nothing_to_make_up_for(grid, act_order):
    weight, _ = layer(d_out=16, d_in=200)
    gram = torch.diag(torch.rand(200, generator=torch.Generator().manual_seed(0)) + 0.1)
    rounded = rtn(weight, grid)
    assert torch.equal(gptq(weight, InputStats(gram, 1), grid, act_order=act_order), rounded)
    slow = oracle.gptq(weight, gram, grid, act_order=act_order, ties=rounded)
    torch.testing.assert_close(slow, rounded.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grid", FEW, ids=str)
@pytest.mark.parametrize("act_order", [False, True])
def test_making_up_for_errors_pays(grid, act_order):
    weight, stats = layer("real-like", d_in=200)
    assert loss(weight, gptq(weight, stats, grid, act_order=act_order), stats) < loss(weight, rtn(weight, grid), stats)


def test_act_order_changes_the_result_and_pays_where_inputs_are_of_unlike_size():
    weight, stats = layer("real-like", d_in=200)
    plain, ordered = (gptq(weight, stats, Grid(3), act_order=order) for order in (False, True))
    assert loss(weight, ordered, stats) < loss(weight, plain, stats)


@pytest.mark.parametrize("grid", [grid for grid in GRIDS if grid.bits in (2, 3)], ids=str)
def test_every_group_has_at_most_2_to_the_bits_evenly_spaced_levels(name, grid):
    weight, stats = layer("real-like", d_in=200, d_out=8)
    for group in groups_of(METHODS[name](weight, stats, grid), grid):
        for row in group:
            levels = row.unique()
            assert len(levels) <= 2**grid.bits
            gaps = levels.diff()
            # The least gap seen is some whole number of steps.
            steps = [part * gaps / gaps.min() for part in range(1, 2**grid.bits)] if len(gaps) else [gaps]
            assert any(torch.allclose(count, count.round(), rtol=0, atol=1e-3) for count in steps)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("group", GROUPS, ids=str)
def test_static_levels_are_those_of_the_weight_as_given(group, symmetric):
    weight, stats = layer("real-like", d_in=200, d_out=8)
    grid = Grid(4, group, symmetric)
    new = gptq(weight, stats, grid)
    # Rounding onto the levels of the original groups must change nothing.
    for old, part in zip(groups_of(weight, grid), groups_of(new, grid), strict=True):
        for before, after in zip(old.tolist(), part.tolist(), strict=True):
            levels = oracle._fit(before, grid)
            assert [oracle._round(value, *levels, None) for value in after] == pytest.approx(after, abs=1e-5)


@pytest.mark.parametrize("grid", FEW, ids=str)
def test_joint_that_prunes_nothing_is_gptq_and_all_is_nothing(grid):
    weight, stats = layer(d_in=200, d_out=16)
    quantized = gptq(weight, stats, grid, act_order=False)
    for pattern in (Unstructured(0.0), NofM(4, 4)):
        torch.testing.assert_close(sparsegpt(weight, stats, pattern, grid=grid), quantized)
    for pattern in (Unstructured(1.0), NofM(0, 4)):
        assert not sparsegpt(weight, stats, pattern, grid=grid).any()


@pytest.mark.parametrize("target", [SparseGrid(p, g) for p in PATTERNS for g in FEW], ids=str)
def test_joint_keeps_the_pattern_exactly(target):
    weight, stats = layer("real-like", d_in=200)
    zero = sparsegpt(weight, stats, target.pattern, grid=target.grid) == 0
    assert zero.double().mean() >= 0.5
    if isinstance(target.pattern, NofM):
        assert (zero.reshape(-1, 4).sum(dim=1) >= 2).all()


def test_joint_on_a_fine_grid_is_sparsegpt():
    weight, stats = layer(d_in=200)
    for pattern in PATTERNS:
        fine, free = sparsegpt(weight, stats, pattern, grid=Grid(16)), sparsegpt(weight, stats, pattern)
        assert ((fine != 0) == (free != 0)).double().mean() > 0.99
        assert loss(weight, fine, stats) == pytest.approx(loss(weight, free, stats), rel=0.03)


def test_dead_inputs_are_rounded_or_pruned(name):
    weight, stats = layer("dead inputs", d_out=16)
    dead, grid = stats.diagonal == 0, Grid(4, PerGroup(24))
    pruned = name.startswith("joint")
    weight[:, dead] = 1e3 if pruned else 0.5  # before levels are fitted, or they would stretch every range
    new = METHODS[name](weight, stats, grid)
    assert new[:, dead].any() != pruned
    slow = ORACLES[name](weight, stats.gram, grid, ties=new)
    assert ((new.double() - slow).abs() > 2e-3).any(dim=1).sum() <= 1
    unseen = METHODS[name](weight, InputStats(torch.zeros(144, 144), 1), Grid(4))
    assert not unseen.any() if pruned else torch.equal(unseen, rtn(weight, Grid(4)))


def test_scaling_the_gram_changes_nothing(name):
    weight, stats = layer("real-like")
    scaled = InputStats(stats.gram * 4.0, 3 * stats.n_tokens)
    assert torch.equal(METHODS[name](weight, stats, Grid(3)), METHODS[name](weight, scaled, Grid(3)))


@pytest.mark.parametrize("grid", FEW, ids=str)
def test_rows_do_not_influence_each_other(grid):
    weight, stats = layer(d_out=16)
    for name in ("gptq", "act-order", "joint 2:4"):
        few, all_rows = METHODS[name](weight[:5], stats, grid), METHODS[name](weight, stats, grid)[:5]
        torch.testing.assert_close(few, all_rows)


def test_equal_inputs_are_taken_from_the_left():
    weight, stats = layer(d_out=16)
    scale = stats.diagonal.rsqrt()
    gram = stats.gram * scale * scale[:, None]
    gram.fill_diagonal_(1.0)
    assert_equals_oracle("act-order", weight, InputStats(gram, 1), Grid(3))
    ordered, plain = (METHODS[name](weight, InputStats(gram, 1), Grid(3)) for name in ("act-order", "gptq"))
    torch.testing.assert_close(ordered, plain)


def test_input_is_left_alone_and_half_precision_is_solved_in_float32(name):
    weight, stats = layer("real-like")
    weight = weight.bfloat16()
    before, gram = weight.clone(), stats.gram.clone()
    new = METHODS[name](weight, stats, Grid(3, PerGroup(64)))
    assert new.dtype == torch.bfloat16
    assert torch.equal(new, METHODS[name](weight.float(), stats, Grid(3, PerGroup(64))).bfloat16())
    new.zero_()
    assert torch.equal(weight, before)
    assert torch.equal(stats.gram, gram)


def test_same_call_same_bits(name):
    weight, stats = layer("real-like", d_in=200)
    grid = Grid(4, PerGroup(24))
    assert torch.equal(METHODS[name](weight, stats, grid), METHODS[name](weight, stats, grid))


def test_bad_input_gets_a_sentence(name):
    weight, stats = layer()
    with pytest.raises(InputError, match="not positive definite"):
        METHODS[name](weight, InputStats(-stats.gram, stats.n_tokens), Grid(4))
    for bad in (float("nan"), float("inf")):
        weight[3, 5] = bad
        with pytest.raises(InputError, match="NaN or infinite"):
            METHODS[name](weight, stats, Grid(4))


def test_an_n_of_m_group_lies_in_one_block_and_in_one_group_of_the_grid():
    weight, stats = layer()
    with pytest.raises(InputError, match="do not divide the block of 128"):
        sparsegpt(weight, stats, NofM(1, 3), grid=Grid(4))
    with pytest.raises(InputError, match="do not divide the grid's groups of 18"):
        sparsegpt(weight, stats, NofM(2, 4), grid=Grid(4, PerGroup(18)))


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("grid", FEW, ids=str)
def test_zeros_of_a_pruned_weight_stay(grid, act_order):
    weight, stats = layer("real-like", d_out=32)
    pruned = sparsegpt(weight[:16], stats, NofM(2, 4))
    both = METHOD.solve([pruned, weight[16:]], Evidence(stats), grid, act_order=act_order)[0]
    assert (both[0][pruned == 0] == 0).all()
    assert torch.equal(both[1], gptq(weight[16:], stats, grid, act_order=act_order))
    few = weight[:16] * (torch.rand(16, weight.shape[1], generator=torch.Generator().manual_seed(0)) > 0.1)
    assert (gptq(few, stats, grid, act_order=act_order)[few == 0] != 0).any()  # they may be levels of an earlier grid
