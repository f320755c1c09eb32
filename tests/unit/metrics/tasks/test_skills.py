"""Tasks by skill: pairs of the same questions, facts with one right answer, sentences against damaged copies."""

import re

import pytest

from crosscal.metrics.tasks import TASKS, describe
from crosscal.metrics.tasks.files import _build_items
from crosscal.metrics.tasks.held_out import (
    _OTHER_FORM,
    _SENTENCE_SOURCES,
    _held_out_sentences,
    _sentences_of,
    _wrong_numbers,
    _wrong_orders,
)
from crosscal.metrics.tasks.items import _last_word, _task_documents
from crosscal.text import SOURCES as TEXT_SOURCES
from crosscal.text import documents
from crosscal.text.documents import word_ngrams

PAIRED = {name: task.variant_of or task.paired_with for name, task in TASKS.items()}
PAIRED = {name: base for name, base in PAIRED.items() if base}
SKILLS = ("", "knowledge", "reading", "language")


@pytest.fixture(scope="module")
def calibration() -> set[int]:
    """Every run of 12 words in any source's calibration part."""
    return set().union(*(word_ngrams(text, 12) for source in TEXT_SOURCES for text in documents(source)))


def test_skills_and_bases_are_those_that_exist():
    assert {task.skill for task in TASKS.values()} == set(SKILLS)
    assert {name: TASKS[name].skill for name in ("common_knowledge", "sciq", "arc_easy", "lambada", "piqa")} == {
        "common_knowledge": "knowledge",
        "sciq": "knowledge",
        "arc_easy": "knowledge",
        "lambada": "reading",
        "piqa": "",
    }
    assert PAIRED == {
        "sciq_reading": "sciq",
        "sciq_typos": "sciq",
        "sciq_rephrased": "sciq",
        "arc_easy_typos": "arc_easy",
        "arc_easy_rephrased": "arc_easy",
    }
    for task in TASKS.values():
        if task.variant_of:
            base = TASKS[task.variant_of]
            assert not base.variant_of
            assert (task.skill, task.metric, task.form) == (base.skill, base.metric, base.form)
            assert (task.source, task.licence) == (base.source, base.licence)


def test_description_tells_skills_and_variants():
    rows = {row["name"]: row for row in describe()}
    assert (rows["sciq_typos"]["skill"], rows["sciq_typos"]["variant_of"]) == ("knowledge", "sciq")
    domains = [row["domain"] for row in rows.values()]
    assert domains == sorted(domains, key=["general", "biomedical", "legal"].index)


@pytest.mark.parametrize("name", PAIRED)
def test_pairs_share_options_and_order(name):
    base = _build_items(PAIRED[name])
    by_id, order = {it["id"]: it for it in base}, [it["id"] for it in base]
    items = _build_items(name)
    for it in items:
        other = by_id[it["id"]]
        assert (it["choices"], it["gold"]) == (other["choices"], other["gold"])
        assert it["query"] != other["query"]
    places = [order.index(it["id"]) for it in items]
    assert places == sorted(places)
    assert len(items) > 0.85 * len(base)


def test_reading_shows_the_support_first():
    base = {it["id"]: it["query"] for it in _build_items("sciq")}
    support = {str(number): document["support"].strip() for number, document in _task_documents("sciq/rc_0shot")}
    items = _build_items("sciq_reading")
    assert {it["id"] for it in items} == {id for id in base if support[id]}
    for it in items:
        assert it["query"] == f"{support[it['id']]}\n{base[it['id']]}"
    gold = [it["choices"][it["gold"]].casefold() in it["query"].casefold() for it in items]
    assert sum(gold) > 0.9 * len(gold)


def test_facts_have_one_right_answer():
    clues = {str(number): document for number, document in _task_documents("jeopardy/bpb_5shot")}
    answers: dict[str, set[str]] = {}
    for document in clues.values():
        answers.setdefault(document["category"], set()).add(document["answer"].strip().strip('"').strip())
    items = _build_items("fact_recall")
    assert len({it["query"] for it in items}) == len(items)
    for it in items:
        clue, right = clues[it["id"]], it["choices"][it["gold"]]
        others = {choice for choice in it["choices"] if choice != right}
        assert len(others) == 3
        assert it["query"] == clue["query"].strip()
        assert right == clue["answer"].strip().strip('"').strip()
        assert right.casefold() not in it["query"].casefold()
        assert others <= answers[clue["category"]]
        assert _last_word(right) not in set(map(_last_word, others))
        assert not re.search(r"(seen|heard) here|[<>]", it["query"])


