"""One look for the whole book: a colour and a marker per method, plain axes, repeatable SVG.

Figures sit on an opaque white face, so that they read the same on a light and a dark page. The colours differ in
lightness as well as in hue, each is dark enough for text on white, and the markers tell methods apart in grey print.
"""

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import matplotlib
import pandas as pd
from matplotlib.figure import Figure as Canvas

from crosscal.methods.registry import METHODS


@dataclass(frozen=True)
class MethodStyle:
    """How a method is named and drawn, everywhere."""

    label: str
    colour: str
    marker: str


STYLES = {
    "dense": MethodStyle("dense", "#333333", "D"),
    **{name: MethodStyle(method.label, *method.style) for name, method in METHODS.items()},
    "float32": MethodStyle("rounding (float32)", "#5F6368", "*"),
}

CHANCE_COLOUR = "#767676"

SETTINGS = {
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


@dataclass(frozen=True)
class Figure:
    """A finished figure: SVG text, a caption that states the finding, what it shows in words (`alt`), its numbers.

    `csv` is `frame`, the tidy table that was drawn, below lines that say what its columns mean. A notebook shows the
    SVG. The runner copies name, caption and alternative text to the cell, where the book's builder looks for them,
    and puts the numbers below it.
    """

    name: str
    svg: str
    caption: str
    alt: str
    csv: str = ""
    frame: pd.DataFrame | None = field(default=None, compare=False, repr=False)

    def _repr_mimebundle_(self, include=None, exclude=None):
        words = {"name": self.name, "caption": self.caption, "alt": self.alt, "csv": self.csv}
        return {"image/svg+xml": self.svg, "text/plain": self.alt}, {"crosscal": words}


def style_of(method: str) -> MethodStyle:
    """A method's style; an unknown method gets a plain one under its own name."""
    if method not in STYLES and method in METHODS:  # registered after this module was loaded
        return MethodStyle(METHODS[method].label, *METHODS[method].style)
    return STYLES.get(method, MethodStyle(method, "#555555", "*"))


def by_method(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield (method, its lines) in the order of `STYLES`, unknown methods last."""
    for method in [*STYLES, *sorted(set(frame["method"]) - set(STYLES))]:
        lines = frame[frame["method"] == method]
        if len(lines):
            yield method, lines


def svg_of(canvas: Canvas, name: str, alt: str) -> str:
    """Return a canvas as SVG that is the same, byte for byte, whenever the same thing is drawn."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, **SETTINGS}):
        canvas.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight")
    svg = buffer.getvalue()
    title = f'<title id="{name}-title">{_escape(alt)}</title>'
    svg = re.sub(r"(<svg [^>]*)>", rf'\1 role="img" aria-labelledby="{name}-title">' + "\n " + title, svg, count=1)
    svg = re.sub(r' (d|x|y)="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), svg)  # 0.01 pt is plenty
    return "\n".join(line.strip() for line in svg.splitlines()) + "\n"


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Positions near `values`, in their order, at least `gap` apart: for labels that must not overlap.

    >>> spread([0.50, 0.51], 0.10)
    [0.455, 0.555]
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    placed = [values[i] for i in order]
    for _ in range(100):
        moved = False
        for k in range(len(placed) - 1):
            overlap = gap - (placed[k + 1] - placed[k])
            if overlap > 1e-9:
                placed[k] -= overlap / 2
                placed[k + 1] += overlap / 2
                moved = True
        if not moved:
            break
    result = [0.0] * len(values)
    for i, position in zip(order, placed, strict=True):
        result[i] = round(position, 6)
    return result


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
