"""Chapter 6: the storage figure, and its tables."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from crosscal.results.compare import LEVEL, tasks
from crosscal.results.frame import Results
from crosscal_book.axes import by_method, panels, ratio_ticks, sentence_figure
from crosscal_book.chapters.forgetting import PERTURBATIONS
from crosscal_book.chapters.forgetting_figures import POOLED
from crosscal_book.chapters.forgetting_measures import (
    RUINED,
    SKILLS,
    TASKS,
    compressed,
    contrast,
    dense_gap,
    kept_shares,
    margin_shifts,
    prepared,
    readable,
    reading_pairs,
    skills,
    variant_pairs,
)
from crosscal_book.chapters.forgetting_storage import (
    EQUAL_STORAGE,
    equal_storage,
    main_tasks,
    rivals,
    task_difference,
)
from crosscal_book.style import Figure, finish, style_of
from crosscal_book.tables import Table
from crosscal_book.words import listing, points, run_name, times

FAR = 100.0
"""Runs with a higher relative perplexity are drawn at this height and named in the caption."""


def storage_trade_off(results: Results) -> Figure:
    """Perplexity and mean accuracy change against bits per weight, one point per compressed model."""
    name, runs = "fig-forgetting-storage", compressed(results)
    runs = runs[runs["ratio"].notna()]
    if runs.empty:
        return sentence_figure(name, "There is no compressed model to compare.")
    canvas, grid = panels(1, 2, 6.6, 3.6)
    grid[0].set_yscale("log")
    ratio_ticks(grid[0].yaxis, (1, 2, 5))
    changes = {run_id: task_difference(results, run_id, results.dense_id) for run_id in runs["run_id"]}
    methods = list(by_method(runs))
    for number, (method, lines) in enumerate(methods):
        bits = lines["storage_bits"] + 0.14 * (number - (len(methods) - 1) / 2)  # so that intervals stand apart
        parts = [lines[part].clip(upper=FAR) for part in ("ratio", "ratio_lo", "ratio_hi")]
        _draw(grid[0], method, bits, *parts)
        if main_tasks(results):
            found = [changes[run_id] for run_id in lines["run_id"]]
            values = [100 * np.array([getattr(one, part) for one in found]) for part in ("value", "lo", "hi")]
            _draw(grid[1], method, bits, *values)
    grid[0].axhline(1, color="#333333", linewidth=1)
    grid[1].axhline(0, color="#333333", linewidth=1)
    grid[0].set_ylabel("perplexity / dense perplexity")
    grid[1].set_ylabel("change of mean accuracy (points)")
    canvas.supxlabel("storage (bits per weight, masks and scales counted)", fontsize=10)
    handles, labels = grid[0].get_legend_handles_labels()
    canvas.legend(handles, labels, ncols=5, loc="outside upper center", frameon=False, fontsize=8)
    words = _storage_words(results)
    far = [run_name(run) for run in runs[runs["ratio"] > FAR].to_dict("records")]
    caption = (
        f"Low rank, pruning and quantization by what a weight takes. {words} Bars: 95 % bootstrap intervals over "
        f"windows (left) and over items of {len(main_tasks(results))} tasks (right), paired with the dense model. "
        "Methods of equal storage stand a little aside."
        + (f" Drawn at {FAR:g}×, but higher: {listing(far)}." if far else "")
    )
    return finish(canvas, name, caption, f"Perplexity and accuracy change against storage. {words}")


def dense_table(results: Results) -> Table:
    """The tasks, what they ask, and what the dense model scores on them."""
    body = []
    for task in tasks(prepared(results)).to_dict("records"):
        known = TASKS.get(task["eval_set"])
        skill = known.skill if known else ""
        of = f"{known.variant_of}, perturbed" if known and known.variant_of else ""
        of = f"the questions of {known.paired_with}" if known and known.paired_with else of
        score = f"{100 * task['value']:.1f} [{100 * task['lo']:.1f}, {100 * task['hi']:.1f}]"
        name = task["eval_set"] + ("" if task["usable"] else " †")
        body.append([name, skill, of, f"{100 * task['chance']:.0f}", score, str(task["n"])])
    note = "Accuracy in %, with 95 % bootstrap intervals. † not above chance: shown, used for no claim."
    return Table(["task", "skill", "pairs with", "chance", "dense", "items"], body, note, 3)


def skill_table(results: Results) -> Table:
    """Every run: storage, perplexity, the share of each skill kept, and how far its margins moved."""
    kept, shifts, present = kept_shares(results), margin_shifts(results), [s for s in SKILLS if s in skills(results)]
    body = []
    for run in compressed(results).to_dict("records"):
        cells = [run_name(run), f"{run['storage_bits']:.2f}", _interval(run, "ratio", "ratio_lo", "ratio_hi", times)]
        for skill in present:
            line = _find(kept, run["run_id"], skill)
            cells.append(_interval(line, "kept", "lo", "hi", lambda share: f"{100 * share:.0f}".replace("-", "−")))
        for skill in present:
            line = _find(shifts, run["run_id"], skill)
            cells.append(_interval(line, "shift", "lo", "hi", lambda shift: f"{shift:+.2f}".replace("-", "−")))
        body.append(cells)
    head = ["", "bits", "perplexity", *[f"{s} kept (%)" for s in present], *[f"{s} margin" for s in present]]
    note = (
        "Share of skill kept: (accuracy − chance) / (dense accuracy − chance). Margin: mean change of the right "
        "option's log-probability less the best other one's (of a cloze, of its word's log-probability), in standard "
        "deviations over items of the dense model's. In brackets: 95 % bootstrap intervals, paired with it."
    )
    return Table(head, body, note)


def contrast_table(results: Results) -> Table:
    """Every contrast on three scales: knowledge less reading, and perturbed less plain, by run and for all together."""
    families = {"knowledge less reading": reading_pairs(results)}
    families |= {f"with {kind} less plain": variant_pairs(results, end) for kind, end in PERTURBATIONS.items()}
    lines, ids, body = compressed(results).set_index("run_id"), readable(results), []
    for title, pairs in families.items():
        if not pairs or not ids:
            continue
        gap = dense_gap(results, pairs)
        body.append([title, "dense model itself", "", gap.text(points), ""])
        everything = [*ids, *[run_id for run_id in lines.index if run_id not in ids]]
        collapsed = [(f"{POOLED}, collapsed ones too", tuple(everything))] if len(everything) > len(ids) else []
        named = [(POOLED, tuple(ids)), *collapsed, *[(run_name(lines.loc[run_id]), (run_id,)) for run_id in ids]]
        for run, chosen in named:
            found = contrast(results, chosen, tuple(pairs))
            margin = f"{found.margin.value:+.2f} [{found.margin.lo:+.2f}, {found.margin.hi:+.2f}]".replace("-", "−")
            body.append([title, run, found.share.text(points), found.points.text(points), margin])
    note = (
        "Share of skill kept (%), accuracy (points) and margin (nats): change of the first less change of the second, "
        "paired by question, with 95 % bootstrap intervals; the dense model's line is the plain difference of "
        "accuracy. "
        f"Runs with at least {RUINED:g} times the dense perplexity have collapsed: they enter no verdict."
    )
    return Table(["contrast", "run", "share of skill", "accuracy", "margin"], body, note, 2)


def storage_table(results: Results) -> Table:
    """ASVD against other low-rank methods at the same rank, and low rank against pruning at equal storage."""
    body = []
    for table in (rivals(results), equal_storage(results)):
        for line in table.to_dict("records"):
            first = f"{style_of(line['method']).label} {line['pattern']} ({line['storage_bits']:.2f})"
            ratio = _interval(line, "ratio", "ratio_lo", "ratio_hi", times) + _star(line["ratio_p"])
            change = _interval(line, "change", "lo", "hi", points) + _star(line["change_p"])
            body.append([first, f"{line['rival']} ({line['rival_bits']:.2f})", ratio, change])
    note = (
        "In round brackets: bits per weight; storage counts as equal within "
        f"{100 * EQUAL_STORAGE:.0f} %. Perplexity: the first run's over the second's. Accuracy: the first run's less "
        "the second's, in points. In square brackets: 95 % bootstrap intervals, paired by window or item. \\* "
        f"sign-flip p < {LEVEL}, Holm-corrected over the comparisons of each kind."
    )
    return Table(["low rank", "against", "perplexity", "accuracy"], body, note, 2)


def _draw(axes: Axes, method: str, x, value, lo, hi) -> None:
    style = style_of(method)
    bars = np.maximum(0, np.array([np.asarray(value) - np.asarray(lo), np.asarray(hi) - np.asarray(value)]))
    axes.errorbar(x, value, yerr=bars, color=style.colour, marker=style.marker, linestyle="none", elinewidth=1,
                  label=style.label)  # fmt: skip


def _storage_words(results: Results) -> str:
    table = equal_storage(results)
    table = table[table["best"].astype(bool)] if len(table) else table
    parts = [
        f"{style_of(line['method']).label} {line['pattern']} has {times(line['ratio'])} the perplexity of "
        f"{line['rival']} and differs by {points(line['change'])} points [{points(line['lo'])}, {points(line['hi'])}]"
        for line in table.to_dict("records")
        if line["change"] == line["change"]
    ]
    return f"At equal storage, best against best: {'; '.join(parts)}." if parts else "No two kinds take equal storage."


def _find(table: pd.DataFrame, run_id: str, skill: str) -> dict:
    return table[(table["run_id"] == run_id) & (table["skill"] == skill)].iloc[0].to_dict()


def _interval(line: dict, value: str, lo: str, hi: str, text) -> str:
    if line[value] != line[value]:
        return ""
    return f"{text(line[value])} [{text(line[lo])}, {text(line[hi])}]"


def _star(p: float) -> str:
    return r"\*" if p < LEVEL else ""
