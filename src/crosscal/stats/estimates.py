"""Estimates with intervals: one bootstrap over groups of paired outcomes, with seeds of its own, so they never vary.

Functions take *groups*: one array per evaluation set. Groups weigh the same, whatever their size, and items are
resampled within their group, so a mean over tasks keeps its meaning when one task has more items than another. Equal
sizes are resampled alike: draws of two runs on the same items may be subtracted, they are paired.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats

from crosscal.stats.significance import sign_flip_p, two_sided_p

DRAWS = 4000  # of paired comparisons
RESAMPLES = 2000  # of single values in rows
_MARGINAL = (2.5, 97.5)  # percentiles that bound a 95 % interval


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval, the p-value of "no difference" where one was asked, and the number of items."""

    value: float
    lo: float
    hi: float
    n: int
    p: float = float("nan")

    def map(self, function: Callable[[float], float]) -> "Estimate":
        """Return the estimate on another scale; `function` must be increasing."""
        return Estimate(float(function(self.value)), float(function(self.lo)), float(function(self.hi)), self.n, self.p)

    def text(self, write: Callable[[float], str]) -> str:
        """Return the value and its interval, each written by `write`.

        >>> Estimate(0.5, 0.25, 0.75, 9).text("{:.2f}".format)
        '0.50 [0.25, 0.75]'
        """
        return f"{write(self.value)} [{write(self.lo)}, {write(self.hi)}]"

    @classmethod
    def of_draws(cls, draws: np.ndarray, n: int, test: bool = False) -> "Estimate":
        """Return the estimate of an array that holds the value, then its bootstrap draws: [1 + draws].

        >>> Estimate.of_draws(np.array([0.5, 0.5, 0.5]), n=9)
        Estimate(value=0.5, lo=0.5, hi=0.5, n=9, p=nan)
        """
        lo, hi = np.percentile(draws[1:], _MARGINAL)
        return cls(float(draws[0]), float(lo), float(hi), n, two_sided_p(draws[1:]) if test else math.nan)


