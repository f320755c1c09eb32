"""What a sweep does with a block of columns, as data: plain torch loops and fused kernels read the same rule."""

from dataclasses import dataclass

from jaxtyping import Bool, Int
from torch import Tensor

from crosscal.methods.grids import Levels
from crosscal.types import Grid, NofM


@dataclass(frozen=True)
class BlockRule:
    """Which weights of a block go, and which values the others take; a rule of nothing keeps every weight.

    `keep`: a fixed mask of the weights that stay. `nofm` (where there is no `keep`): at each M-th column of the
    block, per row, the M - N smallest of (w_k / U_kk)^2 over the next M columns go, on the weights as they stand
    then; of equal scores the leftmost go first.

    `grid`: what stays is rounded to the nearest level, what goes is exactly 0. The levels are either given before
    the block begins - `levels` with `scale` and `zero` [n_groups, rows], of which `group_of` names the row that each
    column uses - or fitted on the block's up-to-date columns at every `fit_size`-th of them (the last group may be
    shorter).

    >>> BlockRule(nofm=NofM(2, 4)).keep is None
    True
    """

    keep: Bool[Tensor, "block rows"] | None = None
    nofm: NofM | None = None
    grid: Grid | None = None
    levels: Levels | None = None
    group_of: Int[Tensor, " block"] | None = None
    fit_size: int | None = None
