"""The numbers of a figure, read from what was drawn: points with their error bars, lines, and shaded tables."""

import csv
import io
from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator

COLUMNS = ("panel", "series", "x", "x from", "x to", "y", "y from", "y to", "value")
Row = tuple[object, ...]


def drawn_data(canvas: Canvas, names: dict[str, str]) -> str:
    """A figure's numbers as CSV, one line a point; `names` gives the series of a colour where it has no label.

    Where an axis has names in place of numbers, so have the points.

    >>> from matplotlib.figure import Figure
    >>> canvas = Figure()
    >>> _ = canvas.subplots().errorbar([1], [2.5], yerr=[[0.5], [1.0]], color="#0067A5")
    >>> print(drawn_data(canvas, {"#0067a5": "Wanda"}), end="")
    panel,series,x,x from,x to,y,y from,y to,value
    ,Wanda,1,,,2.5,2,3.5,
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for number, axes in enumerate(canvas.axes, start=1):
        panel = axes.get_title() or axes.get_title(loc="left") or (str(number) if len(canvas.axes) > 1 else "")
        for row in _rows(axes, names):
            writer.writerow([" ".join(panel.split()), *row])
    return text.getvalue()


def _rows(axes: Axes, names: dict[str, str]) -> Iterator[Row]:
    """Error bars first, then the lines and pictures that are no part of them."""
    within: set[Line2D] = set()
    for container in (c for c in axes.containers if isinstance(c, ErrorbarContainer)):
        line, caps, bars = container
        within |= {line, *caps}
        if line is not None:
            yield from _with_bars(axes, line, bars, _series(line, names, str(container.get_label())))
    for line in axes.lines:
        if line not in within and line.get_transform() == axes.transData:  # others span the axes: they mark a level
            yield from _with_bars(axes, line, (), _series(line, names, ""))
    for image in axes.images:
        values = np.ma.filled(np.ma.asarray(image.get_array(), dtype=float), np.nan)
        if values.ndim == 2:
            for (y, x), value in np.ndenumerate(values):
                yield ("", _named(axes, "x", x), "", "", _named(axes, "y", y), "", "", _plain(value))


def _with_bars(axes: Axes, line: Line2D, bars: tuple[LineCollection, ...], series: str) -> Iterator[Row]:
    xs, ys = (np.asarray(part, dtype=float) for part in line.get_data())
    ends = {direction: [("", "")] * len(xs) for direction in "xy"}
    for collection in bars:
        segments = [np.asarray(segment) for segment in collection.get_segments()]
        if len(segments) == len(xs):
            across = 0 if all(len({point[1] for point in segment}) == 1 for segment in segments) else 1
            ends["xy"[across]] = [(_plain(s[:, across].min()), _plain(s[:, across].max())) for s in segments]
    for x, y, x_ends, y_ends in zip(xs, ys, ends["x"], ends["y"], strict=True):
        yield (series, _named(axes, "x", x), *x_ends, _named(axes, "y", y), *y_ends, "")


def _series(line: Line2D, names: dict[str, str], label: str) -> str:
    """What a line stands for: its label, else the name of its colour."""
    found = label if label and not label.startswith("_") else str(line.get_label())
    return " ".join(found.split()) if not found.startswith("_") else names.get(to_hex(line.get_color()), "")


def _named(axes: Axes, direction: str, position: float) -> str:
    """The name at a position where somebody put names along the axis, else the number."""
    axis = axes.xaxis if direction == "x" else axes.yaxis
    if isinstance(axis.get_major_locator(), FixedLocator):
        ticks, labels = axis.get_majorticklocs(), [label.get_text() for label in axis.get_ticklabels()]
        for tick, label in zip(ticks, labels, strict=False):
            if abs(tick - position) < 0.5 and label and not label.replace(".", "").lstrip("−-").isdigit():
                return " ".join(label.split())
    return _plain(position)


def _plain(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6g}"