def bootstrap_means(groups: Sequence[np.ndarray], draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Return the mean over groups of each group's mean, then its bootstrap draws: [1 + draws].

    >>> bootstrap_means([np.array([1.0, 3.0])], draws=3).shape
    (4,)
    """
    means = np.zeros(1 + draws)
    for number, group in enumerate(groups):
        values = np.asarray(group, dtype=np.float64)
        means[1:] += _counts(len(values), draws, (seed, number)) @ values / len(values) / len(groups)
    means[0] = np.mean([np.mean(group) for group in groups])
    return means


def bootstrap_mean(groups: Sequence[np.ndarray], draws: int = DRAWS, seed: int = 0) -> Estimate:
    """Return the mean over groups of each group's mean, with the percentile bootstrap's 95 % interval.

    For paired differences, pass `compressed - dense` of the same items.

    >>> bootstrap_mean([np.array([1.0, 1.0]), np.array([3.0, 3.0])])
    Estimate(value=2.0, lo=2.0, hi=2.0, n=4, p=nan)
    """
    return Estimate.of_draws(bootstrap_means(groups, draws, seed), sum(len(group) for group in groups))


def bootstrap_statistic(groups: Sequence[np.ndarray], statistic: Callable[[np.ndarray], np.ndarray]) -> Estimate:
    """Return a statistic of column means over groups [items, columns], with interval and the bootstrap's p of 0.

    Whole lines of a group are resampled together. `statistic` maps means [draws, columns] to [draws]; draws where it
    is NaN are left out.

    >>> bootstrap_statistic([np.array([[1.0, 0.0], [1.0, 0.0]])], lambda means: means[:, 0] - means[:, 1]).value
    1.0
    """
    means = np.zeros((DRAWS, groups[0].shape[1]))
    for number, group in enumerate(groups):
        means += multinomial_counts(len(group), DRAWS, (0, number)) @ group / len(group) / len(groups)
    drawn = statistic(means)
    value = statistic(np.mean([group.mean(axis=0) for group in groups], axis=0, keepdims=True))
    draws = np.concatenate([value, drawn[~np.isnan(drawn)]])
    return Estimate.of_draws(draws, sum(len(group) for group in groups), test=True)


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray] = lambda drawn: drawn.mean(axis=1),
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """Return the percentile bootstrap's 95 % interval of a statistic of independent units.

    `values` is [n] or [n, k]; `statistic` maps resampled values [resamples, n(, k)] to [resamples] and is the mean
    over units when left out. One unit alone gives an interval of no width. Source: Efron & Tibshirani 1993, ch. 13.

    >>> bootstrap_interval([1.0, 1.0, 1.0])
    (1.0, 1.0)
    """
    values = np.asarray(values, dtype=np.float64)
    low, high = np.percentile(statistic(values[_picks(len(values), resamples, 0)]), _MARGINAL)
    return float(low), float(high)


def _picks(size: int, draws: int, seed: int | tuple[int, ...]) -> np.ndarray:
    """Indices of resampled units, [draws, size]."""
    return np.random.default_rng(seed).integers(0, size, size=(draws, size))


@lru_cache(maxsize=32)
def _counts(size: int, draws: int, seed: tuple) -> np.ndarray:
    """How often each unit is in each resample, [draws, size]; kept, because every run is resampled alike."""
    picks = _picks(size, draws, seed) + size * np.arange(draws)[:, None]
    return np.bincount(picks.ravel(), minlength=draws * size).reshape(draws, size).astype(np.float64)


@lru_cache(maxsize=32)
def multinomial_counts(size: int, draws: int, seed: int | tuple[int, ...]) -> np.ndarray:
    """Return how often each of `size` units is in each of `draws` resamples, [draws, size], drawn as counts."""
    return np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=draws).astype(np.float64)


def area_under_curve(drawn: np.ndarray) -> np.ndarray:
    """Return the area under the ROC curve for [resamples, n, 2] pairs (score, gold); 0.5 where one class is missing.

    The share of (positive, negative) pairs in which the positive scores higher, ties counting one half
    (Mann & Whitney 1947).

    >>> float(area_under_curve(np.array([[[0.9, 1], [0.1, 0], [0.1, 1]]]))[0])
    0.75
    """
    areas = np.full(len(drawn), 0.5)
    for index, sample in enumerate(drawn):
        score, gold = sample[:, 0], sample[:, 1] > 0.5
        positive, negative = score[gold], np.sort(score[~gold])
        if len(positive) and len(negative):
            below, upto = (np.searchsorted(negative, positive, side=side) for side in ("left", "right"))
            areas[index] = (below + upto).mean() / 2 / len(negative)
    return areas


def auc_difference(before: np.ndarray, after: np.ndarray, gold: np.ndarray, draws: int = DRAWS) -> Estimate:
    """Return AUC of `after` minus AUC of `before` on the same items; positives and negatives are resampled apart.

    The p-value is the bootstrap's: twice the smaller share of draws on either side of no difference.
    """
    gain = _wins(np.asarray(after), np.asarray(gold)) - _wins(np.asarray(before), np.asarray(gold))
    random = np.random.default_rng(0)
    up, down = (random.multinomial(size, np.full(size, 1 / size), size=draws) / size for size in gain.shape)
    differences = np.einsum("dn,dn->d", up @ gain, down)
    return Estimate.of_draws(np.concatenate([[gain.mean()], differences]), sum(gain.shape), test=True)


def _wins(score: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """1, 1/2 or 0 for each (positive, negative) pair."""
    positive, negative = score[gold == 1][:, None], score[gold == 0][None, :]
    return (positive > negative) + 0.5 * (positive == negative)


def student_mean(values: Sequence[float]) -> Estimate:
    """Return the mean with Student's 95 % interval: few draws are no basis for a bootstrap. NaN ends with one value.

    >>> student_mean([1.0, 2.0, 3.0]).map(lambda value: round(value, 2))
    Estimate(value=2.0, lo=-0.48, hi=4.48, n=3, p=nan)
    """
    n, mean = len(values), float(np.mean(values))
    half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Estimate(mean, mean - half, mean + half, n)


def student_p(values: Sequence[float], limit: float, above: bool) -> float:
    """Return the one-sided p of Student's t: small when a few values' mean is shown to lie `above` (below) a limit.

    >>> round(student_p([1.0, 2.0, 3.0], 0.0, above=True), 3)
    0.037
    """
    distance = (np.mean(values) - limit) * (1 if above else -1)
    error = max(float(np.std(values, ddof=1)) / math.sqrt(len(values)), 1e-300)
    return float(stats.t.sf(distance / error, len(values) - 1))


@dataclass(frozen=True, eq=False)
class Paired:
    """A weighted mean over evaluation sets of the means of paired values, one value per window or item.

    `weights` sum to 1 over the names of `values`.

    >>> half = Paired.equal({"a": np.array([1.0, 3.0]), "b": np.array([4.0])})
    >>> half.value, (half - half).value
    (3.0, 0.0)
    """

    values: Mapping[str, np.ndarray]
    weights: Mapping[str, float]

    @classmethod
    def equal(cls, values: Mapping[str, np.ndarray]) -> "Paired":
        """Return the mean in which every set weighs the same."""
        return cls(values, {name: 1 / len(values) for name in values})

    @classmethod
    def pool(cls, parts: Sequence["Paired"]) -> "Paired":
        """Return the mean of several, unit by unit, so that units that they share count once.

        >>> a, b = Paired.equal({"x": np.array([1.0])}), Paired.equal({"x": np.array([2.0])})
        >>> Paired.pool([a, b]).value, Paired.pool([a, Paired.equal({"y": np.array([5.0])})]).value
        (1.5, 3.0)
        """
        weights: dict[str, float] = {}
        sums: dict[str, np.ndarray] = {}
        for part in parts:
            for name, weight in part.weights.items():
                weights[name] = weights.get(name, 0.0) + weight / len(parts)
                sums[name] = sums.get(name, 0.0) + weight / len(parts) * part.values[name]
        return cls({name: total / weights[name] for name, total in sums.items()}, weights)

    @property
    def value(self) -> float:
        """The weighted mean."""
        return float(sum(weight * np.mean(self.values[name]) for name, weight in self.weights.items()))

    @property
    def n(self) -> int:
        """The number of units."""
        return sum(len(self.values[name]) for name in self.weights)

    def __sub__(self, other: "Paired") -> "Paired":
        """Return the difference of two that hold the same units of the same sets with the same weights."""
        return Paired({name: values - other.values[name] for name, values in self.values.items()}, self.weights)

    def __neg__(self) -> "Paired":
        return Paired({name: -values for name, values in self.values.items()}, self.weights)

    def groups(self) -> list[np.ndarray]:
        """Return the values of each set, scaled so that their plain mean over sets is the weighted one."""
        return [len(self.weights) * weight * self.values[name] for name, weight in self.weights.items()]

    def estimate(self, test: bool = False) -> Estimate:
        """Return the mean with its 95 % bootstrap interval; `test` adds the p-value of sign flips."""
        found = bootstrap_mean(self.groups())
        return Estimate(found.value, found.lo, found.hi, found.n, sign_flip_p(self.groups())) if test else found

    def share_of(self, whole: "Paired") -> Estimate:
        """Return the mean as a fraction of another's, with the interval over units drawn for both at once."""
        draws = bootstrap_means(self.groups()) / bootstrap_means(whole.groups())
        return Estimate.of_draws(np.concatenate([[self.value / whole.value], draws[1:]]), self.n)

    def p_above(self, limit: float = 0.0) -> float:
        """Return the one-sided p of "the mean is at most `limit`": small when it is shown to lie above.

        Welch's t: sets are fixed, each has its own mean and spread, and degrees of freedom are Satterthwaite's. Never
        below 2^-n, which is what as many signs alike could show; 1 when a set has one unit only.
        """
        sizes = {name: len(self.values[name]) for name in self.weights}
        if min(sizes.values()) < 2:
            return 1.0
        parts = {name: w**2 * np.var(self.values[name], ddof=1) / sizes[name] for name, w in self.weights.items()}
        variance, least = sum(parts.values()), 0.5 ** sum(sizes.values())
        if variance < 1e-24:
            return least if self.value > limit + 1e-12 else 1.0
        freedom = variance**2 / sum(part**2 / (sizes[name] - 1) for name, part in parts.items())
        return max(least, float(stats.t.sf((self.value - limit) / math.sqrt(variance), freedom)))

    def p_below(self, limit: float = 0.0) -> float:
        """Return the one-sided p of "the mean is at least `limit`": small when it is shown to lie below."""
        return (-self).p_above(-limit)
