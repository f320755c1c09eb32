"""Tests of paired differences, and their correction for many comparisons."""

import itertools
from collections.abc import Sequence

import numpy as np
from scipy import stats

LEVEL = 0.05
_EXACT = 12  # differences of which all sign assignments are tried


def two_sided_p(draws: np.ndarray) -> float:
    """Return the bootstrap's p of "no difference": twice the smaller share of draws on either side of 0.

    >>> two_sided_p(np.array([1.0, 2.0, 3.0]))
    0.5
    """
    one_side = min(np.count_nonzero(draws >= 0), np.count_nonzero(draws <= 0))
    return float(min(1.0, 2 * (1 + one_side) / (1 + len(draws))))


def sign_flip_p(groups: Sequence[np.ndarray], draws: int = 4000, seed: int = 0) -> float:
    """Return the two-sided p of "differences are as often up as down": random sign flips of every difference.

    Up to `_EXACT` differences all assignments of signs are tried; beyond that, `draws` random ones, of which the
    observed assignment counts as one, so that p is never below 1 / (draws + 1).

    >>> sign_flip_p([np.zeros(5)]), sign_flip_p([np.ones(3)])
    (1.0, 0.25)
    """
    weighted = np.concatenate([np.asarray(g, dtype=float) / (len(g) * len(groups)) for g in groups])
    weighted = weighted[weighted != 0]
    observed = abs(weighted.sum())
    if len(weighted) <= _EXACT:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(weighted))))
        return float(np.mean(np.abs(signs @ weighted) >= observed - 1e-9))
    random = np.random.default_rng(seed)
    signs = random.integers(0, 2, size=(draws, len(weighted)), dtype=np.int8).astype(np.float32) * 2 - 1
    flipped = np.abs(signs @ weighted)
    return float((1 + np.count_nonzero(flipped >= observed - 1e-9)) / (1 + draws))


def sign_test_p(better: int, worse: int) -> float:
    """Return the exact two-sided sign test (McNemar's) on the items that changed.

    >>> sign_test_p(0, 0), round(sign_test_p(1, 9), 6)
    (1.0, 0.021484)
    """
    return float(stats.binomtest(better, better + worse).pvalue) if better + worse else 1.0


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Return Holm's step-down correction: adjusted p-values in the order given.

    >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    result = np.empty_like(p)
    result[order] = np.minimum(adjusted, 1.0)
    return result
