"""Marks that the chapter's figures share: rows of intervals, plain figures with a sentence, names."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from crosscal.stats import Estimate
from crosscal_book.chapters.cross_paired import to_percent
from crosscal_book.style import style_of


@dataclass(frozen=True)
class Mark:
    """One row of a figure: its label, the method whose colour it has, and gains in log perplexity, one per column.

    `summary` rows are means over others, drawn as grey diamonds with bold labels.
    """

    label: str
    method: str
    gains: Sequence[Estimate]
    summary: bool = False


def draw_marks(grid: Sequence[Axes], marks: Sequence[Mark], margin: float) -> None:
    """Rows of changes of perplexity in per cent with intervals, a column of `gains` per panel; labels on the first."""
    heights = range(len(marks), 0, -1)
    for column, axes in enumerate(grid):
        axes.axvline(0, color="#333333", linewidth=1)
        axes.axvspan(to_percent(margin), to_percent(-margin), color="#d9c36a", alpha=0.3, linewidth=0)
        for mark, height in zip(marks, heights, strict=True):
            value, lo, hi = (to_percent(getattr(mark.gains[column], name)) for name in ("value", "hi", "lo"))
            style = style_of(mark.method)
            axes.errorbar(
                value,
                height,
                xerr=[[max(value - lo, 0.0)], [max(hi - value, 0.0)]],
                color="#333333" if mark.summary else style.colour,
                marker="D" if mark.summary else style.marker,
                elinewidth=1.2,
                capsize=2,
            )
        axes.set_ylim(0.4, len(marks) + 0.6)
        axes.set_yticks(list(heights), [mark.label for mark in marks] if column == 0 else [""] * len(marks))
        axes.tick_params(labelsize=8.5)
        axes.grid(visible=False, axis="y")
    for mark, label in zip(marks, grid[0].get_yticklabels(), strict=True):
        label.set_fontweight("bold" if mark.summary else "normal")


def slug(name: str) -> str:
    """A name as part of a label.

    >>> slug("org/Model 1.5B")
    'org-model-1-5b'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
