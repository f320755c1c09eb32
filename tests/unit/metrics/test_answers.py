"""Scores of written answers: worked by hand from the definitions, and what they do at the edges."""

import sys

import pytest

from crosscal.errors import InputError
from crosscal.metrics import writing
from crosscal.metrics.writing import _SCORES, _exact_match, _normalize, _rouge1, _token_f1

ALL = list(_SCORES.values())


@pytest.mark.parametrize("score", ALL)
def test_scores_of_equal_and_foreign_texts(score):
    assert score("Red, green and blue.", "Red, green and blue.") == 1
    assert score("yellow", "Red, green and blue.") == 0


@pytest.mark.parametrize("score", ALL)
def test_empty_answers_score_zero(score):
    assert score("", "fog") == score("  \n", "fog") == 0


@pytest.mark.parametrize("score", ALL)
def test_case_and_punctuation_do_not_count(score):
    assert score("FOG", "Fog.") == 1


def test_articles_count_in_rouge_alone():
    assert _exact_match("The fog", "a fog") == _token_f1("The fog", "a fog") == 1
    assert _rouge1("The fog", "a fog") == 0.5


def test_articles_go_as_words_only():
    assert _normalize("Theatre, another; an  ANT. a") == ["theatre", "another", "ant"]


def test_order_counts_in_exact_match_alone():
    assert _exact_match("blue red", "red blue") == 0
    assert _token_f1("blue red", "red blue") == _rouge1("blue red", "red blue") == 1


def test_repeated_words_count_as_often_as_shared():
    # Two of the answer's four words are in the reference's three: precision 1/2, recall 2/3.
    for score in (_token_f1, _rouge1):
        assert score("red red red red", "red red blue") == pytest.approx(2 * (1 / 2) * (2 / 3) / (1 / 2 + 2 / 3))


def test_texts_without_words_match_each_other():
    assert _exact_match("!", "the") == _token_f1("!", "the") == 1
    assert _token_f1("the", "fog") == _token_f1("fog", "the") == 0


def test_rouge_without_its_package_gets_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    writing._rouge.cache_clear()
    with pytest.raises(InputError, match="pip install 'crosscal"):
        _rouge1("a", "b")
