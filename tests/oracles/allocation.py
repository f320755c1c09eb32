"""Outliers counted weight by weight, and sparsities found by trying which blocks lie at a bound."""

from fractions import Fraction
from math import sqrt


def outliers(weight, mean_square, outlier):
    """(number of outliers, number of weights) of one matrix: A_ij = |W_ij| * ||x_j||, above M times the mean of A."""
    rows = weight.double().tolist()
    norms = [sqrt(square) for square in mean_square.double().tolist()]
    scores = [abs(w) * norm for row in rows for w, norm in zip(row, norms, strict=True)]
    mean = sum(scores) / len(scores)
    return sum(score > outlier * mean for score in scores), len(scores)


def allocate(fractions, sizes, sparsity, limit):
    """Exact, in fractions: of all ways to hold the first blocks at one bound and the last at the other, the right one.

    Blocks in the order of their sparsity: `bottom` of them stay at the lower bound, the last `top` at the upper, and
    those between get 2 * limit * (1 - D) / (max D - min D) plus one number, which the mean decides. The right
    choice is the one in which nobody between passes a bound and nobody at a bound would rather be elsewhere.
    """
    fractions = [Fraction(f) for f in fractions]
    sparsity, limit = Fraction(sparsity), Fraction(limit)
    low, high = max(Fraction(0), sparsity - limit), min(Fraction(1), sparsity + limit)
    spread = max(fractions) - min(fractions)
    if not spread or not limit or sparsity in (0, 1):
        return [float(sparsity)] * len(fractions)
    wish = [2 * limit * (1 - f) / spread for f in fractions]
    order = sorted(range(len(wish)), key=lambda i: wish[i])
    n = len(order)
    for bottom in range(n + 1):
        for top in range(n + 1 - bottom):
            lows, between, highs = order[:bottom], order[bottom : n - top], order[n - top :]
            if not between:
                continue
            rest = sparsity * sum(sizes) - sum(sizes[i] * low for i in lows) - sum(sizes[i] * high for i in highs)
            weight = sum(sizes[i] for i in between)
            shift = (rest - sum(sizes[i] * wish[i] for i in between)) / weight
            inside = all(low <= wish[i] + shift <= high for i in between)
            if inside and all(wish[i] + shift <= low for i in lows) and all(wish[i] + shift >= high for i in highs):
                found = dict.fromkeys(lows, low) | dict.fromkeys(highs, high) | {i: wish[i] + shift for i in between}
                return [float(found[i]) for i in range(n)]
    raise AssertionError("no choice fits")
