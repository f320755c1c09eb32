"""GPTQ: round column by column and let the columns to the right compensate the error."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscal.calibration.statistics import InputStats
from crosscal.errors import whole_number
from crosscal.methods.fp4 import _tensor_scale
from crosscal.methods.kernels import _BlockRule
from crosscal.methods.linalg import _inverse_factor, _InverseFactor, _try_factor
from crosscal.methods.masks import _check_finite
from crosscal.methods.registry import Evidence, Method
from crosscal.methods.rtn import _fit_levels, _group_edges
from crosscal.methods.sweep import BLOCK, _block_edges, _RuleOf, _sweep_stacked
from crosscal.types import Grid, PerGroup

PRUNED = 0.3  # zeros of a weight that was pruned; rounded ones have up to 15 %, at 0 between their levels


def gptq(
    weight: Float[Tensor, "d_out d_in"],
    stats: InputStats,
    grid: Grid,
    *,
    act_order: bool = True,
    damp: float = 0.01,
    block: int = BLOCK,
) -> Float[Tensor, "d_out d_in"]:
    """Quantize to `grid`, each column's rounding error sent to the columns on its right.

    H = G + damp * mean(diag G) * I, U the upper Cholesky factor of H^-1. Columns are taken by falling diag(G) and keep
    the groups of the original order, all levels fitted on the weights as given ("static groups"). Without `act_order`
    they are taken from left to right; levels per row are fitted once, those of a group on the weights as they stand
    when the sweep reaches it, all earlier errors applied, also where groups are smaller than `block` or do not divide
    it. Weights of dead inputs are rounded to nearest: the
    authors' code sets them to 0, which costs nothing on this text and may cost much on another. Zeros of a weight that
    was pruned before, which has at least 30 % of them, stay zero, and their share of the error flows on. The last
    group of a row may be shorter.
    Equation eq-gptq of the book. Source: Frantar et al. 2023 (arXiv 2210.17323), algorithm 1.

    Raises `InputError` for weights that are not finite, or a Hessian that no damping makes positive definite.

    >>> weight, stats = torch.tensor([[0.0, 0.4, 3.0]]), InputStats(torch.eye(3), n_tokens=3)
    >>> gptq(weight, stats, Grid(bits=2), damp=0.0).tolist()
    [[0.0, 0.0, 3.0]]
    """
    _check_finite(weight)
    factor = _inverse_factor(_ordered(stats, _order(stats, act_order)), damp)
    return _quantize([weight], stats, factor, grid, act_order, block)[0]


def _solve(
    weights: list[Tensor],
    evidence: Evidence,
    target: Grid,
    *,
    act_order: bool = True,
    damp: float = 0.01,
    block: int = BLOCK,
) -> tuple[list[Tensor], dict]:
    """`gptq` for weights that share one input: one factorization, one sweep; the facts say whether it `failed`."""
    stats = evidence.stats
    factor = _try_factor(_ordered(stats, _order(stats, act_order)), damp)
    return _quantize(weights, stats, factor, target, act_order, block), {"failed": factor.failed, "damp": damp}


def _check(d_in: int, target: Grid, options: Mapping[str, object]) -> None:
    whole_number("block", options.get("block", BLOCK), 1)


def _order(stats: InputStats, act_order: bool) -> Int[Tensor, " d_in"] | None:
    return stats.diagonal.argsort(descending=True, stable=True) if act_order else None


def _ordered(stats: InputStats, order: Tensor | None) -> InputStats:
    return stats if order is None else InputStats(stats.gram[order][:, order], stats.n_tokens)


def _quantize(weights, stats: InputStats, factor: _InverseFactor, grid: Grid, act_order: bool, block: int) -> list:
    d_in, zeros = weights[0].shape[1], _pruned(weights)
    order, factor = _order(stats, act_order), factor._replace(dead=torch.zeros_like(factor.dead))
    if order is None:
        edges = _block_edges(d_in, block, grid)
        return _sweep_stacked(
            weights, factor, edges, lambda columns: _keeping(zeros, _FittedLevels(grid, block, columns))
        )
    permuted = [weight[:, order] for weight in weights]
    edges = _block_edges(d_in, block)
    zeros = None if zeros is None else zeros[order]
    static = lambda columns: _keeping(zeros, _static_levels(grid, columns, order))  # noqa: E731
    swept = _sweep_stacked(permuted, factor, edges, static)
    back = order.argsort()
    return [weight[:, back] for weight in swept]


def _pruned(weights: Sequence[Tensor]) -> Bool[Tensor, "d_in rows"] | None:
    """The zeros of those weights that were pruned before, [d_in, rows]; None where none was, if asking costs little."""
    zeros = [weight == 0 for weight in weights]
    pruned = torch.cat([part & (part.float().mean() >= PRUNED) for part in zeros]).T.contiguous()
    return pruned if pruned.device.type != "cpu" or pruned.numpy().any() else None


def _keeping(zeros: Tensor | None, rule_of: _RuleOf) -> _RuleOf:
    """The rules of a sweep, with zeros that stay."""
    if zeros is None:
        return rule_of
    return lambda start, end, *place: replace(rule_of(start, end, *place), keep=~zeros[start:end])


class _FittedLevels:
    """The grid part of a sweep's rules, levels fitted as the sweep goes; `edges` must come from `_block_edges`."""

    def __init__(self, grid: Grid, block: int, columns: Tensor):
        self.grid, self.tensor = grid, _tensor_scale(columns, grid)
        self.size = grid.group.size if isinstance(grid.group, PerGroup) else len(columns)
        self.inside = isinstance(grid.group, PerGroup) and self.size < block

    def __call__(self, start: int, end: int, columns: Tensor, scale: Tensor) -> _BlockRule:
        """The rule of the block that begins at `start`; `columns` are it and all to its right."""
        if self.inside:
            return _BlockRule(grid=self.grid, fit_size=self.size, tensor_scale=self.tensor)
        if start % self.size == 0:
            levels = _fit_levels(columns[: self.size].T, self.grid, self.tensor)
            self.levels = levels._replace(scale=levels.scale.T, zero=levels.zero.T)
        only = torch.zeros(end - start, dtype=torch.long, device=columns.device)
        return _BlockRule(grid=self.grid, levels=self.levels, group_of=only)


def _static_levels(grid: Grid, columns: Float[Tensor, "d_in rows"], order: Int[Tensor, " d_in"]) -> _RuleOf:
    """A rule with all levels fitted beforehand, on groups of the original order; `columns` are in the new order."""
    original = columns[order.argsort()]
    edges, tensor = _group_edges(len(columns), grid), _tensor_scale(columns, grid)
    fitted = [_fit_levels(part.T, grid, tensor) for part in original.split([b - a for a, b in pairwise(edges)])]
    scale, zero = (torch.cat([getattr(f, name).T for f in fitted]) for name in ("scale", "zero"))
    levels = fitted[0]._replace(scale=scale, zero=zero)
    group_of = order // (edges[1] - edges[0])
    return lambda start, end, *_: _BlockRule(grid=grid, levels=levels, group_of=group_of[start:end].contiguous())


METHOD = Method(
    "gptq",
    version=2,
    targets=(Grid,),
    solve=_solve,
    reads="gram",
    damped=True,
    options={"act_order": True, "block": 128},
    check=_check,
    packs=("compressed-tensors",),
    cost=(4 / 3, 1.0),
    label="GPTQ",
    source="frantar2023gptq",
    style=("#7A3E9D", "P"),
    place=50,
)