def written(it: dict) -> tuple[list[str], list[str]]:
    """The words of the sentence that is right, and those of its copy."""
    return it["choices"][it["gold"]].split(), it["choices"][1 - it["gold"]].split()


def changes(it: dict) -> list[tuple[str, str, str]]:
    """`(word before, word, word in the copy)` at each place where the copy differs."""
    good, bad = written(it)
    assert len(good) == len(bad)
    return [(good[i - 1], good[i], bad[i]) for i in range(len(good)) if good[i] != bad[i]]


def test_agreement_exchanges_one_verb_after_a_pronoun():
    for it in _build_items("agreement"):
        ((before, good, bad),) = changes(it)
        good, bad = (re.match(r"[a-z]+", word)[0] for word in (good, bad))
        assert _OTHER_FORM[good] == bad
        pronoun = re.search(r"[a-z]+$", before.lower())[0]
        singular = good in ("is", "was", "has", "does")
        assert pronoun in (("he", "she", "it") if singular else ("they", "we"))


def test_agreement_asks_every_form_and_both_numbers():
    forms = [re.match(r"[a-z]+", changes(it)[0][1])[0] for it in _build_items("agreement")]
    assert set(forms) == set(_OTHER_FORM)
    assert 0.2 < sum(form in ("are", "were", "have", "do") for form in forms) / len(forms) < 0.8


@pytest.mark.parametrize(
    "sentence",
    [
        "She wished that he was at home with her.",
        "He spoke as though it was all over.",
        "They insist that he has a plan.",
        "The team behind it was large.",
        "Neither he nor she has a car.",
        "You were right and I am not.",
        "There it isn't and they aren't.",
        "The IT is old.",
    ],
)
def test_verbs_that_may_take_either_form_stay(sentence):
    assert _wrong_numbers(sentence) == []


def test_word_order_swaps_two_neighbouring_inner_words():
    for it in _build_items("word_order"):
        good, bad = written(it)
        place = next(i for i in range(len(good)) if good[i] != bad[i])
        assert 1 <= place <= len(good) - 3
        assert good[place] != good[place + 1]
        assert bad == [*good[:place], good[place + 1], good[place], *good[place + 2 :]]


@pytest.mark.parametrize(
    "sentence",
    [
        "He saw half a loaf.",
        "He saw a half loaf.",
        "They met the only man there.",
        "They met the following day there.",
        "It was as a good cook that he came.",
        "We saw the past fade away.",
        "The house stood alone.",
    ],
)
def test_orders_that_may_be_right_stay(sentence):
    for copy in _wrong_orders(sentence):
        assert not any(pair in copy for pair in ("a half", "half a", "only the", "following the", "as good a"))
    assert "past the" not in " ".join(_wrong_orders(sentence))


@pytest.mark.parametrize("name", ["agreement", "word_order"])
def test_sentences_are_held_out(name, calibration):
    held_out = {source: documents(source, "held_out") for source in _SENTENCE_SOURCES}
    items = _build_items(name)
    assert items
    for it in items:
        source, place = it["id"].split()
        number, sentence = map(int, place.split("."))
        found = _sentences_of(held_out[source][number])
        assert found[sentence - 1 : sentence + 1] == [it["query"], it["choices"][it["gold"]]]
        assert 8 <= len(found[sentence].split()) <= 30
        assert calibration.isdisjoint(word_ngrams(f"{it['query']} {found[sentence]}", 12))


def test_sentences_come_once_and_from_both_sources():
    sentences = list(_held_out_sentences())
    assert len({text for _, _, text in sentences}) == len({number for number, _, _ in sentences})
    assert {number.split()[0] for number, _, _ in sentences} == set(_SENTENCE_SOURCES)


@pytest.mark.parametrize("name", ["sciq_reading", "sciq_typos", "sciq_rephrased", "arc_easy_typos", "fact_recall"])
def test_benchmark_items_share_no_calibration_text(name, calibration):
    own = set().union(*(word_ngrams(it["query"], 12) for it in _build_items(name)))
    assert own
    assert own.isdisjoint(calibration)
