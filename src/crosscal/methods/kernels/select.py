"""The k-th smallest of many scores without waiting for the device.

A threshold is all that pruning needs from a sort. On CUDA `torch.kthvalue` gives one slice to one thread block. But
the bits of a non-negative float, read as a whole number, have the order of the floats, so two histograms find the
k-th smallest exactly: one of the upper 16 bits, one of the lower 16 bits of the scores that share the upper bits found.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscal.errors import InputError
from crosscal.methods.masks import kth_of_rows


def kth_smallest(scores: Float[Tensor, " n"], position: int, *, radix: bool | None = None) -> Float[Tensor, ""]:
    """The score at `position` (from 0) of the sorted scores, exactly; see `kth_smallest_of_parts`.

    >>> kth_smallest(torch.tensor([3.0, 0.0, float("inf"), 2.0]), 2).item()
    3.0
    """
    return kth_smallest_of_parts(scores[None], [len(scores)], [position], radix=radix)[0]


def kth_smallest_of_parts(
    scores: Float[Tensor, "block rows"], rows: Sequence[int], positions: Sequence[int], *, radix: bool | None = None
) -> Float[Tensor, " parts"]:
    """For each of several matrices that stand side by side, the score at its position (from 0) of all its scores.

    Part i is the next `rows[i]` columns of `scores`: non-negative float32, infinity allowed. `radix` chooses the
    two histograms (by default, on CUDA) over a selection; both are exact, and the histograms count whole
    numbers, so that the result never depends on the order in which threads add.

    Raises `InputError` for a position outside its part, or parts that do not add up to all rows.

    >>> kth_smallest_of_parts(torch.tensor([[5.0, 1.0, 4.0], [2.0, 3.0, 6.0]]), [2, 1], [1, 0]).tolist()
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
    return torch.cat([kth_of_rows(part.reshape(1, -1), position) for part, position in parts])


def _by_histograms(scores: Tensor, rows: Sequence[int], positions: Sequence[int]) -> Tensor:
    # No sign bit: -0.0 is 0, and a NaN of either sign sorts last, as with kthvalue.
    bits = scores.contiguous().view(torch.int32) & 0x7FFFFFFF
    # torch.full takes its number with the launch; a tensor made from a list would wait for its copy to the device.
    part_of = torch.cat([scores.new_full((n,), i, dtype=torch.int64) for i, n in enumerate(rows)])
    wanted = torch.cat([scores.new_full((1,), position, dtype=torch.int64) for position in positions])
    upper = bits >> 16
    found, wanted = _bucket(upper, torch.ones_like(bits[:1, :1]).expand_as(bits), part_of, wanted)
    lower, _ = _bucket(bits & 0xFFFF, (upper == found[part_of]).int(), part_of, wanted)
    return (found << 16 | lower).int().view(torch.float32)


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
