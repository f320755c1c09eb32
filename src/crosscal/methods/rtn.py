"""Round to nearest: each weight takes the nearest level of its group's grid; no data."""

import torch
from jaxtyping import Float
from torch import Tensor

from crosscal.methods.grids import fit_levels, group_edges, nearest_level
from crosscal.methods.masks import check_finite
from crosscal.types import Grid

VERSION = 1


def rtn(weight: Float[Tensor, "d_out d_in"], grid: Grid) -> Float[Tensor, "d_out d_in"]:
    """Round each weight to the nearest of its group's 2**bits levels, which span the group's least to greatest weight.

    Groups are rows, or `group.size` consecutive inputs of a row, the last of which may be shorter. No other choice
    of levels changes a weight less; what the layer puts out is not looked at. It is the baseline that Frantar et al.
    2023 (arXiv 2210.17323, section 5) compare with.

    Raises `InputError` for weights that are not finite.

    >>> rtn(torch.tensor([[-1.0, 0.25, 0.75, 2.0]]), Grid(bits=2)).tolist()
    [[-1.0, 0.0, 1.0, 2.0]]
    """
    check_finite(weight)
    return round_to_grid(weight.float(), grid).to(weight.dtype)


def round_to_grid(values: Float[Tensor, "rows d_in"], grid: Grid) -> Float[Tensor, "rows d_in"]:
    """`rtn` for values that are known to be finite, in their own precision.

    >>> from crosscal.types import PerGroup
    >>> round_to_grid(torch.tensor([[0.0, 1.0, 3.0, 0.0, 4.0, 9.0]]), Grid(1, PerGroup(4))).tolist()
    [[0.0, 0.0, 3.0, 0.0, 0.0, 9.0]]
    """
    rows, d_in = values.shape
    size = group_edges(d_in, grid)[1]
    full = d_in - d_in % size
    groups = values[:, :full].reshape(rows, full // size, size)
    rounded = nearest_level(groups, fit_levels(groups, grid)).reshape(rows, full)
    if full == d_in:
        return rounded
    rest = values[:, full:]
    return torch.cat([rounded, nearest_level(rest, fit_levels(rest, grid))], dim=1)
