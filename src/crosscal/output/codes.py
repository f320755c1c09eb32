"""Integer codes of weights that a method has rounded: recovered from the weights alone, and proven exact.

Methods hand out weights, not codes: whatever rounded a model, its weights can be stored if they lie on a grid. So for
each group of weights a step s (the scale) is searched of which every weight is a rounded whole multiple. The naive way,
to divide the range of the weights by the number of levels and round, is right for most groups and silently wrong for
some: the largest code need not occur, weights were rounded to bfloat16 after the product with s, and with 8 bits two
neighbouring multiples may round to one bfloat16 number. Here nothing is guessed, and no step is missed.

A weight w of p significant bits is a product s m rounded, so s lies in [(|w| - u) / m, (|w| + u) / m], where u is half
the distance between neighbours of w. What is unknown is m. The reach of a group (greatest less least weight) is j
steps for some j, which confines s to a narrow interval for each j; there most weights admit one m only, and each of
those confines s further. Intervals without a solution are dropped, those that still admit several are halved, and
float32 values of s are tried until one gives every weight back, bit for bit. As there are finitely many float32
numbers the search ends; a group for which it ends empty does not lie on the grid, and is refused by name.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int16, UInt8
from torch import Tensor

from crosscal.errors import InputError
from crosscal.types import Grid, PerGroup

_CHUNK = 2**20  # weights looked at together: keeps the float64 work in memory of a few hundred MB
_MOST_BITS = 8
_NARROW = 2.0**-25  # relative: an interval this narrow holds no float32 value but the one nearest to its middle
_FUZZ = 2.0**-10  # of u: room for the product being rounded to float32 before it is rounded to the weight's dtype
_ROUNDS = 60  # halvings from the widest interval to the narrowest, and as many narrowings


class _Codes(NamedTuple):
    """Codes 0 .. 2**bits - 1 of a weight; each group's scale (float32) and zero, the code of the value 0.

    A weight is (code - zero) * scale, the product taken in float32 and rounded to the weight's own dtype.
    """

    codes: UInt8[Tensor, "d_out d_in"]
    scale: Float[Tensor, "d_out n_groups"]
    zero: UInt8[Tensor, "d_out n_groups"]

    def dequantized(self, dtype: torch.dtype) -> Float[Tensor, "d_out d_in"]:
        """Return the weights, as every reader of the format computes them."""
        groups = self.codes.float().unflatten(1, (self.scale.shape[1], -1)) - self.zero.float()[:, :, None]
        return (groups * self.scale[:, :, None]).flatten(1).to(dtype)


@torch.no_grad()
def _exact_codes(weight: Float[Tensor, "d_out d_in"], grid: Grid, *, name: str = "the weight") -> _Codes:
    """Return codes, scales and zeros from which exactly `weight` is dequantized, in its own dtype.

    Any scale that gives every weight back will do; only the sign of a zero is lost. Symmetric grids get zero
    2**(bits - 1), asymmetric ones the least zero that fits. Raises `InputError`, calling the weight `name`, for a
    group of weights that no scale reproduces, for more than 8 bits, and for groups that do not divide d_in.

    >>> codes = _exact_codes(torch.tensor([[-0.5, 0.0, 0.25, 1.0]]), Grid(bits=3))
    >>> codes.codes.tolist(), codes.scale.tolist(), codes.zero.tolist()
    ([[0, 2, 3, 6]], [[0.25]], [[2]])
    """
    _check_shapes(grid, [weight.shape[1]])
    size = grid.group.size if isinstance(grid.group, PerGroup) else weight.shape[1]
    groups = weight.reshape(-1, size)
    parts = [_find_steps(part, grid) for part in groups.split(max(1, _CHUNK // size))]
    steps = _Steps(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
    if failed := int((~steps.exact).sum()):
        raise InputError(
            f"{failed} of {len(groups)} groups of {name} do not lie on {grid}; use dense storage, or give the grid "
            "that the weights were rounded to"
        )
    return _shifted(steps, grid, weight.shape)


def _check_shapes(grid: Grid, widths: Sequence[int]) -> None:
    """Raise `InputError` for a grid that the format cannot hold for these widths."""
    if grid.bits > _MOST_BITS:
        raise InputError(
            f"compressed-tensors packs at most {_MOST_BITS} bits, not {grid.bits}; use dense storage or fewer bits"
        )
    for width in sorted(set(widths)):
        if isinstance(grid.group, PerGroup) and width % grid.group.size:
            raise InputError(
                f"groups of {grid.group.size} do not divide a layer's {width} inputs, which compressed-tensors cannot "
                "store; use dense storage, rows, or a group that divides"
            )


def _shifted(steps: "_Steps", grid: Grid, shape: torch.Size) -> _Codes:
    """Turn multiples, which are signed, into codes, which are not."""
    if grid.symmetric:
        zero = torch.full_like(steps.multiple[:, :1], 2 ** (grid.bits - 1))
    else:
        zero = -steps.multiple.amin(dim=1, keepdim=True).clamp(max=0)
    codes = (steps.multiple + zero).to(torch.uint8).reshape(shape)
    n_groups = math.prod(shape) // steps.multiple.shape[1] // shape[0]
    return _Codes(codes, steps.scale.reshape(-1, n_groups), zero.to(torch.uint8).reshape(-1, n_groups))


class _Steps(NamedTuple):
    """For each group: the step, the multiple of it that each weight is, and whether that is exact."""

    scale: Float32[Tensor, " groups"]
    multiple: Int16[Tensor, "groups size"]
    exact: Bool[Tensor, " groups"]


class _Group(NamedTuple):
    """Groups under search: the weights, their sizes and halves of the distances to their neighbours."""

    weight: Float[Tensor, "groups size"]
    size: Float64[Tensor, "groups size"]
    slack: Float64[Tensor, "groups size"]

    def take(self, which: Tensor) -> "_Group":
        return _Group(*(part[which] for part in self))


def _find_steps(weight: Float[Tensor, "groups size"], grid: Grid) -> _Steps:
    """Return the steps of groups that lie on `grid`; `exact` is False where no step gives every weight back."""
    top = 2**grid.bits - 1
    below, above = (2 ** (grid.bits - 1), 2 ** (grid.bits - 1) - 1) if grid.symmetric else (top, top)
    span = max(below, above) if grid.symmetric else top
    size = weight.double().abs()
    every = _Group(weight, size, _slack(size, weight.dtype))
    steps = _Steps(
        torch.ones(len(weight), device=weight.device),
        torch.zeros(weight.shape, dtype=torch.int16, device=weight.device),
        (weight == 0).all(dim=1),
    )
    reach, room = _reach(every, symmetric=grid.symmetric)
    for j in range(span, 0, -1):
        left = (~steps.exact).nonzero()[:, 0]
        if not len(left):
            break
        start = torch.stack([reach[left] - room[left], reach[left] + room[left]]) / j
        _search(every, left, start, (below, above, top), steps)
    return steps


def _slack(size: Float64[Tensor, "groups size"], dtype: torch.dtype) -> Float64[Tensor, "groups size"]:
    """Return half the distance between a number and its neighbours, and a little more; 0 for 0, its own multiple."""
    kind = torch.finfo(dtype)
    exponent = torch.frexp(size).exponent
    distance = torch.ldexp(torch.ones_like(size), exponent - 1) * kind.eps
    return distance.clamp(min=kind.tiny * kind.eps).mul_((1 + _FUZZ) / 2).masked_fill_(size == 0, 0)


def _reach(every: _Group, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Return the width of j steps, from least to greatest weight, or from 0 to the largest, and its uncertainty."""
    positive, (size, slack) = every.weight > 0, every[1:]
    ends = [torch.where(side, size, 0).max(dim=1) for side in (positive, ~positive)]
    slacks = [slack.gather(1, end.indices[:, None])[:, 0].where(end.values > 0, 0) for end in ends]
    if not symmetric:
        return ends[0].values + ends[1].values, slacks[0] + slacks[1]
    larger = ends[0].values >= ends[1].values
    return torch.where(larger, ends[0].values, ends[1].values), torch.where(larger, *slacks)


