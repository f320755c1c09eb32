"""The figures of the study, from results alone. Each states its finding in caption and alternative text."""

from matplotlib.ticker import FuncFormatter, NullFormatter

from crosscal.report.axes import SparsityAxis, by_method, draw_level, draw_methods, name_methods, panels
from crosscal.report.compare import (
    ALL_TASKS,
    ALL_TEXTS,
    dense_means,
    groups_of,
    mean_changes,
    task_changes,
    tasks,
    text_changes,
)
from crosscal.report.rows import Results
from crosscal.report.style import CHANCE_COLOUR, Figure, finish, label_right, style_of
from crosscal.report.words import KEPT, listing, loss_range, method_values, times

PANEL_NAMES = {"general": "general tasks", "biomedical": "biomedical tasks", "legal": "legal tasks"}


def perplexity_by_sparsity(results: Results, focus: str) -> Figure:
    """Perplexity relative to the dense model against sparsity, one panel per held-out text; `focus` is a pattern."""
    changes = text_changes(results)
    axis, texts = SparsityAxis.of(changes), [t for t in changes["eval_set"].unique() if t != ALL_TEXTS]
    canvas, grid = panels((len(texts) + 1) // 2, 2, 6.6, 2.6 * ((len(texts) + 1) // 2), sharex=True, sharey=True)
    for axes, text in zip(grid, texts, strict=False):
        part = changes[changes["eval_set"] == text]
        axes.set_yscale("log")
        _ratio_ticks(axes.yaxis)
        axis.draw(axes)
        draw_methods(axes, axis, part, "ratio")
        draw_level(axes, 1.0, "dense", dashed=False)
        axes.set_title(text, loc="left")
    for axes in grid[len(texts) :]:
        axes.set_visible(False)
    for i, text in enumerate(texts):
        if i % 2:
            name_methods(grid[i], axis, changes[changes["eval_set"] == text], "ratio")
    canvas.supxlabel(_x_name(axis))
    canvas.supylabel("perplexity / dense perplexity")
    at_focus = changes[(changes["pattern"] == focus) & (changes["eval_set"] == ALL_TEXTS)]
    found = method_values(at_focus, "ratio", times)
    windows = changes[changes["eval_set"] != ALL_TEXTS]["n"].max()
    caption = (
        f"Perplexity relative to the dense model on {len(texts)} held-out texts (log scale). At {focus}, over all texts: "
        f"{found}. Bars: 95 % bootstrap intervals over up to {windows} windows a text, paired with the dense model."
    )
    alt = (
        f"Lines of relative perplexity against sparsity on {listing(texts)}. At {focus} sparsity perplexity is {found} "
        f"times the dense model's."
    ).replace(" times the dense", " the dense")
    return finish(canvas, "fig-perplexity", caption, alt)


def accuracy_by_sparsity(results: Results, focus: str) -> Figure:
    """Mean task accuracy against sparsity for each domain, with the dense model's and chance's lines."""
    means, dense = mean_changes(results), dense_means(results)
    axis, domains = SparsityAxis.of(means), [g for g in groups_of(tasks(results)) if g in dense and g != ALL_TASKS]
    canvas, grid = panels(1, len(domains), 2.4 * len(domains) + 1.0, 3.2, sharex=True, sharey=True)
    for axes, domain in zip(grid, domains, strict=True):
        part = means[means["group"] == domain]
        part = part.assign(accuracy=100 * (part["dense"] + part["change"]))
        part = part.assign(lo=100 * (part["dense"] + part["lo"]), hi=100 * (part["dense"] + part["hi"]))
        axis.draw(axes)
        draw_methods(axes, axis, part, "accuracy")
        axes.axhspan(100 * dense[domain].lo, 100 * dense[domain].hi, color="#333333", alpha=0.08, linewidth=0)
        draw_level(axes, 100 * dense[domain].value, "dense", dashed=False)
        draw_level(axes, 100 * part["chance"].iloc[0], "chance")
        axes.set_title(f"{PANEL_NAMES.get(domain, domain)} ({part['tasks'].iloc[0]})", loc="left")
    name_methods(grid[-1], axis, part, "accuracy")
    canvas.supxlabel(_x_name(axis))
    grid[0].set_ylabel("mean accuracy (%)")
    at_focus = means[(means["pattern"] == focus) & (means["group"] == ALL_TASKS)]
    found = method_values(at_focus, "change", loss_range)
    caption = (
        f"Mean accuracy against sparsity, by domain. At {focus}, over all {at_focus['tasks'].max():.0f} usable tasks: "
        f"{found}. Band: the dense model's 95 % interval; bars: 95 % intervals of the paired difference from it. "
        "Tasks on which the dense model is not above chance are left out, and AUC tasks are in the table."
    )
    alt = f"Mean task accuracy against sparsity for {listing(domains)} tasks. At {focus} sparsity: {found}."
    return finish(canvas, "fig-accuracy", caption, alt)


def task_small_multiples(results: Results, focus: str) -> Figure:
    """Every task's score against sparsity, one small panel each; tasks at chance are grey."""
    table, changes = tasks(results), task_changes(results)
    axis, columns = SparsityAxis.of(changes), 3
    rows = -(-len(table) // columns)
    canvas, grid = panels(rows, columns, 6.6, 1.75 * rows + 0.4, sharex=True)
    for axes, task in zip(grid, table.to_dict("records"), strict=False):
        part = changes[changes["eval_set"] == task["eval_set"]]
        part = part.assign(score=100 * (task["value"] + part["change"]))
        part = part.assign(lo=100 * (task["value"] + part["lo"]), hi=100 * (task["value"] + part["hi"]))
        axis.draw(axes)
        draw_methods(axes, axis, part, "score")
        draw_level(axes, 100 * task["value"], "", dashed=False)
        draw_level(axes, 100 * task["chance"], "chance")
        note = "" if task["usable"] else ": at chance"
        axes.set_title(f"{task['eval_set']}\n{task['domain']}{note}", loc="left", fontsize=8.5)
        axes.tick_params(labelsize=8)
        if not task["usable"]:
            axes.set_facecolor("#ececec")
    for axes in grid[len(table) :]:
        axes.set_visible(False)
    canvas.supxlabel(_x_name(axis))
    canvas.supylabel("accuracy, or AUC (%)")
    fell = changes[(changes["pattern"] == focus) & (changes["p_holm"] < 0.05) & (changes["change"] < 0)]
    tried = changes[(changes["pattern"] == focus) & changes["usable"]]
    found = f"{len(fell)} of {len(tried)} (task, method) pairs at {focus} fall significantly (Holm-corrected p < 0.05)"
    key = listing([f"{style_of(m).label} {_MARKERS.get(style_of(m).marker, '')}".strip() for m, _ in by_method(changes)])
    caption = (
        f"Every task against sparsity: {found}. Solid line: dense model. Grey panels: the dense model's interval "
        f"includes chance, so no claim rests on them. Markers: {key}."
    )
    alt = f"Small panels of task score against sparsity for {len(table)} tasks. {found[0].upper()}{found[1:]}."
    return finish(canvas, "fig-tasks", caption, alt)


def loss_against_perplexity(results: Results) -> Figure:
    """The key figure: change of mean task accuracy against relative perplexity, one point per compressed run."""
    means = mean_changes(results)
    means = means[means["group"] == ALL_TASKS].rename(columns={"lo": "down", "hi": "up"})
    ratios = text_changes(results)
    ratios = ratios[ratios["eval_set"] == ALL_TEXTS][["run_id", "ratio", "lo", "hi"]]
    points = means.merge(ratios, on="run_id")
    canvas, (axes,) = panels(1, 1, 6.2, 3.9)
    axes.set_xscale("log")
    _ratio_ticks(axes.xaxis)
    axes.axvspan(1.0, KEPT, color="#d9c36a", alpha=0.35, linewidth=0)
    axes.axhline(0, color="#333333", linewidth=1)
    for method, part in by_method(points):
        style = style_of(method)
        for nofm, some in part.sort_values("ratio").groupby(part["pattern"].str.contains(":")):
            axes.errorbar(
                some["ratio"],
                100 * some["change"],
                xerr=[some["ratio"] - some["lo"], some["hi"] - some["ratio"]],
                yerr=[100 * (some["change"] - some["down"]), 100 * (some["up"] - some["change"])],
                color=style.colour,
                marker=style.marker,
                linestyle="none" if nofm else "-",
                markerfacecolor="white" if nofm else style.colour,
                elinewidth=0.9,
            )
            for run in some.to_dict("records"):
                axes.annotate(
                    run["pattern"],
                    (run["ratio"], 100 * run["change"]),
                    xytext=(4, 5),
                    textcoords="offset points",
                    fontsize=7.5,
                    color=style.colour,
                )
    floor = 100 * (means["chance"].iloc[0] - means["dense"].iloc[0])
    axes.axhline(floor, color=CHANCE_COLOUR, linewidth=1, linestyle="--")
    axes.text(0.99, floor, "guessing", transform=axes.get_yaxis_transform(), ha="right", va="bottom", fontsize=8)
    axes.text(1.005, 0.02, "kept", transform=axes.get_xaxis_transform(), fontsize=8, color="#5c4d00", rotation=90)
    axes.set_xlabel("perplexity / dense perplexity, geometric mean over texts")
    axes.set_ylabel("change of mean accuracy (points)")
    last = points.sort_values("ratio").groupby("method")["change"].last()
    label_right(axes, {method: 100 * last[method] for method, _ in by_method(points)}, gap=0.06)
    found = _kept_words(points)
    caption = (
        f"Task loss against perplexity, one point per compressed model (open markers: N:M). {found} The shaded strip is "
        f"perplexity within {100 * (KEPT - 1):.0f} % of the dense model's. Bars: 95 % bootstrap intervals, paired with it."
    )
    return finish(canvas, "fig-loss-perplexity", caption, f"Scatter of accuracy change against perplexity. {found}")


_MARKERS = {"s": "square", "o": "circle", "^": "triangle"}


def _kept_words(points) -> str:
    """What the shaded strip holds, in a sentence."""
    kept = points[points["ratio"] <= KEPT]
    if kept.empty:
        nearest = points.loc[points["ratio"].idxmin()]
        name = f"{style_of(nearest['method']).label} {nearest['pattern']}"
        return f"No run keeps perplexity that close; the nearest, {name}, is at {times(nearest['ratio'])}."
    least, most = 100 * kept["change"].max(), 100 * kept["change"].min()
    return (
        f"{len(kept)} of {len(points)} runs keep perplexity within {100 * (KEPT - 1):.0f} %; "
        f"their mean accuracy changes by {least:+.1f} to {most:+.1f} points."
    )


def _ratio_ticks(axis) -> None:
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axis.set_minor_formatter(NullFormatter())


def _x_name(axis: SparsityAxis) -> str:
    return "sparsity (%)" + (", then N:M patterns (kept:group)" if axis.groups else "")
