"""Instructions with reference answers, from text that no calibration text holds. Standard library only."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

from crosscal.assets import asset_file
from crosscal.errors import InputError, suggest, whole_number
from crosscal.metrics.tasks.items import _task_documents
from crosscal.text import SOURCES, documents

_VERSION = 1  # rises when the same items would be asked, answered or scored differently
_MAX_INSTRUCTION_WORDS = 120
_MAX_REFERENCE_WORDS = 60
_ORDER_SEED = 0
_SQUAD_REQUEST = "Answer with a few words from the text."


@dataclass(frozen=True)
class _Instruction:
    """Hold what a model is asked, and an answer to compare with; `id` is the source and the row of its file.

    `others` are further answers that are as right; an answer's score is the best over all `references`.
    """

    id: str
    instruction: str
    reference: str
    others: tuple[str, ...] = ()

    @property
    def references(self) -> tuple[str, ...]:
        """Every right answer, `reference` first."""
        return (self.reference, *self.others)


def _load_instructions(name: str, n_items: int) -> list[_Instruction]:
    """At most `n_items` instructions of a set (`score_answers` describes them), the same random ones for every model.

    Instructions have at most 120 words and references 1 to 60. The order is fixed, so the first items of a larger
    request are those of a smaller one. The items of "squad" share no run of 12 words with any calibration text.
    """
    return list(_items(_check_name(name))[: whole_number("n_items", n_items, least=1)])


def _instructions_version(name: str) -> str:
    """What identifies the numbers of a set: a version and a digest of all items in their order."""
    lines = "\n".join(json.dumps([item.id, item.instruction, *item.references]) for item in _items(_check_name(name)))
    return f"{_VERSION}.{hashlib.sha256(lines.encode()).hexdigest()[:12]}"


@lru_cache(maxsize=4)
def _items(name: str) -> tuple[_Instruction, ...]:
    """Every item of a set, ordered by a seeded hash of its document: adding or removing others moves none."""
    return _SETS[name]()


def _held_out(name: str, pair_of: Callable[[dict], tuple[str, str] | None]) -> tuple[_Instruction, ...]:
    """The items of a text source whose documents are held out."""
    source = SOURCES[name]
    rows = json.loads(asset_file(source.archive, source.member).read_text(encoding="utf-8"))
    held_out = set(documents(name, "held_out"))
    by_text: dict[str, _Instruction] = {}
    # The reader yields one document a row, so that its text, by which the parts are told apart, is made in one place.
    for number, (row, document) in enumerate(zip(rows, source.read(), strict=True)):
        text = document.text.strip()
        pair = pair_of(row)
        if text in held_out and pair is not None and _fits(*pair):
            by_text[text] = _Instruction(f"{name}-{number}", *pair)
    return tuple(by_text[text] for text in sorted(by_text, key=_place))


def _squad() -> tuple[_Instruction, ...]:
    """One question a passage, the first in the order of the set, so that no two items share their text."""
    by_passage: dict[str, _Instruction] = {}
    for number, document in sorted(_task_documents("squad/bpb_5shot"), key=lambda row: _place(row[1]["query"])):
        passage, question = _passage_and_question(document["query"])
        asked = _joined(passage, question, _SQUAD_REQUEST)
        answers = tuple(dict.fromkeys(answer.strip() for answer in document["answers_text"]))
        if all(_fits(asked, answer) for answer in answers):
            by_passage.setdefault(passage, _Instruction(f"squad-{number}", asked, answers[0], answers[1:]))
    return tuple(by_passage.values())


def _passage_and_question(query: str) -> tuple[str, str]:
    """Both parts of a prepared document, without the title, which is no text to answer from."""
    match = re.fullmatch(r"Title: .*?\nBackground: (.*)\nQuestion: (.*)\nAnswer:", query, re.DOTALL)
    assert match, query
    return match[1].strip(), match[2].strip()


def _place(text: str) -> str:
    return hashlib.sha256(f"{_ORDER_SEED}\n{text}".encode()).hexdigest()


def _fits(instruction: str, reference: str) -> bool:
    """Whether both are short enough to be asked and compared, and neither is empty."""
    asked, wanted = len(instruction.split()), len(reference.split())
    return 1 <= asked <= _MAX_INSTRUCTION_WORDS and 1 <= wanted <= _MAX_REFERENCE_WORDS


def _alpaca_pair(row: dict) -> tuple[str, str]:
    """Instruction and output of a row."""
    return _joined(row["instruction"], row["input"]), row["output"].strip()


def _dialogue_pair(row: dict) -> tuple[str, str] | None:
    """What the user asked and the chosen answer, or None if there was a turn before."""
    turns = row["conversations"]
    if [turn["from"] for turn in turns if turn["from"] != "system"] != ["human"]:
        return None
    return _joined(*(turn["value"] for turn in turns)), row["chosen"]["value"].strip()


def _joined(*parts: str) -> str:
    return "\n\n".join(part.strip() for part in parts if part.strip())


_SETS: dict[str, Callable[[], tuple[_Instruction, ...]]] = {
    "alpaca": partial(_held_out, "alpaca", _alpaca_pair),
    "dialogues": partial(_held_out, "dialogues", _dialogue_pair),
    "squad": _squad,
}


def _check_name(name: str) -> str:
    if name not in _SETS:
        known = list(_SETS)
        raise InputError(f"there is no instruction set '{name}'{suggest(name, known)} (use {' or '.join(known)})")
    return name
