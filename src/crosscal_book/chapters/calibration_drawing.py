"""Chapter 3, pieces that its figures share: rows of points, a marker per method, hollow at other sparsities."""

from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from crosscal_book.chapters.calibration_data import RANDOM, SELF, Group, name_of
from crosscal_book.style import SETTINGS, style_of


def source_name(source: str) -> str:
    """A calibration source as a reader knows it.

    >>> source_name("self"), source_name("c4")
    ('self-written', 'c4')
    """
    return "random tokens" if source == RANDOM else "self-written" if source == SELF else source


def aside(groups: Sequence[Group]) -> list[float]:
    """How far from its row each group stands, so that intervals do not cover each other."""
    step = 0.72 / max(len(groups), 2)
    return [step * (i - (len(groups) - 1) / 2) for i in range(len(groups))]


def is_open(group: Group, focus: str) -> bool:
    """Whether a group's markers are open: pruned at another sparsity than the one looked at."""
    return group[1] != focus and group[1].endswith("%")


def draw_point(axes: Axes, found, y: float, group: Group, focus: str) -> None:
    """A value with its interval, along x."""
    style = style_of(group[0])
    axes.errorbar(
        [found.value],
        [y],
        xerr=[[max(found.value - found.lo, 0)], [max(found.hi - found.value, 0)]],
        color=style.colour,
        marker=style.marker,
        markerfacecolor="white" if is_open(group, focus) else style.colour,
        elinewidth=1,
        linestyle="none",
    )


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """One name a row, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.45, -0.55)


def draw_key(canvas: Canvas, groups: Sequence[Group], focus: str) -> None:
    """Markers and names above the panels."""
    handles = []
    for group in groups:
        style, face = style_of(group[0]), "white" if is_open(group, focus) else style_of(group[0]).colour
        handles.append(
            Line2D([], [], color=style.colour, marker=style.marker, markerfacecolor=face, lw=0, label=name_of(group))
        )
    with matplotlib.rc_context(SETTINGS):
        canvas.legend(handles=handles, loc="outside upper left", ncols=4, frameon=False, handletextpad=0.2)
