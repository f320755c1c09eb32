"""A block of a sweep: its rule as data, and one kernel launch that applies it on CUDA.

In place of a launch for each column's few operations there is one for 128 columns (arithmetic as in the torch loop of
`crosscal.methods.sweep`, sums in another order). Triton comes with CUDA builds of torch and is imported when the first
block is swept; CPU code runs without it.
"""

import os
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscal.methods.rtn import _Levels
from crosscal.types import FloatGrid, Grid, NofM


@dataclass(frozen=True)
class _BlockRule:
    """Which weights of a block go, and which values the others take; a rule of nothing keeps every weight.

    `keep`: a fixed mask of the weights that stay. `nofm` (where there is no `keep`): at each M-th column of the
    block, per row, the M - N smallest of (w_k / U_kk)^2 over the next M columns go, on the weights as they stand
    then; of equal scores the leftmost go first.

    `grid`: kept weights are rounded to the nearest level, dropped ones are exactly 0. The levels are either given
    before the block begins - `levels` with `scale` and `zero` [n_groups, rows], of which `group_of` names the row that
    each column uses - or fitted on the block's up-to-date columns at every `fit_size`-th of them (the last group may
    be shorter), with the `tensor_scale` that a grid's groups may need.

    >>> _BlockRule(nofm=NofM(2, 4)).keep is None
    True
    """

    keep: Bool[Tensor, "block rows"] | None = None
    nofm: NofM | None = None
    grid: Grid | None = None
    levels: _Levels | None = None
    group_of: Int[Tensor, " block"] | None = None
    fit_size: int | None = None
    tensor_scale: Tensor | None = None


_PANEL, _ROWS, _REGISTERS = 16, 32, 255
"""Columns of a register tile, rows of a program, and registers of a thread, without which some variants spill."""


def _supports(rule: _BlockRule, block: int) -> bool:
    """Whether the kernel can apply `rule` to a block of `block` columns; the torch loop can do the rest.

    N:M groups must fill panels of 16 columns and the block. Groups that are fitted inside must begin with a panel.

    >>> _supports(_BlockRule(nofm=NofM(2, 4)), 128), _supports(_BlockRule(nofm=NofM(1, 3)), 128)
    (True, False)
    >>> _supports(_BlockRule(grid=Grid(4), fit_size=48), 96), _supports(_BlockRule(grid=Grid(4), fit_size=24), 96)
    (True, False)
    """
    if isinstance(rule.grid, FloatGrid):
        return False
    if rule.keep is None and rule.nofm is not None and (_PANEL % rule.nofm.m or block % rule.nofm.m):
        return False
    if rule.levels is not None:
        return rule.fit_size is None and (rule.group_of is not None or len(rule.levels.scale) == 1)
    if rule.fit_size is not None:
        return rule.grid is not None and (rule.fit_size % _PANEL == 0 or rule.fit_size >= block)
    return rule.grid is None


def _available(device: torch.device, interpreted: bool = False) -> bool:
    """Whether kernels can run on `device`: a CUDA device with a triton that can compile for it.

    `interpreted` also accepts a CPU when Triton's interpreter is on (TRITON_INTERPRET=1 before triton's first
    import): far slower than the torch loop, for tests of the kernel's logic only. The first call for a CUDA device
    compiles a small kernel.

    >>> _available(torch.device("cpu"))
    False
    """
    if interpreted and device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return _triton_version() >= (3, 4)
    return device.type == "cuda" and torch.version.cuda is not None and _compiles(device)


@cache
def _triton_version() -> tuple[int, ...]:
    try:
        import triton  # pyright: ignore[reportMissingImports]
    except ImportError:
        return ()
    return tuple(int(part) for part in triton.__version__.split(".")[:2])


@cache
def _compiles(device: torch.device) -> bool:
    """Triton needs a C compiler, Python's headers and a recent GPU: only a launch tells whether all are there."""
    if _triton_version() < (3, 4):
        return False
    ones = torch.ones(1, 1, device=device)
    try:
        _sweep_block(ones, ones, ones[0], _BlockRule())
    except Exception as error:
        warnings.warn(f"Triton kernels do not compile here ({error}); sweeps take the slower loop", stacklevel=2)
        return False
    return True


def _sweep_block(
    columns: Float[Tensor, "block rows"],
    flow: Float[Tensor, "block block"],
    scale: Float[Tensor, " block"],
    rule: _BlockRule,
) -> Float[Tensor, "block rows"]:
    """Fix the columns of one block in place; returns the loss w - q of each, for the columns right of the block.

    `flow[j, k]` = U_jk / U_jj and `scale[j]` = U_jj; both matrices may be slices with `stride(1) == 1`. Column j
    takes the value that `rule` gives it, and `flow[j, k]` times its loss is taken off each later column k of the
    block. The rule must be one that `_supports` accepts. Nothing waits for the device.
    Source: Frantar & Alistarh 2023 (arXiv 2301.00774), algorithm 1; Frantar et al. 2023 (arXiv 2210.17323), eq. 4.
    """
    from crosscal.methods.kernels.sweep_triton import sweep_block_kernel

    kernel: Any = sweep_block_kernel
    block, n_rows = columns.shape
    losses = torch.empty_like(columns, memory_format=torch.contiguous_format)
    keep = columns if rule.keep is None else _along_rows(rule.keep).view(torch.uint8)
    steps, zeros = (columns, columns) if rule.levels is None else map(_along_rows, rule.levels[:2])
    grouped = rule.levels is not None and len(steps) > 1
    tensors = (columns, _along_rows(flow), scale, losses, keep, steps, zeros)
    strides = (t.stride(0) for t in tensors)
    nofm = rule.nofm if rule.keep is None else None
    top = rule.levels.top if rule.levels is not None else 2**rule.grid.bits - 1 if rule.grid is not None else 0
    with torch.cuda.device(columns.device) if columns.is_cuda else nullcontext():
        kernel[(-(-n_rows // _ROWS),)](
            *tensors,
            columns if rule.group_of is None or not grouped else rule.group_of.contiguous(),
            top,
            block,
            n_rows,
            *strides,
            KEEP=rule.keep is not None,
            N=nofm.n if nofm else 0,
            M=nofm.m if nofm else 0,
            LEVELS=rule.levels is not None,
            GROUPED=grouped,
            FIT=0 if rule.fit_size is None else -(-min(rule.fit_size, block) // _PANEL) * _PANEL,
            SYMMETRIC=rule.grid is not None and rule.grid.symmetric,
            PANEL=_PANEL,
            ROWS=_ROWS,
            num_warps=1,
            num_stages=1,
            enable_fp_fusion=True,
            maxnreg=_REGISTERS,
        )
    return losses


def _along_rows(tensor: Tensor) -> Tensor:
    """The tensor itself where its last axis is contiguous, else a copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
