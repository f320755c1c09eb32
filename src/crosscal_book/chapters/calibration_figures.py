"""Chapter 3, figures of sources and of numbers and lengths of windows."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from crosscal.results.frame import Results
from crosscal_book.axes import panels, sentence_figure
from crosscal_book.chapters.calibration_data import (
    ACCURACY,
    PERPLEXITY,
    RANDOM,
    Evidence,
    Group,
    estimate,
    gap,
    gather,
    interval,
    measures_of,
    name_of,
    percent,
)
from crosscal_book.chapters.calibration_drawing import (
    aside,
    draw_key,
    draw_point,
    is_open,
    name_rows,
    source_name,
)
from crosscal_book.chapters.calibration_spread import by_length, by_size, text_runs
from crosscal_book.style import Figure, finish, style_of
from crosscal_book.words import listing, times

MIN_SOURCES = 2
WIDE = 4.0  # a logarithmic axis of a wider span has ticks at 1, 2, 5
LEVELS = {"perplexity": "perplexity / dense", "JS divergence": "JS divergence (nats)", "accuracy": "accuracy (points)"}


def source_panels(results: Results, general: str = "c4", focus: str = "50%") -> Figure:
    """Perplexity, divergence and accuracy after each calibration source, a marker per method and pattern."""
    evidence = gather(results, general)
    groups = [g for g in evidence.groups if len(evidence.sources(g)) >= MIN_SOURCES]
    if not groups:
        return sentence_figure("fig-sources", "No method was calibrated on two sources.")
    measures = measures_of(evidence)
    sources = [s for s in evidence.sources() if any(evidence.base(g, s) for g in groups)]
    height = 0.9 + len(sources) * (0.16 + 0.11 * len(groups))
    canvas, grid = panels(1, len(measures), 6.6, height, sharey=True)
    for axes, measure in zip(grid, measures, strict=True):
        for place, group in zip(aside(groups), groups, strict=True):
            for row, source in enumerate(sources):
                ids = evidence.draws(group, source) if evidence.base(group, source) else []
                if ids:
                    found = estimate(gap(evidence, ids, [], measure), _shown(measure))
                    draw_point(axes, found, row + place, group, focus)
        axes.set_xlabel(LEVELS[measure.name])
        if measure is PERPLEXITY:
            axes.set_xscale("log")
            _ratio_axis(axes)
        elif measure is ACCURACY:
            axes.axvline(0, color="#333333", linewidth=1)
    name_rows(grid[0], [source_name(s) for s in sources])
    draw_key(canvas, groups, focus)
    found = "; ".join(filter(None, (_extremes(evidence, g) for g in groups if not is_open(g, focus))))
    caption = (
        f"Results after calibration on each source, all at {evidence.size[0]} windows of {evidence.size[1]} tokens: "
        f"perplexity and Jensen-Shannon divergence over {len(evidence.sets(PERPLEXITY))} texts, change of mean "
        f"accuracy over {len(evidence.sets(ACCURACY))} tasks. {found or 'No method has two texts'}. Bars: 95 % "
        f"intervals over windows or items and over calibration draws; {general} is the mean of its draws. Open "
        f"markers: other sparsities than {focus}."
    )
    names = listing([name_of(group) for group in groups])
    alt = f"Points of perplexity, divergence and accuracy by calibration source for {names}. {found}".rstrip()
    return finish(canvas, "fig-sources", caption, alt)


def _ratio(evidence: Evidence, group: Group, source: str) -> float:
    """Perplexity after a source, the mean of its draws, over the dense model's."""
    return math.exp(gap(evidence, evidence.draws(group, source), [], PERPLEXITY)[0])


def _shown(measure):
    """From a level to what the axis of levels shows."""
    return np.exp if measure is PERPLEXITY else measure.scale


