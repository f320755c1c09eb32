"""Pieces that the figures of chapters 5 and 7 share: comparisons line by line, and losses over storage."""

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, NullFormatter

from crosscal.results.compare import LEVEL
from crosscal_book.axes import by_method, panels
from crosscal_book.chapters.quantization_runs import ROWS
from crosscal_book.style import style_of

RATIO_TICKS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 1.02, 1.05, 1.1, 1.2, 1.5, 2, 5, 10, 20)


def forest(pairs: pd.DataFrame) -> tuple[Canvas, Axes]:
    """Named ratios with intervals, one line each, on a logarithmic axis; the figure and its axes."""
    canvas, (axes,) = panels(1, 1, 6.6, 0.28 * len(pairs) + 1.0)
    for height, pair in enumerate(pairs.to_dict("records")):
        sure = pair["p_holm"] < LEVEL
        bars = [[pair["ratio"] - pair["lo"]], [pair["hi"] - pair["ratio"]]]
        colour = "#333333" if sure else "#767676"
        fill = colour if sure else "white"
        axes.errorbar([pair["ratio"]], [height], xerr=bars, color=colour, marker="o", markerfacecolor=fill, capsize=2)
    axes.set_xscale("log")
    axes.axvline(1, color="#333333", linewidth=1)
    axes.set_yticks(range(len(pairs)), pairs["name"], fontsize=8)
    axes.set_ylim(len(pairs) - 0.4, -0.6)
    low, high = min(pairs["lo"].min(), 0.98) / 1.01, max(pairs["hi"].max(), 1.02) * 1.01
    axes.set_xlim(low, high)
    ticks = _sparse_ticks(low, high)
    axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", visible=False)
    return canvas, axes


def _sparse_ticks(low: float, high: float) -> list[float]:
    """Ratios to mark between two limits: 1, and others that stand apart from it and from one another.

    >>> _sparse_ticks(0.65, 1.3)
    [0.7, 0.8, 0.9, 1.0, 1.1, 1.2]
    """
    gap, kept = 0.1 * math.log(high / low), [1.0]
    for tick in sorted(RATIO_TICKS, key=lambda tick: abs(math.log(tick))):
        if low <= tick <= high and all(abs(math.log(tick / other)) > gap for other in kept):
            kept.append(tick)
    return sorted(kept)


def draw_runs(axes: Axes, runs: pd.DataFrame, column: str, axis: str = "storage") -> None:
    """A line per method and kind of group; sparse and quantized runs by themselves, named; act-order left out."""
    shown = runs[~runs["act_order"].astype(bool)]
    for method, lines in by_method(shown):
        style = style_of(method)
        for (joint, group), part in lines.groupby(["joint", "group"]):
            part, rows = part.sort_values(axis), group == ROWS
            axes.errorbar(
                part[axis],
                part[column],
                yerr=[part[column] - part[f"{column}_lo"], part[f"{column}_hi"] - part[column]],
                color=style.colour,
                marker=style.marker,
                linestyle="none" if joint else "--" if rows else "-",
                markerfacecolor="white" if rows else style.colour,
                linewidth=1.2,
                elinewidth=0.9,
            )


def storage_axis(axes: Axes, runs: pd.DataFrame) -> None:
    """Bits per weight on a logarithmic axis, most at the left."""
    axes.set_xscale("log", base=2)
    low, high = runs["storage"].min(), runs["storage"].max()
    axes.set_xlim(high * 1.1 + 0.1, low / 1.1)
    axes.set_xticks([t for t in (2, 2.5, 3, 4, 6, 8) if low / 1.1 < t < high * 1.1 + 0.1])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def name_joint(axes: Axes, runs: pd.DataFrame, column: str, away: float) -> None:
    """Write the targets of sparse and quantized runs beside their points, where curves of loss leave room.

    `away` is how far, in axes heights, the names stand above (or, negative, below) their points, to the left.
    """
    joint = runs[runs["joint"].astype(bool)].sort_values("storage", ascending=False)
    axes.figure.draw_without_rendering()  # settles limits, so that places are final
    to_axes = axes.transData + axes.transAxes.inverted()
    places = [to_axes.transform((run["storage"], run[column])) for run in joint.to_dict("records")]
    step, first = math.copysign(0.075, away), [y + away for _, y in places][:1]
    heights = [first[0] + number * step for number in range(len(places))]
    left = min((x for x, _ in places), default=0.0) - 0.04
    for (x, y), height, run in zip(places, heights, joint.to_dict("records"), strict=True):
        style = style_of(run["method"])
        axes.annotate(
            run["pattern"],
            (x, y),
            xytext=(left, height),
            xycoords="axes fraction",
            ha="right",
            va="center",
            fontsize=8,
            color=style.colour,
            arrowprops={"arrowstyle": "-", "color": style.colour, "linewidth": 0.6, "relpos": (1, 0.5)},
        )
