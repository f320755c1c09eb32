"""A step for every group of weights, such that each weight is a rounded whole multiple of it.

A weight w of p significant bits is a product s m rounded, so s lies in [(|w| - u) / m, (|w| + u) / m], where u is half
the distance between neighbours of w. What is unknown is m. The reach of a group (greatest less least weight) is j
steps for some j, which confines s to a narrow interval; there most weights admit one m only, and each of those confines
s further. Intervals without a solution are dropped, those that still admit several are halved, and float32 values of
s are tried until one gives every weight back. As float32 has finitely many, the search ends, and misses no step.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int16
from torch import Tensor

from crosscal.types import Grid

NARROW = 2.0**-25  # relative: an interval this narrow holds no float32 value but the one nearest to its middle
FUZZ = 2.0**-10  # of u: room for the product being rounded to float32 before it is rounded to the weight's dtype
ROUNDS = 60  # halvings from the widest interval to the narrowest, and as many narrowings


class Steps(NamedTuple):
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


def find_steps(weight: Float[Tensor, "groups size"], grid: Grid) -> Steps:
    """The steps of groups that lie on `grid`; `exact` is False where no step gives every weight back."""
    top = 2**grid.bits - 1
    below, above = (2 ** (grid.bits - 1), 2 ** (grid.bits - 1) - 1) if grid.symmetric else (top, top)
    span = max(below, above) if grid.symmetric else top
    size = weight.double().abs()
    every = _Group(weight, size, _slack(size, weight.dtype))
    found = Steps(
        torch.ones(len(weight), device=weight.device),
        torch.zeros(weight.shape, dtype=torch.int16, device=weight.device),
        (weight == 0).all(dim=1),
    )
    reach, room = _reach(every, symmetric=grid.symmetric)
    for j in range(span, 0, -1):
        left = (~found.exact).nonzero()[:, 0]
        if not len(left):
            break
        start = torch.stack([reach[left] - room[left], reach[left] + room[left]]) / j
        _search(every, left, start, (below, above, top), found)
    return found


def _slack(size: Float64[Tensor, "groups size"], dtype: torch.dtype) -> Float64[Tensor, "groups size"]:
    """Half the distance between a number and its neighbours, and a little more; 0 for 0, which is its own multiple."""
    kind = torch.finfo(dtype)
    exponent = torch.frexp(size).exponent
    distance = torch.ldexp(torch.ones_like(size), exponent - 1) * kind.eps
    return distance.clamp(min=kind.tiny * kind.eps).mul_((1 + FUZZ) / 2).masked_fill_(size == 0, 0)


def _reach(every: _Group, *, symmetric: bool) -> tuple[Tensor, Tensor]:
    """What j steps reach over: from least to greatest weight, or from 0 to the largest; and how uncertain it is."""
    positive, (size, slack) = every.weight > 0, every[1:]
    ends = [torch.where(side, size, 0).max(dim=1) for side in (positive, ~positive)]
    slacks = [slack.gather(1, end.indices[:, None])[:, 0].where(end.values > 0, 0) for end in ends]
    if not symmetric:
        return ends[0].values + ends[1].values, slacks[0] + slacks[1]
    larger = ends[0].values >= ends[1].values
    return torch.where(larger, ends[0].values, ends[1].values), torch.where(larger, *slacks)


def _search(every: _Group, left: Tensor, interval: Tensor, limits: tuple[int, int, int], found: Steps) -> None:
    """Look for the steps of the groups `left` in their intervals [2, groups], and note in `found` those there are."""
    for _ in range(ROUNDS):
        groups = every.take(left)
        narrowed = _narrowed(groups, interval, limits)
        alive = narrowed[0] <= narrowed[1]
        if not alive.all():
            groups, left, narrowed, interval = groups.take(alive), left[alive], narrowed[:, alive], interval[:, alive]
        if not len(left):
            return
        scale = narrowed.mean(dim=0).float()
        multiple, exact = _multiples(groups, scale, limits)
        found.scale[left[exact]], found.multiple[left[exact]] = scale[exact], multiple[exact]
        found.exact[left[exact]] = True
        width, before = (part[1] / part[0] - 1 for part in (narrowed, interval))
        open_ = ~found.exact[left] & (width > NARROW)
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
    """The intervals, confined by all weights that are one multiple only; crossed where a weight is none."""
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
    """Whether all multiples of a group fit the codes: so far below 0, so far above, and so far apart."""
    below, above, top = limits
    least, most = multiple.amin(dim=1).clamp(max=0), multiple.amax(dim=1).clamp(min=0)
    return (least >= -below) & (most <= above) & (most - least <= top)


def _multiples(groups: _Group, scale: Float32[Tensor, " groups"], limits: tuple[int, int, int]) -> tuple:
    """The multiples of these steps that the weights are, and for which groups they give every weight back.

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
