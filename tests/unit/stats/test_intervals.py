"""Intervals: coverage, reproducibility and the statistics they are taken of."""

import itertools

import numpy as np
import pytest

from crosscal.results.quantities import PERPLEXITY
from crosscal.stats import area_under_curve, bootstrap_interval


def test_same_values_same_interval():
    values = np.random.default_rng(1).normal(size=40)
    assert bootstrap_interval(values) == bootstrap_interval(values)


def test_the_interval_of_a_mean_is_about_two_standard_errors():
    values = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap_interval(values)
    assert (high - low) == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert low < values.mean() < high


def test_about_95_of_100_intervals_hold_the_truth():
    draws = np.random.default_rng(0).normal(size=(200, 60))
    held = [low < 0 < high for low, high in (bootstrap_interval(row, resamples=400) for row in draws)]
    assert 0.88 <= np.mean(held) <= 0.99


def test_area_under_curve_counts_pairs():
    rng = np.random.default_rng(3)
    pairs = np.column_stack([rng.integers(0, 5, 30), rng.integers(0, 2, 30)]).astype(float)
    positive, negative = pairs[pairs[:, 1] == 1, 0], pairs[pairs[:, 1] == 0, 0]
    wins = [(p > n) + 0.5 * (p == n) for p, n in itertools.product(positive, negative)]
    assert area_under_curve(pairs[None])[0] == pytest.approx(np.mean(wins))


def test_area_under_curve_of_one_class_is_a_half():
    assert area_under_curve(np.array([[[0.3, 1.0], [0.2, 1.0]]]))[0] == 0.5


def test_perplexity_of_resampled_windows():
    assert PERPLEXITY.value({"nll": np.log([2.0, 8.0])}) == pytest.approx(4.0)
