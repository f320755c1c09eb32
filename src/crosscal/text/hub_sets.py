"""The data sets of the two papers on the hub: files, parts, and how a row becomes text. Standard library only."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from crosscal.text.readers import instruction_text

Row = dict
Texts = Callable[[Iterable[Row]], Iterator[str]]


def _field(name: str) -> Texts:
    return lambda rows: (row[name] for row in rows)


def _articles(rows: Iterable[Row]) -> Iterator[str]:
    """WikiText has one paragraph a row; a heading of the first level, ` = Title = `, opens an article."""
    article: list[str] = []
    for line in (row["text"] for row in rows):
        if line.startswith(" = ") and not line.startswith(" = =") and article:
            yield "".join(article)
            article = []
        article.append(line)
    yield "".join(article)


def _holdings(rows: Iterable[Row]) -> Iterator[str]:
    """CaseHOLD: the citing text (column 0) with its right holding (columns 1 to 5, number in column 11) put in."""
    for row in rows:
        yield str(row["0"]).replace("<HOLDING>", str(row[str(1 + int(row["11"]))]))


def _instructions(rows: Iterable[Row]) -> Iterator[str]:
    return (instruction_text(row["instruction"], row["input"], row["output"]) for row in rows)


def _abstracts(rows: Iterable[Row]) -> Iterator[str]:
    return ("\n".join(row["context"]["contexts"]) for row in rows)


@dataclass(frozen=True)
class HubFiles:
    """Files of a known data set, by part; an empty `held_out` means that documents are split by a hash of each."""

    kind: Literal["json", "csv", "parquet"]
    calibration: tuple[str, ...]
    held_out: tuple[str, ...]
    texts: Texts
    large: bool = False  # streamed, not downloaded


_REDPAJAMA = tuple(
    f"{part}_sample.jsonl"
    for part in (
        *("arxiv", "book", "c4", "cc_2019-30", "cc_2020-05", "cc_2021-04", "cc_2022-05", "cc_2023-06"),
        *("github", "stackexchange", "wikipedia"),
    )
)

KNOWN: dict[str, HubFiles] = {
    "allenai/c4": HubFiles(
        "json",
        ("en/c4-train.00000-of-01024.json.gz",),
        ("en/c4-validation.00000-of-00008.json.gz",),
        _field("text"),
        large=True,
    ),
    "Salesforce/wikitext": HubFiles(
        "parquet",
        ("wikitext-2-raw-v1/train-00000-of-00001.parquet",),
        ("wikitext-2-raw-v1/test-00000-of-00001.parquet",),
        _articles,
    ),
    "tatsu-lab/alpaca": HubFiles("parquet", ("data/train-00000-of-00001-a09b74b3ef9c3b56.parquet",), (), _instructions),
    # Its files are read side by side, a row each in turn, so six of eleven documents are web pages.
    "togethercomputer/RedPajama-Data-1T-Sample": HubFiles("json", _REDPAJAMA, (), _field("text"), large=True),
    "qiaojin/PubMedQA": HubFiles(
        "parquet",
        ("pqa_artificial/train-00000-of-00001.parquet",),
        ("pqa_labeled/train-00000-of-00001.parquet",),
        _abstracts,
    ),
    "FiscalNote/billsum": HubFiles(
        "parquet", ("data/train-00000-of-00001.parquet",), ("data/test-00000-of-00001.parquet",), _field("text")
    ),
    "casehold/casehold": HubFiles("csv", ("data/all/train.csv",), ("data/all/test.csv",), _holdings),
}
