"""Which block is pruned how much: blocks with more outlying weights keep more, at the same sparsity overall.

Source: Yin et al. 2023 (arXiv 2310.05175), outlier weighed layerwise sparsity (OWL).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscal.errors import InputError
from crosscal.methods.masks import check_finite

VERSION = 1

SAME = 1e-6  # fractions that differ by less than this part of themselves differ by float32 rounding only
STEPS = 200  # halvings of an interval shorter than 3: more than float64 can tell apart


@dataclass(frozen=True)
class Owl:
    """Sparsity by outliers: `limit` bounds how far a block may lie from the mean, `outlier` says what counts as one.

    The paper's lambda and M, with its usual values. Raises `InputError` unless 0 <= limit <= 1 and outlier > 0.

    >>> Owl(limit=2)
    Traceback (most recent call last):
    crosscal.errors.InputError: the limit of OWL is 2; give how far sparsity may lie from its mean, from 0 to 1
    """

    limit: float | int = 0.08
    outlier: float | int = 5.0

    def __post_init__(self):
        if not 0 <= self.limit <= 1:
            raise InputError(
                f"the limit of OWL is {self.limit!r}; give how far sparsity may lie from its mean, from 0 to 1"
            )
        if not 0 < self.outlier < math.inf:
            raise InputError(
                f"the outlier of OWL is {self.outlier!r}; give a multiple of the mean score, above 0, such as 5"
            )


def outlier_fraction(
    weight: Float[Tensor, "d_out d_in"], mean_square: Float[Tensor, " d_in"], outlier: float | int
) -> Float[Tensor, ""]:
    """Fraction of the weights whose score |W_ij| * sqrt(mean_t x_tj^2) is above `outlier` times the mean score.

    Source: Yin et al. 2023 (arXiv 2310.05175), layerwise outlier distribution, with the score of Wanda.
    Raises `InputError` for weights that are not finite.

    >>> weight = torch.tensor([[9.0, 1.0], [1.0, 1.0]])
    >>> outlier_fraction(weight, torch.ones(2), 2.0), outlier_fraction(weight, torch.tensor([0.0, 1.0]), 1.5)
    (tensor(0.2500), tensor(0.5000))
    """
    check_finite(weight)
    return _outliers(weight, mean_square, outlier) / weight.numel()


def block_outliers(
    weights: Sequence[Float[Tensor, "_ _"]], mean_squares: Sequence[Float[Tensor, " _"]], outlier: float | int
) -> Float[Tensor, ""]:
    """Outliers of all weights of a block, each measured by the mean of its own matrix, per weight of the block.

    `mean_squares` holds mean_t x_tj^2 of each weight's inputs, in the order of `weights`.
    Raises `InputError` for a block without weights and unless each has its input statistics.
    """
    if not weights or len(weights) != len(mean_squares):
        raise InputError(f"{len(weights)} weights and {len(mean_squares)} statistics; give them in pairs, at least one")
    counts = [_outliers(weight, square, outlier) for weight, square in zip(weights, mean_squares, strict=True)]
    return torch.stack(counts).sum() / sum(weight.numel() for weight in weights)


def _outliers(weight: Tensor, mean_square: Tensor, outlier: float) -> Int[Tensor, ""]:
    scores = weight.abs().float() * mean_square.float().clamp(min=0).sqrt()
    return (scores > outlier * scores.mean()).sum()


def allocate(outliers: Sequence[float], sizes: Sequence[int], sparsity: float | int, owl: Owl) -> list[float]:
    """The sparsity of each block, from its fraction of `outliers` and its number of weights, `sizes`.

    Sparsities fall linearly in the outlier fractions, from the greatest to the least over a range of 2 * limit, and
    are shifted together until their mean, weighted by size, is `sparsity`. Where that would lead further than `limit`
    from `sparsity`, or out of 0..1, a block stays at that bound and the shift of the others makes up for it; so the
    mean is exact, the bounds hold, and no block with more outliers is pruned more. Equal fractions, a limit of 0 and
    a sparsity of 0 or 1 give every block the same.

    Equation eq-owl of the book.
    Source: Yin et al. 2023 (arXiv 2310.05175): S_i ~ 1 - D_i, within [S - lambda, S + lambda], with mean S. How its
    range and its mean are kept at once is our decision.

    Raises `InputError` for lists of unlike or no length, fractions or a sparsity outside 0..1, and sizes below 1.

    >>> [round(s, 6) for s in allocate([0.03, 0.01, 0.02], [100, 100, 100], 0.5, Owl(limit=0.1))]
    [0.4, 0.6, 0.5]
    """
    _check(outliers, sizes, sparsity)
    low, high = max(0.0, sparsity - owl.limit), min(1.0, sparsity + owl.limit)
    least, most = min(outliers), max(outliers)
    if sparsity in (low, high) or most - least <= SAME * most:
        return [float(sparsity)] * len(outliers)
    steps = [2 * owl.limit * (most - fraction) / (most - least) for fraction in outliers]

    def shifted(by: float) -> list[float]:
        return [min(high, max(low, by + step)) for step in steps]

    # The mean grows with the shift, from `low` where all blocks are at that bound to `high` where all are at the other.
    left, right = low - 2 * owl.limit, high
    for _ in range(STEPS):
        middle = (left + right) / 2
        total = math.fsum(size * s for size, s in zip(sizes, shifted(middle), strict=True))
        left, right = (middle, right) if total < sparsity * sum(sizes) else (left, middle)
    return shifted(right)


def _check(outliers: Sequence[float], sizes: Sequence[int], sparsity: float | int) -> None:
    """Raise `InputError` for blocks that make no sense."""
    if not outliers or len(outliers) != len(sizes):
        raise InputError(f"{len(outliers)} outlier fractions and {len(sizes)} sizes; give one of each for every block")
    if not all(0 <= fraction <= 1 for fraction in outliers):
        raise InputError(f"the outlier fractions are {list(outliers)}; give numbers from 0 to 1")
    if min(sizes) < 1:
        raise InputError(f"a block of {min(sizes)} weights cannot be pruned; give sizes of at least 1")
    if not 0 <= sparsity <= 1:
        raise InputError(f"sparsity is {sparsity!r}; give a number from 0 (keep all) to 1 (drop all)")
