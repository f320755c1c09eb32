"""The small parts of the metrics and tasks, one example each."""

import random

import pytest
import torch

from crosscal.metrics.divergence import _first_argmax
from crosscal.metrics.instructions import _alpaca_pair, _dialogue_pair, _fits, _passage_and_question
from crosscal.metrics.tasks.batching import _fit, _group_rows
from crosscal.metrics.tasks.evaluate import _harness_domain, _margin
from crosscal.metrics.tasks.held_out import _sentences_of, _wrong_numbers, _wrong_orders
from crosscal.metrics.tasks.items import _add_typos, _first_words, _generator, _last_word, _last_words, _question_of
from crosscal.metrics.text_scores import _token_losses
from crosscal.metrics.writing import _cut_at_stop, _exact_match, _normalize, _rouge1, _token_f1, _until_stop


def test_answers_are_scored_by_words():
    assert _normalize("The U.S. won an  election.") == ["us", "won", "election"]
    assert (_exact_match("The fog.", "fog"), _exact_match("dense fog", "fog")) == (1, 0)
    assert _token_f1("a dense grey fog", "The fog") == 0.5  # precision 1/3, recall 1
    assert _rouge1("a dense grey fog", "The fog") == 1 / 3  # precision 1/4, recall 1/2


def test_what_is_written_ends_at_a_stop():
    assert _until_stop([5, 6, 2, 2], [2]) == [5, 6]
    assert _cut_at_stop("4. Next question", ["Question", "."]) == "4"


def test_pairs_of_instruction_and_answer():
    query = "Title: Fog\nBackground: Fog came in.\nQuestion: What came in?\nAnswer:"
    assert _passage_and_question(query) == ("Fog came in.", "What came in?")
    assert _fits("Name a colour.", "Red.")
    assert not _fits("Name a colour.", " ")
    assert _alpaca_pair({"instruction": "Add.", "input": "1 and 2", "output": "3"}) == ("Add.\n\n1 and 2", "3")
    turns = [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]
    assert _dialogue_pair({"conversations": turns[:1], "chosen": turns[1]}) == ("Hello", "Hi")
    assert _dialogue_pair({"conversations": [*turns, turns[0]], "chosen": turns[1]}) is None


def test_requests_fit_and_share_rows():
    assert list(_fit([1, 2, 3, 4], [5, 6], max_length=3)) == [((3, 4), (5, 6))]
    assert list(_fit([1], [2, 3, 4], max_length=2)) == [((1,), (2, 3)), ((2, 3), (4,))]
    groups = _group_rows([((1, 2), (3,)), ((1, 2), (4,)), ((1, 2), (3, 5))])
    assert [[row.suffix for row in group] for group in groups] == [[(), (3,)]]


@pytest.mark.parametrize(
    ("name", "domain"), [("mmlu_professional_law", "legal"), ("medmcqa", "biomedical"), ("hellaswag", "general")]
)
def test_domains_follow_from_names(name, domain):
    assert _harness_domain(name) == domain


def test_sentences_and_their_damaged_copies():
    assert _sentences_of("They went home.Nobody saw Mr. Smith.") == ["They went home.", "Nobody saw Mr. Smith."]
    he, they = "Then he were ill, and they have gone.", "Then he was ill, and they has gone."
    assert _wrong_numbers("Then he was ill, and they have gone.") == [he, they]
    assert _wrong_numbers("He spoke as if he was ill.") == []
    assert _wrong_orders("She went to the house with all the others.") == [
        "She went the to house with all the others.",
        "She went to house the with all the others.",
    ]


def test_parts_of_items():
    assert _generator("sciq", "order").random() == _generator("sciq", "order").random()
    assert (_first_words("one  two\nthree", 2), _last_words("one  two\nthree", 2)) == ("one two", "two three")
    assert _last_word("Thomas Jefferson!") == "jefferson"
    assert _add_typos("What is it?", random.Random(0)) == "Wht is it?"
    assert _question_of({"query": "Question: Why?\nAnswer:"}) == "Why?"


def test_numbers_of_scores():
    assert _margin([-1.0, -3.0, -2.0], 2) == -1.0
    assert _first_argmax(torch.tensor([[0.0, 2.0, 2.0, 1.0]]), chunk=2).tolist() == [1]
    assert _token_losses(torch.zeros(1, 2), torch.tensor([0])).exp().tolist() == [2.0]
