import numpy as np
import pytest

from crosscal.stats import auc_difference, bootstrap_mean, holm, sign_flip_p, sign_test_p


def test_bootstrap_covers_the_true_mean_about_as_often_as_it_says():
    random = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        estimate = bootstrap_mean([random.standard_normal(60)], draws=400, seed=trial)
        hits += estimate.lo <= 0 <= estimate.hi
    assert 178 <= hits <= 200


def test_groups_weigh_the_same_whatever_their_size():
    estimate = bootstrap_mean([np.zeros(1000), np.ones(10)])
    assert estimate.value == estimate.lo == estimate.hi == 0.5


def test_equal_inputs_give_equal_intervals():
    groups = [np.arange(20.0)]
    assert bootstrap_mean(groups) == bootstrap_mean(groups)


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 0.05, 1.0), (1.0, 0.0, 0.001)])
def test_sign_flips_see_a_shift_and_nothing_else(shift, low, high):
    differences = np.random.default_rng(2).standard_normal(80) + shift
    assert low <= sign_flip_p([differences[:30], differences[30:]]) <= high


def test_sign_test_is_symmetric_and_exact():
    assert sign_test_p(3, 11) == sign_test_p(11, 3)
    assert sign_test_p(0, 5) == 2 / 2**5
    assert sign_test_p(4, 4) == 1.0


def test_holm_is_at_least_each_p_keeps_their_order_and_equals_bonferroni_for_the_smallest():
    p = np.array([0.04, 0.001, 0.3, 0.02])
    adjusted = holm(p)
    assert (adjusted >= p).all()
    assert adjusted.max() <= 1
    assert adjusted[1] == pytest.approx(4 * 0.001)
    assert list(np.argsort(adjusted)) == list(np.argsort(p))


def test_auc_difference_is_zero_for_equal_scores_and_significant_for_a_ruined_ranking():
    gold = np.arange(200) % 2
    score = gold + 0.3 * np.random.default_rng(3).standard_normal(200)
    same = auc_difference(score, score, gold)
    assert (same.value, same.lo, same.hi, same.p) == (0.0, 0.0, 0.0, 1.0)
    worse = auc_difference(score, np.random.default_rng(4).standard_normal(200), gold)
    assert worse.hi < 0
    assert worse.p < 0.01
