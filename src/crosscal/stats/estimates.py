"""Intervals and tests on per-item outcomes: paired, resampled within each evaluation set, numpy only.

Every function takes *groups*: one array per evaluation set. Groups weigh the same, whatever their size, and items are
resampled within their group, so a mean over tasks keeps its meaning when one task has more items than another.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

DRAWS = 4000
EXACT = 12  # differences of which all sign assignments are tried


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, the p-value of "no difference" where one was asked, and the number of items."""

    value: float
    lo: float
    hi: float
    n: int
    p: float = float("nan")

    def map(self, function) -> "Estimate":
        """The same estimate on another scale; `function` must be increasing."""
        return Estimate(function(self.value), function(self.lo), function(self.hi), self.n, self.p)

    def text(self, write: Callable[[float], str]) -> str:
        """The value and its interval, each written by `write`.

        >>> Estimate(0.5, 0.25, 0.75, 9).text("{:.2f}".format)
        '0.50 [0.25, 0.75]'
        """
        return f"{write(self.value)} [{write(self.lo)}, {write(self.hi)}]"


def bootstrap_mean(groups: Sequence[np.ndarray], draws: int = DRAWS, seed: int = 0) -> Estimate:
    """Mean over groups of each group's mean, with the percentile bootstrap's 95 % interval.

    For paired differences, pass `compressed - dense` of the same items.

    >>> bootstrap_mean([np.array([1.0, 1.0]), np.array([3.0, 3.0])])
    Estimate(value=2.0, lo=2.0, hi=2.0, n=4, p=nan)
    """
    means = bootstrap_means(groups, draws, seed)
    lo, hi = np.percentile(means[1:], [2.5, 97.5])
    return Estimate(float(means[0]), float(lo), float(hi), sum(len(group) for group in groups))


def bootstrap_means(groups: Sequence[np.ndarray], draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """The mean over groups of each group's mean, then its bootstrap draws: [1 + draws].

    Equal sizes are resampled alike, so that draws of two runs on the same items may be subtracted: they are paired.

    >>> bootstrap_means([np.array([1.0, 3.0])], draws=3).shape
    (4,)
    """
    means = np.zeros(1 + draws)
    for number, group in enumerate(groups):
        values = np.asarray(group, dtype=np.float64)
        means[1:] += _resamples(len(values), draws, seed, number) @ values / len(values) / len(groups)
    means[0] = np.mean([np.mean(group) for group in groups])
    return means


def two_sided_p(draws: np.ndarray) -> float:
    """The bootstrap's p of "no difference": twice the smaller share of draws on either side of 0.

    >>> two_sided_p(np.array([1.0, 2.0, 3.0]))
    0.5
    """
    one_side = min(np.count_nonzero(draws >= 0), np.count_nonzero(draws <= 0))
    return float(min(1.0, 2 * (1 + one_side) / (1 + len(draws))))


@lru_cache(maxsize=32)
def _resamples(size: int, draws: int, seed: int, number: int) -> np.ndarray:
    """How often each item is in each resample, [draws, size]; kept, because every run is resampled alike."""
    picks = np.random.default_rng((seed, number)).integers(0, size, size=(draws, size))
    picks += size * np.arange(draws)[:, None]
    return np.bincount(picks.ravel(), minlength=draws * size).reshape(draws, size).astype(np.float64)


def sign_flip_p(groups: Sequence[np.ndarray], draws: int = DRAWS, seed: int = 0) -> float:
    """Two-sided p of "the paired differences are as often up as down": sign flips of every difference.

    Up to `EXACT` differences all assignments of signs are tried; beyond that, `draws` random ones, of which the
    observed assignment counts as one, so that p is never below 1 / (draws + 1).

    >>> sign_flip_p([np.zeros(5)]), sign_flip_p([np.ones(3)])
    (1.0, 0.25)
    """
    random = np.random.default_rng(seed)
    weighted = np.concatenate([np.asarray(g, dtype=float) / (len(g) * len(groups)) for g in groups])
    weighted = weighted[weighted != 0]
    observed = abs(weighted.sum())
    if len(weighted) <= EXACT:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(weighted))))
        return float(np.mean(np.abs(signs @ weighted) >= observed - 1e-9))
    signs = random.integers(0, 2, size=(draws, len(weighted)), dtype=np.int8).astype(np.float32) * 2 - 1
    flipped = np.abs(signs @ weighted)
    return float((1 + np.count_nonzero(flipped >= observed - 1e-9)) / (1 + draws))


def sign_test_p(better: int, worse: int) -> float:
    """Exact two-sided sign test (McNemar's) on the items that changed.

    >>> sign_test_p(0, 0), sign_test_p(1, 9)
    (1.0, 0.021484375)
    """
    n, least = better + worse, min(better, worse)
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(least + 1)) / 2**n
    return min(1.0, 2 * tail)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down correction: adjusted p-values in the order given.

    >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    result = np.empty_like(p)
    result[order] = np.minimum(adjusted, 1.0)
    return result


def auc_difference(before: np.ndarray, after: np.ndarray, gold: np.ndarray, draws: int = DRAWS) -> Estimate:
    """AUC of `after` minus AUC of `before` on the same items; positives and negatives are resampled apart.

    The p-value is the bootstrap's: twice the smaller share of draws on either side of no difference.
    """
    gain = _wins(np.asarray(after), np.asarray(gold)) - _wins(np.asarray(before), np.asarray(gold))
    random = np.random.default_rng(0)
    positives, negatives = gain.shape
    up = random.multinomial(positives, np.full(positives, 1 / positives), size=draws) / positives
    down = random.multinomial(negatives, np.full(negatives, 1 / negatives), size=draws) / negatives
    differences = np.einsum("dn,dn->d", up @ gain, down)
    lo, hi = np.percentile(differences, [2.5, 97.5])
    return Estimate(float(gain.mean()), float(lo), float(hi), positives + negatives, two_sided_p(differences))


def _wins(score: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """1, 1/2 or 0 for each (positive, negative) pair."""
    positive, negative = score[gold == 1][:, None], score[gold == 0][None, :]
    return (positive > negative) + 0.5 * (positive == negative)
