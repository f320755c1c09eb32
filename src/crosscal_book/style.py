"""One look for the whole book: a colour and a marker per method, plain axes, repeatable SVG.

Figures sit on an opaque white face, so that they read the same on a light and a dark page. The colours differ in
lightness as well as in hue, each is dark enough for text on white, and the markers tell methods apart in grey print.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pandas as pd

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