def _extremes(evidence: Evidence, group: Group) -> str:
    runs = text_runs(evidence, group)
    if len(runs) < MIN_SOURCES:
        return ""
    values = {s: _ratio(evidence, group, s) for s in runs}
    low, high = min(values, key=values.get), max(values, key=values.get)
    text = f"{name_of(group)} has between {times(values[low])} ({low}) and {times(values[high])} ({high})"
    loose = evidence.base(group, RANDOM)
    beside = f", and {times(_ratio(evidence, group, RANDOM))} after random tokens" if loose else ""
    return f"{text} the dense perplexity after text{beside}"


def _ratio_axis(axes: Axes) -> None:
    """Few ticks, as multiples, on a logarithmic axis that may span less than a decade."""
    low, high = axes.get_xlim()
    if high / low < WIDE:
        ticks = MaxNLocator(3).tick_values(low, high)
    else:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [t * 10.0**e for e in decades for t in ((1, 2, 5) if high / low < 100 else (1,))]
    ticks = [tick for tick in ticks if low <= tick <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))


def size_curves(results: Results, general: str = "c4", focus: str = "50%") -> Figure:
    """Perplexity against the number of windows, and against their length at equal tokens."""
    evidence = gather(results, general)
    kinds = {"number of windows": (by_size, "n_windows"), "tokens in a window": (by_length, "window")}
    groups = [g for g in evidence.groups if any(len(find(evidence, g)) for find, _ in kinds.values())]
    if not groups:
        return sentence_figure("fig-size", "No method was calibrated on several numbers or lengths of windows.")
    canvas, grid = panels(1, 2, 6.6, 3.1, sharey=True)
    found, drawn = [], []
    for axes, (label, (find, column)) in zip(grid, kinds.items(), strict=True):
        ticks: set[int] = set()
        for number, group in enumerate(groups):
            runs = find(evidence, group)
            if len(runs):
                values = [estimate(gap(evidence, [i], [], PERPLEXITY), np.exp) for i in runs["run_id"]]
                _curve(axes, runs[column] * 1.06 ** (number - (len(groups) - 1) / 2), values, group, focus)
                ticks |= set(runs[column])
                found.append(_change_along(evidence, group, runs, column))
                drawn.append(runs)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_locator(FixedLocator(sorted(ticks)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel(label)
    numbers = [runs for runs in drawn if runs["window"].nunique() == 1]
    if numbers:
        grid[0].set_title(f"windows of {numbers[0]['window'].iloc[0]} tokens", loc="left")
    grid[1].set_title(f"{math.prod(evidence.size):,} tokens in all", loc="left")
    grid[0].set_yscale("log")
    grid[0].yaxis.set_major_locator(MaxNLocator(6))
    grid[0].yaxis.set_minor_locator(NullLocator())
    grid[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    grid[0].set_ylabel("perplexity / dense perplexity")
    draw_key(canvas, groups, focus)
    text = "; ".join(found)
    caption = (
        f"Perplexity over {len(evidence.sets(PERPLEXITY))} texts against the number of {general} windows (left) and "
        f"against their length at equal tokens (right), log scales. {text}. Bars: 95 % intervals over held-out windows "
        "and over calibration draws, whose spread is taken to fall with the square root of the tokens."
    )
    return finish(canvas, "fig-size", caption, f"Lines of perplexity against number and length of windows. {text}.")


def _curve(axes: Axes, xs, values, group: Group, focus: str) -> None:
    style = style_of(group[0])
    axes.errorbar(
        xs,
        [v.value for v in values],
        yerr=[[max(v.value - v.lo, 0) for v in values], [max(v.hi - v.value, 0) for v in values]],
        color=style.colour,
        marker=style.marker,
        markerfacecolor="white" if is_open(group, focus) else style.colour,
        elinewidth=1,
        capsize=2,
    )


def _change_along(evidence: Evidence, group: Group, runs, column: str) -> str:
    """What changes from the first run to the last."""
    first, last = runs.iloc[0], runs.iloc[-1]
    change = gap(evidence, [last["run_id"]], [first["run_id"]], PERPLEXITY)
    unit = "windows" if column == "n_windows" else "tokens in a window"
    return f"{name_of(group)}: {interval(change, percent)} from {first[column]} to {last[column]} {unit}"
