"""What marks are drawn on: axes described as data, panels of a frame's lines, and the numbers below as CSV."""

import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from itertools import product
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from crosscal_book.style import Figure, MethodStyle, style_of

DARK, GREY, SHADE, CHANCE = "#333333", "#555555", "#d9c36a", "#767676"
DASHED = ("chance", "guessing")
ONE = MethodStyle("", DARK, "o")  # the look of a frame without series
FINE = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1]
FINE += [1.02, 1.05, 1.1, 1.2, 1.3, 1.5, 2, 2.5, 3, 4, 5, 6, 8]
SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "lines.markersize": 5,
    "lines.linewidth": 1.6,
    "svg.fonttype": "path",
}
MEANINGS = {
    "run_id": "stored run",
    "other": "stored run that it is compared with",
    "weight": "weight of the last calibration text",
    "lo": "lower end of the 95 % interval of value",
    "hi": "upper end of the 95 % interval of value",
    "n": "windows or items behind value",
    "p": "p-value of no difference",
    "p_holm": "p-value, Holm-corrected",
}
ORDER = ("run_id", "other", "method", "target", "calibration", "weight", "facet", "panel", "series", "name")
ORDER += ("x", "x_lo", "x_hi", "value", "lo", "hi", "n", "p", "p_holm", "unit")


@dataclass(frozen=True)
class Axis:
    """What an axis shows: label, base of its logarithm (0: linear), ticks and what follows them, limits, level marks.

    Limits that are None follow the data. `lines` are named levels (those of `DASHED` are dashed), `band` is shaded.
    """

    label: str = ""
    log: int = 0
    ticks: Sequence[float] = ()
    suffix: str = ""
    limits: tuple[float | None, float | None] = (None, None)
    reverse: bool = False
    lines: Mapping[str, float] = field(default_factory=dict)
    band: tuple[float, float] | None = None

    def scale(self, axes: Axes, side: str) -> None:
        """Make the side of some axes logarithmic, where it is to be."""
        if self.log:
            getattr(axes, f"set_{side}scale")("log", base=self.log)

    def draw_levels(self, axes: Axes, side: str) -> None:
        """Draw the named levels and the shaded band."""
        draw_line, draw_band = (axes.axvline, axes.axvspan) if side == "x" else (axes.axhline, axes.axhspan)
        for name, place in self.lines.items():
            dashed = name in DASHED
            draw_line(place, color=CHANCE if name else DARK, linewidth=1, linestyle="--" if dashed else "-", zorder=1)
            spot, shift, end = ((0.02 if dashed else 0.99, place), (0, 2), "left" if dashed else "right")
            within = ("axes fraction", "data")
            if side == "x":
                spot, shift, end, within = (place, 1), (0, 3), "center", ("data", "axes fraction")
            look: dict[str, Any] = {"textcoords": "offset points", "color": GREY, "fontsize": 8, "ha": end}
            axes.annotate(name, spot, shift, xycoords=within, **look)
        if self.band:
            draw_band(*self.band, color=SHADE, alpha=0.35, linewidth=0, zorder=0)


Axes_ = Axis | Mapping[str, Axis]


@dataclass(frozen=True)
class Drawing:
    """A canvas, the frame that was drawn on it, and what the frame's columns mean."""

    canvas: Canvas
    frame: pd.DataFrame
    about: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def sentence(cls, words: str) -> "Drawing":
        """Return what stands where there is nothing to draw: the sentence that says why."""
        canvas, (axes,) = open_canvas(1, 1, (6.4, 0.9))
        axes.set_axis_off()
        axes.text(0, 0.5, textwrap.fill(words, 80), va="center")
        return cls(canvas, pd.DataFrame())

    def meaning(self, **texts: str) -> "Drawing":
        """Return the drawing with other meanings of some columns, such as what an interval is of."""
        return replace(self, about={**self.about, **texts})

    def finish(self, name: str, caption: str, alt: str) -> Figure:
        """Return the figure: SVG, words, and the frame as CSV below lines that say what its columns mean."""
        frame = self.frame[[c for c in ORDER if c in self.frame] + [c for c in self.frame if c not in ORDER]]
        head = "".join(f"# {c}: {text}\n" for c, text in {**MEANINGS, **self.about}.items() if c in frame)
        csv = "" if frame.empty else head + frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        return Figure(name, _svg(self.canvas, name, alt), caption, alt, csv, self.frame)


