"""What marks are drawn on: axes described as data, grids of panels, and the numbers below a figure as CSV."""

import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from crosscal_book.style import CHANCE_COLOUR, SETTINGS, STYLES, Figure, MethodStyle, style_of, svg_of

DARK, GREY, SHADE = "#333333", "#555555", "#d9c36a"
DASHED = ("chance", "guessing")
ONE = MethodStyle("", DARK, "o")  # the look of a frame without series
FINE = (
    0.1,
    0.2,
    0.3,
    0.4,
    0.5,
    0.6,
    0.7,
    0.8,
    0.9,
    0.95,
    0.98,
    1,
    1.02,
    1.05,
    1.1,
    1.2,
    1.3,
    1.5,
    2,
    2.5,
    3,
    4,
    5,
    6,
    8,
)
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


Axes_ = Axis | Mapping[str, Axis]


@dataclass(frozen=True)
class Drawing:
    """A canvas, the frame that was drawn on it, and what the frame's columns mean."""

    canvas: Canvas
    frame: pd.DataFrame
    about: Mapping[str, str] = field(default_factory=dict)

    def meaning(self, **texts: str) -> "Drawing":
        """Return the drawing with other meanings of some columns, such as what an interval is of."""
        return replace(self, about={**self.about, **texts})

    def finish(self, name: str, caption: str, alt: str) -> Figure:
        """Return the figure: SVG, words, and the frame as CSV."""
        return Figure(name, svg_of(self.canvas, name, alt), caption, alt, _csv(self.frame, self.about), self.frame)


def _canvas(rows: int, columns: int, width: float, height: float, **share) -> tuple[Canvas, list[Axes]]:
    with matplotlib.rc_context(SETTINGS):
        canvas = Canvas(figsize=(width, height), layout="constrained")
        grid = canvas.subplots(rows, columns, squeeze=False, **share)
    return canvas, list(grid.flat)


def _grid(frame: pd.DataFrame, columns: int, width: float, height: float, share: dict, title) -> tuple[Canvas, dict]:
    """The canvas, and (axes, its lines) by facet and panel; places without lines are left empty.

    A `title` of None names facet and panel, one of "edges" facets in the first column and panels in the first row.
    """
    facets, panels = _values(frame, "facet"), _values(frame, "panel")
    columns = len(panels) if "facet" in frame else columns
    rows = len(facets) if "facet" in frame else -(-len(panels) // columns)
    canvas, cells = _canvas(rows, columns, width, height, **share)
    found: dict[tuple[str, str], tuple[Axes, pd.DataFrame]] = {}
    for place, (facet, panel) in enumerate((f, p) for f in facets for p in panels):
        part = frame[(_column(frame, "facet") == facet) & (_column(frame, "panel") == panel)]
        if part.empty:
            continue
        found[facet, panel], axes = (cells[place], part), cells[place]
        edges = f"{facet * (panel == panels[0])}\n{panel * (facet == facets[0])}".rstrip("\n")
        text = ", ".join(filter(None, (facet, panel))) if title is None else edges if title == "edges" else title
        wrapped = [
            textwrap.fill(one, int(13 * width / columns)) for one in text.format(facet=facet, panel=panel).split("\n")
        ]
        axes.set_title(_plain("\n".join(wrapped)), loc="left", fontsize=9.5)
    for axes in cells:
        axes.set_visible(axes in [used for used, _ in found.values()])
    return canvas, found


def _plain(text: str) -> str:
    """Text that matplotlib draws as it stands, and not as a formula between dollar signs."""
    return text.replace("$", r"\$")


def _column(frame: pd.DataFrame, name: str) -> pd.Series:
    return frame[name].astype(str) if name in frame else pd.Series("", frame.index)


def _values(frame: pd.DataFrame, name: str) -> list[str]:
    return list(dict.fromkeys(_column(frame, name))) or [""]


def _split(frame: pd.DataFrame, name: str):
    return [(value, frame[_column(frame, name) == value]) for value in _values(frame, name)]


def _in_order(names: Sequence[str], looks: Mapping[str, MethodStyle] = STYLES) -> list[str]:
    """Series in the order of their looks (methods: the book's order), others as they come."""
    return [name for name in looks if name in names] + [name for name in names if name not in looks]


def _apart(count: int, span: float) -> list[float]:
    """Offsets of series that share a place, so that their intervals stand beside each other."""
    step = span / max(count, 2)
    return [step * (number - (count - 1) / 2) for number in range(count)]


def _axis_of(axis: Axes_, panel: str) -> Axis:
    return axis if isinstance(axis, Axis) else axis[panel]


def _look(looks: Mapping[str, MethodStyle], name: str) -> MethodStyle:
    return looks[name] if name in looks else style_of(name) if name else ONE


def _scale(axes: Axes, axis: Axis, side: str) -> None:
    if axis.log:
        getattr(axes, f"set_{side}scale")("log", base=axis.log)


def _settle(grid: Mapping, axis: Axes_, side: str, keep_ticks: bool = False) -> None:
    """Levels, then limits and ticks, of all panels, once all data are drawn: panels may share them."""
    for (_, panel), (axes, _) in grid.items():
        _draw_levels(axes, _axis_of(axis, panel), side)
    for (_, panel), (axes, _) in grid.items():
        _set_ticks(axes, _axis_of(axis, panel), side, keep_ticks)


def _draw_levels(axes: Axes, axis: Axis, side: str) -> None:
    """The named levels and the shaded band."""
    draw_line, draw_band = (axes.axvline, axes.axvspan) if side == "x" else (axes.axhline, axes.axhspan)
    for name, place in axis.lines.items():
        dashed = name in DASHED
        colour, style = CHANCE_COLOUR if name else DARK, "--" if dashed else "-"
        draw_line(place, color=colour, linewidth=1, linestyle=style, zorder=1)
        spot, shift, end = ((0.02 if dashed else 0.99, place), (0, 2), "left" if dashed else "right")
        within = ("axes fraction", "data")
        if side == "x":
            spot, shift, end, within = (place, 1), (0, 3), "center", ("data", "axes fraction")
        look = {"color": GREY, "fontsize": 8, "ha": end}
        axes.annotate(name, spot, shift, xycoords=within, textcoords="offset points", **look)
    if axis.band:
        draw_band(*axis.band, color=SHADE, alpha=0.35, linewidth=0, zorder=0)


def _set_ticks(axes: Axes, axis: Axis, side: str, keep_ticks: bool) -> None:
    """Limits, those given and those of the data, and ticks."""
    low, high = (
        given if given is not None else now for given, now in zip(axis.limits, _limits(axes, side), strict=True)
    )
    getattr(axes, f"set_{side}lim")(*((high, low) if axis.reverse else (low, high)))
    if not keep_ticks and (axis.ticks or axis.log):
        ticks = (
            [t for t in axis.ticks if low <= t <= high]
            if axis.ticks
            else _log_ticks(low, high, _tick_gap(axes, side, 6 if low < 0.01 else 4))
        )
        own = axes.xaxis if side == "x" else axes.yaxis
        own.set_major_locator(FixedLocator(ticks))
        own.set_minor_locator(NullLocator())
        own.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:,g}{axis.suffix}" if value >= 1e-3 else f"{value:g}")
        )


