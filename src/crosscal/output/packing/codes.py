"""The codes of weights that a method has rounded: recovered from the weights alone, and proven exact."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from crosscal.errors import InputError
from crosscal.output.packing.requests import check_grid
from crosscal.output.packing.search import Steps, find_steps
from crosscal.types import Grid, PerGroup

CHUNK = 2**20  # weights looked at together: keeps the float64 work in memory of a few hundred MB


class Codes(NamedTuple):
    """Codes 0 .. 2**bits - 1 of a weight; each group's scale (float32) and zero, the code of the value 0.

    A weight is (code - zero) * scale, the product taken in float32 and rounded to the weight's own dtype.
    """

    codes: UInt8[Tensor, "d_out d_in"]
    scale: Float[Tensor, "d_out n_groups"]
    zero: UInt8[Tensor, "d_out n_groups"]

    def dequantized(self, dtype: torch.dtype) -> Float[Tensor, "d_out d_in"]:
        """The weights, as every reader of the format computes them."""
        groups = self.codes.float().unflatten(1, (self.scale.shape[1], -1)) - self.zero.float()[:, :, None]
        return (groups * self.scale[:, :, None]).flatten(1).to(dtype)


@torch.no_grad()
def exact_codes(weight: Float[Tensor, "d_out d_in"], grid: Grid, *, name: str = "the weight") -> Codes:
    """Codes, scales and zeros from which exactly `weight` is dequantized, in its own dtype.

    Which scale a method used is not known and need not be: any that gives every weight back will do. Only the sign
    of a zero is lost: -0 comes back as 0.
    Symmetric grids get zero 2**(bits - 1), asymmetric ones the least zero that fits.

    Raises `InputError`, calling the weight `name`, for a group of weights that no scale reproduces, for more than 8
    bits, and for groups that do not divide d_in.

    >>> found = exact_codes(torch.tensor([[-0.5, 0.0, 0.25, 1.0]]), Grid(bits=3))
    >>> found.codes.tolist(), found.scale.tolist(), found.zero.tolist()
    ([[0, 2, 3, 6]], [[0.25]], [[2]])
    """
    check_grid(grid, [weight.shape[1]])
    size = grid.group.size if isinstance(grid.group, PerGroup) else weight.shape[1]
    groups = weight.reshape(-1, size)
    parts = [find_steps(part, grid) for part in groups.split(max(1, CHUNK // size))]
    found = Steps(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
    if failed := int((~found.exact).sum()):
        raise InputError(
            f"{failed} of {len(groups)} groups of {name} do not lie on {grid}; use storage='dense', or give the grid "
            "that the weights were rounded to"
        )
    return _shifted(found, grid, weight.shape)


def _shifted(found: Steps, grid: Grid, shape: tuple[int, int]) -> Codes:
    """Multiples, which are signed, made codes, which are not."""
    if grid.symmetric:
        zero = torch.full_like(found.multiple[:, :1], 2 ** (grid.bits - 1))
    else:
        zero = -found.multiple.amin(dim=1, keepdim=True).clamp(max=0)
    codes = (found.multiple + zero).to(torch.uint8).reshape(shape)
    n_groups = math.prod(shape) // found.multiple.shape[1] // shape[0]
    return Codes(codes, found.scale.reshape(-1, n_groups), zero.to(torch.uint8).reshape(-1, n_groups))
