"""The Triton kernel behind `sweep_block`.

One program takes 32 rows (ROWS) through the whole block, in panels of 16 columns (PANEL). A panel is a register tile
[PANEL, ROWS]; column j of it is read as a sum over the tile with everything else masked out. Loads are left without
known alignment (`do_not_specialize`) on purpose: the compiler then gives every thread whole rows, so that those sums
stay inside a thread and cost next to nothing, and a warp still reads 128 bytes in a row. A program has one warp.

CPU builds of torch come without triton; then this module is empty.
"""

# ruff: noqa: SIM102 - Triton evaluates both sides of `and`: a constant condition stands alone to leave code out.

from importlib.util import find_spec
from typing import no_type_check

if find_spec("triton") is not None:
    import triton  # pyright: ignore[reportMissingImports]
    import triton.language as tl  # pyright: ignore[reportMissingImports]

    @triton.jit
    @no_type_check
    def round_half_even(x):
        # Above 2**23 floats have no bits after the point. Values beyond 2**22 may keep some: the clamp hides them.
        return (x + 12582912.0) - 12582912.0

    @triton.jit
    @no_type_check
    def pick(tile, here):
        """The one row of the tile that `here` marks, [1, ROWS]."""
        return tl.sum(tl.where(here, tile, 0.0), axis=0, keep_dims=True)

    @triton.jit
    @no_type_check
    def fit(columns, left, right, inside, columns_stride, rows, top, SYMMETRIC: tl.constexpr, PANEL: tl.constexpr):
        """Min-max step and zero of columns left .. right as they stand in memory, [1, ROWS]."""
        low = tl.zeros_like(rows).to(tl.float32)
        high = low
        for first in range(left, right, PANEL):
            k = first + tl.arange(0, PANEL)[:, None]
            tile = tl.load(columns + k * columns_stride + rows, mask=(k < right) & inside, other=0.0)
            low = tl.minimum(low, tl.min(tile, axis=0, keep_dims=True))
            high = tl.maximum(high, tl.max(tile, axis=0, keep_dims=True))
        if SYMMETRIC:
            high = tl.maximum(high, -low)
            low = -high
        step = tl.div_rn(high - low, tl.zeros_like(high) + top)
        step = tl.where(step > 0, step, 1.0)
        zero = tl.zeros_like(step) + (top + 1.0) * 0.5 if SYMMETRIC else round_half_even(tl.div_rn(-low, step))
        return step, zero

    @triton.jit
    @no_type_check
    def smallest(score, index, FIRST: tl.constexpr, M: tl.constexpr, COUNT: tl.constexpr):
        """True at the COUNT smallest scores of the M columns from FIRST on; of equal ones the leftmost."""
        rank = tl.zeros_like(score).to(tl.int32)
        for i in tl.static_range(FIRST, FIRST + M):
            other = pick(score, index == i)
            rank += ((other < score) | ((other == score) & (i < index))).to(tl.int32)
        return rank < COUNT

    RUNTIME = ("top", "block", "n_rows", "columns_stride", "flow_stride", "scale_stride", "losses_stride")
    RUNTIME += ("keep_stride", "step_stride", "zero_stride")

    @triton.jit(do_not_specialize=RUNTIME)
    @no_type_check
    def sweep_block_kernel(
        columns,
        flow,
        scale,
        losses,
        keep,
        steps,
        zeros,
        group_of,
        top,
        block,
        n_rows,
        columns_stride,
        flow_stride,
        scale_stride,
        losses_stride,
        keep_stride,
        step_stride,
        zero_stride,
        KEEP: tl.constexpr,
        N: tl.constexpr,
        M: tl.constexpr,
        LEVELS: tl.constexpr,
        GROUPED: tl.constexpr,
        FIT: tl.constexpr,
        SYMMETRIC: tl.constexpr,
        PANEL: tl.constexpr,
        ROWS: tl.constexpr,
    ):
        rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[None, :]
        inside = rows < n_rows
        index = tl.arange(0, PANEL)[:, None]
        last = top.to(tl.float32)
        step, zero = tl.full([1, ROWS], 1.0, tl.float32), tl.zeros([1, ROWS], tl.float32)
        if LEVELS and not GROUPED:
            step, zero = tl.load(steps + rows, mask=inside, other=1.0), tl.load(zeros + rows, mask=inside, other=0.0)
        for left in range(0, block, PANEL):
            k = left + index
            valid = (k < block) & inside
            at = columns + k * columns_stride + rows
            tile = tl.load(at, mask=valid, other=0.0)
            lost = tl.zeros([PANEL, ROWS], tl.float32)
            if KEEP:
                gone = tl.load(keep + k * keep_stride + rows, mask=valid, other=1) == 0
            if M > 0:
                diagonal = tl.load(scale + k * scale_stride, mask=k < block, other=1.0)
            if GROUPED:
                group = tl.load(group_of + k, mask=k < block, other=0).to(tl.int64)
                step_tile = tl.load(steps + group * step_stride + rows, mask=valid, other=1.0)
                zero_tile = tl.load(zeros + group * zero_stride + rows, mask=valid, other=0.0)
            if FIT > 0:
                if left % FIT == 0:
                    right = tl.minimum(left + FIT, block)
                    step, zero = fit(columns, left, right, inside, columns_stride, rows, last, SYMMETRIC, PANEL)
            for j in tl.static_range(PANEL):
                here = index == j
                if M > 0:
                    if j % M == 0:
                        ratio = tl.div_rn(tile, diagonal + tl.zeros_like(tile))
                        gone = smallest(ratio * ratio, index, j, M, M - N)
                if LEVELS or FIT > 0:
                    value = pick(tile, here)
                    if GROUPED:
                        step, zero = pick(step_tile, here), pick(zero_tile, here)
                    code = round_half_even(tl.div_rn(value, step)) + zero
                    rounded = (tl.minimum(tl.maximum(code, 0.0), last) - zero) * step
                    if KEEP or M > 0:
                        rounded = tl.where(pick(gone.to(tl.float32), here) > 0, 0.0, rounded)
                    loss = value - rounded
                    tile = tl.where(here, rounded, tile)
                elif KEEP or M > 0:
                    loss = pick(tile, here & gone)
                    tile = tl.where(here & gone, 0.0, tile)
                else:
                    loss = tl.zeros([1, ROWS], tl.float32)
                lost = tl.where(here, loss, lost)
                after = (index > j) & (k < block)
                tile -= tl.load(flow + (left + j) * flow_stride + k, mask=after, other=0.0) * loss
            tl.store(at, tile, mask=valid)
            tl.store(losses + k * losses_stride + rows, lost, mask=valid)
            for first in range(left + PANEL, block, PANEL):
                k = first + index
                valid = (k < block) & inside
                at = columns + k * columns_stride + rows
                part = tl.load(
                    flow + (left + tl.arange(0, PANEL)[None, :]) * flow_stride + k, mask=k < block, other=0.0
                )
                tile = tl.load(at, mask=valid, other=0.0)
                tl.store(at, tl.dot(-part, lost, acc=tile, input_precision="ieee"), mask=valid)
            tl.debug_barrier()  # the next panel reads what other threads of this program have stored
