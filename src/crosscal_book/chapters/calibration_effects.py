"""Chapter 3, figures of effect sizes and of written answers."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from crosscal.results.frame import Results
from crosscal.stats import bootstrap_mean
from crosscal_book.axes import panels, sentence_figure
from crosscal_book.chapters.calibration_answers import SCORES, gather_answers, seen_words
from crosscal_book.chapters.calibration_data import (
    ACCURACY,
    PERPLEXITY,
    Group,
    estimate,
    gather,
    is_group,
    measures_of,
    name_of,
)
from crosscal_book.chapters.calibration_drawing import aside, draw_key, draw_point, name_rows
from crosscal_book.chapters.calibration_spread import spreads
from crosscal_book.style import Figure, finish
from crosscal_book.words import listing, points


def effect_sizes(results: Results, general: str = "c4", focus: str = "50%") -> Figure:
    """What moves a result, and by how much: draw, source, number of windows and method on one axis per measure."""
    evidence = gather(results, general)
    frame = spreads(evidence)
    if frame.empty:
        return sentence_figure("fig-effects", "Nothing was drawn twice and no two methods share a run.")
    rank = {"draw": 0, "source": 1, "range": 2, "size": 3, "method": 4}
    names = sorted(frame["what"].unique(), key=lambda w: rank[frame.loc[frame["what"] == w, "kind"].iloc[0]])
    measures = [m for m in measures_of(evidence) if (frame["measure"] == m).any()]
    groups = [g for g in evidence.groups if g in set(frame["group"])]
    canvas, grid = panels(1, len(measures), 6.6, 1.1 + 0.52 * len(names), sharey=True)
    places = dict(zip(groups, aside(groups), strict=True))
    for axes, measure in zip(grid, measures, strict=True):
        lines = frame[frame["measure"] == measure]
        for line in lines.to_dict("records"):
            found = estimate(line["draws"], measure.scale)
            draw_point(axes, found, names.index(line["what"]) + places[line["group"]], line["group"], focus)
        if measure is not ACCURACY:
            axes.set_xscale("log")
        values = [float(measure.scale(d[0])) for d in lines["draws"] if d[0] > 0]
        highs = [estimate(d, measure.scale).hi for d in lines["draws"]]
        if values:
            axes.set_xlim(0 if measure is ACCURACY else min(values) / 3, max(highs) * 1.5)
        if measure is not ACCURACY:
            axes.xaxis.set_major_locator(LogLocator(numticks=4))  # decades as far as their numbers have room
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlabel(measure.axis)
    name_rows(grid[0], names)
    draw_key(canvas, groups, focus)
    text = "; ".join(filter(None, (_draw_and_source(frame, group) for group in groups)))
    caption = (
        "What moves a result, without sign (log scales but for accuracy). Perplexity: "
        f"{text or 'no method has draws and sources'}. Bars: 95 % intervals over windows or items; those of SDs hold "
        "that they are known from few runs, those of the other rows the draw of the calibration text, but for the "
        "range. Bars that reach the left edge include 0."
    )
    alt = f"Points of effect sizes: {listing(names)}, for {listing([m.name for m in measures])}. {text}".rstrip()
    return finish(canvas, "fig-effects", caption, alt)


def _draw_and_source(frame, group: Group) -> str:
    own = frame[(frame["measure"] == PERPLEXITY) & is_group(frame, group)].set_index("kind")["draws"]
    found = [f"{kind} {_plain(own[kind])}" for kind in ("draw", "source") if kind in own.index]
    return f"{name_of(group)} SD by {' and by '.join(found)}" if found else ""


def _plain(draws: np.ndarray) -> str:
    found = estimate(draws, PERPLEXITY.scale)
    return f"{found.value:.1f} % [{found.lo:.1f}, {found.hi:.1f}]"


def answer_differences(results: Results, general: str = "c4", focus: str = "50%") -> Figure:
    """Scores of written answers after task data less after general data, one panel per set and score."""
    answers = gather_answers(results, general)
    if answers is None:
        return sentence_figure("fig-answers", f"No run wrote answers after calibration on task data and on {general}.")
    rows = [*answers.pairs, None]
    canvas, grid = panels(len(answers.sets), 3, 6.6, 0.6 + len(answers.sets) * (0.6 + 0.24 * len(rows)), sharey=True)
    found = []
    for number, name in enumerate(answers.sets):
        for axes, (score, label) in zip(grid[3 * number :], SCORES.items(), strict=False):
            axes.axvline(0, color="#333333", linewidth=1)
            for row, group in enumerate(rows):
                _answer_point(axes, answers, group, row, name, score, focus)
            seen = "seen" if answers.is_seen(name) else "unseen"
            axes.set_title(
                f"{name} ({seen})\n{label}" if axes is grid[3 * number] else f"\n{label}", loc="left", fontsize=9
            )
            axes.xaxis.set_major_locator(MaxNLocator(4))
        name_rows(grid[3 * number], [name_of(g) if g else "mean of all" for g in rows])
        gains = {label: answers.gain(name, score) for score, label in SCORES.items()}
        parts = [f"{label} {points(g.value)} [{points(g.lo)}, {points(g.hi)}]" for label, g in gains.items()]
        found.append(f"{name} ({'seen' if answers.is_seen(name) else 'unseen'}): {', '.join(parts)} points")
    canvas.supxlabel(f"{answers.task} less {general} calibration (points)", fontsize=10)
    text = "; ".join(found)
    n = answers.gain(answers.sets[0], "f1").n
    caption = (
        f"Written answers, {answers.task} less {general} calibration, on {seen_words(answers)}, {n} items. Mean over "
        f"all models: {text}. Bars: 95 % intervals over items, paired; each source was drawn once."
    )
    return finish(canvas, "fig-answers", caption, f"Points of score differences of written answers. Means: {text}.")


def _answer_point(axes: Axes, answers, group: Group | None, row: int, name: str, score: str, focus: str) -> None:
    found = bootstrap_mean([answers.difference(group, name, score)]) if group else answers.gain(name, score)
    draw_point(axes, found.map(lambda x: 100 * x), row, group or ("dense", focus), focus)
