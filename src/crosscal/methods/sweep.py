"""The blocked error-propagation sweep that second-order pruning and quantization share.

Columns of W are fixed one after the other; the columns to the right of column j compensate its loss. With
U the upper Cholesky factor of H^-1, fixing column j from w to q adds -(w - q) / U_jj * U_jk to each later column k
(Frantar & Alistarh 2023, arXiv 2301.00774, eq. 4; Frantar et al. 2023, arXiv 2210.17323, eq. 4).

What makes it fast without changing a result beyond rounding: the weight is transposed, so that a column is
contiguous; weights that share an input are swept as one; and updates are delayed on two levels. Single columns only
reach the end of their panel of 16, a panel then updates its block of 128, and a block the rest of the matrix, each
by one matrix product. On CUDA one kernel takes a whole block.

The loop over columns in plain torch operations runs on every device and for every rule; it is Python, so each column
costs as few operations as there can be: two for pruning.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosscal.methods import kernels
from crosscal.methods.fp4 import _round_e2m1
from crosscal.methods.kernels import _BlockRule
from crosscal.methods.linalg import _InverseFactor
from crosscal.methods.masks import _drop_of_group
from crosscal.methods.rtn import _fit_levels, _Levels
from crosscal.types import Grid, PerGroup

BLOCK = 128
_PANEL = 16
_RuleOf = Callable[[int, int, Tensor, Tensor], _BlockRule]
"""(start, end, columns[start:], scale[start:end]) -> the rule of that block, earlier errors applied."""


def _sweep_stacked(
    weights: Sequence[Float[Tensor, "_ d_in"]],
    factor: _InverseFactor,
    edges: Sequence[int],
    rule_of: Callable[[Tensor], _RuleOf],
) -> list[Tensor]:
    """Sweep several weights that share one input as a single matrix; rows never influence each other.

    Dead inputs lose their weights first. `rule_of` sees the transposed, stacked weight before the sweep begins.
    """
    columns = torch.cat([weight.float() for weight in weights]).T.contiguous()
    columns.masked_fill_(factor.dead[:, None], 0)
    _sweep(columns, factor.upper, edges, rule_of(columns))
    parts = zip(columns.T.split([len(weight) for weight in weights]), weights, strict=True)
    return [part.to(weight.dtype, memory_format=torch.contiguous_format) for part, weight in parts]


def _sweep(
    columns: Float[Tensor, "d_in rows"], upper: Float[Tensor, "d_in d_in"], edges: Sequence[int], rule_of: _RuleOf
) -> None:
    """Fix every column of a transposed weight in place, one block between two `edges` after the other."""
    scale = upper.diagonal()
    flow = upper / scale[:, None]  # row j holds U_jk / U_jj: how the loss w - q reaches column k
    for start, end in pairwise(edges):
        rule = rule_of(start, end, columns[start:], scale[start:end])
        block = columns[start:end], flow[start:end, start:end], scale[start:end], rule
        on_kernel = kernels._available(columns.device) and kernels._supports(rule, end - start)
        losses = kernels._sweep_block(*block) if on_kernel else _sweep_block(*block)
        if end < len(columns):
            columns[end:].addmm_(flow[start:end, end:].T, losses, alpha=-1)


def _block_edges(d_in: int, block: int, grid: Grid | None = None) -> list[int]:
    """The columns at which the blocks of a sweep begin, and d_in at the end.

    Levels of a group are fitted when the sweep reaches it, on weights that all earlier errors have reached. So no
    group may begin in the middle of a block that it does not end in: groups of at least `block` inputs are cut into
    blocks of their own, smaller groups fill the largest multiple that fits into `block`.

    >>> _block_edges(320, 128), _block_edges(320, 128, Grid(4, PerGroup(192)))
    ([0, 128, 256, 320], [0, 128, 192, 320])
    >>> _block_edges(200, 128, Grid(4, PerGroup(48)))
    [0, 96, 192, 200]
    """
    size = grid.group.size if grid is not None and isinstance(grid.group, PerGroup) else block
    if size < block:
        return [*range(0, d_in, block // size * size), d_in]
    starts = range(0, d_in, size)
    return [edge for start in starts for edge in range(start, min(start + size, d_in), block)] + [d_in]


def _sweep_block(
    columns: Float[Tensor, "block rows"],
    flow: Float[Tensor, "block block"],
    scale: Float[Tensor, " block"],
    rule: _BlockRule,
) -> Float[Tensor, "block rows"]:
    """Fix the columns of one block in place; returns the loss w - q of each, for the columns right of the block.

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


