"""Every claim of the study with its verdict: what the front page and the README show."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from crosscal.paths import results_dir
from crosscal.plan.chapters import CHAPTERS
from crosscal.results.frame import Results, read_results
from crosscal_book.chapter import chapter_named
from crosscal_book.claims import FAILS, HOLDS, OPEN, Verdict
from crosscal_book.pages.freshness import read_chapter
from crosscal_book.tables import Table


@dataclass(frozen=True)
class ExecutedChapter:
    """An executed notebook: its name in the plan, its file's stem, the results it read, its parameters."""

    name: str
    stem: str
    results: Results
    parameters: dict = field(default_factory=dict)

    @property
    def number(self) -> int:
        """The chapter's number in the book."""
        return int(self.stem[:2])


def executed_chapters(book: Path) -> list[ExecutedChapter]:
    """The chapters that a book holds, in order, each with the rows it was made from.

    Raises `InputError` when the first chapter is missing, or rows that a chapter was made from.
    """
    first = CHAPTERS["perplexity"].notebook
    found = []
    for name, chapter in CHAPTERS.items():
        path = book / "chapters" / f"{chapter.notebook}.ipynb"
        if path.exists() or chapter.notebook == first:
            made = read_chapter(path)
            results = read_results(results_dir(made["parameters"]["preset"]), made["run_ids"])
            found.append(ExecutedChapter(name, chapter.notebook, results, made["parameters"]))
    return found


def chapter_verdicts(chapter: ExecutedChapter) -> list[Verdict]:
    """Return the verdicts of one chapter on its own results, with the parameters it was executed with."""
    if chapter.name == "report_card":  # answers its reader's question, not one of the papers'
        return []
    settings = CHAPTERS[chapter.name].settings(**chapter.parameters)
    return chapter_named(chapter.name).page(chapter.results, settings).verdicts()


FRONT = ("khanal2024", "williams2025")
"""The papers whose claims stand on the front page."""


def answers_tables(chapters: Sequence[ExecutedChapter]) -> tuple[Table, Table]:
    """The two papers' claims for the front page, and every claim of the book, one line each, by chapter."""
    papers, every = [], []
    for chapter in chapters:
        link = f"[chapter {chapter.number}](/chapters/{chapter.stem}.ipynb)"
        for verdict in chapter_verdicts(chapter):
            where = f"{link}, {{numref}}`{verdict.evidence}`" if verdict.evidence else link
            every.append([verdict.claim, f"**{verdict.answer}**", _sentence(verdict.effect), where])
            if verdict.paper in FRONT:
                brief = _sentence(verdict.brief or verdict.effect)
                papers.append([f"{verdict.claim} {{cite:p}}`{verdict.paper}`", f"**{verdict.answer}**", brief, where])
    head = ["claim", "verdict", "effect", "evidence"]
    return Table(head, papers, text_columns=4), Table(head, every, text_columns=4)


def tally(table: Table) -> str:
    """How many claims of a table hold, do not hold, and cannot be told.

    >>> tally(Table(["claim", "verdict"], [["a", "**holds**"], ["b", "**holds**"], ["c", "**cannot be told**"]]))
    'Of 3 claims 2 **hold**, 0 **do not hold** and 1 **cannot be told**.'
    """
    answers = [line[1].strip("*") for line in table.body]
    hold, fail, unsure = (answers.count(answer) for answer in (HOLDS, FAILS, OPEN))
    return f"Of {len(answers)} claims {hold} **hold**, {fail} **do not hold** and {unsure} **cannot be told**."


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
