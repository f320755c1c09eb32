"""AWQ: finer rounding for the weights of large inputs; no weight update."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crosscal.calibration.statistics import InputStats
from crosscal.methods.masks import _check_finite
from crosscal.methods.registry import Evidence, Method
from crosscal.methods.rtn import _round_to_grid
from crosscal.types import Grid

_RATIOS = 20  # how many are tried: 0, 1/20, .. 19/20
_FLOOR = 1e-4  # the least size of a live input, as a part of the largest: bounds the scales


def awq(weight: Float[Tensor, "d_out d_in"], stats: InputStats, grid: Grid) -> Float[Tensor, "d_out d_in"]:
    """Multiply each input's weights by s_j = a_j^r, round them to the grid, and divide by s_j again.

    a_j is the size of input j and r one of 0, 0.05, .. 0.95: the one with the least output error
    tr(dW G dW^T) = sum_t ||dW x_t||^2, read from the Gram matrix without a forward pass; the smallest of equally good
    ones. r = 0 is `rtn`. Two things differ from the paper. Size is the root mean square sqrt(mean_t x_tj^2) and not
    mean_t |x_tj|, because second moments are what statistics hold and what cross-calibration mixes. And only scales
    are searched: the authors' code also clips weights. Equation eq-awq of the book.
    Source: Lin et al. 2024 (arXiv 2306.00978), eq. 4 and 5.

    Raises `InputError` for weights that are not finite.

    >>> from crosscal.methods.rtn import rtn
    >>> weight, grid = torch.tensor([[0.4, 0.5, 3.0]]), Grid(bits=2)
    >>> loud_second_input = InputStats(torch.diag(torch.tensor([1.0, 100.0, 1.0])), n_tokens=1)
    >>> rtn(weight, grid).tolist(), awq(weight, loud_second_input, grid).round(decimals=1).tolist()
    ([[0.0, 0.0, 3.0]], [[0.0, 0.5, 3.0]])
    """
    _check_finite(weight)
    return _solve([weight], Evidence(stats), grid)[0][0]


def _solve(weights: Sequence[Tensor], evidence: Evidence, target: Grid) -> tuple[list[Tensor], dict[str, Tensor]]:
    """`awq` for several weights that share one input, with one scale for all: r has the least summed output error.

    A shared scale can be folded into the layer before. Weights are taken to be finite. The fact `ratio`
    is r, a tensor without dimensions: reading it waits for the device.
    """
    stats, grid = evidence.stats, target
    stacked = torch.cat([weight.float() for weight in weights])
    gram = stats.gram.float()
    ratios = torch.arange(_RATIOS, device=gram.device) / _RATIOS
    scales = _candidates(stats, ratios)
    errors = torch.stack([_output_error(stacked, gram, scale, grid) for scale in scales])
    # The winner is rounded again rather than kept: that takes less memory, and no wait to learn which one it is.
    best = errors.argmin().reshape(1)
    rounded = _round_scaled(stacked, scales.index_select(0, best)[0], grid)
    parts = rounded.split([len(weight) for weight in weights])
    new = [part.to(weight.dtype, copy=True) for part, weight in zip(parts, weights, strict=True)]
    return new, {"ratio": ratios.index_select(0, best)[0]}


def _candidates(stats: InputStats, ratios: Float[Tensor, " ratios"]) -> Float[Tensor, "ratios d_in"]:
    """The scales to try, s = a^r / sqrt(max(a^r) min(a^r)); dead inputs neither count in max and min nor are scaled.

    The number of tokens cancels, so a_j = sqrt(G_jj), at least `_FLOOR` times the largest.
    """
    size = stats.diagonal.float().clamp(min=0).sqrt()
    dead = size == 0
    # With the greatest at 1, dividing by sqrt(min) here is dividing s by sqrt(max(s) min(s)) for every ratio.
    size = (size / size.max()).clamp(min=_FLOOR).masked_fill(dead, 1)
    size = (size / size.min().sqrt()).masked_fill(dead, 1)
    return size ** ratios[:, None]


def _round_scaled(weight: Float[Tensor, "rows d_in"], scale: Float[Tensor, " d_in"], grid: Grid) -> Tensor:
    return _round_to_grid(weight * scale, grid).div_(scale)


def _output_error(
    weight: Float[Tensor, "rows d_in"], gram: Float[Tensor, "d_in d_in"], scale: Float[Tensor, " d_in"], grid: Grid
) -> Float[Tensor, ""]:
    """tr(dW G dW^T) with one matrix product."""
    change = _round_scaled(weight, scale, grid).sub_(weight)
    return (change @ gram).mul_(change).sum()


METHOD = Method(
    "awq",
    version=1,
    targets=(Grid,),
    solve=_solve,
    reads="gram",
    linked=True,
    cost=(0.0, 40.0),
    label="AWQ",
    source="lin2024",
    style=("#A8285F", "v"),
    place=60,
)
