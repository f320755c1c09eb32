"""Chapter 5's figures and table: loss against storage, comparisons, tasks, and what the 4-bit file does."""

import pandas as pd
from matplotlib.ticker import NullFormatter

from crosscal.results.compare import LEVEL, mean_changes
from crosscal.results.frame import Results
from crosscal_book.axes import by_method, draw_level, panels, ratio_ticks, sentence_figure
from crosscal_book.chapters.quantization import PAIRS_FIGURE, STORAGE_FIGURE
from crosscal_book.chapters.quantization_drawing import draw_runs, forest, name_joint, storage_axis
from crosscal_book.chapters.quantization_origin import ORIGIN_FIGURE, expected_gain
from crosscal_book.chapters.quantization_pairs import interval, mean_divergence, shared_texts
from crosscal_book.chapters.quantization_runs import FOCUS_BITS, ROWS, all_pairs, floor_id, grid_runs, plain_runs
from crosscal_book.style import Figure, finish, label_right, style_of
from crosscal_book.tables import Table
from crosscal_book.words import listing, points, run_name, times

HIGHEST = 1000.0  # relative perplexity at which the axis is cut
LEAST_JS = 1e-9  # nats; a divergence of nothing has no place on a logarithmic axis
STORAGE_NAME = "bits per weight, masks and scales counted"


def loss_by_storage(results: Results) -> Figure:
    """Perplexity and divergence against storage: a line per method, filled in groups, open per row."""
    runs = grid_runs(results)
    if runs.empty or runs["ratio"].isna().all():
        return sentence_figure(STORAGE_FIGURE, "There are no quantized runs among these to show.")
    runs = runs.assign(**{column: runs[column].clip(lower=LEAST_JS) for column in ("js", "js_lo", "js_hi")})
    plain = runs[runs["run_id"].isin(plain_runs(results)["run_id"])]
    canvas, grid = panels(2, 1, 6.4, 6.2, sharex=True)
    for axes, column in zip(grid, ("ratio", "js"), strict=True):
        axes.set_yscale("log")
        storage_axis(axes, runs)
        draw_runs(axes, runs, column)
    ratio_ticks(grid[0].yaxis)
    draw_level(grid[0], 1.0, "dense", dashed=False)
    grid[0].set_ylim(0.9, min(1.5 * runs["ratio_hi"].max(), HIGHEST))
    floor = floor_id(results)
    if floor is not None:
        draw_level(grid[1], mean_divergence(results, floor).value, "rounding alone", dashed=False)
    grid[0].set_ylabel("perplexity / dense perplexity")
    grid[1].set_ylabel("JS divergence (nats per token)")
    for axes, column in zip(grid, ("ratio", "js"), strict=True):
        ends = plain.sort_values("storage").groupby("method")[column].first()
        label_right(axes, {method: ends[method] for method, _ in by_method(plain)}, 0.075)
    grid[1].set_xlabel(f"{STORAGE_NAME} (fewer to the right)")
    name_joint(grid[0], runs, "ratio", 0.25)
    found = _at_focus(results, "ratio", times)
    cut = int((runs["ratio"] > HIGHEST).sum())
    caption = (
        f"Loss against storage on {len(shared_texts(results))} held-out texts. At {FOCUS_BITS} bits: {found}. "
        f"Filled markers and solid lines: groups of inputs; open and dashed: per row{_others(runs)}. Bars: 95 % "
        f"bootstrap intervals over {runs['n'].max():.0f} windows, paired with the dense model."
        + (f" Cut at {HIGHEST:,.0f}×, exceeded by {cut} of {len(runs)} runs." if cut else "")
    )
    alt = f"Relative perplexity and JS divergence rise as bits per weight fall. At {FOCUS_BITS} bits: {found}."
    return finish(canvas, STORAGE_FIGURE, caption, alt)


def tasks_by_storage(results: Results) -> Figure:
    """Change of mean task accuracy against storage."""
    name, runs = "fig-quantization-tasks", grid_runs(results)
    if runs.empty or runs["change"].isna().all():
        return sentence_figure(name, "No quantized run has a task on which the dense model is above chance.")
    canvas, (axes,) = panels(1, 1, 6.4, 3.5)
    percent = runs.assign(**{f"change{end}": 100 * runs[f"change{end}"] for end in ("", "_lo", "_hi")})
    storage_axis(axes, runs)
    draw_runs(axes, percent, "change")
    draw_level(axes, 0.0, "dense", dashed=False)
    means = mean_changes(results)
    draw_level(axes, 100 * (means["chance"].iloc[-1] - means["dense"].iloc[-1]), "guessing")
    axes.set_xlabel(f"{STORAGE_NAME} (fewer to the right)")
    axes.set_ylabel("change of mean accuracy (points)")
    plain = percent[percent["run_id"].isin(plain_runs(results)["run_id"])]
    ends = plain.sort_values("storage").groupby("method")["change"].first()
    label_right(axes, {method: ends[method] for method, _ in by_method(plain)})
    name_joint(axes, percent, "change", -0.2)
    found, tasks = _at_focus(results, "change", lambda c: f"{points(c)} points"), means["tasks"].iloc[-1]
    caption = (
        f"Mean accuracy over {tasks:.0f} tasks against storage. At {FOCUS_BITS} bits: {found}. Markers as in the "
        "figure of losses; bars: 95 % bootstrap intervals over items, paired with the dense model."
    )
    return finish(canvas, name, caption, f"Change of mean accuracy against bits per weight. {caption.split('. ')[1]}.")


