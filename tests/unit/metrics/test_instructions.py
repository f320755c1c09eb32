"""Instructions and references: from text that calibration does not hold, short, in one order."""

import re

import pytest

from crosscal.errors import InputError
from crosscal.metrics import instructions
from crosscal.metrics.instructions import (
    _SETS,
    _SQUAD_REQUEST,
    _Instruction,
    _instructions_version,
    _load_instructions,
)
from crosscal.metrics.tasks.items import _task_documents
from crosscal.text import SOURCES, documents
from crosscal.text.documents import word_ngrams

FROM_SOURCES = [name for name in _SETS if name in SOURCES]


def plain(text):
    """A text without the headings and speakers that the sources put in."""
    text = re.sub(r"^(### (Instruction|Input|Response):\n|(User|Assistant|System): )", "", text, flags=re.MULTILINE)
    return " ".join(text.split())


@pytest.mark.parametrize("name", FROM_SOURCES)
def test_instructions_are_held_out(name):
    held_out = {plain(text) for text in documents(name, "held_out")}
    calibration = [plain(text) for text in documents(name, "calibration")]
    for item in _load_instructions(name, 1000):
        whole = plain(f"{item.instruction}\n{item.reference}")
        assert whole in held_out
        assert whole not in calibration
        assert not any(text.startswith(f"{plain(item.instruction)} ") for text in calibration)


def test_instructions_leave_no_short_one_out():
    rows = [text.split("### Response:\n") for text in documents("alpaca", "held_out")]
    short = [answer for asked, answer in rows if len(plain(asked).split()) <= 120 and 1 <= len(answer.split()) <= 60]
    assert sorted(item.reference for item in _load_instructions("alpaca", 1000)) == sorted(short)


@pytest.mark.parametrize(("name", "n"), [("alpaca", 73), ("dialogues", 8), ("squad", 300)])
def test_items_are_short_and_distinct(name, n):
    items = _load_instructions(name, 1000)
    assert len(items) == n
    assert len({item.id for item in items}) == len({item.instruction for item in items}) == n
    assert all(1 <= len(item.instruction.split()) <= 120 for item in items)
    assert all(1 <= len(answer.split()) <= 60 for item in items for answer in item.references)


@pytest.mark.parametrize("name", _SETS)
def test_instructions_are_nested(name):
    items = _load_instructions(name, 8)
    assert _load_instructions(name, 3) == items[:3]
    rows = [int(item.id.rpartition("-")[2]) for item in items]
    assert rows != sorted(rows)
    asked = [item.instruction for item in items]
    assert asked != sorted(asked)


@pytest.fixture
def squad_documents():
    """The documents that items were made from, by the items' ids."""
    return {f"squad-{number}": document for number, document in _task_documents("squad/bpb_5shot")}


def test_questions_ask_for_words_of_their_passage(squad_documents):
    for item in _load_instructions("squad", 1000):
        passage, question, request = item.instruction.rsplit("\n\n", 2)
        document = squad_documents[item.id]
        assert request == _SQUAD_REQUEST
        assert document["query"].startswith(f"Title: {document['title']}\nBackground: {passage}\nQuestion: {question}")
        assert document["query"].removesuffix("Answer:").rstrip().endswith(question)
        assert item.references == tuple(dict.fromkeys(document["answers_text"]))
        assert all(answer in passage for answer in item.references)


def test_passages_are_asked_about_once(squad_documents):
    short = set()
    for document in squad_documents.values():
        passage, question = document["query"].partition("\nBackground: ")[2].rsplit("\nQuestion: ", 1)
        asked = f"{passage} {question.removesuffix('Answer:')} {_SQUAD_REQUEST}"
        if len(asked.split()) <= 120:
            short.add(passage)
    assert sorted(item.instruction.rsplit("\n\n", 2)[0] for item in _load_instructions("squad", 1000)) == sorted(short)


def test_questions_share_no_calibration_text(squad_documents):
    items = {item.id: word_ngrams(item.instruction, 12) for item in _load_instructions("squad", 1000)}
    whole = set().union(*(word_ngrams(document["query"], 12) for document in squad_documents.values()))
    shared = 0
    for source in SOURCES:
        calibration = set().union(*(word_ngrams(text, 12) for text in documents(source)))
        assert [id for id, own in items.items() if own & calibration] == [], source
        shared += len(whole & calibration)
    assert shared > 0  # the check finds what there is: passages of the same articles, too long to be asked


@pytest.mark.parametrize(("name", "kept"), [("alpaca", 30), ("squad", 3)])
def test_items_do_not_move_when_one_is_added(name, kept, monkeypatch):
    items = _load_instructions(name, 1000)
    shorter = [item for item in items if all(len(answer.split()) <= kept for answer in item.references)]
    monkeypatch.setattr(instructions, "_MAX_REFERENCE_WORDS", kept)
    instructions._items.cache_clear()
    try:
        found = _load_instructions(name, 1000)
        # Another question may stand for a passage whose first is left out.
        assert [item for item in found if item in items] == shorter
        assert len(found) < len(items)
        assert name == "squad" or found == shorter
    finally:
        instructions._items.cache_clear()


def test_version_changes_with_items_and_rules(monkeypatch):
    version = _instructions_version("alpaca")
    assert version.startswith(f"{instructions._VERSION}.")
    assert version != _instructions_version("dialogues")
    items = _load_instructions("alpaca", 1000)
    monkeypatch.setattr(instructions, "_items", lambda name: tuple(reversed(items)))
    assert _instructions_version("alpaca") != version
    monkeypatch.setattr(instructions, "_items", lambda name: tuple(items))
    assert _instructions_version("alpaca") == version
    others = [_Instruction(item.id, item.instruction, item.reference, ("also right",)) for item in items]
    monkeypatch.setattr(instructions, "_items", lambda name: tuple(others))
    assert _instructions_version("alpaca") != version
    monkeypatch.setattr(instructions, "_VERSION", 99)
    assert _instructions_version("alpaca").startswith("99.")


@pytest.mark.parametrize(
    ("name", "version"),
    [("alpaca", "1.c094b554b489"), ("dialogues", "1.36a120d90d50"), ("squad", "1.ac1dcecf8504")],
)
def test_versions_are_those_of_stored_results(name, version):
    assert _instructions_version(name) == version


def test_instruction_requests_are_checked():
    with pytest.raises(InputError, match="did you mean 'alpaca'"):
        _load_instructions("alpacca", 5)
    with pytest.raises(InputError, match="no instruction set 'c4'"):
        _instructions_version("c4")
    for n in (0, -1, True, 1.5):
        with pytest.raises(InputError, match="n_items is"):
            _load_instructions("alpaca", n)
