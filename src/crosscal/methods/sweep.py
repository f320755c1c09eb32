"""The blocked error-propagation sweep that second-order pruning and quantization share.

Columns of W are fixed one after the other; what column j loses is made up for by the columns to its right. With
U the upper Cholesky factor of H^-1, fixing column j from w to q adds -(w - q) / U_jj * U_jk to each later column k
(Frantar & Alistarh 2023, arXiv 2301.00774, eq. 4; Frantar et al. 2023, arXiv 2210.17323, eq. 4).

What makes it fast without changing a result beyond rounding: the weight is transposed, so that a column is
contiguous; weights that share an input are swept as one; and updates are delayed on two levels. Single columns only
reach the end of their panel of 16, a panel then updates its block of 128, and a block the rest of the matrix, each
by one matrix product. On CUDA one kernel takes a whole block.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from crosscal.methods import kernels
from crosscal.methods.linalg import InverseFactor
from crosscal.methods.panels import sweep_block
from crosscal.methods.rule import BlockRule
from crosscal.types import Grid, PerGroup

BLOCK = 128
RuleOf = Callable[[int, int, Tensor, Tensor], BlockRule]
"""(start, end, columns[start:], scale[start:end]) -> what to do with that block, its earlier errors applied."""


def sweep_stacked(
    weights: Sequence[Float[Tensor, "_ d_in"]],
    factor: InverseFactor,
    edges: Sequence[int],
    rule_of: Callable[[Tensor], RuleOf],
) -> list[Tensor]:
    """Sweep several weights that share one input as a single matrix; rows never influence each other.

    Dead inputs lose their weights first. `rule_of` sees the transposed, stacked weight before the sweep begins.
    """
    columns = torch.cat([weight.float() for weight in weights]).T.contiguous()
    columns.masked_fill_(factor.dead[:, None], 0)
    sweep(columns, factor.upper, edges, rule_of(columns))
    parts = zip(columns.T.split([len(weight) for weight in weights]), weights, strict=True)
    return [part.to(weight.dtype, memory_format=torch.contiguous_format) for part, weight in parts]


def sweep(
    columns: Float[Tensor, "d_in rows"], upper: Float[Tensor, "d_in d_in"], edges: Sequence[int], rule_of: RuleOf
) -> None:
    """Fix every column of a transposed weight in place, one block between two `edges` after the other."""
    scale = upper.diagonal()
    flow = upper / scale[:, None]  # row j holds U_jk / U_jj: how the loss w - q reaches column k
    for start, end in pairwise(edges):
        rule = rule_of(start, end, columns[start:], scale[start:end])
        block = columns[start:end], flow[start:end, start:end], scale[start:end], rule
        on_kernel = kernels.available(columns.device) and kernels.supports(rule, end - start)
        losses = kernels.sweep_block(*block) if on_kernel else sweep_block(*block)
        if end < len(columns):
            columns[end:].addmm_(flow[start:end, end:].T, losses, alpha=-1)


def block_edges(d_in: int, block: int, grid: Grid | None = None) -> list[int]:
    """Where the blocks of a sweep begin, and d_in at the end.

    Levels of a group are fitted when the sweep reaches it, on weights that all earlier errors have reached. So no
    group may begin in the middle of a block that it does not end in: groups of at least `block` inputs are cut into
    blocks of their own, smaller groups fill the largest multiple that fits into `block`.

    >>> block_edges(320, 128), block_edges(320, 128, Grid(4, PerGroup(192)))
    ([0, 128, 256, 320], [0, 128, 192, 320])
    >>> block_edges(200, 128, Grid(4, PerGroup(48)))
    [0, 96, 192, 200]
    """
    size = grid.group.size if grid is not None and isinstance(grid.group, PerGroup) else block
    if size < block:
        return [*range(0, d_in, block // size * size), d_in]
    starts = range(0, d_in, size)
    return [edge for start in starts for edge in range(start, min(start + size, d_in), block)] + [d_in]
