"""The key figure: what tasks lose against what perplexity shows, one point per compressed model."""

import pandas as pd
from matplotlib.axes import Axes

from crosscal.results.compare import ALL_TASKS, ALL_TEXTS, mean_changes, text_changes
from crosscal.results.frame import Results
from crosscal_book.axes import by_method, nothing_usable, panels, ratio_ticks
from crosscal_book.style import CHANCE_COLOUR, Figure, finish, style_of
from crosscal_book.words import KEPT, listing, points, run_name, times

# Runs with a higher relative perplexity are named in the caption: drawn, they would squeeze all others together.
FAR = 100.0
# Pixels from a point to its label, best place first.
OFFSETS = [(9, 7), (-9, -7), (9, -7), (-9, 7), (9, 16), (-9, -16)]
FAR_OFFSETS = [
    (9, -16),
    (-9, 16),
    (9, 27),
    (-9, -27),
    (9, -27),
    (-9, 27),
    (9, 38),
    (-9, -38),
]  # for names, which must be


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
    shown, far = runs[runs["ratio"] <= FAR], runs[runs["ratio"] > FAR]
    canvas, (axes,) = panels(1, 1, 6.4, 4.0)
    axes.set_xscale("log")
    ratio_ticks(axes.xaxis, (1, 2, 5))
    axes.axvspan(1.0, KEPT, color="#d9c36a", alpha=0.4, linewidth=0)
    axes.axhline(0, color="#333333", linewidth=1)
    for method, lines in by_method(shown):
        _draw_runs(axes, method, lines)
    floor = _floor(runs)
    axes.axhline(floor, color=CHANCE_COLOUR, linewidth=1, linestyle="--")
    axes.text(0.3, floor, "guessing", transform=axes.get_yaxis_transform(), va="bottom", fontsize=8)
    axes.set_xlim(0.97, shown["ratio_hi"].max() * 1.6)
    axes.set_xlabel("perplexity / dense perplexity, geometric mean over texts")
    axes.set_ylabel("change of mean accuracy (points)")
    _label_runs(axes, shown)
    found = kept_sentence(runs)
    percent = f"{100 * (KEPT - 1):.0f} %"
    caption = (
        f"Task loss against perplexity, one point per compressed model (open markers: N:M). {found} Shaded: perplexity "
        f"within {percent} of the dense model's. Bars: 95 % bootstrap intervals, paired with the dense model."
        + (
            f" Beyond {FAR:g}× and not drawn: {listing([run_name(run) for run in far.to_dict('records')])}."
            if len(far)
            else ""
        )
    )
    return finish(canvas, "fig-loss-perplexity", caption, f"Accuracy change against perplexity. {found}")


def _floor(runs: pd.DataFrame) -> float:
    """What guessing on every task would change, in points."""
    return 100 * (runs["chance"].iloc[0] - runs["dense"].iloc[0])


def kept_sentence(runs: pd.DataFrame) -> str:
    """Which runs of `runs_by_ratio` keep perplexity, and what their tasks lost."""
    kept, percent = runs[runs["ratio"] <= KEPT], f"{100 * (KEPT - 1):.0f} %"
    if kept.empty:
        nearest = runs.iloc[0]
        place = f"{run_name(nearest)}, is at {times(nearest['ratio'])}"
        return f"No run keeps perplexity within {percent}; the nearest, {place}."
    least, most = points(kept["change"].max()), points(kept["change"].min())
    change = f"{least} points" if least == most else f"between {most} and {least} points"
    verb = "keeps" if len(kept) == 1 else "keep"
    return (
        f"{len(kept)} of {len(runs)} runs {verb} perplexity within {percent}; mean accuracy there changes by {change}."
    )


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
    """Name each method at its last percentage; write the other patterns where they cover no point and no label."""
    axes.figure.draw_without_rendering()  # settles limits and layout, so that places in pixels are final
    records = runs.to_dict("records")
    places = {r["run_id"]: axes.transData.transform((r["ratio"], 100 * r["change"])) for r in records}
    taken = {run_id: (x - 6, y - 6, x + 6, y + 6) for run_id, (x, y) in places.items()}
    left, floor = axes.transAxes.transform((0, 0))[0], axes.transData.transform((1, _floor(runs)))[1]
    taken |= {"axis": (-1e6, -1e6, left, 1e6), "guessing": (-1e6, floor - 2, 1e6, floor + 2)}
    last = set(runs[~runs["pattern"].str.contains(":")].groupby("method")["run_id"].last())
    for run in sorted(records, key=lambda run: run["run_id"] not in last):
        named = run["run_id"] in last
        text, size = (run_name(run), 9) if named else (run["pattern"], 8)
        others = [box for key, box in taken.items() if key != run["run_id"]]
        offsets = OFFSETS + (FAR_OFFSETS if named else [])
        boxes = {offset: _box(places[run["run_id"]], offset, text, size) for offset in offsets}
        free = [offset for offset, box in boxes.items() if not any(_overlap(box, other) for other in others)]
        if not free and not named:
            continue
        dx, dy = free[0] if free else OFFSETS[0]
        taken[f"label of {run['run_id']}"] = boxes[dx, dy]
        axes.annotate(
            text,
            (run["ratio"], 100 * run["change"]),
            xytext=(0.72 * dx, 0.72 * dy),  # pixels at 100 dots an inch to points
            textcoords="offset points",
            ha="left" if dx > 0 else "right",
            va="center",
            fontsize=size,
            fontweight="bold" if named else "normal",
            color=style_of(run["method"]).colour,
        )


def _box(place, offset, text: str, size: int) -> tuple[float, float, float, float]:
    """Left, bottom, right and top of a label, in pixels at 100 dots an inch."""
    (x, y), (dx, dy), width = place, offset, 0.95 * size * len(text)
    left = x + dx if dx > 0 else x + dx - width
    return left, y + dy - 6, left + width, y + dy + 6


def _overlap(one, other) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
