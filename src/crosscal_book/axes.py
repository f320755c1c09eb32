"""Pieces that figures share: the sparsity axis with its N:M columns, lines with intervals, panels."""

import textwrap
from dataclasses import dataclass

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from crosscal_book.style import CHANCE_COLOUR, SETTINGS, Figure, by_method, finish, label_right, style_of


@dataclass(frozen=True)
class SparsityAxis:
    """Where each pattern stands: percentages to scale, N:M patterns in columns of their own behind them."""

    positions: dict[str, float]

    @classmethod
    def of(cls, runs: pd.DataFrame) -> "SparsityAxis":
        """The axis that holds every pattern of some runs."""
        patterns = list(runs["pattern"].unique())
        percent = {p: float(p.rstrip("%")) for p in sorted(patterns, key=pattern_order) if ":" not in p}
        groups = sorted((p for p in patterns if ":" in p), key=pattern_order)
        first = max(percent.values(), default=0) + 11
        return cls(percent | {p: first + 11 * i for i, p in enumerate(groups)})

    @property
    def groups(self) -> list[str]:
        """The N:M patterns."""
        return [p for p in self.positions if ":" in p]

    @property
    def name(self) -> str:
        """The axis label."""
        return "sparsity (%)" + (", then N:M patterns (kept:group)" if self.groups else "")

    def draw(self, axes: Axes) -> None:
        """Ticks, and a thin rule before the N:M columns."""
        percent = [p for p in self.positions if ":" not in p]
        ticks = [*(percent if len(percent) <= 6 else percent[::2]), *self.groups]
        axes.set_xticks([self.positions[p] for p in ticks], [p.replace("%", "") for p in ticks])
        xs = list(self.positions.values())
        axes.set_xlim(min(xs) - 3, max(xs) + 3)
        if self.groups and percent:
            axes.axvline(self.positions[self.groups[0]] - 5.5, color="#bbbbbb", linewidth=0.8)


def pattern_order(pattern: str) -> tuple[float, float]:
    """Percentages by size, then N:M patterns, the freest (largest group) first.

    >>> sorted(["2:4", "70%", "4:8", "5%"], key=pattern_order)
    ['5%', '70%', '4:8', '2:4']
    """
    return (1.0, -float(pattern.split(":")[1])) if ":" in pattern else (0.0, float(pattern.rstrip("%")))


def draw_methods(axes: Axes, axis: SparsityAxis, frame: pd.DataFrame, value: str) -> None:
    """One line per method over the percentages, open markers for N:M, an interval on every point."""
    methods = list(by_method(frame))
    for number, (method, lines) in enumerate(methods):
        style, aside = style_of(method), 0.9 * (number - (len(methods) - 1) / 2)  # so that intervals stand apart
        lines = lines.assign(x=lines["pattern"].map(axis.positions) + aside).sort_values("x")
        for nofm, part in lines.groupby(lines["pattern"].str.contains(":")):
            axes.errorbar(
                part["x"],
                part[value],
                yerr=[part[value] - part["lo"], part["hi"] - part[value]],
                color=style.colour,
                marker=style.marker,
                linestyle="none" if nofm else "-",
                markerfacecolor="white" if nofm else style.colour,
                elinewidth=1,
                capsize=2,
            )


def name_methods(axes: Axes, axis: SparsityAxis, frame: pd.DataFrame, value: str) -> None:
    """Direct labels at the right edge, at the height of each method's last point."""
    last = frame.assign(x=frame["pattern"].map(axis.positions)).sort_values("x").groupby("method")[value].last()
    label_right(axes, {method: last[method] for method, _ in by_method(frame)})


def panels(rows: int, columns: int, width: float, height: float, **shared) -> tuple[Canvas, list[Axes]]:
    """A figure of equal panels in the house style, `width` x `height` inches, and its axes in reading order."""
    with matplotlib.rc_context(SETTINGS):
        canvas = Canvas(figsize=(width, height), layout="constrained")
        grid = canvas.subplots(rows, columns, squeeze=False, **shared)
    return canvas, list(grid.flat)


def draw_level(axes: Axes, height: float, text: str, dashed: bool = True) -> None:
    """A horizontal line: dashed, named at the left (guessing), or solid, named at the right (the dense model)."""
    axes.axhline(height, color=CHANCE_COLOUR, linewidth=1, linestyle="--" if dashed else "-", zorder=1)
    axes.annotate(
        text,
        (0.02 if dashed else 0.99, height),
        xycoords=("axes fraction", "data"),
        xytext=(0, 2),
        textcoords="offset points",
        ha="left" if dashed else "right",
        color="#555555",
        fontsize=8,
    )


def sentence_figure(name: str, words: str) -> Figure:
    """The figure that stands where there is nothing to draw: the sentence that says why."""
    canvas, (axes,) = panels(1, 1, 6.4, 0.9)
    axes.set_axis_off()
    axes.text(0, 0.5, textwrap.fill(words, 80), va="center")
    return finish(canvas, name, words, words)


def nothing_usable(name: str) -> Figure:
    """The figure that stands where no task can carry a comparison."""
    words = "The dense model is above chance on no accuracy task, so there is nothing to compare: ask more items."
    return sentence_figure(name, words)


def ratio_ticks(axis, steps: tuple[int, ...] = (1,)) -> None:
    """Write the ticks of a logarithmic axis as multiples: 1×, 10×; `steps` are the ticks of each decade."""
    axis.set_major_locator(LogLocator(subs=steps, numticks=20))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axis.set_minor_formatter(NullFormatter())
