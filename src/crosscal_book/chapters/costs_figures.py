"""Chapter 7's figures and table of runs: time, memory and text beside what they buy."""

from pathlib import Path

import pandas as pd
from matplotlib.ticker import FuncFormatter, NullFormatter

from crosscal.results.compare import ALL_TASKS, mean_changes
from crosscal.results.frame import DENSE, Results
from crosscal_book.axes import panels, sentence_figure
from crosscal_book.chapters.costs import DEFAULT, PAIRS_FIGURE, TEXTBOOK_FIGURE, cost_pairs, textbook_ratios
from crosscal_book.chapters.quantization_drawing import forest
from crosscal_book.chapters.quantization_pairs import interval, perplexity_ratio, run_table, shared_texts
from crosscal_book.style import Figure, finish, style_of
from crosscal_book.tables import Table
from crosscal_book.words import listing, points

MEBI = 2**20


def cost_runs(results: Results) -> pd.DataFrame:
    """Every compression by target and time: `name`, `seconds`, `mebibytes`, `tokens`, and `ratio` with `lo`, `hi`."""
    runs = run_table(results)
    runs = runs[(runs["seconds"] > 0) & ~runs["method"].isin([DENSE, "float32"])]
    lines = []
    for run in runs.sort_values(["pattern", "seconds"]).to_dict("records"):
        schedule = f" ({run['schedule']})" if run["schedule"] not in ("", DEFAULT) else ""
        line = {"run_id": run["run_id"], "name": f"{style_of(run['method']).label} {run['pattern']}{schedule}"}
        line |= {"method": run["method"], "schedule": run["schedule"], "seconds": run["seconds"]}
        line |= {"mebibytes": run["peak_bytes"] / MEBI, "tokens": run["n_windows"] * run["window"]}
        if shared_texts(results):
            found = perplexity_ratio(results, run["run_id"], results.dense_id)
            line |= {"ratio": found.value, "lo": found.lo, "hi": found.hi}
        lines.append(line)
    names = ["run_id", "name", "method", "schedule", "seconds", "mebibytes", "tokens", "ratio", "lo", "hi"]
    return pd.DataFrame(lines, columns=names)


def cost_figure(results: Results) -> Figure:
    """Seconds, memory and relative perplexity of every run, side by side."""
    name, runs = "fig-costs-runs", cost_runs(results)
    if runs.empty or runs["ratio"].isna().all():
        return sentence_figure(name, "There are no compressions among these runs to show.")
    canvas, grid = panels(1, 3, 6.6, 0.3 * len(runs) + 0.9, sharey=True)
    heights = range(len(runs))
    for axes, column, title in zip(
        grid, ("seconds", "mebibytes", "ratio"), ("seconds", "peak MiB", "perplexity ratio"), strict=True
    ):
        for height, run in zip(heights, runs.to_dict("records"), strict=True):
            style = style_of(run["method"])
            fill = style.colour if run["schedule"] in ("", DEFAULT) else "white"
            bars = [[run["ratio"] - run["lo"]], [run["hi"] - run["ratio"]]] if column == "ratio" else None
            look = {"color": style.colour, "marker": style.marker, "markerfacecolor": fill, "capsize": 2}
            axes.errorbar([run[column]], [height], xerr=bars, **look)
        if column != "mebibytes":
            axes.set_xscale("log")
            low, high = axes.get_xlim()
            ticks = [t for t in (1, 1.5, 2, 3, 5, 10, 20, 30, 50, 100, 200, 500, 1000) if low <= t <= high]
            ticks = ticks if len(ticks) < 6 else ticks[::2]
            axes.set_xticks(ticks, [f"{t:g}" + ("×" if column == "ratio" else "") for t in ticks])
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_xlim(0, 1.1 * runs[column].max())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_title(title, loc="left")
        axes.tick_params(labelsize=8)
    grid[0].set_yticks(heights, runs["name"], fontsize=8)
    grid[0].set_ylim(len(runs) - 0.4, -0.6)
    least, most = runs.loc[runs["seconds"].idxmin()], runs.loc[runs["seconds"].idxmax()]
    best = runs.loc[runs["ratio"].idxmin()]
    found = (
        f"{least['name']} takes {least['seconds']:.0f} s and {most['name']} {most['seconds']:.0f} s; nearest to the "
        f"dense perplexity is {best['name']} with {interval(best['ratio'], best['lo'], best['hi'])}"
    )
    caption = (
        f"What each compression costs and gives: {found}. Seconds and memory are of single runs on "
        f"{listing(sorted(results.rows['device'].unique()))}; bars: 95 % bootstrap intervals over windows, paired with "
        f"the dense model. Open markers: other schedules than `{DEFAULT}`."
    ).replace("`", "")
    return finish(canvas, name, caption, f"Three columns of points: seconds, memory and relative perplexity. {found}.")


