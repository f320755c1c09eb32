"""The key figure: what tasks lose against what perplexity shows, one point per compressed model."""

import pandas as pd
from matplotlib.axes import Axes

from crosscal.report.axes import by_method, nothing_usable, panels, ratio_ticks
from crosscal.report.compare import ALL_TASKS, ALL_TEXTS, mean_changes, text_changes
from crosscal.report.rows import Results
from crosscal.report.style import CHANCE_COLOUR, Figure, finish, style_of
from crosscal.report.words import KEPT, points, run_name, times


def runs_by_ratio(results: Results) -> pd.DataFrame:
    """One line per compressed run: `ratio` of perplexity over all texts and mean accuracy `change`, with intervals."""
    means = mean_changes(results)
    means = means[means["group"] == ALL_TASKS]
    ratios = text_changes(results)
    ratios = ratios[ratios["eval_set"] == ALL_TEXTS].rename(columns={"lo": "ratio_lo", "hi": "ratio_hi"})
    return means.merge(ratios[["run_id", "ratio", "ratio_lo", "ratio_hi"]], on="run_id").sort_values("ratio")


def loss_against_perplexity(results: Results) -> Figure:
    """Change of mean task accuracy against relative perplexity; the shaded strip is "perplexity looks kept"."""
    runs = runs_by_ratio(results)
    if runs.empty:
        return nothing_usable("fig-loss-perplexity")
    canvas, (axes,) = panels(1, 1, 6.4, 4.0)
    axes.set_xscale("log")
    ratio_ticks(axes.xaxis)
    axes.axvspan(1.0, KEPT, color="#d9c36a", alpha=0.4, linewidth=0)
    axes.axhline(0, color="#333333", linewidth=1)
    for method, lines in by_method(runs):
        _draw_runs(axes, method, lines)
    floor = 100 * (runs["chance"].iloc[0] - runs["dense"].iloc[0])
    axes.axhline(floor, color=CHANCE_COLOUR, linewidth=1, linestyle="--")
    axes.text(0.3, floor, "guessing", transform=axes.get_yaxis_transform(), va="bottom", fontsize=8)
    axes.set_xlim(0.97, runs["ratio_hi"].max() * 1.6)
    axes.set_xlabel("perplexity / dense perplexity, geometric mean over texts")
    axes.set_ylabel("change of mean accuracy (points)")
    _label_runs(axes, runs)
    found = kept_sentence(runs)
    percent = f"{100 * (KEPT - 1):.0f} %"
    caption = (
        f"Task loss against perplexity, one point per compressed model (open markers: N:M). {found} Shaded: perplexity "
        f"within {percent} of the dense model's. Bars: 95 % bootstrap intervals, paired with the dense model."
    )
    return finish(canvas, "fig-loss-perplexity", caption, f"Accuracy change against perplexity. {found}")


def kept_sentence(runs: pd.DataFrame) -> str:
    """Which runs of `runs_by_ratio` keep perplexity, and what their tasks lost."""
    kept, percent = runs[runs["ratio"] <= KEPT], f"{100 * (KEPT - 1):.0f} %"
    if kept.empty:
        nearest = runs.iloc[0]
        place = f"{run_name(nearest)}, is at {times(nearest['ratio'])}"
        return f"No run keeps perplexity within {percent}; the nearest, {place}."
    least, most = points(kept["change"].max()), points(kept["change"].min())
    change = f"{least} points" if least == most else f"between {most} and {least} points"
    return f"{len(kept)} of {len(runs)} runs keep perplexity within {percent}; their mean accuracy changes by {change}."


def _draw_runs(axes: Axes, method: str, lines: pd.DataFrame) -> None:
    style = style_of(method)
    for nofm, some in lines.groupby(lines["pattern"].str.contains(":")):
        axes.errorbar(
            some["ratio"],
            100 * some["change"],
            xerr=[some["ratio"] - some["ratio_lo"], some["ratio_hi"] - some["ratio"]],
            yerr=[100 * (some["change"] - some["lo"]), 100 * (some["hi"] - some["change"])],
            color=style.colour,
            marker=style.marker,
            linestyle="none" if nofm else "-",
            markerfacecolor="white" if nofm else style.colour,
            elinewidth=0.9,
        )


def _label_runs(axes: Axes, runs: pd.DataFrame) -> None:
    """Name each method at its last percentage; write the other patterns where they do not cover a point or a label."""
    taken = [tuple(axes.transData.transform((r["ratio"], 100 * r["change"]))) for r in runs.to_dict("records")]
    percentages = runs[~runs["pattern"].str.contains(":")]
    last = set(percentages.groupby("method")["run_id"].last())
    for run in sorted(runs.to_dict("records"), key=lambda run: run["run_id"] not in last):
        style, named = style_of(run["method"]), run["run_id"] in last
        text = run_name(run) if named else run["pattern"]
        x, y = axes.transData.transform((run["ratio"], 100 * run["change"]))
        width = 5.2 * len(text)
        for dx, dy, side in ((7, 6, "left"), (-7, -8, "right"), (7, -8, "left"), (-7, 6, "right")):
            start = x + dx if side == "left" else x + dx - width
            box = [(start + part * width, y + dy) for part in (0.0, 0.5, 1.0)]
            if named or not any(abs(bx - tx) < 12 and abs(by - ty) < 11 for bx, by in box for tx, ty in taken):
                taken += box
                weight, size = ("bold", 9) if named else ("normal", 8)
                axes.annotate(
                    text,
                    (run["ratio"], 100 * run["change"]),
                    xytext=(dx * 0.72, dy * 0.72),
                    textcoords="offset points",
                    ha=side,
                    va="center",
                    fontsize=size,
                    fontweight=weight,
                    color=style.colour,
                )
                break
