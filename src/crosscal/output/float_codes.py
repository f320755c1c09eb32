"""Codes and scales of weights that lie on a grid of four-bit floating point, found again from the weights alone.

A group's scale is not told by its weights as they are written: its largest value may be 4 or 6 scales, or fewer where
GPTQ moved the weights after the scale was set. But any scale will do with which every weight of the group is a value of
E2M1. So the scales m / 6, m / 4, ... of a group whose largest weight is m are tried, the finest first; they must have
the one significant bit of MXFP4 or the four of E4M3. With the tensor's scale a power of two, products of value, scale
and tensor scale have six significant bits, so that nothing was rounded when the weights were stored in bfloat16.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from crosscal.errors import InputError
from crosscal.methods.fp4 import _VALUES, _round_e2m1, _tensor_scale
from crosscal.types import FloatGrid

_SIGNIFICANT = {"mxfp4": 1, "nvfp4": 4}  # bits of a group's scale, the leading one counted


class _FloatCodes(NamedTuple):
    """Codes of four bits, two in a byte, the scale of every group, and that of the tensor, 1 for MXFP4."""

    packed: UInt8[Tensor, "d_out half"]
    scale: Float[Tensor, "d_out groups"]
    tensor_scale: Float[Tensor, ""]


def float_codes(weight: Float[Tensor, "d_out d_in"], grid: FloatGrid, largest: float, name: str) -> _FloatCodes:
    """Return a weight as codes and scales that give the very same numbers.

    `largest` is the largest absolute weight of all layers that are to share a tensor scale, as programs want it that
    run them as one product.

    Raises `InputError` for a weight that does not lie on the grid.
    """
    size = grid.group.size  # type: ignore[union-attr]
    groups = weight.detach().cpu().float().unflatten(1, (-1, size))
    most = groups.abs().amax(dim=-1, keepdim=True)
    scale, fits = torch.zeros_like(most), most[..., 0] == 0
    for value in reversed(_VALUES[1:]):
        tried = most / value
        bits = torch.frexp(tried).mantissa * 2.0 ** _SIGNIFICANT[str(grid)]
        ratio = groups / tried.where(tried > 0, 1)
        good = (bits == bits.round())[..., 0] & (_round_e2m1(ratio) == ratio).all(dim=-1) & ~fits
        scale[good], fits = tried[good], fits | good
    if not fits.all():
        raise InputError(f"the weights of {name} do not lie on the grid {grid}; store them densely")
    tensor = torch.ones(())
    if str(grid) == "nvfp4":
        shared = [_shared_scale(bound, grid) for bound in (largest, weight.abs().max().item())]
        tensor = next((t for t in shared if _is_e4m3(scale / t)), torch.zeros(()))
        if not tensor:
            raise InputError(f"the scales of {name} span more than those of {grid} can; store its weights densely")
    codes = _codes(torch.where(scale > 0, groups / scale.where(scale > 0, 1), 0.0).flatten(1))
    scale = scale.where(scale > 0, tensor)[..., 0]
    return _FloatCodes(codes[:, ::2] | (codes[:, 1::2] << 4), scale, tensor)


def _shared_scale(largest: float, grid: FloatGrid) -> Tensor:
    """A tensor scale for layers of which no scale is above a quarter of the largest weight: a power of two."""
    found = _tensor_scale(torch.tensor([1.5 * largest]), grid)  # largest / 4 at most: 1.5 times what the method expects
    assert found is not None
    return found


def _is_e4m3(scale: Tensor) -> bool:
    return bool((scale.to(torch.float8_e4m3fn).float() == scale).all())


def _codes(values: Float[Tensor, "d_out d_in"]) -> UInt8[Tensor, "d_out d_in"]:
    """The four bits of every value of E2M1: a sign, and the number of its size."""
    sizes = torch.tensor(_VALUES)
    return torch.searchsorted(sizes, values.abs().contiguous()).to(torch.uint8) | (
        values.signbit().to(torch.uint8) << 3
    )