def _svg(canvas: Canvas, name: str, alt: str) -> str:
    """A canvas as SVG that is the same, byte for byte, whenever the same thing is drawn."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, **SETTINGS}):
        canvas.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight")
    title = f'<title id="{name}-title">{escape(alt, quote=False)}</title>'
    before, tag, after = re.split(r"(<svg [^>]*)>", buffer.getvalue(), maxsplit=1)
    svg = f'{before}{tag} role="img" aria-labelledby="{name}-title">\n {title}{after}'
    svg = re.sub(r' (d|x|y)="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), svg)  # 0.01 pt is plenty
    return "\n".join(line.strip() for line in svg.splitlines()) + "\n"


def open_canvas(rows: int, columns: int, size: tuple[float, float], **share) -> tuple[Canvas, list[Axes]]:
    """Return an empty canvas with a grid of axes, row by row."""
    with matplotlib.rc_context(SETTINGS):
        canvas = Canvas(figsize=size, layout="constrained")
        return canvas, list(canvas.subplots(rows, columns, squeeze=False, **share).flat)


class Panels:
    """The lines of a frame by facet (rows of panels) and panel (columns, or `columns` of them without facets).

    `lines` is the frame with columns that no reader gets: `_facet`, `_panel`, `_series`, `_hollow`, `_label`.
    `order` names the series in the order of their looks (methods: the book's order), others as they come. Once the
    canvas is open, `grid` holds (facet, panel, axes, lines) of all panels that have lines.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        series: str,
        looks: Mapping[str, MethodStyle],
        columns: int,
        hollow: pd.Series | None,
        labels: pd.Series | None,
    ):
        self.frame, self.looks = frame.reset_index(drop=True), looks
        sources = {"_facet": "facet", "_panel": "panel", "_series": series}
        own = {name: self.frame[of].astype(str) if of in frame else "" for name, of in sources.items()}
        own |= {"_hollow": False if hollow is None else np.asarray(hollow)}
        own |= {"_label": "" if labels is None else np.asarray(labels)}
        self.lines = self.frame.assign(**own)
        self.facets, self.panels, names = (list(dict.fromkeys(self.lines[name])) or [""] for name in sources)
        self.order = [name for name in looks if name in names] + [name for name in names if name not in looks]
        self.columns = len(self.panels) if "facet" in frame else columns or len(self.panels)
        self.rows = len(self.facets) if "facet" in frame else -(-len(self.panels) // self.columns)
        self.grid: list[tuple[str, str, Axes, pd.DataFrame]] = []

    def open(self, size: tuple[float, float], title: str | None, **share) -> None:
        """Open the canvas, with titles of panels.

        A `title` of None names facet and panel, one of "edges" facets in the first column and panels in the first row.
        """
        self.size = size
        self.canvas, cells = open_canvas(self.rows, self.columns, size, **share)
        for axes, (facet, panel) in zip(cells, product(self.facets, self.panels), strict=False):
            lines = self.lines[(self.lines["_facet"] == facet) & (self.lines["_panel"] == panel)]
            if lines.empty:
                continue
            self.grid.append((facet, panel, axes, lines))
            edges = f"{facet * (panel == self.panels[0])}\n{panel * (facet == self.facets[0])}".rstrip("\n")
            text = ", ".join(filter(None, (facet, panel))) if title is None else edges if title == "edges" else title
            rows = text.format(facet=facet, panel=panel).split("\n")
            wrapped = [textwrap.fill(row, int(13 * size[0] / self.columns)) for row in rows]
            words = "\n".join(wrapped).replace("$", r"\$")  # a pair of dollars would be a formula
            axes.set_title(words, loc="left", fontsize=9.5)
        for axes in cells:
            axes.set_visible(axes in [used for _, _, used, _ in self.grid])

    @staticmethod
    def axis(axis: Axes_, panel: str) -> Axis:
        """Return the axis of a panel."""
        return axis if isinstance(axis, Axis) else axis[panel]

    def apart(self, span: float) -> dict[str, float]:
        """Return offsets of series that share a place, so that their intervals stand beside each other."""
        step = span / max(len(self.order), 2)
        return {name: step * (number - (len(self.order) - 1) / 2) for number, name in enumerate(self.order)}

    def look(self, name: str) -> MethodStyle:
        """Return how a series is named and drawn."""
        return self.looks[name] if name in self.looks else style_of(name) if name else ONE

    def finish(self, x: Axes_, y: Axes_ | None, keep_ticks: bool = False) -> None:
        """Draw levels, then set limits, ticks and labels of all panels, once all data are drawn: panels may share them.

        Labels are those of each panel, or of the whole figure where panels share them.
        """
        for side, axis in (("y", y), ("x", x)):
            if axis is None:
                continue
            for _, panel, axes, _ in self.grid:
                self.axis(axis, panel).draw_levels(axes, side)
            for _, panel, axes, _ in self.grid:
                self._set_ticks(axes, self.axis(axis, panel), side, keep_ticks and side == "x")
        for side, axis in (("x", x), ("y", y)):
            if isinstance(axis, Axis) and len(self.grid) > 1:
                getattr(self.canvas, f"sup{side}label")(axis.label, fontsize=10)
            elif axis is not None:
                for _, panel, axes, _ in self.grid:
                    getattr(axes, f"set_{side}label")(self.axis(axis, panel).label)

    def _set_ticks(self, axes: Axes, axis: Axis, side: str, keep_ticks: bool) -> None:
        """Limits, those given and those of the data, and ticks."""
        now = sorted(axes.get_xlim() if side == "x" else axes.get_ylim())
        low, high = (one if one is not None else end for one, end in zip(axis.limits, now, strict=True))
        getattr(axes, f"set_{side}lim")(*((high, low) if axis.reverse else (low, high)))
        if not keep_ticks and (axis.ticks or axis.log):
            ticks = [t for t in axis.ticks if low <= t <= high] or _log_ticks(low, high, self._gap(side, low < 0.01))
            own = axes.xaxis if side == "x" else axes.yaxis
            own.set_major_locator(FixedLocator(ticks))
            own.set_minor_locator(NullLocator())
            own.set_major_formatter(
                FuncFormatter(lambda value, _: f"{value:,g}{axis.suffix}" if value >= 1e-3 else f"{value:g}")
            )

    def _gap(self, side: str, long: bool) -> float:
        """The share of an axis that a tick's number takes: across by its digits, upwards by a line of text."""
        width, height = self.size
        across, upwards = 0.085 * (7 if long else 5) / (0.75 * width / self.columns), 0.25 * self.rows / height
        return max(0.1, across if side == "x" else upwards)

    def key(self) -> None:
        """Draw markers and names of the series above the panels; open markers where all points are `_hollow`."""
        handles = []
        for name in self.order:
            style, own = self.look(name), self.lines[self.lines["_series"] == name]
            face = "white" if own["_hollow"].all() and len(own) else style.colour
            handles.append(Line2D([], [], color=style.colour, marker=style.marker, mfc=face, lw=0, label=style.label))
        with matplotlib.rc_context(SETTINGS):
            look: dict[str, Any] = {"frameon": False, "fontsize": 9, "handletextpad": 0.2}
            self.canvas.legend(handles=handles, loc="outside upper left", ncols=min(len(self.order), 6), **look)

    def drawing(self, **axes: Axes_) -> Drawing:
        """Return the drawing; what its columns mean is said by their `axes`, where panels differ, for each panel."""
        about = {}
        for column, axis in axes.items():
            panels = {"": axis} if isinstance(axis, Axis) else axis
            labels = {panel: " ".join(own.label.split()) for panel, own in panels.items() if own.label}
            many = len(set(labels.values())) > 1
            text = "; ".join(dict.fromkeys(f"{v} (panel {k})" if many else v for k, v in labels.items()))
            about |= {column: text} if text else {}
        return Drawing(self.canvas, self.frame, about)


def _log_ticks(low: float, high: float, share: float = 0.1) -> list[float]:
    """Round numbers between two limits that stand apart on a logarithmic axis: decades where it is wide.

    >>> _log_ticks(0.65, 1.25), _log_ticks(0.9, 2000)
    ([0.7, 0.8, 0.9, 1.0, 1.1, 1.2], [1.0, 10.0, 100.0, 1000.0])
    """
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1,) if high / low > 200 else (1, 2, 5) if high / low > 20 else FINE
    near = (t * 10.0**e for e in decades for t in steps) if steps is not FINE or not low <= 1 <= high else iter(FINE)
    gap, kept = share * math.log(high / low), []
    for tick in sorted(set(near), key=lambda tick: (tick != 1, abs(math.log(tick)))):
        if low <= tick <= high and all(abs(math.log(tick / other)) > gap for other in kept):
            kept.append(float(tick))
    return sorted(kept)
