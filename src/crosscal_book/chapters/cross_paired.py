"""Paired differences per window or item, weighted over texts or tasks: estimates, one-sided tests and pooling.

Student's t carries the verdicts, because a bootstrap over a handful of windows is too sure of itself, and sign flips
would count the difference between texts, which are not drawn, as noise. Intervals beside the numbers are the book's
bootstrap intervals.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from crosscal.results.compare import LEVEL
from crosscal.stats import Estimate, bootstrap_mean, bootstrap_means
from crosscal_book.verdicts import FAILS, HOLDS, OPEN


@dataclass(frozen=True, eq=False)
class Paired:
    """A weighted mean over texts (or tasks) of the means of paired values, one value per window (or item).

    `weights` sum to 1 over the names of `values`.

    >>> half = Paired.equal({"a": np.array([1.0, 3.0]), "b": np.array([4.0])})
    >>> half.value, (half - half).value
    (3.0, 0.0)
    """

    values: Mapping[str, np.ndarray]
    weights: Mapping[str, float]

    @classmethod
    def equal(cls, values: Mapping[str, np.ndarray]) -> "Paired":
        """Every text weighs the same."""
        return cls(values, {name: 1 / len(values) for name in values})

    @property
    def value(self) -> float:
        """The weighted mean."""
        return float(sum(weight * np.mean(self.values[name]) for name, weight in self.weights.items()))

    def __sub__(self, other: "Paired") -> "Paired":
        """The difference of two that hold the same windows of the same texts with the same weights."""
        return Paired({name: values - other.values[name] for name, values in self.values.items()}, self.weights)

    def estimate(self) -> Estimate:
        """The weighted mean with its 95 % bootstrap interval, windows resampled within their text."""
        return bootstrap_mean(self.groups())

    def groups(self) -> list[np.ndarray]:
        """The values of each text, scaled so that their plain mean over texts is the weighted one."""
        return [len(self.weights) * weight * self.values[name] for name, weight in self.weights.items()]

    def p_above(self, limit: float = 0.0) -> float:
        """One-sided p of "the mean is at most `limit`": small when it is shown to lie above.

        Welch's t: texts are fixed, each has its own mean and spread, and degrees of freedom are Satterthwaite's. Never
        below what as many signs alike could show, 2^-n; 1 when a text has one window only.
        """
        sizes = {name: len(self.values[name]) for name in self.weights}
        if min(sizes.values()) < 2:
            return 1.0
        parts = {name: w**2 * np.var(self.values[name], ddof=1) / sizes[name] for name, w in self.weights.items()}
        variance, least = sum(parts.values()), 0.5 ** sum(sizes.values())
        if variance < 1e-24:
            return least if self.value > limit + 1e-12 else 1.0
        freedom = variance**2 / sum(part**2 / (sizes[name] - 1) for name, part in parts.items())
        return max(least, student_tail((self.value - limit) / math.sqrt(variance), freedom))

    def p_below(self, limit: float = 0.0) -> float:
        """One-sided p of "the mean is at least `limit`": small when it is shown to lie below."""
        return self.negative().p_above(-limit)

    def negative(self) -> "Paired":
        """The same with the opposite sign."""
        return Paired({name: -values for name, values in self.values.items()}, self.weights)


def pool(parts: Sequence[Paired]) -> Paired:
    """The mean of several, window by window, so that windows that they share count once.

    >>> a, b = Paired.equal({"x": np.array([1.0])}), Paired.equal({"x": np.array([2.0])})
    >>> pool([a, b]).value, pool([a, Paired.equal({"y": np.array([5.0])})]).value
    (1.5, 3.0)
    """
    weights: dict[str, float] = {}
    sums: dict[str, np.ndarray] = {}
    for part in parts:
        for name, weight in part.weights.items():
            weights[name] = weights.get(name, 0.0) + weight / len(parts)
            sums[name] = sums.get(name, 0.0) + weight / len(parts) * part.values[name]
    return Paired({name: total / weights[name] for name, total in sums.items()}, weights)


def share(part: Paired, whole: Paired) -> Estimate:
    """`part` as a fraction of `whole`, with the interval over windows drawn for both at once."""
    lo, hi = np.percentile(bootstrap_means(part.groups()) / bootstrap_means(whole.groups()), [2.5, 97.5])
    return Estimate(part.value / whole.value, float(lo), float(hi), sum(len(v) for v in part.values.values()))


def over_draws(values: Sequence[float]) -> Estimate:
    """Mean over draws with Student's 95 % interval: few draws are no basis for a bootstrap. NaN with one draw.

    >>> over_draws([1.0, 2.0, 3.0]).map(lambda value: round(value, 2))
    Estimate(value=2.0, lo=-0.48, hi=4.48, n=3, p=nan)
    """
    n, mean = len(values), float(np.mean(values))
    half = student(n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return Estimate(mean, mean - half, mean + half, n)


def student(freedom: float) -> float:
    """The 97.5 % point of Student's t.

    >>> round(student(1), 1), round(student(4), 2)
    (12.7, 2.78)
    """
    angles, below = _angles(freedom)
    return math.sqrt(freedom) * math.tan(float(np.interp(0.975, below, angles)))


def student_tail(t: float, freedom: float) -> float:
    """How often Student's t is greater.

    >>> round(student_tail(2.132, 4), 3), round(student_tail(-1.0, 1), 3)
    (0.05, 0.75)
    """
    angles, below = _angles(freedom)
    return float(1 - np.interp(math.atan(t / math.sqrt(freedom)), angles, below))


def _angles(freedom: float) -> tuple[np.ndarray, np.ndarray]:
    """Angles with tangent t / sqrt(freedom), and their distribution: the density is cos^(freedom - 1)."""
    edges = np.linspace(-np.pi / 2, np.pi / 2, 20001)
    middles = (edges[1:] + edges[:-1]) / 2
    below = np.concatenate([[0.0], np.cumsum(np.cos(middles) ** (freedom - 1))])
    return edges, below / below[-1]


def judge(p_holds: float, p_fails: float) -> str:
    """`HOLDS` or `FAILS` when the p of its opposite is below `LEVEL`, the claim first; else `OPEN`."""
    return HOLDS if p_holds < LEVEL else FAILS if p_fails < LEVEL else OPEN


def percent(gain: float) -> str:
    """A gain in log perplexity as the change of perplexity that it is.

    >>> percent(0.05), percent(-0.01)
    ('−4.9 %', '+1.0 %')
    """
    return f"{to_percent(gain):+.1f} %".replace("-", "−")


def to_percent(gain: float) -> float:
    """A gain in log perplexity as the change of perplexity in per cent; a gain is a fall."""
    return 100 * math.expm1(-gain)


def percent_text(gain: Estimate) -> str:
    """A gain in log perplexity with its interval, as a change of perplexity, the greatest fall first."""
    return f"{percent(gain.value)} [{percent(gain.hi)}, {percent(gain.lo)}]"
