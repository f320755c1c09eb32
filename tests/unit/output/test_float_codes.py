"""Four-bit floating point as codes: the very same weights, by hand, by the library, and refused off the grid."""

import pytest
import torch

from crosscal.calibration import InputStats
from crosscal.errors import InputError
from crosscal.methods.gptq import gptq
from crosscal.methods.rtn import rtn
from crosscal.output.float_codes import float_codes
from crosscal.output.packing import _packed_bytes, packed_tensors
from crosscal.types import FloatGrid

GRIDS = [FloatGrid("mxfp4"), FloatGrid("nvfp4")]
VALUES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def weights(rows=24, d_in=96, spread=3.0):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, d_in, generator=generator) * torch.logspace(-spread, 0, rows)[:, None]
    weight[3] = 0
    weight[5, :32] = 0
    return weight


def rounded(how, weight, grid):
    if how == "rtn":
        return rtn(weight, grid)
    inputs = torch.randn(200, weight.shape[1], generator=torch.Generator().manual_seed(1))
    return gptq(weight, InputStats(inputs.T @ inputs, 200), grid, act_order=how == "act-order")


def read_by_hand(codes, size):
    """Value times scale, one by one, in float64."""
    result = torch.zeros(len(codes.packed), 2 * codes.packed.shape[1], dtype=torch.float64)
    for i, row in enumerate(codes.packed.tolist()):
        for j in range(result.shape[1]):
            code = row[j // 2] >> 4 if j % 2 else row[j // 2] & 15
            result[i, j] = (-1) ** (code >> 3) * VALUES[code & 7] * codes.scale[i, j // size].item()
    return result


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("how", ["rtn", "gptq", "act-order"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_codes_and_scales_give_the_very_same_weights(grid, how, dtype):
    weight = rounded(how, weights(), grid).to(dtype)
    codes = float_codes(weight, grid, 2.0, "a layer")
    assert torch.equal(read_by_hand(codes, grid.group.size), weight.double())
    stored = packed_tensors("a", weight, grid, 2.0)  # compares what the library reads back
    assert sum(t.nbytes for t in stored.values()) == _packed_bytes(weight.shape, grid)
    if str(grid) == "nvfp4":
        assert torch.equal(
            (codes.scale / codes.tensor_scale).to(torch.float8_e4m3fn).float() * codes.tensor_scale, codes.scale
        )
        other = float_codes(rounded(how, weights(spread=1.0), grid).to(dtype), grid, 2.0, "another")
        assert torch.equal(codes.tensor_scale, other.tensor_scale)  # as layers that run as one product need it


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_weight_off_the_grid_is_refused(grid):
    weight = rtn(weights(), grid)
    weight[7, 11] += 1e-3
    with pytest.raises(InputError, match="the weights of a layer do not lie on the grid"):
        float_codes(weight, grid, 1.0, "a layer")