def _name_axes(canvas: Canvas, grid: dict, x: Axes_, y: Axes_ | None) -> None:
    """Labels: of each panel, or of the whole figure where panels share them."""
    for side, axis in (("x", x), ("y", y)):
        if isinstance(axis, Axis) and len(grid) > 1:
            getattr(canvas, f"sup{side}label")(axis.label, fontsize=10)
        elif axis is not None:
            for (_, panel), (axes, _) in grid.items():
                getattr(axes, f"set_{side}label")(_axis_of(axis, panel).label)


def _limits(axes: Axes, side: str) -> tuple[float, float]:
    low, high = axes.get_xlim() if side == "x" else axes.get_ylim()
    return min(low, high), max(low, high)


def _tick_gap(axes: Axes, side: str, longest: float) -> float:
    """The share of an axis that a tick's number takes: across by its digits, upwards by a line of text."""
    rows, columns = axes.get_gridspec().get_geometry()
    width, height = axes.figure.get_size_inches()
    return max(0.1, 0.085 * (longest + 1) / (0.75 * width / columns) if side == "x" else 0.25 * rows / height)


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


def _key(canvas: Canvas, order: Sequence[str], looks, hollow: Collection[str] = ()) -> None:
    """Markers and names above the panels."""
    handles = []
    for name in order:
        style = _look(looks, name)
        face = "white" if name in hollow else style.colour
        handles.append(Line2D([], [], color=style.colour, marker=style.marker, mfc=face, lw=0, label=style.label))
    with matplotlib.rc_context(SETTINGS):
        columns = min(len(order), 6)
        canvas.legend(
            handles=handles, loc="outside upper left", ncols=columns, frameon=False, fontsize=9, handletextpad=0.2
        )


def _about(frame: pd.DataFrame, axes: Mapping[str, Axes_]) -> dict[str, str]:
    """What the drawn columns mean, from their axes; where panels differ, for each panel."""
    about = {}
    for column, axis in axes.items():
        labels = {
            panel: own.label for panel, own in ({"": axis} if isinstance(axis, Axis) else axis).items() if own.label
        }
        many = len(set(labels.values())) > 1
        about[column] = "; ".join(dict.fromkeys(f"{v} (panel {k})" if many else v for k, v in labels.items()))
    return {column: " ".join(text.split()) for column, text in about.items() if text}


def _csv(frame: pd.DataFrame, about: Mapping[str, str]) -> str:
    """The frame as CSV, below comment lines that say what its columns mean; "" without columns."""
    if frame.empty:
        return ""
    frame = frame[[c for c in ORDER if c in frame] + [c for c in frame if c not in ORDER]]
    meanings = {c: text for c, text in (MEANINGS | about).items() if c in frame}
    head = "".join(f"# {column}: {meaning}\n" for column, meaning in meanings.items())
    return head + frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
