"""Verdicts on claims, text that a notebook shows, and the line that says where a page's numbers come from."""

from collections.abc import Sequence
from dataclasses import dataclass

from crosscal.results.frame import Results, version_line
from crosscal_book.words import listing

HOLDS, FAILS, OPEN = "holds", "does not hold", "cannot be told"


MANY = 3  # more commits than these are counted, not listed


@dataclass(frozen=True)
class Verdict:
    """A claim's answer here: `holds`, `does not hold` or `cannot be told`, and the sentence that says why.

    `effect` has its interval in it; `evidence` is the name of the figure or table that shows it; `brief` is the effect
    alone, without how it was tested, for the front page.
    """

    claim: str
    answer: str
    effect: str
    evidence: str = ""
    brief: str = ""


@dataclass(frozen=True)
class Text:
    """Markdown that a notebook shows as such."""

    markdown: str

    def __str__(self) -> str:
        return self.markdown

    def _repr_markdown_(self) -> str:
        return self.markdown


def takeaway_text(verdicts: Sequence[Verdict], *more: str) -> Text:
    """The opening of a chapter: one line per claim, its verdict and effect, linked to its evidence; then more text.

    The link is plain Markdown, which reads well in Jupyter too; roles would only be understood by the book.
    """
    lines = [
        f"- {verdict.claim}: **{verdict.answer}**. {verdict.effect[0].upper()}{verdict.effect[1:]}"
        + (f" ([evidence](#{verdict.evidence}))." if verdict.evidence else ".")
        for verdict in verdicts
    ]
    return Text("\n\n".join(["**Takeaways**", "\n".join(lines), *(part for part in more if part)]) + "\n")


@dataclass(frozen=True)
class Stamp:
    """Where a page's numbers come from: a line for the reader, and the run ids for the freshness check."""

    markdown: str
    run_ids: list[str]

    def __str__(self) -> str:
        return self.markdown

    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"text/markdown": self.markdown, "text/plain": self.markdown}, {"crosscal": {"run_ids": self.run_ids}}


def stamp(results: Results, planned: int | None = None) -> Stamp:
    """Preset, model, machine, commit and versions of the runs behind a page, and how many of those `planned`."""
    rows = results.rows
    made = [("Preset", "preset"), ("model", "model"), ("machine", "device"), ("commit", "commit")]
    values = {name: sorted(rows[column].unique()) for name, column in made}
    parts = [f"{name} {listing(found)}" for name, found in values.items() if len(found) <= MANY or name != "commit"]
    if len(values["commit"]) > MANY:
        parts.append(f"{len(values['commit'])} commits, listed by run on the status page")
    count, dense = len(results.run_ids), rows[rows["method"] == "dense"]
    runs = f"{count} runs" if planned in (None, count) else f"{count} of {planned} planned runs"
    items = dense.loc[dense["unit"] == "fraction of items", "n"]
    span = f"{items.min()}" if len(items) and items.min() == items.max() else f"{items.min()} to {items.max()}"
    size = f", {span} items a task" if len(items) else ""
    text = f"*{'; '.join(parts)}; {version_line(rows)}; {runs}{size}.*\n"
    return Stamp(text, results.run_ids)
