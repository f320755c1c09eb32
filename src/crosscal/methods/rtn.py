"""Quantization grids, and rounding to nearest on them: each weight takes the nearest level of its group; no data.

Levels are scale * (code - zero) for the codes 0 .. 2**bits - 1, or those of four-bit floating point. Values are rounded
to the nearest level, half to even, after a true division, as GPTQ's authors do (Frantar et al. 2023).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crosscal.methods.fp4 import _round_e2m1, _scales, _tensor_scale
from crosscal.methods.masks import _check_finite
from crosscal.methods.registry import Evidence, Method
from crosscal.types import FloatGrid, Grid, PerGroup


def rtn(weight: Float[Tensor, "d_out d_in"], grid: Grid) -> Float[Tensor, "d_out d_in"]:
    """Round each weight to the nearest of its group's 2**bits levels, which span the group's least to greatest weight.

    Groups are rows, or `group.size` consecutive inputs of a row, the last of which may be shorter. No other choice
    of levels changes a weight less; the layer's outputs play no part. It is the baseline that Frantar et al.
    2023 (arXiv 2210.17323, section 5) compare with.

    Raises `InputError` for weights that are not finite.

    >>> rtn(torch.tensor([[-1.0, 0.25, 0.75, 2.0]]), Grid(bits=2)).tolist()
    [[-1.0, 0.0, 1.0, 2.0]]
    """
    _check_finite(weight)
    return _round_to_grid(weight.float(), grid).to(weight.dtype)


def _round_to_grid(values: Float[Tensor, "rows d_in"], grid: Grid) -> Float[Tensor, "rows d_in"]:
    """`rtn` for values that are known to be finite, in their own precision.

    >>> _round_to_grid(torch.tensor([[0.0, 1.0, 3.0, 0.0, 4.0, 9.0]]), Grid(1, PerGroup(4))).tolist()
    [[0.0, 0.0, 3.0, 0.0, 0.0, 9.0]]
    """
    rows, d_in = values.shape
    size, tensor = _group_edges(d_in, grid)[1], _tensor_scale(values, grid)
    full = d_in - d_in % size
    groups = values[:, :full].reshape(rows, full // size, size)
    rounded = _nearest_level(groups, _fit_levels(groups, grid, tensor)).reshape(rows, full)
    if full == d_in:
        return rounded
    rest = values[:, full:]
    return torch.cat([rounded, _nearest_level(rest, _fit_levels(rest, grid, tensor))], dim=1)


class _Levels(NamedTuple):
    """The levels of many groups: `scale` and `zero` broadcast against the weights they belong to.

    `zero` is the code of the value 0, a whole number; it is inside 0 .. `top`, so 0 is always a level. A `floating`
    group's levels are scale times those of E2M1, and its `zero` means nothing.
    """

    scale: Tensor
    zero: Tensor
    top: int
    floating: bool = False


def _fit_levels(
    weights: Float[Tensor, "*groups size"], grid: Grid, tensor_scale: Float[Tensor, ""] | None = None
) -> _Levels:
    """Min-max levels of each group (the last axis), the range widened to include 0.

    Asymmetric: scale = (max - min) / (2**bits - 1), zero = round(-min / scale). Symmetric: the range is
    -max|w| .. max|w| and zero = 2**(bits - 1). A group of zeros gets scale 1. Equation eq-rtn of the book. Of
    a `FloatGrid`, the scale alone; NVFP4's needs that of the tensor.

    >>> levels = _fit_levels(torch.tensor([[-1.0, 0.0, 2.0]]), Grid(bits=2))
    >>> levels.scale.item(), levels.zero.item()
    (1.0, 1.0)
    """
    if isinstance(grid, FloatGrid):
        scale = _scales(weights, grid, tensor_scale)
        return _Levels(scale, torch.zeros_like(scale), 15, floating=True)
    top = 2**grid.bits - 1
    low = weights.amin(dim=-1, keepdim=True).clamp(max=0)
    high = weights.amax(dim=-1, keepdim=True).clamp(min=0)
    if grid.symmetric:
        high = torch.maximum(high, -low)
        low = -high
    scale = (high - low) / top
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero = torch.full_like(scale, 2.0 ** (grid.bits - 1)) if grid.symmetric else torch.round(-low / scale)
    return _Levels(scale, zero, top)


def _nearest_level(values: Float[Tensor, "..."], levels: _Levels) -> Float[Tensor, "..."]:
    """Round each value to its group's nearest level.

    >>> levels = _fit_levels(torch.tensor([[-1.0, 0.0, 2.0]]), Grid(bits=2))
    >>> _nearest_level(torch.tensor([[-3.0, 0.5, 1.5]]), levels).tolist()
    [[-1.0, 0.0, 2.0]]
    """
    scale, zero, top, floating = levels
    if floating:
        return _round_e2m1(values / scale).mul_(scale)
    codes = torch.round(values / scale).add_(zero).clamp_(0, top)
    return codes.sub_(zero).mul_(scale)


def _group_edges(d_in: int, grid: Grid) -> list[int]:
    """The inputs at which the groups of a row begin, and d_in at the end; the last group may be shorter.

    >>> _group_edges(10, Grid(4, PerGroup(4)))
    [0, 4, 8, 10]
    """
    size = grid.group.size if isinstance(grid.group, PerGroup) else d_in
    return [*range(0, d_in, size), d_in]


def _solve(weights: list[Tensor], evidence: Evidence, target: Grid) -> tuple[list[Tensor], dict]:
    return [_round_to_grid(weight.float(), target).to(weight.dtype) for weight in weights], {}


METHOD = Method(
    "rtn",
    version=1,
    targets=(Grid,),
    solve=_solve,
    packs=("compressed-tensors",),
    label="RTN",
    source="frantar2023gptq",
    style=("#8A6D00", "X"),
    place=40,
)
