"""SparseGPT: prune with second-order scores, and let the weights that stay make up for those that go."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosscal.calibration.statistics import InputStats
from crosscal.errors import InputError
from crosscal.methods.linalg import inverse_factor
from crosscal.methods.masks import check_divides, check_finite, smallest_per_row
from crosscal.methods.sweep import PANEL, sweep
from crosscal.types import NofM, Pattern, Unstructured

VERSION = 1


def sparsegpt(
    weight: Float[Tensor, "d_out d_in"], stats: InputStats, pattern: Pattern, *, damp: float = 0.01, block: int = 128
) -> Float[Tensor, "d_out d_in"]:
    """Prune by w^2 / U_jj^2 and update the weights to the right of each pruned one.

    H = G + damp * mean(diag G) * I, U the upper Cholesky factor of H^-1. Unstructured: one threshold over all rows
    of each block of `block` columns, at position int(size * sparsity) of the sorted scores, and everything up to it
    goes, as in the authors' code. N:M: chosen on the updated weights every M columns. Dead inputs lose their weights.
    Source: Frantar & Alistarh 2023 (arXiv 2301.00774), algorithm 1.

    Raises `InputError` for weights that are not finite, a group that does not divide d_in, a block that the group
    does not divide, or a Hessian that no damping makes positive definite.

    >>> weight, stats = torch.tensor([[1.0, 2.0]]), InputStats(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), n_tokens=2)
    >>> sparsegpt(weight, stats, NofM(1, 2), damp=0.0).tolist()
    [[0.0, 2.5]]
    """
    pruned, _ = sparsegpt_group([weight], stats, pattern, damp=damp, block=block)
    return pruned[0]


def sparsegpt_group(
    weights: Sequence[Float[Tensor, "_ d_in"]],
    stats: InputStats,
    pattern: Pattern,
    *,
    damp: float = 0.01,
    block: int = 128,
) -> tuple[list[Tensor], dict]:
    """`sparsegpt` for several weights that share one input: one factorization and one sweep for all of them.

    Rows never influence each other, so the weights are stacked; only thresholds are taken per weight. Returns the
    new weights and `{"damp": the damping that was needed}`.
    """
    for weight in weights:
        check_finite(weight)
    d_in = weights[0].shape[1]
    if isinstance(pattern, NofM):
        check_divides(d_in, pattern)
        if block % pattern.m:
            raise InputError(f"groups of {pattern.m} do not divide the block of {block} columns; choose another block")
    factor = inverse_factor(stats, damp)
    columns = torch.cat([weight.float() for weight in weights]).T.contiguous()
    columns[factor.dead] = 0
    rows = [len(weight) for weight in weights]
    decide = _Threshold(rows, pattern) if isinstance(pattern, Unstructured) else _KeepNofM(pattern)
    sweep(columns, factor.upper, decide, block)
    parts = columns.T.split(rows)
    new = [part.contiguous().to(weight.dtype) for part, weight in zip(parts, weights, strict=True)]
    return new, {"damp": factor.damp}


class _Threshold:
    """Unstructured: one threshold for each weight matrix over all its rows of a block, set when the block begins."""

    panel = PANEL

    def __init__(self, rows: Sequence[int], pattern: Unstructured):
        self.rows, self.sparsity = list(rows), pattern.sparsity

    def begin_block(self, start: int, columns: Tensor, scale: Tensor) -> None:
        scores = (columns / scale[:, None]).square_()
        self.start = start
        self.keep = torch.cat([self._keep(part) for part in scores.split(self.rows, dim=1)], dim=1)

    def _keep(self, scores: Float[Tensor, "block rows"]) -> Bool[Tensor, "block rows"]:
        position = int(scores.numel() * self.sparsity)
        if self.sparsity == 0 or position >= scores.numel():
            return torch.full_like(scores, self.sparsity == 0, dtype=torch.bool)
        return scores > scores.flatten().kthvalue(position + 1).values

    def column(self, j: int, panel: Tensor, scale: Tensor) -> Tensor:
        return panel[0] * self.keep[j - self.start]


class _KeepNofM:
    """N:M: at the first column of each group, the group's smallest scores by the weights as they stand then."""

    def __init__(self, pattern: NofM):
        self.pattern = pattern
        self.panel = pattern.m * max(1, PANEL // pattern.m)

    def begin_block(self, start: int, columns: Tensor, scale: Tensor) -> None:
        pass

    def column(self, j: int, panel: Tensor, scale: Tensor) -> Tensor:
        m = self.pattern.m
        if j % m == 0:
            scores = (panel[:m] / scale[:m, None]).square_()
            self.keep = ~smallest_per_row(scores.T, m - self.pattern.n).T
        return panel[0] * self.keep[j % m]
