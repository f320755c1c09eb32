"""Intervals: percentile bootstrap over windows or items, with a seed of its own, so that rows never vary."""

from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 2000


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray] | None = None,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile bootstrap interval of a statistic of independent units (Efron & Tibshirani 1993, chapter 13).

    `values` is [n] or [n, k]; `statistic` maps resampled values [resamples, n(, k)] to [resamples] and is the mean
    over units when left out. One unit alone gives an interval of no width.

    >>> bootstrap_interval([1.0, 1.0, 1.0])
    (1.0, 1.0)
    """
    values = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    draws = (statistic or (lambda drawn: drawn.mean(axis=1)))(values[picks])
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)


def exp_mean(drawn: np.ndarray) -> np.ndarray:
    """exp of the mean over units: perplexity from per-window mean losses.

    >>> float(exp_mean(np.zeros((1, 4)))[0])
    1.0
    """
    return np.exp(drawn.mean(axis=1))


def area_under_curve(drawn: np.ndarray) -> np.ndarray:
    """Area under the ROC curve for [resamples, n, 2] pairs (score, gold); 0.5 where one class is missing.

    The share of (positive, negative) pairs in which the positive scores higher, ties counting one half
    (Mann & Whitney 1947).

    >>> float(area_under_curve(np.array([[[0.9, 1], [0.1, 0], [0.1, 1]]]))[0])
    0.75
    """
    areas = np.empty(len(drawn))
    for index, sample in enumerate(drawn):
        score, gold = sample[:, 0], sample[:, 1] > 0.5
        positive, negative = score[gold], np.sort(score[~gold])
        if len(positive) == 0 or len(negative) == 0:
            areas[index] = 0.5
            continue
        below = np.searchsorted(negative, positive, side="left")
        upto = np.searchsorted(negative, positive, side="right")
        areas[index] = (below + upto).mean() / 2 / len(negative)
    return areas
