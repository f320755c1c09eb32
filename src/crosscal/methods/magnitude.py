"""Magnitude pruning: the smallest weights go; no data."""

import torch
from jaxtyping import Float
from torch import Tensor

from crosscal.methods.masks import check_finite, fraction_count, smallest_of_groups, smallest_per_row
from crosscal.types import Pattern, Unstructured

VERSION = 1


def magnitude(weight: Float[Tensor, "d_out d_in"], pattern: Pattern) -> Float[Tensor, "d_out d_in"]:
    """Zero the weights with the smallest |W_ij|, which compete across the whole matrix.

    Under N:M they compete within each group of M inputs of a row. Exactly floor(sparsity * size) weights go.
    Equation eq-magnitude of the book.
    Source: Zhu & Gupta 2017 (arXiv 1710.01878), one-shot and layer by layer.

    Raises `InputError` for weights that are not finite and for a group that does not divide d_in.

    >>> magnitude(torch.tensor([[4.0, -1.0], [3.0, 2.0]]), Unstructured(0.5)).tolist()
    [[4.0, 0.0], [3.0, 0.0]]
    """
    check_finite(weight)
    return prune_by_magnitude(weight, pattern)


def prune_by_magnitude(weight: Float[Tensor, "d_out d_in"], pattern: Pattern) -> Float[Tensor, "d_out d_in"]:
    """`magnitude` for weights that are known to be finite; never waits for a GPU."""
    scores = weight.abs()
    if isinstance(pattern, Unstructured):
        count = fraction_count(pattern.sparsity, weight.numel())
        pruned = smallest_per_row(scores.reshape(1, -1), count).reshape(weight.shape)
    else:
        pruned = smallest_of_groups(scores, pattern)
    return torch.where(pruned, 0, weight)
