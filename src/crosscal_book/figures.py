"""The figures of the study, from results alone. Each states its finding in caption and alternative text."""

from crosscal.results.compare import (
    ALL_TASKS,
    ALL_TEXTS,
    LEVEL,
    dense_means,
    groups_of,
    mean_changes,
    task_changes,
    tasks,
    text_changes,
)
from crosscal.results.frame import Results
from crosscal_book.axes import (
    SparsityAxis,
    by_method,
    draw_level,
    draw_methods,
    name_methods,
    nothing_usable,
    panels,
    ratio_ticks,
)
from crosscal_book.style import Figure, finish, style_of
from crosscal_book.words import listing, method_values, point_change, times

MARKER_NAMES = {"s": "(square)", "o": "(circle)", "^": "(triangle)", "h": "(hexagon)"}
HIGHEST = 1000.0  # relative perplexity at which the axis is cut
PANEL_NAMES = {"general": "general tasks", "biomedical": "biomedical tasks", "legal": "legal tasks"}


def perplexity_by_sparsity(results: Results, focus: str) -> Figure:
    """Perplexity relative to the dense model against sparsity, one panel per held-out text; `focus` is a pattern."""
    changes = text_changes(results)
    axis, texts = SparsityAxis.of(changes), [t for t in changes["eval_set"].unique() if t != ALL_TEXTS]
    canvas, grid = panels((len(texts) + 1) // 2, 2, 6.6, 2.6 * ((len(texts) + 1) // 2), sharex=True, sharey=True)
    for axes, text in zip(grid, texts, strict=False):
        part = changes[changes["eval_set"] == text]
        axes.set_yscale("log")
        ratio_ticks(axes.yaxis)
        axis.draw(axes)
        draw_methods(axes, axis, part, "ratio")
        draw_level(axes, 1.0, "dense", dashed=False)
        axes.set_title(text, loc="left")
    highest = changes["ratio"].max()
    grid[0].set_ylim(0.8, min(highest * 1.5, HIGHEST))
    for axes in grid[len(texts) :]:
        axes.set_visible(False)
    for i, text in enumerate(texts):
        if i % 2:
            name_methods(grid[i], axis, changes[changes["eval_set"] == text], "ratio")
    canvas.supxlabel(axis.name, fontsize=10)
    canvas.supylabel("perplexity / dense perplexity", fontsize=10)
    at_focus = changes[(changes["pattern"] == focus) & (changes["eval_set"] == ALL_TEXTS)]
    found = method_values(at_focus, "ratio", times)
    windows = changes[changes["eval_set"] != ALL_TEXTS]["n"].max()
    caption = (
        f"Perplexity relative to the dense model on {len(texts)} held-out texts (log scale). At {focus}: {found}. "
        f"Bars: 95 % bootstrap intervals over up to {windows} windows a text, paired with the dense model."
        + (f" Cut at {HIGHEST:,.0f}×; the highest is {times(highest)}." if highest > HIGHEST else "")
    )
    alt = (
        f"Lines of relative perplexity against sparsity on {listing(texts)}. At {focus} sparsity perplexity is {found} "
        f"times the dense model's."
    ).replace(" times the dense", " the dense")
    return finish(canvas, "fig-perplexity", caption, alt)


def accuracy_by_sparsity(results: Results, focus: str) -> Figure:
    """Mean task accuracy against sparsity for each domain, with the dense model's and chance's lines."""
    means, dense = mean_changes(results), dense_means(results)
    if means.empty:
        return nothing_usable("fig-accuracy")
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
    canvas.supxlabel(axis.name, fontsize=10)
    grid[0].set_ylabel("mean accuracy (%)")
    at_focus = means[(means["pattern"] == focus) & (means["group"] == ALL_TASKS)]
    found = method_values(at_focus, "change", point_change)
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
    canvas.supxlabel(axis.name, fontsize=10)
    canvas.supylabel("accuracy, or AUC (%)", fontsize=10)
    fell = changes[(changes["pattern"] == focus) & (changes["p_holm"] < LEVEL) & (changes["change"] < 0)]
    tried = changes[(changes["pattern"] == focus) & changes["usable"]]
    found = (
        f"{len(fell)} of {len(tried)} (task, method) pairs at {focus} fall significantly (Holm-corrected p < {LEVEL})"
    )
    key = listing(
        [f"{style_of(m).label} {MARKER_NAMES.get(style_of(m).marker, '')}".strip() for m, _ in by_method(changes)]
    )
    caption = (
        f"Every task against sparsity: {found}. Solid line: dense model. Grey panels: the dense model's interval "
        f"includes chance, so no claim rests on them. Markers: {key}."
    )
    alt = f"Small panels of task score against sparsity for {len(table)} tasks. {found[0].upper()}{found[1:]}."
    return finish(canvas, "fig-tasks", caption, alt)
