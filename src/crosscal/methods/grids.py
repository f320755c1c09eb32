"""Quantization grids: where the levels of a group of weights lie, and the nearest level of a value.

Levels are scale * (code - zero) for the codes 0 .. 2**bits - 1. Values are rounded to the nearest level, half to
even, after a true division, as GPTQ's authors do (Frantar et al. 2023).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crosscal.types import Grid, PerGroup


class Levels(NamedTuple):
    """The levels of many groups: `scale` and `zero` broadcast against the weights they belong to.

    `zero` is the code of the value 0, a whole number; it is inside 0 .. `top`, so 0 is always a level.
    """

    scale: Tensor
    zero: Tensor
    top: int


def fit_levels(weights: Float[Tensor, "*groups size"], grid: Grid) -> Levels:
    """Min-max levels of each group (the last axis), the range widened to include 0.

    Asymmetric: scale = (max - min) / (2**bits - 1), zero = round(-min / scale). Symmetric: the range is
    -max|w| .. max|w| and zero = 2**(bits - 1). A group of zeros gets scale 1. Equation eq-rtn of the book.

    >>> levels = fit_levels(torch.tensor([[-1.0, 0.0, 2.0]]), Grid(bits=2))
    >>> levels.scale.item(), levels.zero.item()
    (1.0, 1.0)
    """
    top = 2**grid.bits - 1
    low = weights.amin(dim=-1, keepdim=True).clamp(max=0)
    high = weights.amax(dim=-1, keepdim=True).clamp(min=0)
    if grid.symmetric:
        high = torch.maximum(high, -low)
        low = -high
    scale = (high - low) / top
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero = torch.full_like(scale, 2.0 ** (grid.bits - 1)) if grid.symmetric else torch.round(-low / scale)
    return Levels(scale, zero, top)


def nearest_level(values: Float[Tensor, "..."], levels: Levels) -> Float[Tensor, "..."]:
    """Each value rounded to its group's nearest level.

    >>> levels = fit_levels(torch.tensor([[-1.0, 0.0, 2.0]]), Grid(bits=2))
    >>> nearest_level(torch.tensor([[-3.0, 0.5, 1.5]]), levels).tolist()
    [[-1.0, 0.0, 2.0]]
    """
    scale, zero, top = levels
    codes = torch.round(values / scale).add_(zero).clamp_(0, top)
    return codes.sub_(zero).mul_(scale)


def group_edges(d_in: int, grid: Grid) -> list[int]:
    """Where the groups of a row begin, and d_in at the end; the last group may be shorter.

    >>> group_edges(10, Grid(4, PerGroup(4)))
    [0, 4, 8, 10]
    """
    size = grid.group.size if isinstance(grid.group, PerGroup) else d_in
    return [*range(0, d_in, size), d_in]
