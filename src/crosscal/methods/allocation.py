"""Which block is pruned how much: blocks with more outlying weights keep more, at the same sparsity overall.

Source: Yin et al. 2023 (arXiv 2310.05175), outlier weighed layerwise sparsity (OWL).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from crosscal.errors import InputError, real_number, whole_number

_SAME = 1e-6  # fractions that differ by less than this part of themselves differ by float32 rounding only
_STEPS = 200  # halvings of an interval shorter than 3: more than float64 can tell apart


@dataclass(frozen=True)
class Owl:
    """Outlier weighed sparsity: no block is further than `limit` from the mean sparsity.

    A weight is an outlier if its score is above `outlier` times the mean score of its matrix. These are the paper's
    lambda and M, with its usual values. Raises `InputError` unless 0 <= limit <= 1 and outlier > 0.

    >>> Owl(limit=2)
    Traceback (most recent call last):
    crosscal.errors.InputError: the limit of OWL is 2; give a number from 0 to 1
    """

    limit: float | int = 0.08
    outlier: float | int = 5.0

    def __post_init__(self):
        real_number("the limit of OWL", self.limit, 0, 1)
        real_number("the outlier of OWL", self.outlier, above=True)

    def outliers(
        self, weights: Sequence[Float[Tensor, "_ _"]], mean_squares: Sequence[Float[Tensor, " _"]]
    ) -> Float[Tensor, ""]:
        """Return the fraction of a block's weights with |W_ij| * sqrt(mean_t x_tj^2) above `outlier` times its mean.

        The mean is over the weight's own matrix. `mean_squares` holds mean_t x_tj^2 of each matrix's inputs, in the
        order of `weights`, which are taken to be finite.
        Source: Yin et al. 2023 (arXiv 2310.05175), layerwise outlier distribution, with the score of Wanda.
        Raises `InputError` for a block without weights and unless each has its input statistics.

        >>> weight = torch.tensor([[9.0, 1.0], [1.0, 1.0]])
        >>> Owl(outlier=2).outliers([weight], [torch.ones(2)])
        tensor(0.2500)
        """
        if not weights or len(weights) != len(mean_squares):
            raise InputError(
                f"{len(weights)} weights and {len(mean_squares)} statistics; give them in pairs, at least one"
            )
        scores = [
            weight.abs().float() * square.float().clamp(min=0).sqrt()
            for weight, square in zip(weights, mean_squares, strict=True)
        ]
        counts = [(score > self.outlier * score.mean()).sum() for score in scores]
        return torch.stack(counts).sum() / sum(weight.numel() for weight in weights)

    def sparsities(self, outliers: Sequence[float], sizes: Sequence[int], sparsity: float | int) -> list[float]:
        """Return the sparsity of each block, from its fraction of `outliers` and its number of weights, `sizes`.

        Sparsities fall linearly in the outlier fractions, from the greatest to the least over a range of 2 * limit, and
        are shifted together until their mean, weighted by size, is `sparsity`. Where that would lead further than
        `limit` from `sparsity`, or out of 0..1, a block stays at that bound and the shift of the others makes up for
        it; so the mean is exact, the bounds hold, and no block with more outliers is pruned more. Equal fractions, a
        limit of 0 and a sparsity of 0 or 1 give every block the same.

        Equation eq-owl of the book.
        Source: Yin et al. 2023 (arXiv 2310.05175): S_i ~ 1 - D_i, within [S - lambda, S + lambda], with mean S. How its
        range and its mean are kept at once is our decision.

        Raises `InputError` for lists of unlike or no length, fractions or a sparsity outside 0..1, and sizes below 1.

        >>> [round(s, 6) for s in Owl(limit=0.1).sparsities([0.03, 0.01, 0.02], [100, 100, 100], 0.5)]
        [0.4, 0.6, 0.5]
        """
        if not outliers or len(outliers) != len(sizes):
            raise InputError(
                f"{len(outliers)} outlier fractions and {len(sizes)} sizes; give one of each for every block"
            )
        for fraction, size in zip(outliers, sizes, strict=True):
            real_number("an outlier fraction", fraction, 0, 1)
            whole_number("the size of a block", size, 1)
        real_number("sparsity", sparsity, 0, 1)
        low, high = max(0.0, sparsity - self.limit), min(1.0, sparsity + self.limit)
        least, most = min(outliers), max(outliers)
        if sparsity in (low, high) or most - least <= _SAME * most:
            return [float(sparsity)] * len(outliers)
        steps = [2 * self.limit * (most - fraction) / (most - least) for fraction in outliers]

        def shifted(by: float) -> list[float]:
            return [min(high, max(low, by + step)) for step in steps]

        # The mean grows with the shift, from `low` where all blocks are at that bound to `high` where all are there.
        left, right = low - 2 * self.limit, high
        for _ in range(_STEPS):
            middle = (left + right) / 2
            total = math.fsum(size * s for size, s in zip(sizes, shifted(middle), strict=True))
            left, right = (middle, right) if total < sparsity * sum(sizes) else (left, middle)
        return shifted(right)
