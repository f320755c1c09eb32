"""Magnitude pruning: the smallest weights go; no data."""

import torch
from jaxtyping import Float
from torch import Tensor

from crosscal.methods.masks import _check_finite, drop_mask
from crosscal.methods.registry import Evidence, Method
from crosscal.types import NofM, Pattern, Unstructured


def magnitude(weight: Float[Tensor, "d_out d_in"], pattern: Pattern) -> Float[Tensor, "d_out d_in"]:
    """Zero the weights with the smallest |W_ij|, which compete across the whole matrix.

    Under N:M they compete within each group of M inputs of a row. Exactly floor(sparsity * size) weights go.
    Equation eq-magnitude of the book.
    Source: Zhu & Gupta 2017 (arXiv 1710.01878), one-shot and layer by layer.

    Raises `InputError` for weights that are not finite and for a group that does not divide d_in.

    >>> magnitude(torch.tensor([[4.0, -1.0], [3.0, 2.0]]), Unstructured(0.5)).tolist()
    [[4.0, 0.0], [3.0, 0.0]]
    """
    _check_finite(weight)
    return _prune(weight, pattern)


def _prune(weight: Tensor, pattern: Pattern) -> Tensor:
    return torch.where(drop_mask(weight.abs(), pattern, per="matrix"), 0, weight)


def _solve(weights: list[Tensor], evidence: Evidence, target: Pattern) -> tuple[list[Tensor], dict]:
    return [_prune(weight, target) for weight in weights], {}


METHOD = Method(
    "magnitude",
    version=1,
    targets=(Unstructured, NofM),
    solve=_solve,
    source="zhu2017",
    style=("#B84A00", "s"),
    place=10,
)
