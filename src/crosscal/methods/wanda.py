"""Wanda: weight magnitude times input norm, compared within a row; no weight update."""

import torch
from jaxtyping import Float
from torch import Tensor

from crosscal.calibration.statistics import DiagonalStats, InputStats
from crosscal.methods.masks import _check_finite, drop_mask
from crosscal.methods.registry import Evidence, Method
from crosscal.types import NofM, Pattern, Unstructured


def wanda(
    weight: Float[Tensor, "d_out d_in"], stats: InputStats | DiagonalStats, pattern: Pattern
) -> Float[Tensor, "d_out d_in"]:
    """Zero the weights with the smallest |W_ij| * ||x_j||_2; rows compete only with themselves.

    The norm is sqrt(mean_t x_tj^2), so the number of tokens does not matter. Exactly floor(sparsity * d_in)
    weights of each row go. Equation eq-wanda of the book. Source: Sun et al. 2024 (arXiv 2306.11695), eq. 1.

    Raises `InputError` for weights that are not finite and for a group that does not divide d_in.

    >>> weight = torch.tensor([[4.0, 1.0], [1.0, 4.0]])
    >>> loud_second_input = InputStats(torch.diag(torch.tensor([1.0, 100.0])), n_tokens=1)
    >>> wanda(weight, loud_second_input, Unstructured(0.5)).tolist()
    [[0.0, 1.0], [0.0, 4.0]]
    """
    _check_finite(weight)
    return _prune(weight, stats, pattern)


def _prune(weight: Tensor, stats: InputStats | DiagonalStats, pattern: Pattern) -> Tensor:
    scores = weight.abs().float() * stats.mean_square.clamp(min=0).sqrt()
    return torch.where(drop_mask(scores, pattern), 0, weight)


def _solve(weights: list[Tensor], evidence: Evidence, target: Pattern) -> tuple[list[Tensor], dict]:
    return [_prune(weight, evidence.stats, target) for weight in weights], {}


METHOD = Method(
    "wanda",
    version=1,
    targets=(Unstructured, NofM),
    solve=_solve,
    reads="diagonal",
    label="Wanda",
    source="sun2024",
    style=("#0067A5", "o"),
    place=20,
)
