"""A block of a sweep in plain torch operations, for every device and every rule.

The loop over columns is Python, so each column costs as few operations as there can be: two for pruning.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosscal.methods.grids import Levels, fit_levels
from crosscal.methods.masks import drop_of_group
from crosscal.methods.rule import BlockRule

PANEL = 16


def sweep_block(
    columns: Float[Tensor, "block rows"],
    flow: Float[Tensor, "block block"],
    scale: Float[Tensor, " block"],
    rule: BlockRule,
) -> Float[Tensor, "block rows"]:
    """Fix the columns of one block in place; returns what each lost, w - q, for the columns right of the block.

    `flow[j, k]` = U_jk / U_jj and `scale[j]` = U_jj.
    """
    losses = torch.empty_like(columns)
    drop = _Drop(rule, columns)
    levels = _Bounds(rule, columns)
    for left, right in _panels(len(columns), rule):
        panel = columns[left:right], flow[left:right, left:right], losses[left:right], left
        if rule.grid is None:
            _prune_panel(*panel, drop, scale)
        else:
            levels.refit(left)
            _round_panel(*panel, drop, scale, levels)
        if right < len(columns):
            columns[right:].addmm_(flow[left:right, right:].T, losses[left:right], alpha=-1)
    return losses


def _panels(size: int, rule: BlockRule) -> Iterator[tuple[int, int]]:
    """Panels of about 16 columns; none cuts an N:M group, none crosses into a group whose levels are still to fit."""
    unit = rule.nofm.m if rule.nofm else 1
    width, group = unit * max(1, PANEL // unit), rule.fit_size or size
    for start in range(0, size, group):
        end = min(start + group, size)
        for left in range(start, end, width):
            yield left, min(left + width, end)


def _prune_panel(columns, flow, losses, left, drop, scale) -> None:
    """Lose what is dropped; the rest of the panel makes up for it."""
    width = len(columns)
    for j, (column, loss) in enumerate(zip(columns.unbind(), losses.unbind(), strict=True)):
        drop.begin(left + j, columns[j:], scale)
        torch.mul(column, drop.factors[left + j], out=loss)
        if j + 1 < width:
            columns[j + 1 :].addr_(flow[j, j + 1 :], loss, alpha=-1)
    columns.sub_(losses)  # w - w is exactly 0, so this can wait until the panel is done


def _round_panel(columns, flow, losses, left, drop, scale, levels) -> None:
    """Round to the grid what is not dropped."""
    width = len(columns)
    for j, (column, loss) in enumerate(zip(columns.unbind(), losses.unbind(), strict=True)):
        drop.begin(left + j, columns[j:], scale)
        value = levels.nearest(left + j, column)
        if drop.mask is not None:
            value.masked_fill_(drop.mask[left + j], 0)
        torch.sub(column, value, out=loss)
        column.copy_(value)
        if j + 1 < width:
            columns[j + 1 :].addr_(flow[j, j + 1 :], loss, alpha=-1)


class _Drop:
    """Which weights of each column go: known when the block begins, or chosen every M columns."""

    def __init__(self, rule: BlockRule, columns: Tensor):
        self.nofm = rule.nofm if rule.keep is None else None
        self.mask: Bool[Tensor, "block rows"] | None = None
        if rule.keep is not None:
            self.mask = ~rule.keep
        elif rule.nofm is not None:
            self.mask = torch.empty_like(columns, dtype=torch.bool)
        if rule.grid is None:
            self.factors = torch.zeros_like(columns) if self.mask is None else self.mask.to(columns.dtype)

    def begin(self, j: int, right: Tensor, scale: Tensor) -> None:
        """Choose for the group that begins at column j = `right[0]`, if one does."""
        if self.nofm is None or j % self.nofm.m:
            return
        m = self.nofm.m
        scores = (right[:m] / scale[j : j + m, None]).square_()
        self.mask[j : j + m] = drop_of_group(scores, m - self.nofm.n)
        if hasattr(self, "factors"):
            self.factors[j : j + m] = self.mask[j : j + m]


class _Bounds:
    """Scale and bounds of the grid of each column.

    Rounding to a level is scale * clamp(round(w / scale), -zero, top - zero), in codes that have 0 at 0: the same
    value as with the stored code, in fewer operations.
    """

    def __init__(self, rule: BlockRule, columns: Tensor):
        self.rule, self.columns = rule, columns
        if rule.levels is not None:
            scale, zero, top = rule.levels
            if len(scale) > 1:
                scale, zero = scale.index_select(0, rule.group_of), zero.index_select(0, rule.group_of)
            self._take(Levels(scale, zero, top))

    def _take(self, levels: Levels) -> None:
        """Keep them row by row for each column of the block; rows of one group are views of one tensor."""
        size = len(self.columns)
        self.scale, self.low, self.high = (
            part.expand(size, -1).unbind() for part in (levels.scale, -levels.zero, levels.top - levels.zero)
        )

    def refit(self, j: int) -> None:
        """Fit the levels of the group that begins at column j, if one does."""
        size = self.rule.fit_size
        if size is not None and j % size == 0:
            found = fit_levels(self.columns[j : j + size].T, self.rule.grid)
            self._take(Levels(found.scale.T, found.zero.T, found.top))

    def nearest(self, j: int, column: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        return torch.round(column / self.scale[j]).clamp_(self.low[j], self.high[j]).mul_(self.scale[j])