def _search(every: _Group, left: Tensor, interval: Tensor, limits: tuple[int, int, int], steps: _Steps) -> None:
    """Look for the steps of the groups `left` in their intervals [2, groups], and note those there are."""
    for _ in range(_ROUNDS):
        groups = every.take(left)
        narrowed = _narrowed(groups, interval, limits)
        alive = narrowed[0] <= narrowed[1]
        if not alive.all():
            groups, left, narrowed, interval = groups.take(alive), left[alive], narrowed[:, alive], interval[:, alive]
        if not len(left):
            return
        scale = narrowed.mean(dim=0).float()
        multiple, exact = _multiples(groups, scale, limits)
        steps.scale[left[exact]], steps.multiple[left[exact]] = scale[exact], multiple[exact]
        steps.exact[left[exact]] = True
        width, before = (part[1] / part[0] - 1 for part in (narrowed, interval))
        open_ = ~steps.exact[left] & (width > _NARROW)
        halve, again = open_ & (width > before / 2), open_ & (width <= before / 2)
        middle = narrowed.mean(dim=0)
        low, high = narrowed
        interval = torch.cat(
            [narrowed[:, again], torch.stack([low, middle])[:, halve], torch.stack([middle, high])[:, halve]], dim=1
        )
        left = torch.cat([left[again], left[halve], left[halve]])
        if not len(left):
            return


