"""The blocked error-propagation loop that second-order pruning (and quantization) share.

Columns of W are fixed one after the other; what column j loses is made up for by the columns to its right. With
U the upper Cholesky factor of H^-1, fixing column j from w to q adds -(w - q) / U_jj * U_jk to each later column k
(Frantar & Alistarh 2023, eq. 4; Frantar et al. 2023, eq. 4).

Two tricks make it fast without changing a result beyond rounding. The weight is transposed, so that a column is
contiguous. And updates are delayed on two levels: single columns only reach the end of their panel of 16, a whole
panel then updates its block of 128, and a whole block the rest of the matrix, each by one matrix product.
"""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

PANEL = 16


@runtime_checkable
class Decision(Protocol):
    """What a sweep asks of a method: which value each weight of a column takes."""

    panel: int

    def begin_block(self, start: int, columns: Float[Tensor, "block rows"], scale: Float[Tensor, " block"]) -> None:
        """See a block of columns, all earlier errors already applied; `scale` is U_jj."""

    def column(
        self, j: int, panel: Float[Tensor, "left rows"], scale: Float[Tensor, " left"]
    ) -> Float[Tensor, " rows"]:
        """The final value of column j = `panel[0]`; the rest of the panel lies to its right."""


def sweep(
    columns: Float[Tensor, "d_in rows"], upper: Float[Tensor, "d_in d_in"], decide: Decision, block: int = 128
) -> None:
    """Fix every column of a transposed weight in place, sending each one's error to the columns on its right."""
    d_in = len(columns)
    scale = upper.diagonal()
    flow = (upper / scale[:, None]).contiguous()  # row j holds U_jk / U_jj: how the loss w - q reaches column k
    for start in range(0, d_in, block):
        end = min(start + block, d_in)
        decide.begin_block(start, columns[start:end], scale[start:end])
        losses = columns.new_empty(end - start, columns.shape[1])
        for left in range(start, end, decide.panel):
            right = min(left + decide.panel, end)
            _sweep_panel(columns, flow, scale, decide, left, right, losses[left - start : right - start])
            if right < end:
                columns[right:end].addmm_(flow[left:right, right:end].T, losses[left - start : right - start], alpha=-1)
        if end < d_in:
            columns[end:].addmm_(flow[start:end, end:].T, losses, alpha=-1)


def _sweep_panel(columns, flow, scale, decide, left, right, losses) -> None:
    """Fix the columns of one panel, each updating only the panel's later columns."""
    for j in range(left, right):
        value = decide.column(j, columns[j:right], scale[j:right])
        loss = losses[j - left].copy_(columns[j]).sub_(value)
        columns[j] = value
        if j + 1 < right:
            columns[j + 1 : right].addr_(flow[j, j + 1 : right], loss, alpha=-1)
