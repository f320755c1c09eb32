"""The figures of chapter 2 that hold every run: task loss against two numbers, and how well each number ranks it."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator

from crosscal.results.frame import Results
from crosscal_book.axes import by_method, nothing_usable, panels, ratio_ticks
from crosscal_book.chapters.correlation import ALL, MIN_SETTINGS, Association, associate
from crosscal_book.chapters.divergence_runs import (
    LOSS,
    OUTCOMES,
    PREDICTORS,
    PRUNING,
    QUANTIZATION,
    coefficient,
    nats,
    noise_floor,
    reading_prompts,
    sample,
    shared,
    texts_of,
)
from crosscal_book.style import CHANCE_COLOUR, Figure, finish, style_of
from crosscal_book.words import listing

SCATTER, DOTS = "fig-loss-divergence", "fig-correlations"
HIGHEST = 100.0  # relative perplexity at which the axis is cut
LOOKS = {LOSS: ("#0067A5", "o"), "flips": ("#B84A00", "s")}


def loss_against_divergence(results: Results) -> Figure:
    """Change of mean accuracy against JS and against relative perplexity, one point a run, coloured by method."""
    found = sample(results)
    kept = found.compressed & np.isfinite(found.of(LOSS)) & np.isfinite(found.of("js"))
    if not kept.any():
        return nothing_usable(SCATTER)
    runs, (floor, _) = found.runs[kept], noise_floor(results)
    loss = _with_ends(found, LOSS, kept, lambda x: -100 * x)
    canvas, (left, right) = panels(1, 2, 6.6, 4.0, sharey=True)
    across = {left: _with_ends(found, "js", kept, lambda x: x)}
    across[right] = _with_ends(found, "perplexity", kept, lambda x: np.minimum(np.exp(x), HIGHEST))
    for axes, places in across.items():
        axes.set_xscale("log")
        axes.axhline(0, color="#333333", linewidth=1)
        for method, lines in by_method(runs):
            rows = np.flatnonzero(np.isin(np.array(runs["run_id"]), lines["run_id"]))
            _draw_points(axes, places[:, rows], loss[:, rows], method)
    left.set_xlabel("JS divergence from the dense model\n(nats per token)")
    right.set_xlabel("perplexity / dense perplexity,\ngeometric mean over texts")
    left.set_ylabel("change of mean accuracy (points)")
    ratio_ticks(right.xaxis, (1, 2, 5) if across[right].max() < 30 else (1,))
    if floor is not None:
        _draw_floor(left, found, floor)
    names = [style_of(method) for method, _ in by_method(runs)]
    handles = [Line2D([], [], color=s.colour, marker=s.marker, linestyle="none", label=s.label) for s in names]
    canvas.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), frameon=False, fontsize=9)
    association, tasks = associate(results), len(_tasks(results))
    found_words = _rank_words(association)
    cut = int((np.exp(found.of("perplexity")[kept]) > HIGHEST).sum())
    caption = (
        f"Change of mean accuracy over {tasks} tasks, against JS divergence and against relative perplexity on "
        f"{listing(texts_of(results))}; {len(runs)} runs, a marker a method. {found_words} Bars: 95 % bootstrap "
        "intervals over items and windows."
        + (
            " Dashed: JS of the dense model in float32, the noise floor, with its interval."
            if floor is not None
            else ""
        )
        + (f" Beyond {HIGHEST:,.0f}×, at the right edge: {cut}." if cut else "")
    )
    alt = f"Accuracy change of {len(runs)} runs, scattered over JS divergence and over perplexity. {found_words}"
    return finish(canvas, SCATTER, caption, alt)


def correlation_dots(results: Results) -> Figure:
    """The rank correlation of every number with task loss and answer flips, in all runs and within kinds of methods."""
    found = {ALL: associate(results)}
    found |= {f"within {kind}": associate(results, kind) for kind in (PRUNING, QUANTIZATION)}
    prompted = reading_prompts(results)
    some = prompted is not results and len(prompted.run_ids) > 0
    if some:
        found["asked all tasks"] = associate(prompted)
    canvas, grid = panels(1, len(found), 6.8, 3.9, sharey=True, sharex=True)
    for axes, (name, association) in zip(grid, found.items(), strict=True):
        if association is None:
            axes.set_title(name, loc="left", fontsize=9)
            words = f"fewer than\n{MIN_SETTINGS} settings"
            axes.text(0.5, 0.5, words, transform=axes.transAxes, ha="center", fontsize=9)
        else:
            size = f"{association.n} runs\n{association.settings} settings"
            axes.set_title(f"{name}\n{size}", loc="left", fontsize=8)
            _draw_dots(axes, association)
    grid[0].set_yticks(range(len(PREDICTORS)), [asked.label for asked in PREDICTORS.values()])
    grid[0].set_ylim(len(PREDICTORS) - 0.4, -0.6)
    right = max([1.0, *[e.hi for a in found.values() if a for k, e in a.estimates.items() if k[0] == "rho"]])
    grid[0].set_xlim(right=right + 0.03)
    grid[0].xaxis.set_major_locator(MultipleLocator(0.5))
    canvas.supxlabel("Spearman rank correlation over runs", fontsize=10)
    handles = [
        Line2D([], [], color=c, marker=m, mfc=_face(o), linestyle="none", label=f"with {OUTCOMES[o]}")
        for o, (c, m) in LOOKS.items()
    ]
    canvas.legend(handles=handles, loc="outside upper right", ncols=2, frameon=False, fontsize=9)
    words = _rank_words(found[ALL])
    caption = (
        f"How well each number ranks the runs by task loss and by answer flips. {words} Vertical line: perplexity with "
        "task loss. Bars: 95 % bootstrap intervals over windows, items and settings; the table has paired differences."
        + (" Only runs that were asked all tasks (right) read all prompts." if some else "")
    )
    alt = f"Rank correlations of {len(PREDICTORS)} numbers with task loss and answer flips, with intervals. {words}"
    return finish(canvas, DOTS, caption, alt)


def _rank_words(found: Association | None) -> str:
    """Which of JS and perplexity ranks the runs better, in a sentence."""
    if found is None or ("rho", "js", LOSS) not in found.estimates:
        return f"There are fewer than {MIN_SETTINGS} comparable settings, so no correlation is given."
    js, other = (found.estimates["rho", name, LOSS].text(coefficient) for name in ("js", "perplexity"))
    gain = found.estimates["gain", "js", LOSS]
    ahead = "JS is ahead" if gain.lo > 0 else "Perplexity is ahead" if gain.hi < 0 else "Neither is clearly ahead"
    return (
        f"{ahead}: the rank correlation with task loss over all runs is {js} for JS and {other} for perplexity "
        f"(difference {coefficient(gain.value, 3)} [{coefficient(gain.lo, 3)}, {coefficient(gain.hi, 3)}])."
    )


def _tasks(results: Results) -> pd.Series:
    from crosscal.results.compare import accuracy_tasks

    return accuracy_tasks(shared(results))["eval_set"]


def _with_ends(found, variable: str, kept: np.ndarray, change) -> np.ndarray:
    """Value, lower and upper end of the kept runs on another scale: [3, runs], ends in rising order."""
    value, (lo, hi) = found.of(variable)[kept], (end[kept] for end in found.interval(variable))
    ends = np.sort(np.stack([change(lo), change(hi)]), axis=0)
    value = change(value)
    return np.stack([value, np.minimum(ends[0], value), np.maximum(ends[1], value)])


def _draw_points(axes: Axes, x: np.ndarray, y: np.ndarray, method: str) -> None:
    style = style_of(method)
    bars = [np.stack([place[0] - place[1], place[2] - place[0]]) for place in (x, y)]
    axes.errorbar(
        x[0], y[0], xerr=bars[0], yerr=bars[1], color=style.colour, linestyle="none", elinewidth=0.7, alpha=0.5
    )
    axes.plot(x[0], y[0], color=style.colour, marker=style.marker, linestyle="none", markersize=4.5, alpha=0.9)


def _draw_floor(axes: Axes, found, floor: int) -> None:
    """The noise floor of JS with its interval, named."""
    value, (lo, hi) = found.of("js")[floor], (end[floor] for end in found.interval("js"))
    axes.axvspan(lo, hi, color=CHANCE_COLOUR, alpha=0.2, linewidth=0)
    axes.axvline(value, color=CHANCE_COLOUR, linestyle="--", linewidth=1)
    axes.text(
        value * 1.12,
        0.02,
        f"noise floor\n{nats(value)} nats",
        transform=axes.get_xaxis_transform(),
        fontsize=8,
        color="#555555",
    )


def _face(outcome: str) -> str:
    """Filled for task loss, open for answer flips, so that they differ in grey print too."""
    return LOOKS[outcome][0] if outcome == LOSS else "white"


def _draw_dots(axes: Axes, found: Association) -> None:
    for number, (outcome, (colour, marker)) in enumerate(LOOKS.items()):
        for row, name in enumerate(PREDICTORS):
            estimate = found.estimates.get(("rho", name, outcome))
            if estimate:
                bars = [[estimate.value - estimate.lo], [estimate.hi - estimate.value]]
                place = row + 0.26 * (number - 0.5)
                axes.errorbar(
                    [estimate.value],
                    [place],
                    xerr=np.maximum(bars, 0),
                    color=colour,
                    marker=marker,
                    markerfacecolor=_face(outcome),
                    markersize=4.5,
                    elinewidth=1,
                )
    axes.axvline(found.estimates["rho", "perplexity", LOSS].value, color=LOOKS[LOSS][0], linewidth=0.8, alpha=0.5)
