"""A chapter: its claims, figures and tables by name, and the page that shows them for some results and settings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd

from crosscal.paths import results_dir
from crosscal.plan.parameters import Settings
from crosscal.results.frame import DENSE, Results, version_line
from crosscal.stats import LEVEL, holm
from crosscal_book.claims import FACTS, Claim, Comparison, Rule, Verdict, select
from crosscal_book.drawing import Axis, Drawing
from crosscal_book.marks import forest
from crosscal_book.style import Figure
from crosscal_book.tables import Table
from crosscal_book.words import listing

MANY_COMMITS = 3  # more commits than these are counted, not listed


@dataclass(frozen=True)
class _Text:
    """Markdown that a notebook shows as such; a stamp brings the ids of its runs, for the freshness check."""

    markdown: str
    run_ids: Sequence[str] = ()

    def __str__(self) -> str:
        return self.markdown

    def _repr_mimebundle_(self, include=None, exclude=None):
        ids = {"crosscal": {"run_ids": list(self.run_ids)}} if self.run_ids else {}
        return {"text/markdown": self.markdown, "text/plain": self.markdown}, ids


class Chapter:
    """What a chapter claims and shows, by name; `page` binds it to results.

    `note` follows the verdicts at the chapter's opening. `prepare` narrows the results, by default to what all runs
    were evaluated on.
    """

    def __init__(
        self,
        name: str,
        note: str | Callable = "",
        prepare: Callable[[Results, Settings], Results] = lambda results, _: results.common(),
    ):
        self.name, self.note, self.prepare = name, note, prepare
        self.claims: dict[str, Claim] = {}
        self.figures: dict[str, Callable] = {}
        self.tables: dict[str, Callable] = {}

    def claim(self, name: str, sentence: str, rows: Callable | Comparison, rule: Rule, **fields) -> None:
        """Add a claim.

        `rows` are its comparisons: `compare(...)`, or a function of the page that returns them. Fields:
        `on`, the quantity (that of the comparison); `write` and `lead`, how values are written and introduced if not
        as usual; `family`, the claims that Holm's correction runs over together
        (itself alone); `evidence`, the figure that shows it; `paper`, the key of the paper that makes the claim (none:
        it is our own); `says` and `brief`, its effect and short effect in its own words; `missing`, what to say
        without rows; `each`, a column: one verdict for each of its values, the sentence's fields filled from the rows,
        or `otherwise` without rows.
        """
        if name in self.claims:
            raise ValueError(f"chapter {self.name} has two claims named {name}")
        fields.setdefault("on", getattr(rows, "on", fields.get("on")))
        self.claims[name] = Claim(name, sentence, rows, rule, **{k: v for k, v in fields.items() if v is not None})

    def figure(self, name: str) -> Callable:
        """Add the decorated function of the page as a figure: it returns a drawing, caption and alternative text.

        Where there is nothing to draw it returns a sentence that says why.
        """
        return lambda function: self.figures.setdefault(name, function)

    def table(self, name: str) -> Callable:
        """Add the decorated function of the page as a table: it returns a `Table` or Markdown."""
        return lambda function: self.tables.setdefault(name, function)

    def page(self, results: Results, settings: Settings | None = None, folder: Path | None = None) -> "Page":
        """Return the chapter on some results; `folder` is where they are stored, that of the preset unless given."""
        settings = settings or Settings()
        return Page(self, results, settings, folder or results_dir(settings.preset))


@dataclass(frozen=True, eq=False)
class Page:
    """A chapter on some results. `every` is all of them, `results` what the chapter compares; equal only to itself."""

    chapter: Chapter
    every: Results
    settings: Any
    folder: Path

    @cached_property
    def results(self) -> Results:
        """The results narrowed by the chapter's `prepare`."""
        return self.chapter.prepare(self.every, self.settings)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One line per compressed run (`Results.runs`)."""
        runs = self.results.runs
        return runs[runs["method"] != DENSE].reset_index(drop=True)

    @cached_property
    def _rows(self) -> dict[str, pd.DataFrame]:
        """The rows of every claim, corrected over its family."""
        families: dict[str, list[str]] = {}
        for claim in self.chapter.claims.values():
            if claim.when(self):
                families.setdefault(claim.family or claim.name, []).append(claim.name)
        rows: dict[str, pd.DataFrame] = {}
        for names in families.values():
            raw = [self.chapter.claims[name].rows(self) for name in names]
            rows |= dict(zip(names, _corrected(raw), strict=True))
        return {name: rows[name] for name in self.chapter.claims if name in rows}

    def select(self, **equal: object) -> pd.DataFrame:
        """Return the compressed runs whose columns have these values, or one of a tuple of values."""
        return select(self.runs, equal)

    def _named(self, patterns: Sequence[str]) -> list[str]:
        """The claims whose name or family fits one of some patterns."""
        claims = self.chapter.claims
        return [n for n in self._rows if any(fnmatchcase(n, p) or claims[n].family == p for p in patterns)]

    def rows(self, *patterns: str) -> pd.DataFrame:
        """Return the comparisons of the claims of a name or family, or of names such as `"gptq-*"`."""
        names = self._named(patterns)
        rows = [self._rows[name].assign(claim=name) for name in names if len(self._rows[name])]
        whole = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()
        return whole.drop(columns=["first", "second"], errors="ignore")

    def forest(
        self, *patterns: str, label: str = "perplexity, first to second (below 1×: the first is better)"
    ) -> Drawing:
        """Return the comparisons of some claims as a forest of ratios: filled where significant."""
        rows = self.rows(*patterns).drop(columns="method")
        columns = [*FACTS, "other", "claim", "name", "value", "lo", "hi", "n", "p", "p_holm"]
        axis = Axis(label, 10, suffix="×", lines={"": 1.0})
        return forest(rows[[c for c in columns if c in rows]], axis, hollow=rows["p_holm"] >= LEVEL)

    def verdicts(self, *patterns: str) -> list[Verdict]:
        """Return the verdicts on all claims, or those of a name or family, or of names such as `"gptq-*"`."""
        named = [(self.chapter.claims[name], self._rows[name]) for name in self._named(patterns or ("*",))]
        return [verdict for claim, rows in named for verdict in claim.verdicts(rows, self)]

    def takeaways(self) -> _Text:
        """Return the opening of the chapter: one line per claim, linked to its evidence, then the chapter's note.

        The link is plain Markdown, which reads well in Jupyter too; roles would only be understood by the book.
        """
        note = self.chapter.note(self) if callable(self.chapter.note) else self.chapter.note
        lines = [
            f"- {v.claim}: **{v.answer}**. {v.effect[0].upper()}{v.effect[1:]}"
            + (f" ([evidence](#{v.evidence}))." if v.evidence else ".")
            for v in self.verdicts()
        ]
        parts = ["**Takeaways**", "\n".join(lines), *([note] if isinstance(note, str) else note)]
        return _Text("\n\n".join(filter(None, parts)) + "\n")

    def figure(self, name: str) -> Figure:
        """Return a figure by its name."""
        made = self.chapter.figures[name](self)
        if isinstance(made, str):
            return Drawing.sentence(made).finish(name, made, made)
        drawing, caption, alt = made
        return drawing.finish(name, caption, alt)

    def table(self, name: str) -> Table | _Text:
        """Return a table by its name."""
        made = self.chapter.tables[name](self)
        return _Text(made) if isinstance(made, str) else made

    def stamp(self, planned: int | None = None) -> _Text:
        """Return the line that says where the page's numbers come from, and how many runs were `planned`."""
        return stamp(self.every, planned)


