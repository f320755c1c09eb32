"""Pruning masks: exact counts of the smallest scores, ties broken by position; and thresholds that wait for no device.

A threshold is all that pruning needs from a sort. On CUDA `torch.kthvalue` gives one slice to one thread block. But the
bits of a non-negative float, read as a whole number, have the order of the floats, so two histograms give the k-th
smallest exactly: one of the upper 16 bits, one of the lower 16 bits of the scores that share the upper ones.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscal.errors import InputError
from crosscal.methods.registry import _check_divides
from crosscal.types import NofM, Pattern


def drop_mask(
    scores: Float[Tensor, "rows d_in"], pattern: Pattern, per: Literal["row", "matrix"] = "row"
) -> Bool[Tensor, "rows d_in"]:
    """Return True at the smallest scores, as many as the pattern zeroes; of equal scores the leftmost go first.

    Unstructured: exactly floor(sparsity * size) scores of each row, or of the whole matrix. N:M: M - N scores of every
    M consecutive inputs. Raises `InputError` for a group that does not divide d_in.

    >>> drop_mask(torch.tensor([[4.0, 1.0, 3.0, 2.0]]), NofM(2, 4)).int().tolist()
    [[0, 1, 0, 1]]
    """
    _check_divides(scores.shape[1], pattern)
    if isinstance(pattern, NofM):
        return _smallest_per_row(scores.reshape(-1, pattern.m), pattern.m - pattern.n).reshape(scores.shape)
    rows = scores if per == "row" else scores.reshape(1, -1)
    return _smallest_per_row(rows, _fraction_count(pattern.sparsity, rows.shape[1])).reshape(scores.shape)


def _fraction_count(fraction: float, size: int) -> int:
    """floor(fraction * size), immune to binary fractions just below a whole number.

    >>> _fraction_count(0.29, 100), int(0.29 * 100)
    (29, 28)
    """
    return min(size, math.floor(fraction * size + 1e-6))


def _smallest_per_row(scores: Float[Tensor, "rows d_in"], count: int) -> Bool[Tensor, "rows d_in"]:
    """True at exactly `count` smallest scores of each row; of equal scores the leftmost go first.

    >>> _smallest_per_row(torch.tensor([[3.0, 1.0, 1.0], [0.0, 2.0, 1.0]]), 1).int().tolist()
    [[0, 1, 0], [1, 0, 0]]
    """
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = _kth_of_rows(scores, count - 1)[:, None]
    pruned = scores <= threshold
    # A threshold that occurs more than once in its row is rare, and on a CPU it costs next to nothing to ask.
    if scores.device.type == "cpu" and np.count_nonzero(pruned.numpy()) == count * len(pruned):
        return pruned
    below, equal = scores < threshold, scores == threshold
    missing = count - below.sum(dim=1, keepdim=True)
    return below | (equal & (equal.cumsum(dim=1) <= missing))


def _kth_of_rows(scores: Float[Tensor, "rows n"], position: int) -> Float[Tensor, " rows"]:
    """The value at `position` (from 0) of each row in ascending order, NaN last."""
    if scores.device.type == "cpu" and scores.dtype == torch.float32:
        # numpy selects with vector instructions, 8 to 15 times faster than kthvalue.
        return torch.from_numpy(np.partition(scores.numpy(), position, axis=1)[:, position].copy())
    return scores.kthvalue(position + 1, dim=1).values


def _drop_of_group(scores: Float[Tensor, "m rows"], count: int) -> Bool[Tensor, "m rows"]:
    """True at the `count` smallest of the m scores of each column; of equal scores the first go first.

    >>> _drop_of_group(torch.tensor([[4.0], [1.0], [1.0], [2.0]]), 1).int().flatten().tolist()
    [0, 1, 0, 0]
    """
    mine, others = scores[:, None], scores[None]
    earlier = torch.ones(len(scores), len(scores), dtype=torch.bool, device=scores.device).tril(-1)[:, :, None]
    ranks = ((others < mine) | ((others == mine) & earlier)).sum(dim=1)
    return ranks < count


def _kth_smallest_of_parts(
    scores: Float[Tensor, "block rows"], rows: Sequence[int], positions: Sequence[int], *, radix: bool | None = None
) -> Float[Tensor, " parts"]:
    """Return, for each of several matrices that stand side by side, the score at its position (from 0) of its scores.

    Part i is the next `rows[i]` columns of `scores`: non-negative float32, infinity allowed. `radix` chooses the
    two histograms (by default, on CUDA) over a selection; both are exact, and the histograms count whole
    numbers, so that the result never depends on the order in which threads add.

    Raises `InputError` for a position outside its part, or parts that do not add up to all rows.

    >>> _kth_smallest_of_parts(torch.tensor([[5.0, 1.0, 4.0], [2.0, 3.0, 6.0]]), [2, 1], [1, 0]).tolist()
    [2.0, 4.0]
    """
    block, n_rows = scores.shape
    if sum(rows) != n_rows or len(rows) != len(positions):
        raise InputError(f"parts of {list(rows)} rows do not make {n_rows}; give each part's rows and one position")
    for part, position in zip(rows, positions, strict=True):
        if not 0 <= position < part * block:
            raise InputError(f"there is no score at position {position} of {part * block}; count from 0")
    if scores.is_cuda if radix is None else radix:
        return _by_histograms(scores, rows, positions)
    parts = zip(scores.split(list(rows), dim=1), positions, strict=True)
    return torch.cat([_kth_of_rows(part.reshape(1, -1), position) for part, position in parts])


def _by_histograms(scores: Tensor, rows: Sequence[int], positions: Sequence[int]) -> Tensor:
    # No sign bit: -0.0 is 0, and a NaN of either sign sorts last, as with kthvalue.
    bits = scores.contiguous().view(torch.int32) & 0x7FFFFFFF
    # torch.full takes its number with the launch; a tensor made from a list would wait for its copy to the device.
    part_of = torch.cat([scores.new_full((n,), i, dtype=torch.int64) for i, n in enumerate(rows)])
    wanted = torch.cat([scores.new_full((1,), position, dtype=torch.int64) for position in positions])
    upper = bits >> 16
    high, wanted = _bucket(upper, torch.ones_like(bits[:1, :1]).expand_as(bits), part_of, wanted)
    low, _ = _bucket(bits & 0xFFFF, (upper == high[part_of]).int(), part_of, wanted)
    return (high << 16 | low).int().view(torch.float32)


def _bucket(
    keys: Int[Tensor, "block rows"],
    counts: Int[Tensor, "block rows"],
    part_of: Int[Tensor, " rows"],
    wanted: Int[Tensor, " parts"],
) -> tuple[Int[Tensor, " parts"], Int[Tensor, " parts"]]:
    """The 16-bit key at position `wanted` of each part's sorted keys, and the position among those of that key."""
    bins = torch.zeros(len(wanted) * 65536, dtype=torch.int32, device=keys.device)
    bins.scatter_add_(0, (keys + part_of * 65536).flatten(), counts.flatten())
    up_to = bins.view(-1, 65536).cumsum(dim=1)
    key = torch.searchsorted(up_to, wanted[:, None], right=True)
    before = torch.where(key > 0, up_to.gather(1, (key - 1).clamp(min=0)), 0)
    return key[:, 0], wanted - before[:, 0]


def _check_finite(weight: Float[Tensor, "d_out d_in"]) -> None:
    """Raise `InputError` when a weight is NaN or infinite."""
    # One pass and no mask: a sum is finite only if every term is.
    if not weight.sum(dtype=torch.float32).isfinite():
        raise InputError("a weight is NaN or infinite; load an undamaged copy of the model")
