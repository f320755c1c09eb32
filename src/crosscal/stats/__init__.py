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
    exp_mean,
    multinomial_counts,
    student_mean,
    student_p,
)
from crosscal.stats.significance import LEVEL, detectable_effect, holm, sign_flip_p, sign_test_p, two_sided_p

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
    "detectable_effect",
    "exp_mean",
    "holm",
    "multinomial_counts",
    "sign_flip_p",
    "sign_test_p",
    "student_mean",
    "student_p",
    "two_sided_p",
]