def pair_figure(results: Results) -> Figure:
    """The comparisons of perplexity behind the verdicts."""
    pairs = cost_pairs(results)
    if pairs.empty:
        return sentence_figure(PAIRS_FIGURE, "No two of these runs can be compared as the claims ask.")
    canvas, axes = forest(pairs)
    axes.set_xlabel("perplexity, first to second (below 1×: the first is better)")
    worst = pairs.loc[pairs["ratio"].idxmax()]
    found = f"the highest ratio is {interval(worst['ratio'], worst['lo'], worst['hi'])} for {worst['name']}"
    caption = (
        f"Cheaper schedules against the default one, and slower methods against faster ones: {found}. Filled: Holm-"
        f"corrected p < 0.05. Bars: 95 % bootstrap intervals over {pairs['n'].max():.0f} windows, paired."
    )
    return finish(canvas, PAIRS_FIGURE, caption, f"Perplexity ratios with intervals, one line each: {found}.")


def textbook_figure(folder: Path) -> Figure:
    """How many times longer the textbook takes, in every stored setting."""
    rows = textbook_ratios(folder)
    if not rows:
        return sentence_figure(TEXTBOOK_FIGURE, "No timing against the textbook implementation is stored.")
    lines = [{"name": r["name"], "ratio": float(pd.Series(r["ratios"]).median())} for r in rows]
    lines = [line | {"lo": r["ratios"].min(), "hi": r["ratios"].max()} for line, r in zip(lines, rows, strict=True)]
    pairs = pd.DataFrame(lines).assign(p_holm=1.0)
    canvas, axes = forest(pairs)
    axes.set_xlabel("time of the textbook / time of the package")
    least, most = pairs["ratio"].min(), pairs["ratio"].max()
    found = f"the textbook takes {least:.2f} to {most:.2f} times as long"
    counts = [len(row["ratios"]) for row in rows]
    caption = (
        f"The textbook implementation against the package, measured in turns: {found}. Points: medians; bars: from the "
        f"least to the greatest of {min(counts)} to {max(counts)} pairs."
    )
    return finish(canvas, TEXTBOOK_FIGURE, caption, f"Ratios of times, one line for each setting: {found}.")


def cost_table(results: Results) -> Table:
    """Time, memory and text of every run beside perplexity and tasks."""
    changes = mean_changes(results)
    changes = changes[changes["group"] == ALL_TASKS].set_index("run_id")
    body = []
    for run in cost_runs(results).to_dict("records"):
        change = ""
        if run["run_id"] in changes.index:
            found = changes.loc[run["run_id"]]
            change = interval(found["change"], found["lo"], found["hi"], points)
        tokens = f"{run['tokens']:,}" if run["tokens"] else "none"
        load = results.provenance[run["run_id"]].get("load")
        time = [f"{run['seconds']:.1f}", "" if load is None else f"{load:.1f}"]
        cells = [run["name"].replace(" ", "\u00a0"), *time, f"{run['mebibytes']:,.0f}", tokens]
        ratio = "" if pd.isna(run["ratio"]) else interval(run["ratio"], run["lo"], run["hi"])
        body.append([*cells, ratio, change])
    note = (
        "Seconds and peak memory above what the model itself takes, of one compression each, with every layer's loss "
        "measured on the way; methods that need no text have their losses measured on a little of it. Perplexity "
        "relative to the dense model; change of mean accuracy in points; in brackets 95 % bootstrap intervals. Load: "
        "how many processes wanted a processor in the minute before the run ended, its own threads counted; where it "
        "is much higher than these, the run shared its machine and took longer than it would have alone."
    )
    return Table(["", "seconds", "load", "peak MiB", "tokens read", "perplexity", "accuracy"], body, note)
