"""SparseGPT: prune by second-order scores and let the remaining weights compensate."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosscal.calibration.statistics import InputStats
from crosscal.errors import InputError, whole_number
from crosscal.methods.gptq import _FittedLevels
from crosscal.methods.kernels import _BlockRule
from crosscal.methods.linalg import _inverse_factor, _InverseFactor, _try_factor
from crosscal.methods.masks import _check_finite, _kth_smallest_of_parts
from crosscal.methods.registry import Evidence, Method, _check_divides
from crosscal.methods.sweep import BLOCK, _block_edges, _RuleOf, _sweep_stacked
from crosscal.types import Grid, NofM, Pattern, PerGroup, SparseGrid, Unstructured


def sparsegpt(
    weight: Float[Tensor, "d_out d_in"],
    stats: InputStats,
    pattern: Pattern,
    *,
    grid: Grid | None = None,
    damp: float = 0.01,
    block: int = BLOCK,
) -> Float[Tensor, "d_out d_in"]:
    """Prune by w^2 / U_jj^2 and update the weights to the right of each pruned one.

    H = G + damp * mean(diag G) * I, U the upper Cholesky factor of H^-1. Unstructured: one threshold over all rows
    of each block of `block` columns, at position int(size * sparsity) of the sorted scores, and everything up to it
    goes, as in the authors' code. N:M: chosen on the updated weights every M columns. Dead inputs lose their weights.
    With a `grid`, the remaining weights are rounded to its levels in the same sweep, fitted as `gptq` fits them, and
    pruned weights are exactly 0; blocks are then cut so that none holds part of a group.
    Equation eq-sparsegpt of the book.
    Source: Frantar & Alistarh 2023 (arXiv 2301.00774), algorithm 1 and section 3.5 for the joint sweep.

    Raises `InputError` for weights that are not finite, a group that does not divide d_in, a block (or group of the
    grid) that the group does not divide, or a Hessian that no damping makes positive definite.

    >>> weight, stats = torch.tensor([[1.0, 2.0]]), InputStats(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), n_tokens=2)
    >>> sparsegpt(weight, stats, NofM(1, 2), damp=0.0).tolist()
    [[0.0, 2.5]]
    """
    _check_finite(weight)
    _check(weight.shape[1], pattern if grid is None else SparseGrid(pattern, grid), {"block": block})
    return _prune([weight], _inverse_factor(stats, damp), pattern, grid, block)[0]


def _solve(
    weights: list[Tensor], evidence: Evidence, target: Pattern | SparseGrid, *, damp: float = 0.01, block: int = BLOCK
) -> tuple[list[Tensor], dict]:
    """`sparsegpt` for weights that share one input: one factorization and one sweep for all of them.

    Rows never influence each other, so the weights are stacked; only thresholds are taken per weight. The facts say
    whether the factorization `failed`.
    """
    factor = _try_factor(evidence.stats, damp)
    return _prune(weights, factor, *_parts(target), block), {"failed": factor.failed, "damp": damp}


def _parts(target: Pattern | SparseGrid) -> tuple[Pattern, Grid | None]:
    return (target.pattern, target.grid) if isinstance(target, SparseGrid) else (target, None)


def _check(d_in: int, target: Pattern | SparseGrid, options: Mapping[str, object]) -> None:
    """Raise `InputError` unless blocks have columns and each N:M group is in one block and one group of levels."""
    block = whole_number("block", options.get("block", BLOCK), 1)
    pattern, grid = _parts(target)
    _check_divides(d_in, pattern)
    if not isinstance(pattern, NofM):
        return
    if block % pattern.m:
        raise InputError(f"groups of {pattern.m} do not divide the block of {block} columns; choose another block")
    if grid is not None and isinstance(grid.group, PerGroup) and grid.group.size % pattern.m:
        raise InputError(
            f"groups of {pattern.m} do not divide the grid's groups of {grid.group.size}; "
            f"choose a multiple of {pattern.m}"
        )


def _prune(
    weights: Sequence[Tensor],
    factor: _InverseFactor,
    pattern: Pattern,
    grid: Grid | None,
    block: int,
    chosen: Sequence[Bool[Tensor, "_ d_in"]] | None = None,
) -> list[Tensor]:
    """Sweep weights that share one input; those that stay are chosen on the way, unless they are `chosen` already."""
    given = None if chosen is None else torch.cat(list(chosen)).T.contiguous()
    d_in, rows = weights[0].shape[1], [len(weight) for weight in weights]

    def rules(whole: Tensor) -> _RuleOf:
        levels = None if grid is None else _FittedLevels(grid, block, whole)
        return lambda *place: rule_of(_BlockRule() if levels is None else levels(*place), *place)

    def rule_of(rule: _BlockRule, start: int, end: int, columns: Tensor, scale: Tensor) -> _BlockRule:
        if given is not None:
            return replace(rule, keep=given[start:end])
        if isinstance(pattern, NofM):
            return replace(rule, nofm=pattern)
        return replace(rule, keep=_keep(columns[: end - start], scale, rows, pattern))

    return _sweep_stacked(weights, factor, _block_edges(d_in, block, grid), rules)


def _keep(columns: Tensor, scale: Tensor, rows: Sequence[int], pattern: Unstructured) -> Bool[Tensor, "block rows"]:
    """The mask of one block: a threshold for each weight matrix over all its rows."""
    if pattern.sparsity in (0, 1):
        return torch.full_like(columns, pattern.sparsity == 0, dtype=torch.bool)
    scores = (columns / scale[:, None]).square_()
    positions = [int(len(scores) * n * pattern.sparsity) for n in rows]
    thresholds = _kth_smallest_of_parts(scores, rows, positions)
    parts = zip(scores.split(list(rows), dim=1), thresholds, strict=True)
    return torch.cat([part > threshold for part, threshold in parts], dim=1)


METHOD = Method(
    "sparsegpt",
    version=1,
    targets=(Unstructured, NofM, SparseGrid),
    solve=_solve,
    reads="gram",
    damped=True,
    options={"block": 128},
    check=_check,
    packs=("compressed-tensors",),
    cost=(4 / 3, 1.0),
    label="SparseGPT",
    source="frantar2023sparsegpt",
    style=("#00704F", "^"),
    place=30,
)