def pair_figure(results: Results) -> Figure:
    """Every comparison behind a verdict as a ratio of perplexities with its interval."""
    pairs = all_pairs(results)
    if pairs.empty:
        return sentence_figure(PAIRS_FIGURE, "No two of these runs can be compared as the claims ask.")
    canvas, axes = forest(pairs)
    axes.set_xlabel("perplexity, first to second (below 1×: the first is better)")
    better = int(((pairs["ratio"] < 1) & (pairs["p_holm"] < LEVEL)).sum())
    worse = int(((pairs["ratio"] > 1) & (pairs["p_holm"] < LEVEL)).sum())
    found = f"in {better} of {len(pairs)} comparisons the first is significantly better, in {worse} significantly worse"
    caption = (
        f"The comparisons behind the verdicts: {found} (Holm-corrected p < {LEVEL} over all of them). Bars: 95 % "
        f"bootstrap intervals over {pairs['n'].max():.0f} windows, paired. Rows at equal storage lie between two bits."
    )
    return finish(canvas, PAIRS_FIGURE, caption, f"Perplexity ratios with intervals, one line each: {found}.")


def origin_figure(results: Results) -> Figure:
    """The layers' output errors against bits, beside what rounding gives on weights that lie on no grid."""
    errors = results.only(metric="layer_error")
    runs = plain_runs(results).merge(errors[["run_id", "value", "lo", "hi"]], on="run_id")
    runs = runs.rename(columns={"value": "error", "lo": "error_lo", "hi": "error_hi"})
    bits = sorted(runs["bits"].unique())
    if len(bits) < 2:
        return sentence_figure(ORIGIN_FIGURE, "There are no runs at two numbers of bits to compare layer errors of.")
    canvas, (axes,) = panels(1, 1, 6.4, 3.4)
    axes.set_yscale("log")
    runs = runs.assign(storage=runs["bits"])
    draw_runs(axes, runs.assign(joint=False), "error", axis="bits")
    start = runs[(runs["method"] == "rtn") & (runs["bits"] == FOCUS_BITS)].sort_values("group", key=lambda g: g == ROWS)
    if len(start):
        line = [start["error"].iloc[0] / expected_gain(FOCUS_BITS, b) for b in bits]
        axes.plot(bits, line, color="#555555", linestyle=":", linewidth=1.2)
        place = {"xytext": (8, -10), "textcoords": "offset points", "fontsize": 8, "color": "#555555"}
        axes.annotate("no grid", (bits[-1], line[-1]), **place)
    axes.set_xscale("log", base=2)
    axes.set_xticks(bits, [str(b) for b in bits])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.invert_xaxis()
    axes.set_xlabel("bits (fewer to the right)")
    axes.set_ylabel("relative squared error of layers")
    ends = runs.sort_values("bits").groupby("method")["error"].first()
    label_right(axes, {method: ends[method] for method, _ in by_method(runs)})
    rtn = runs[(runs["method"] == "rtn")].sort_values(["group", "bits"])
    named = [f"{interval(r['error'], r['error_lo'], r['error_hi'], _short)} at {r['pattern']}" for r in _records(rtn)]
    caption = (
        f"Mean output error of layers against bits. RTN: {listing(named)}. Dotted: RTN's error at {FOCUS_BITS} bits, "
        "scaled as rounding of weights that lie on no grid scales it. Markers as in the figure of losses; bars: 95 % "
        "bootstrap intervals over layers."
    )
    return finish(canvas, ORIGIN_FIGURE, caption, f"Layer errors fall with bits. RTN: {listing(named)}.")


def run_list(results: Results) -> Table:
    """Every quantized run: storage, perplexity, divergence and tasks, with intervals."""
    body = []
    for _, part in by_method(grid_runs(results)):
        for run in _records(part.sort_values("storage")):
            change = interval(run["change"], run["change_lo"], run["change_hi"], points)
            body.append(
                [
                    run_name(run).replace(" ", "\u00a0") + (" act-order" if run["act_order"] else ""),
                    f"{run['storage']:.2f}",
                    interval(run["ratio"], run["ratio_lo"], run["ratio_hi"], _fine),
                    interval(run["js"], run["js_lo"], run["js_hi"], _short),
                    "" if pd.isna(run["change"]) else change,
                ]
            )
    note = (
        "Bits per weight of the compressed layers, masks, scales and zero points counted. Perplexity relative to the "
        "dense model, geometric mean over texts; Jensen-Shannon divergence from it in nats per token; change of mean "
        "accuracy in points. In brackets: 95 % bootstrap intervals, paired with the dense model."
    )
    return Table(["", "bits", "perplexity", "JS divergence", "accuracy"], body, note)


def _at_focus(results: Results, column: str, text) -> str:
    runs = plain_runs(results)
    runs = runs[(runs["bits"] == FOCUS_BITS) & runs[column].notna()]
    found = [
        f"{run_name(run)} {interval(run[column], run[f'{column}_lo'], run[f'{column}_hi'], text)}"
        for _, part in by_method(runs)
        for run in _records(part.sort_values("storage"))
    ]
    return listing(found) if found else "no run"


def _others(runs: pd.DataFrame) -> str:
    joint = runs[runs["joint"].astype(bool)]
    return f"; green triangles: pruned and quantized by {style_of('sparsegpt').label}" if len(joint) else ""


def _fine(ratio: float) -> str:
    """A ratio to three decimals where it is near 1: at 8 bits two show nothing."""
    return f"{ratio:.3f}×" if ratio < 2 else times(ratio)


def _short(value: float) -> str:
    return f"{value:.2g}"


def _records(frame: pd.DataFrame) -> list[dict]:
    return frame.to_dict("records")
