"""Chapter 6: its figures, from results alone. Each states its finding in caption and alternative text."""

from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from crosscal.results.frame import Results
from crosscal.stats import Estimate
from crosscal_book.axes import panels, ratio_ticks, sentence_figure
from crosscal_book.chapters.forgetting import MARGIN, PERTURBATIONS, mild_changes
from crosscal_book.chapters.forgetting_measures import (
    RUINED,
    Contrast,
    compressed,
    contrast,
    kept_shares,
    readable,
    reading_pairs,
    skills,
    variant_pairs,
)
from crosscal_book.style import CHANCE_COLOUR, Figure, finish, spread
from crosscal_book.words import KEPT, listing, points, run_name, times

# skill: colour and marker; the three differ in lightness, and each is readable on white
SKILL_LOOKS = {"knowledge": ("#A3241B", "o"), "reading": ("#123F7A", "s"), "language": ("#5B7F00", "^")}
LOWEST, HIGHEST = -0.4, 1.4  # shares of skill beyond are cut: below 0 is worse than guessing
POOLED = "mean of runs"
ONE_RUN = {"color": "#0067A5", "marker": "o", "markersize": 4, "elinewidth": 1}


def skills_kept(results: Results) -> Figure:
    """The share of each skill that every run keeps, the mildest run by perplexity on top."""
    name, runs, kept = "fig-forgetting-skills", compressed(results), kept_shares(results)
    if kept.empty:
        return sentence_figure(
            name, "The dense model is above chance on no task of a skill, so there is nothing to keep."
        )
    canvas, (axes,) = panels(1, 1, 6.6, 0.42 * len(runs) + 1.5)
    present = [skill for skill in SKILL_LOOKS if skill in set(kept["skill"])]
    for number, skill in enumerate(present):
        part = kept[kept["skill"] == skill].set_index("run_id").loc[list(runs["run_id"])]
        heights = -np.arange(len(runs)) + 0.24 * ((len(present) - 1) / 2 - number)
        _dots(axes, heights, part.rename(columns={"kept": "value"}), *SKILL_LOOKS[skill], label=skill)
    _name_runs(axes, [f"{run_name(run)} ({_ratio(run)})" for run in runs.to_dict("records")])
    axes.set_xlim(max(LOWEST, min(kept["lo"].min(), -0.05)) * 100, min(HIGHEST, max(kept["hi"].max(), 1.05)) * 100)
    for x, text in ((0, "guessing"), (100, "dense")):
        axes.axvline(x, color=CHANCE_COLOUR, linewidth=1, linestyle="--" if x == 0 else "-", zorder=1)
        axes.annotate(text, (x, 1), (0, 3), xycoords=("data", "axes fraction"), textcoords="offset points",
                      ha="center", fontsize=8, color="#555555")  # fmt: skip
    axes.set_xlabel("share of skill kept (%)")
    _legend(axes, len(present))
    found = _medians(results, kept, present)
    members = "; ".join(f"{skill}: {listing(skills(results)[skill])}" for skill in present)
    caption = (
        f"Share of skill kept by every compressed model, the mildest by perplexity (in brackets, relative to the dense "
        f"model's) on top. {found} 100 % is the dense model, 0 % guessing. Bars: 95 % bootstrap intervals over items. "
        f"Tasks, {members}." + _cut(kept)
    )
    return finish(
        canvas, name, caption, f"Dots of the share of each skill kept, one line per compressed model. {found}"
    )


def skills_by_perplexity(results: Results) -> Figure:
    """The share of each skill kept against relative perplexity; the shaded strip is "perplexity looks kept"."""
    name, runs = "fig-forgetting-perplexity", compressed(results)
    shown = runs[~runs["ruined"] & runs["ratio"].notna()]
    kept = kept_shares(results).merge(shown[["run_id", "ratio"]], on="run_id")
    if kept.empty:
        return sentence_figure(
            name, f"No run stays below {RUINED:g} times the dense perplexity on tasks that can be lost."
        )
    canvas, (axes,) = panels(1, 1, 6.4, 3.8)
    axes.set_xscale("log")
    axes.set_xlim(0.97, max(kept["ratio"].max() * 1.12, 1.3))
    steps = (1, 1.2, 1.5, 2, 3, 5, 7) if kept["ratio"].max() > 1.6 else (1, 1.1, 1.2, 1.3, 1.4, 1.5)
    ratio_ticks(axes.xaxis, steps)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.axvspan(1.0, KEPT, color="#d9c36a", alpha=0.4, linewidth=0)
    for height, style in ((0, "--"), (100, "-")):
        axes.axhline(height, color=CHANCE_COLOUR, linewidth=1, linestyle=style, zorder=1)
    for number, (skill, (colour, marker)) in enumerate(SKILL_LOOKS.items()):
        part = kept[kept["skill"] == skill].sort_values("ratio")
        if len(part):
            x = part["ratio"] * 1.006 ** (number - 1)  # so that intervals stand apart
            bars = 100 * np.array([part["kept"] - part["lo"], part["hi"] - part["kept"]])
            axes.errorbar(x, 100 * part["kept"], yerr=bars, color=colour, marker=marker, linewidth=0.7,
                          elinewidth=0.9, label=skill)  # fmt: skip
    axes.set_ylim(100 * max(LOWEST, min(kept["lo"].min(), -0.05)), 100 * min(HIGHEST, max(kept["hi"].max(), 1.05)))
    _name_skills(axes, kept)
    axes.set_xlabel("perplexity / dense perplexity, geometric mean over texts")
    axes.set_ylabel("share of skill kept (%)")
    found = _mild_sentence(results)
    caption = (
        f"Share of skill kept against perplexity, one point per compressed model and skill. {found} Shaded: perplexity "
        f"within {100 * (KEPT - 1):.0f} % of the dense model's. Lines only join a skill's points, models differ in "
        f"method. Bars: 95 % bootstrap intervals over items. 0 % is guessing." + _cut(kept)
    )
    return finish(canvas, name, caption, f"Share of knowledge, reading and language kept against perplexity. {found}")


