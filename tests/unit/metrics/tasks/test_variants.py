"""Perturbed questions: typos in as many words as promised, and the same words in another frame."""

import random
import re

import pytest

from crosscal.metrics.tasks.files import _build_items
from crosscal.metrics.tasks.items import _add_typos, _misspell, _question_of, _rephrased, _with_typos


def questions(name: str, base: str) -> list[tuple[str, str]]:
    """`(question as it was, perturbed query)` of each item."""
    before = {it["id"]: _question_of(it) for it in _build_items(base)}
    return [(before[it["id"]], it["query"]) for it in _build_items(name)]


@pytest.mark.parametrize("base", ["sciq", "arc_easy"])
def test_typos_are_in_one_word_of_every_four(base):
    fewer = 0
    for question, query in questions(f"{base}_typos", base):
        assert query.startswith("Question: ")
        assert query.endswith("\nAnswer:")
        words, misspelt = (re.split(r"([^A-Za-z]+)", t) for t in (question, _question_of({"query": query})))
        assert words[1::2] == misspelt[1::2]
        changed = [(a, b) for a, b in zip(words[::2], misspelt[::2], strict=True) if a != b]
        n_typos = max(1, len(question.split()) // 4)
        assert 1 <= len(changed) <= n_typos
        fewer += len(changed) < n_typos
        for a, b in changed:
            assert len(a) >= 4
            assert (a[0], a[-1]) == (b[0], b[-1])
            assert b in one_typo_away(a)
    assert fewer < 0.05 * len(questions(f"{base}_typos", base))


def one_typo_away(word: str) -> set[str]:
    inner = range(1, len(word) - 1)
    dropped = {word[:i] + word[i + 1 :] for i in inner}
    return dropped | {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in inner if i + 2 < len(word)}


@pytest.mark.parametrize("word", ["abcd", "aaaa", "abba", "Water", "photosynthesis"])
def test_typos_keep_the_ends_and_always_show(word):
    found = {_misspell(word, random.Random(seed)) for seed in range(200)}
    assert word not in found
    assert found <= one_typo_away(word)
    if len(set(word[1:-1])) > 1:
        assert {len(typo) - len(word) for typo in found} == {0, -1}


def test_short_words_acronyms_and_parts_of_words_stay():
    assert _add_typos("Is it a DNA or NASA X-rays don't?", random.Random(0)) == "Is it a DNA or NASA X-rays don't?"
    assert _with_typos("demo", [{"id": "1", "query": "Question: Is it so?\nAnswer:"}]) == []


def test_typos_depend_on_the_item_alone():
    items = _build_items("sciq")[:20]
    assert _with_typos("demo", items)[7:] == _with_typos("demo", items[7:])
    assert _with_typos("demo", items) != _with_typos("other", items)


@pytest.mark.parametrize("base", ["sciq", "arc_easy"])
def test_rephrased_questions_keep_their_words(base):
    pairs = questions(f"{base}_rephrased", base)
    frames = {query.replace(question, "{}", 1) for question, query in pairs}
    assert len(frames) == 1
    (frame,) = frames
    assert frame.endswith("\nThe correct answer is")
    assert "Question:" not in frame
    assert "Answer:" not in frame
    assert len(pairs) == len(_build_items(base))


def test_braces_in_questions_are_kept():
    (it,) = _rephrased([{"id": "1", "query": "Question: What is {x}?\nAnswer:"}])
    assert "What is {x}?\n" in it["query"]