def _corrected(family: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """The rows of some claims with Holm's correction over all of them, of each kind of p-value they have."""
    family = [rows.copy() for rows in family]
    for name in ("p", "p_yes", "p_no"):
        having = [rows for rows in family if name in rows and f"{name}_holm" not in rows]
        adjusted = iter(holm([p for rows in having for p in rows[name]]))
        for rows in having:
            rows[f"{name}_holm"] = [next(adjusted) for _ in range(len(rows))]
    return family


def stamp(results: Results, planned: int | None = None) -> _Text:
    """Return preset, model, machine, commit and versions of the runs behind a page, and how many of those `planned`."""
    rows = results.rows
    parts = []
    for name, column in (("Preset", "preset"), ("model", "model"), ("machine", "device"), ("commit", "commit")):
        values = sorted(rows[column].unique())
        many = column == "commit" and len(values) > MANY_COMMITS
        parts.append(
            f"{len(values)} commits, listed by run on the status page" if many else f"{name} {listing(values)}"
        )
    count, dense = len(results.run_ids), rows[rows["method"] == DENSE]
    runs = f"{count} runs" if planned in (None, count) else f"{count} of {planned} planned runs"
    items = sorted(set(dense.loc[dense["unit"] == "fraction of items", "n"]))
    size = f", {' to '.join(str(end) for end in dict.fromkeys((items[0], items[-1])))} items a task" if items else ""
    return _Text(f"*{'; '.join(parts)}; {version_line(rows)}; {runs}{size}.*\n", results.run_ids)


def chapter_named(name: str) -> Chapter:
    """Return the chapter of a name in the plan."""
    return import_module(f"crosscal_book.chapters.{name}").CHAPTER
