"""Estimates, intervals and tests on paired outcomes; numpy and scipy only."""

from crosscal.stats.estimates import (
    DRAWS,
    RESAMPLES,
    Estimate,
    Paired,
    area_under_curve,
    auc_difference,
    bootstrap_interval,
    bootstrap_mean,
    bootstrap_means,
    bootstrap_statistic,
    multinomial_counts,
    student_mean,
    student_p,
)
from crosscal.stats.significance import LEVEL, holm, sign_flip_p, sign_test_p, two_sided_p

__all__ = [
    "DRAWS",
    "LEVEL",
    "RESAMPLES",
    "Estimate",
    "Paired",
    "area_under_curve",
    "auc_difference",
    "bootstrap_interval",
    "bootstrap_mean",
    "bootstrap_means",
    "bootstrap_statistic",
    "holm",
    "multinomial_counts",
    "sign_flip_p",
    "sign_test_p",
    "student_mean",
    "student_p",
    "two_sided_p",
]