def _narrowed(groups: _Group, interval: Float64[Tensor, "2 groups"], limits: tuple[int, int, int]) -> Tensor:
    """Return the intervals, confined by all weights that are one multiple only; crossed where a weight is none."""
    low, high = interval[0, :, None], interval[1, :, None]
    least = ((groups.size - groups.slack) / high).ceil_()
    most = ((groups.size + groups.slack) / low).floor_()
    certain = (least == most) & (least > 0)
    divisor = least.clamp(min=1)
    low = torch.where(certain, (groups.size - groups.slack) / divisor, low).amax(dim=1)
    high = torch.where(certain, (groups.size + groups.slack) / divisor, high).amin(dim=1)
    low, high = torch.maximum(low, interval[0]), torch.minimum(high, interval[1])
    possible = (least <= most).all(dim=1) & _within(torch.where(groups.weight < 0, -least, least), limits)
    return torch.stack([low, torch.where(possible, high, -1.0)])


def _within(multiple: Tensor, limits: tuple[int, int, int]) -> Bool[Tensor, " groups"]:
    """Return whether all multiples of a group fit the codes: so far below 0, so far above, and so far apart."""
    below, above, top = limits
    least, most = multiple.amin(dim=1).clamp(max=0), multiple.amax(dim=1).clamp(min=0)
    return (least >= -below) & (most <= above) & (most - least <= top)


def _multiples(groups: _Group, scale: Float32[Tensor, " groups"], limits: tuple[int, int, int]) -> tuple:
    """Return the multiples of these steps that the weights are, and whether they give a group's every weight back.

    With 8 bits in a short dtype neighbouring multiples round to one weight: the one nearer to 0 is taken, so that no
    group seems wider than it is. Beside a power of two the nearest multiple may be wrong and the next one right.
    """

    def right(multiple: Tensor) -> Tensor:
        return (multiple.float() * scale[:, None]).to(groups.weight.dtype) == groups.weight.abs()

    nearest = (groups.size / scale[:, None]).round_()
    multiple = (nearest - 1).clamp_(min=0)
    good = right(multiple)
    for other in (nearest, nearest + 1):
        multiple = torch.where(good, multiple, other)
        good = right(multiple)
        if good.all():
            break
    signed = torch.where(groups.weight < 0, -multiple, multiple)
    exact = good.all(dim=1) & _within(signed, limits)
    return signed.clamp_(-(2**15), 2**15 - 1).to(torch.int16), exact