def same_questions(results: Results) -> Figure:
    """Knowledge less reading on the same questions, every run: share of skill kept, points, and margins."""
    name, pairs, ids = "fig-forgetting-pairs", reading_pairs(results), readable(results)
    if not pairs or not ids:
        return sentence_figure(name, "No two usable tasks ask the same questions without and with their paragraph.")
    found = _per_run(results, ids, pairs)
    canvas, grid = panels(1, 2, 6.6, 0.3 * len(found) + 1.3, sharey=True)
    _forest(grid[0], found, lambda one: one.share, 100, "share of skill kept,\nknowledge less reading (%)")
    _forest(grid[1], found, lambda one: one.margin, 1, "change of margin,\nknowledge less reading (nats)")
    pooled = found[POOLED]
    words = (
        f"On average over {len(ids)} runs knowledge keeps {points(pooled.share.value)} % "
        f"[{points(pooled.share.lo)}, {points(pooled.share.hi)}] of its skill relative to reading, and its margins "
        f"change by {_nats(pooled.margin)} relative to reading's."
    )
    asked = listing([f"{first} (without) and {second} (with the paragraph)" for first, second in pairs])
    caption = (
        f"The same questions asked without and with the paragraph that answers them: {asked}. {words} Left of zero, "
        "knowledge falls more. Margin: log-probability of the right option less the best other one's. Bars: 95 % "
        "bootstrap intervals over questions, paired by question and with the dense model."
    )
    return finish(canvas, name, caption, f"Knowledge less reading for every compressed model. {words}")


def robustness_by_run(results: Results) -> Figure:
    """Perturbed less plain questions, every run: what each kind of perturbation costs beyond its cost before."""
    name, ids = "fig-forgetting-robustness", readable(results)
    found = {kind: variant_pairs(results, ending) for kind, ending in PERTURBATIONS.items()}
    found = {kind: _per_run(results, ids, pairs) for kind, pairs in found.items() if pairs and ids}
    if not found:
        return sentence_figure(name, "No task with perturbed questions is usable together with its plain one.")
    canvas, grid = panels(1, len(found), 2.4 + 2.1 * len(found), 0.3 * (len(ids) + 1) + 1.3, sharey=True)
    for axes, (kind, runs) in zip(grid, found.items(), strict=True):
        _forest(axes, runs, lambda one: one.share, 100, "share of skill kept,\nperturbed less plain (%)")
        axes.set_title(kind, loc="left")
    parts = [
        f"with {kind} {points(runs[POOLED].share.value)} % [{points(runs[POOLED].share.lo)}, "
        f"{points(runs[POOLED].share.hi)}]"
        for kind, runs in found.items()
    ]
    words = (
        f"On average over {len(ids)} runs the share of skill kept, less that on plain questions: {', '.join(parts)}."
    )
    caption = (
        f"Robustness after compression. {words} Left of zero, perturbation costs the compressed model more than the "
        "dense one. Bars: 95 % bootstrap intervals over questions, paired by question and with the dense model."
    )
    return finish(canvas, name, caption, f"Perturbed less plain questions for every compressed model. {words}")


def _per_run(results: Results, ids: Sequence[str], pairs: Sequence[tuple[str, str]]) -> dict[str, Contrast]:
    """The contrast of every run by its name, the mildest first, then that of all together."""
    lines = compressed(results).set_index("run_id")
    names = {run_id: run_name(lines.loc[run_id]) for run_id in ids}
    if len(set(names.values())) < len(ids):
        names = {run_id: f"{text}, {lines.loc[run_id, 'calibration']}" for run_id, text in names.items()}
    found = {names[run_id]: contrast(results, (run_id,), tuple(pairs)) for run_id in ids}
    return found | {POOLED: contrast(results, tuple(ids), tuple(pairs))}