def _panels(size: int, rule: _BlockRule) -> Iterator[tuple[int, int]]:
    """Panels of about 16 columns; none cuts an N:M group, none crosses into a group whose levels are still to fit."""
    unit = rule.nofm.m if rule.nofm else 1
    width, group = unit * max(1, _PANEL // unit), rule.fit_size or size
    for start in range(0, size, group):
        end = min(start + group, size)
        for left in range(start, end, width):
            yield left, min(left + width, end)


def _prune_panel(columns, flow, losses, left, drop, scale) -> None:
    """Drop the masked weights of a panel; its later columns compensate."""
    width = len(columns)
    for j, (column, loss) in enumerate(zip(columns.unbind(), losses.unbind(), strict=True)):
        drop.begin(left + j, columns[j:], scale)
        torch.mul(column, drop.factors[left + j], out=loss)
        if j + 1 < width:
            columns[j + 1 :].addr_(flow[j, j + 1 :], loss, alpha=-1)
    columns.sub_(losses)  # w - w is exactly 0, so this can wait until the panel is done


def _round_panel(columns, flow, losses, left, drop, scale, levels) -> None:
    """Round the remaining weights of a panel to the grid; its later columns compensate."""
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

    def __init__(self, rule: _BlockRule, columns: Tensor):
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
        if self.nofm is None or self.mask is None or j % self.nofm.m:
            return
        m = self.nofm.m
        scores = (right[:m] / scale[j : j + m, None]).square_()
        self.mask[j : j + m] = _drop_of_group(scores, m - self.nofm.n)
        if hasattr(self, "factors"):
            self.factors[j : j + m] = self.mask[j : j + m]


class _Bounds:
    """Scale and bounds of the grid of each column.

    Rounding to a level is scale * clamp(round(w / scale), -zero, top - zero), in codes that have 0 at 0: the same
    value as with the stored code, in fewer operations.
    """

    def __init__(self, rule: _BlockRule, columns: Tensor):
        self.rule, self.columns = rule, columns
        if rule.levels is not None:
            scale, zero, *_ = rule.levels
            if rule.group_of is not None and len(scale) > 1:
                scale, zero = scale.index_select(0, rule.group_of), zero.index_select(0, rule.group_of)
            self._take(rule.levels._replace(scale=scale, zero=zero))

    def _take(self, levels: _Levels) -> None:
        """Keep them row by row for each column of the block; rows of one group are views of one tensor."""
        size, self.floating = len(self.columns), levels.floating
        self.scale, self.low, self.high = (
            part.expand(size, -1).unbind() for part in (levels.scale, -levels.zero, levels.top - levels.zero)
        )

    def refit(self, j: int) -> None:
        """Fit the levels of the group that begins at column j, if one does."""
        size = self.rule.fit_size
        if self.rule.grid is not None and size is not None and j % size == 0:
            levels = _fit_levels(self.columns[j : j + size].T, self.rule.grid, self.rule.tensor_scale)
            self._take(levels._replace(scale=levels.scale.T, zero=levels.zero.T))

    def nearest(self, j: int, column: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        if self.floating:
            return _round_e2m1(column / self.scale[j]).mul_(self.scale[j])
        return torch.round(column / self.scale[j]).clamp_(self.low[j], self.high[j]).mul_(self.scale[j])
