"""Codes recovered from rounded weights: every weight is given back bit for bit, whatever made it."""

from itertools import product

import pytest
import torch

from crosscal.calibration.statistics import InputStats
from crosscal.errors import InputError
from crosscal.methods.gptq import gptq
from crosscal.methods.rtn import rtn
from crosscal.methods.sparsegpt import sparsegpt
from crosscal.output.codes import _exact_codes
from crosscal.output.packing import _packed_bytes, packed_tensors
from crosscal.types import Grid, NofM, PerGroup, PerRow, Unstructured

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
GRIDS = [Grid(*parts) for parts in product((2, 3, 4, 8), (PerRow(), PerGroup(64), PerGroup(128)), (False, True))]
D_OUT, D_IN = 12, 256


def weights(dtype, seed=0):
    """Rows of different sizes, one with an outlier; rows of zeros, of one value, and of one value among zeros."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.linspace(-9, 1, D_OUT).exp()[:, None]
    found = torch.randn(D_OUT, D_IN, generator=generator) * sizes
    found[0, 3] = 0.5
    found[1], found[2], found[3], found[4] = 0, 0.013, -0.013, 0
    found[4, ::7] = -0.7
    return found.to(dtype)


def statistics(seed=0):
    """Inputs of a few directions, some loud."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(2 * D_IN, 40, generator=generator) @ torch.randn(40, D_IN, generator=generator)
    inputs += 0.3 * torch.randn(2 * D_IN, D_IN, generator=generator)
    inputs[:, :3] *= 20
    return InputStats(inputs.T @ inputs, len(inputs))


METHODS = {
    "rtn": lambda weight, grid: rtn(weight, grid),
    "gptq": lambda weight, grid: gptq(weight, statistics(), grid),
    "gptq in order of activity": lambda weight, grid: gptq(weight, statistics(), grid, act_order=True),
    "sparsegpt 2:4": lambda weight, grid: sparsegpt(weight, statistics(), NofM(2, 4), grid=grid),
    "sparsegpt 70%": lambda weight, grid: sparsegpt(weight, statistics(), Unstructured(0.7), grid=grid),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_every_weight_is_given_back(method, dtype):
    for grid in GRIDS:
        rounded = METHODS[method](weights(dtype), grid)
        found = _exact_codes(rounded, grid)
        assert torch.equal(found.dequantized(dtype), rounded), str(grid)
        assert found.codes.int().max() < 2**grid.bits
        if grid.symmetric:
            assert (found.zero == 2 ** (grid.bits - 1)).all()
        zero = found.zero.repeat_interleave(D_IN // found.zero.shape[1], dim=1)
        assert torch.equal(found.codes == zero, rounded == 0), str(grid)


@pytest.mark.parametrize("seed", range(3))
def test_small_groups_of_eight_bits_in_a_short_dtype(seed):
    """Neighbouring multiples of the scale round to one weight here, and a group of 16 tells little of its scale."""
    rounded = rtn(weights(torch.bfloat16, seed), Grid(8, PerGroup(16)))
    assert torch.equal(_exact_codes(rounded, Grid(8, PerGroup(16))).dequantized(torch.bfloat16), rounded)


def test_beside_a_power_of_two_the_nearest_multiple_may_be_the_wrong_one():
    """1 lies nearer to 232 steps, but these round to the number below, where bfloat16 is denser; 233 round to 1."""
    step = torch.tensor(0.0043016)
    row = (torch.arange(256) * step).bfloat16()[None]
    assert row[0, 233] == 1 > row[0, 232]
    assert torch.round(1 / step) == 232
    assert torch.equal(_exact_codes(row, Grid(8)).dequantized(torch.bfloat16), row)


def test_long_rows_leave_only_few_scales():
    row = rtn(torch.randn(2, 6000, generator=torch.Generator().manual_seed(1)).bfloat16(), Grid(4))
    assert torch.equal(_exact_codes(row, Grid(4)).dequantized(torch.bfloat16), row)


def test_one_bit():
    rounded = rtn(weights(torch.bfloat16), Grid(1, PerGroup(64)))
    assert torch.equal(_exact_codes(rounded, Grid(1, PerGroup(64))).dequantized(torch.bfloat16), rounded)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_off_the_grid_are_refused(dtype):
    rounded = rtn(weights(dtype), Grid(4, PerGroup(64)))
    rounded[6, 70] *= 1.02
    with pytest.raises(InputError, match=r"1 of 48 groups of q_proj do not lie on 4 bits g64; use dense storage"):
        _exact_codes(rounded, Grid(4, PerGroup(64)), name="q_proj")


def test_more_levels_than_the_grid_has_are_refused():
    row = torch.arange(-8.0, 9.0)[None]
    with pytest.raises(InputError, match="do not lie on"):
        _exact_codes(row, Grid(4))
    assert torch.equal(_exact_codes(row, Grid(5)).dequantized(torch.float32), row)
    assert torch.equal(_exact_codes(row[:, :16], Grid(4, symmetric=True)).dequantized(torch.float32), row[:, :16])
    with pytest.raises(InputError, match="do not lie on"):
        _exact_codes(row[:, 1:], Grid(4, symmetric=True))


def test_the_weight_is_not_changed_and_need_not_be_contiguous():
    rounded = rtn(weights(torch.bfloat16), Grid(4, PerGroup(64)))
    before, turned = rounded.clone(), rounded.T.contiguous().T
    assert torch.equal(_exact_codes(turned, Grid(4, PerGroup(64))).dequantized(torch.bfloat16), before)
    assert torch.equal(rounded, before)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_packed_tensors_take_what_was_announced(grid):
    pytest.importorskip("compressed_tensors")
    rounded = rtn(weights(torch.bfloat16), grid)
    packed = packed_tensors("a.q_proj", rounded, grid)
    parts = {"weight_packed", "weight_scale", "weight_shape"} | (set() if grid.symmetric else {"weight_zero_point"})
    assert set(packed) == {f"a.q_proj.{part}" for part in parts}
    assert sum(part.numel() * part.element_size() for part in packed.values()) == _packed_bytes((D_OUT, D_IN), grid)


def test_a_library_that_reads_otherwise_is_noticed(monkeypatch):
    """As releases before 0.18 do with 3 bits."""
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    pack = helpers.pack_to_int32
    monkeypatch.setattr(helpers, "pack_to_int32", lambda codes, *a, **k: pack(codes.flip(1), *a, **k))
    with pytest.raises(InputError, match="reads a back otherwise"):
        packed_tensors("a", rtn(weights(torch.bfloat16), Grid(3)), Grid(3))