def _forest(axes: Axes, found: dict[str, Contrast], part, scale: float, label: str) -> None:
    """One line per run with its interval, around a line at no difference; the pooled one is drawn as a diamond."""
    for number, (run, one) in enumerate(found.items()):
        estimate: Estimate = part(one)
        pooled = run == POOLED
        bars = [[scale * (estimate.value - estimate.lo)], [scale * (estimate.hi - estimate.value)]]
        look = {"color": "#111111", "marker": "D", "markersize": 6, "elinewidth": 1.8} if pooled else ONE_RUN
        axes.errorbar([scale * estimate.value], [-number], xerr=bars, **look)
    axes.axvline(0, color=CHANCE_COLOUR, linewidth=1, zorder=1)
    axes.axhline(-len(found) + 1.5, color="#bbbbbb", linewidth=0.8)
    axes.set_xlabel(label)
    _name_runs(axes, list(found))


def _name_runs(axes: Axes, names: list[str]) -> None:
    axes.set_yticks(-np.arange(len(names)), names, fontsize=8.5)
    axes.set_ylim(-len(names) + 0.4, 0.6)
    axes.grid(visible=False, axis="y")


def _dots(axes: Axes, heights, part: pd.DataFrame, colour: str, marker: str, label: str) -> None:
    bars = 100 * np.array([part["value"] - part["lo"], part["hi"] - part["value"]])
    axes.errorbar(100 * part["value"], heights, xerr=bars, color=colour, marker=marker, markersize=4.5,
                  linestyle="none", elinewidth=1, label=label)  # fmt: skip


def _legend(axes: Axes, columns: int) -> None:
    with matplotlib.rc_context({"legend.frameon": False}):
        axes.legend(ncols=columns, loc="lower center", bbox_to_anchor=(0.5, 1.0), borderaxespad=1.4, fontsize=9)


def _name_skills(axes: Axes, kept: pd.DataFrame) -> None:
    """Each skill's name at the right edge, at the height of its last point."""
    last = kept.sort_values("ratio").groupby("skill")["kept"].last()
    low, high = axes.get_ylim()
    present = [skill for skill in SKILL_LOOKS if skill in last.index]
    heights = [min(max((100 * last[s] - low) / (high - low), 0.02), 0.98) for s in present]
    for skill, height in zip(present, spread(heights, 0.07), strict=True):
        colour = SKILL_LOOKS[skill][0]
        axes.text(1.02, height, skill, color=colour, transform=axes.transAxes, va="center", fontweight="bold")


def _ratio(run: dict) -> str:
    return times(run["ratio"]) if run["ratio"] == run["ratio"] else "no text"


def _medians(results: Results, kept: pd.DataFrame, present: list[str]) -> str:
    part = kept[kept["run_id"].isin(readable(results))]
    if part.empty:
        return f"All runs have at least {RUINED:g} times the dense perplexity."
    middle = part.groupby("skill")["kept"].median()
    found = listing([f"{skill} {100 * middle[skill]:.0f} %" for skill in present])
    n = part["run_id"].nunique()
    return f"Half of the {n} runs below {RUINED:g}× perplexity keep at least {found}." if n > 1 else f"Kept: {found}."


def _mild_sentence(results: Results) -> str:
    mild = mild_changes(results)
    if mild.empty:
        return f"No run has perplexity within {100 * (KEPT - 1):.0f} % of the dense model's."
    parts = []
    for skill, lines in mild.groupby("skill", sort=False):
        least, most = points(lines["change"].max()), points(lines["change"].min())
        parts.append(f"{skill} by {least if least == most else f'{most} to {least}'} points")
    n = mild["run_id"].nunique()
    subject = f"In the {n} runs" if n > 1 else "In the one run"
    lost = mild[(mild["skill"] == "knowledge") & (mild["hi"] < -MARGIN)]
    return f"{subject} in the shaded strip accuracy changes: {listing(parts)}" + (
        f"; {len(lost)} of {n} certainly lost more than a point of knowledge." if len(lost) else "."
    )


def _nats(estimate: Estimate) -> str:
    return f"{estimate.value:+.2f} nats [{estimate.lo:+.2f}, {estimate.hi:+.2f}]".replace("-", "−")


def _cut(kept: pd.DataFrame) -> str:
    beyond = (kept["lo"] < LOWEST) | (kept["hi"] > HIGHEST)
    return f" Intervals are cut at {100 * LOWEST:.0f} and {100 * HIGHEST:.0f} %." if beyond.any() else ""
