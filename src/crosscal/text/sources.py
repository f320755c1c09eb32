"""The embedded text sources: what sources.toml says of each, with the reader that makes documents of its rows.

A source whose text is one field of its rows is added there alone; any other has a reader here. Standard library only.
"""

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from crosscal.assets import asset_file
from crosscal.text.fields import _Document, _instruction_text
from crosscal.text.own import _read_json_lines

_Reader = Callable[[Iterable], Iterator[str | _Document]]

_PUBMED_CALIBRATION_ROWS = range(500)
LEGAL_CALIBRATION_ROWS = range(434)
# Rows of the legal held-out half whose raw text shares more than 30 runs of 20 words with the calibration half.
LEGAL_SHARED_ROWS = frozenset({437, 543, 548, 597, 601, 684, 734, 774, 776, 793, 800})
# Articles of which a BoolQ passage also stands in another source (a Wikipedia article, a dialogue).
_ENCYCLOPAEDIC_SHARED_TITLES = frozenset({"An American in Paris", "Jaws (ride)"})
_TASK_COPIES_FROM = 1_000_000  # document numbers from here on are copies without context


@dataclass(frozen=True)
class _Source:
    """One named source of documents: `reader` makes them of the rows of `member`, a file of `archive`.

    A reader yields texts, or documents where something else than the whole text decides the part. A member
    `{a,b}.jsonl` is two files, read one after the other. `share` is the fraction of documents, chosen by a
    hash of each, that goes to calibration (0 where the reader fixes the parts instead). `tokens` counts SmolLM2 tokens
    in (calibration, held-out), an end token per document included.
    """

    name: str
    role: str
    title: str
    archive: str
    member: str
    share: float
    split_rule: str
    licence: str
    attribution: str
    tokens: tuple[int, int]
    reader: _Reader

    def read(self) -> Iterator[_Document]:
        """Yield the documents, in the order of the file."""
        braces = re.search(r"\{(.*)\}", self.member)
        members = [self.member.replace(braces[0], part) for part in braces[1].split(",")] if braces else [self.member]
        rows = (row for member in members for row in _rows(asset_file(self.archive, member)))
        for item in self.reader(rows):
            yield _Document(item, item) if isinstance(item, str) else item


def _rows(path: Path) -> Iterable:
    """Objects of JSON lines or of a JSON list, or the lines of a text."""
    if path.suffix in (".jsonl", ".gz"):
        return _read_json_lines(path)
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else text.splitlines()


def _task_rows(rows: Iterable[dict]) -> Iterator[tuple[int, dict]]:
    """`(number, document)` of a prepared benchmark, each once: the file repeats a document for every option."""
    seen = set()
    for row in rows:
        if row["doc_id"] < _TASK_COPIES_FROM and row["doc_id"] not in seen:
            seen.add(row["doc_id"])
            yield row["doc_id"], row["doc"]


def _encyclopaedic(rows: Iterable[dict]) -> Iterator[_Document]:
    """Passages read "Title -- text"; the title keeps an article in one split."""
    for row in rows:
        title, _, text = row["passage"].partition(" -- ")
        if title not in _ENCYCLOPAEDIC_SHARED_TITLES:
            yield _Document(text, title)


def _alpaca(rows: Iterable[dict]) -> Iterator[str]:
    return (_instruction_text(row["instruction"], row["input"], row["output"]) for row in rows)


def _dialogues(rows: Iterable[dict]) -> Iterator[str]:
    """The turns with their speakers, ending in the chosen answer."""
    speakers = {"human": "User", "gpt": "Assistant", "system": "System"}
    for row in rows:
        turns = [*row["conversations"], row["chosen"]]
        yield "\n\n".join(f"{speakers[turn['from']]}: {turn['value'].strip()}" for turn in turns)


def _halves(texts: Iterable[str], calibration: range, without: frozenset[int] = frozenset()) -> Iterator[_Document]:
    """Documents whose part follows from their row."""
    for number, text in enumerate(texts):
        if number not in without:
            yield _Document(text, text, "calibration" if number in calibration else "held_out")


def _pubmed(rows: Iterable[dict]) -> Iterator[_Document]:
    return _halves((_clean_abstract(row["passage"]) for row in rows), _PUBMED_CALIBRATION_ROWS)


def _clean_abstract(passage: str) -> str:
    """A PubMedQA passage without the labels of its sections."""
    return re.sub(r"^Context \(\d+\):[ \t]*", "", passage, flags=re.MULTILINE)


def _bioasq(rows: Iterable[dict]) -> Iterator[str]:
    """Snippets of abstracts, one a line; many answer several questions, so a line counts where it stands first."""
    seen: set[str] = set()
    for _, row in _task_rows(rows):
        if not row["id"].startswith("bioasq"):
            continue
        lines = [line for line in dict.fromkeys(row["context"].splitlines()) if line.strip() and line not in seen]
        seen.update(lines)
        yield "\n".join(lines)


def _legal(rows: Iterable[dict]) -> Iterator[_Document]:
    return _halves((_clean_legal(row["document"]) for row in rows), LEGAL_CALIBRATION_ROWS, LEGAL_SHARED_ROWS)


def _clean_legal(text: str) -> str:
    """A case document without its link tags; the linked words stay."""
    return re.sub(r"</?a\b[^>]*>", "", text)


def _papers(rows: Iterable[dict]) -> Iterator[_Document]:
    """Sections and their paragraphs; leftovers of the typesetting such as "1.1em" are dropped."""
    for _, row in _task_rows(rows):
        sections = row["full_text"]["paragraphs"]
        kept = ["\n".join(p for p in section if not re.fullmatch(r"[\d.]+em", p)) for section in sections]
        text = "\n\n".join(section for section in kept if section.strip())
        yield _Document(text, row["title"])


_READERS: dict[str, _Reader] = {
    "wikipedia": iter,  # an article a line
    "encyclopaedic": _encyclopaedic,
    "alpaca": _alpaca,
    "dialogues": _dialogues,
    "pubmed": _pubmed,
    "bioasq": _bioasq,
    "legal": _legal,
    "papers": _papers,
}


def _source(name: str, tokens: list[int], field: str = "", **entry) -> _Source:
    reader = _READERS[name] if not field else lambda rows: (row[field] for row in rows)
    return _Source(name, tokens=(tokens[0], tokens[1]), reader=reader, **entry)


_ENTRIES = tomllib.loads(Path(__file__).with_name("sources.toml").read_text(encoding="utf-8"))

SOURCES: dict[str, _Source] = {name: _source(name, **entry) for name, entry in _ENTRIES.items()}
"""Every embedded source by name."""
