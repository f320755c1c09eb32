"""Chapter 1: does a model that keeps its perplexity keep its tasks, and do equal perplexities mean equal tasks?"""

from functools import lru_cache
from itertools import combinations

import numpy as np
import pandas as pd

from crosscal.plan.parameters import Settings
from crosscal.results.compare import (
    accuracy_tasks,
    changes,
    dense_means,
    groups_of,
    mean_changes,
    paired,
    run_measures,
    task_changes,
    tasks,
)
from crosscal.results.frame import DENSE, Results, model_names
from crosscal.results.quantities import ACCURACY, PERPLEXITY
from crosscal.stats import LEVEL, Estimate, bootstrap_means
from crosscal.types import Unstructured
from crosscal_book.chapter import Chapter, Page
from crosscal_book.claims import every, some
from crosscal_book.drawing import Axis
from crosscal_book.marks import lines, scatter, target_order
from crosscal_book.style import by_method, style_of
from crosscal_book.tables import Table
from crosscal_book.words import (
    KEPT,
    cell,
    interval,
    listing,
    method_values,
    number,
    p_text,
    point_change,
    points,
    run_name,
    times,
)

MARGIN = 0.01  # a mean loss below one point is called none
RATIOS = (1.25, 1.5, 2.0, 3.0)  # relative perplexities at which methods are compared; fixed before any run was seen
HALF = 0.5  # a task is broken where it has lost half of what the dense model has above chance
FAR_APART = 3.0  # between two runs whose perplexities differ by a larger factor no line is drawn
EQUAL = 0.02  # two methods' tasks count as equal when the interval of their difference stays within two points
FAR = 100.0  # runs of a higher relative perplexity are named in the caption: drawn, they would squeeze all others
HIGHEST = 1000.0  # relative perplexity at which the axis of Fig. 1.2 is cut
TRADE_OFF = "fig-loss-perplexity"
PERCENT = f"{100 * (KEPT - 1):.0f} %"
NO_TASK = "The dense model is above chance on no accuracy task, so there is nothing to compare: ask more items."
SPARSITY = "sparsity (%), then N:M patterns (kept:group)"
KEYS = ["run_id", "method", "target", "calibration", "weight"]


def _uniform(results: Results, _: Settings) -> Results:
    """The runs in which all blocks are pruned alike: uneven sparsity has a table of its own."""
    kept = [i for i in results.run_ids if results.configs.get(i, {}).get("allocation", "uniform") == "uniform"]
    return results.subset(kept)


def _focus(page: Page) -> str:
    """The target that takeaways and tables look at: the one asked for, else the least sparse that was run."""
    wanted, targets = str(Unstructured(getattr(page.settings, "sparsity", 0.5))), list(page.runs["target"].unique())
    return wanted if wanted in targets or not targets else min(targets, key=target_order)


def _note(page: Page) -> list[str]:
    """Each method at the focus, and which tasks break."""
    focus, ratios = _focus(page), changes(page.results, PERPLEXITY)
    ratios = ratios[ratios["target"] == focus]
    kept = f"{int((ratios['value'] <= KEPT).sum())} of {len(ratios)} methods keep perplexity within {PERCENT}"
    means = changes(page.results, ACCURACY).set_index("run_id")
    n_tasks, methods = len(accuracy_tasks(page.results)), []
    for line in (line for _, part in by_method(ratios) for line in part.iloc[:1].to_dict("records")):
        text = f"- {style_of(line['method']).label}: perplexity {cell(line)}"
        if line["run_id"] in means.index:
            change = cell(means.loc[line["run_id"]], write=points).replace(" [", " points [")
            text += f", mean accuracy {change} over {n_tasks} tasks"
        methods.append(text)
    opening = f"At {focus} sparsity on {model_names(page.results.rows)}, {kept}:\n\n" + "\n".join(methods)
    return [opening, _broken_tasks(page, focus), _first_to_break(page)]


CHAPTER = Chapter("perplexity", note=_note, prepare=_uniform)

# ------------------------------------------------------------------------------------------ kept perplexity


@lru_cache(maxsize=8)
def _by_ratio(page: Page) -> pd.DataFrame:
    """Every compressed run: `x` its perplexity to the dense model's, `value` its change of mean accuracy, ascending."""
    runs = run_measures(page.results, PERPLEXITY, ACCURACY).dropna(subset="accuracy")
    ends = {"": "x", "_lo": "x_lo", "_hi": "x_hi"}
    names = {f"perplexity{end}": name for end, name in ends.items()}
    names |= {"accuracy": "value", "accuracy_lo": "lo", "accuracy_hi": "hi"}
    return runs.rename(columns=names).sort_values("x", kind="stable")


def _kept(page: Page) -> pd.DataFrame:
    """The runs that keep perplexity, with the sign-flip p of an unchanged accuracy."""
    runs = _by_ratio(page)
    kept = runs[runs["x"] <= KEPT]
    p = [paired(page.results, run_id, None, ACCURACY).estimate(test=True).p for run_id in kept["run_id"]]
    return kept.assign(name=[run_name(line) for line in kept.to_dict("records")], p=p)


def _nothing_kept(page: Page) -> str:
    runs = _by_ratio(page)
    if runs.empty:
        return "the dense model is above chance on no accuracy task, so there is nothing to lose"
    nearest = runs.iloc[0]
    within = f"within {PERCENT} of the dense model's"
    return f"no run keeps its perplexity {within}; the nearest, {run_name(nearest)}, is at {times(nearest['x'])}"


def _telling(rows: pd.DataFrame) -> pd.Series:
    """The run that decides: the worst proven loss, else the one that excludes a loss least."""
    proven = rows[rows["shows"]]
    return proven.sort_values("value").iloc[0] if len(proven) else rows.sort_values("lo").iloc[0]


def _hidden_effect(page: Page, rows: pd.DataFrame) -> str:
    run = _telling(rows)
    ratio, change = interval(run["x"], run["x_lo"], run["x_hi"]), cell(run, write=points).replace(" [", " points [")
    effect = (
        f"{run_name(run)} has {ratio} the dense perplexity and its mean accuracy over "
        f"{len(accuracy_tasks(page.results))} tasks changes by {change}, {p_text(run['p_holm'])}"
    )
    within = f"within {PERCENT} of the dense model's"
    if rows["shows"].any():
        return effect
    if rows["refutes"].all():
        return f"no run {within} loses a point or more; the nearest to it: {effect}"
    none = "no run with perplexity" if len(rows) > 1 else "the one run with perplexity"
    verb = "loses accuracy significantly" if len(rows) > 1 else "does not lose accuracy significantly"
    return f"{none} {within} {verb}, but a loss is not excluded: {effect}"


def _hidden_brief(_: Page, rows: pd.DataFrame) -> str:
    run = _telling(rows)
    change = cell(run, write=points).replace(" [", " points [")
    return f"accuracy {change} at {times(run['x'])} the perplexity ({run_name(run)})"


CHAPTER.claim(
    "hidden-loss",
    "Perplexity hides task loss: a model that keeps its perplexity can still lose accuracy",
    _kept,
    some("worse", by=MARGIN),
    on=ACCURACY,
    evidence=TRADE_OFF,
    paper="khanal2024",
    says=_hidden_effect,
    brief=_hidden_brief,
    missing=_nothing_kept,
)

# ------------------------------------------------------------------------------------------ equal perplexity


def _over_sparsity(page: Page):
    """(method, its runs over unstructured sparsity, sparsest last), for methods with at least two."""
    runs = changes(page.results, ACCURACY)
    runs = runs[~runs["target"].str.contains(":")]
    for method, part in by_method(runs):
        if len(part) > 1:
            yield method, part.sort_values("sparsity")


@lru_cache(maxsize=8)
def _curves(page: Page) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By method: logarithms of relative perplexity [runs], and draws of the accuracy change [runs, 1 + draws]."""
    ratios = changes(page.results, PERPLEXITY).set_index("run_id")["value"]
    curves = {}
    for method, runs in _over_sparsity(page):
        draws = [bootstrap_means(paired(page.results, i, None, ACCURACY).groups()) for i in runs["run_id"]]
        logs = np.log([1.0, *ratios[runs["run_id"]]])
        curve, order = np.stack([np.zeros_like(draws[0]), *draws]), np.argsort(logs, kind="stable")
        curves[method] = (logs[order], curve[order])
    return curves


def _at(curve: tuple[np.ndarray, np.ndarray], ratio: float) -> np.ndarray | None:
    """The draws of the change at one relative perplexity, linear in its logarithm; None without runs near enough."""
    (logs, draws), x = curve, np.log(ratio)
    if not logs[0] <= x <= logs[-1]:
        return None
    right = max(int(np.searchsorted(logs, x)), 1)
    if logs[right] - logs[right - 1] > np.log(FAR_APART):
        return None
    share = (x - logs[right - 1]) / (logs[right] - logs[right - 1])
    return draws[right - 1] + share * (draws[right] - draws[right - 1])


def _equal_perplexity(page: Page) -> pd.DataFrame:
    """At each of `RATIOS`, the difference of two methods' accuracy changes; one bootstrap over items pairs them."""
    curves, rows = _curves(page), []
    for ratio in RATIOS:
        for pair in combinations(curves, 2):
            one, other = (_at(curves[method], ratio) for method in pair)
            if one is not None and other is not None:
                gap = Estimate.of_draws(one - other, 0, test=True)
                name = f"{style_of(pair[0]).label} less {style_of(pair[1]).label}"
                rows.append({"name": name, "ratio": ratio, **vars(gap)})
    return pd.DataFrame(rows)


def _gap(line: pd.Series) -> str:
    return f"{line['name']}: {cell(line, write=points).replace(' [', ' points [')}, {p_text(line['p_holm'])}"


def _widest(_: Page, rows: pd.DataFrame) -> str:
    sure = rows[rows["p_holm"] < LEVEL]
    line = (sure if len(sure) else rows).sort_values("value", key=abs).iloc[-1]
    return f"at {times(line['ratio'])} the dense perplexity the widest gap is {_gap(line)}"


CHAPTER.claim(
    "same-tasks-at-equal-perplexity",
    "At equal perplexity two pruning methods leave the tasks equally good",
    _equal_perplexity,
    every("equal", by=EQUAL),
    on=ACCURACY,
    evidence=TRADE_OFF,
    says=_widest,
    missing="no two methods have runs on both sides of one perplexity",
)


@CHAPTER.table("equal-perplexity")
def _equal_table(page: Page) -> Table:
    """The accuracy changes at equal perplexity, and the widest gap between two methods."""
    curves, gaps, body = _curves(page), page.rows("same-tasks-at-equal-perplexity"), []
    draws = {ratio: {method: _at(curve, ratio) for method, curve in curves.items()} for ratio in RATIOS}
    methods = [m for m in curves if any(by[m] is not None for by in draws.values())]
    for ratio, by in draws.items():
        if any(draw is not None for draw in by.values()):
            cells = ["" if by[m] is None else Estimate.of_draws(by[m], 0).text(points) for m in methods]
            here = gaps[gaps["ratio"] == ratio] if len(gaps) else gaps
            body.append([times(ratio), *cells, _gap(here.loc[here["value"].abs().idxmax()]) if len(here) else ""])
    note = (
        "Change of mean accuracy in points where perplexity, over all texts, is so many times the dense model's, "
        "interpolated between sparsities; 95 % bootstrap intervals over items. Gap: the two methods that differ most, "
        "paired on the same items; p is Holm-corrected over all pairs and rows."
    )
    return Table(["perplexity", *[style_of(m).label for m in methods], "widest gap"], body, note)


# ------------------------------------------------------------------------------------------ figures


def _kept_sentence(runs: pd.DataFrame) -> str:
    """Which runs keep perplexity, and what their tasks lost."""
    kept = runs[runs["x"] <= KEPT]
    if kept.empty:
        place = f"{run_name(runs.iloc[0])}, is at {times(runs.iloc[0]['x'])}"
        return f"No run keeps perplexity within {PERCENT}; the nearest, {place}."
    least, most = points(kept["value"].max()), points(kept["value"].min())
    change = f"{least} points" if least == most else f"between {most} and {least} points"
    verb = "keeps" if len(kept) == 1 else "keep"
    return (
        f"{len(kept)} of {len(runs)} runs {verb} perplexity within {PERCENT}; mean accuracy there changes by {change}."
    )


@CHAPTER.figure(TRADE_OFF)
def _trade_off(page: Page):
    """Change of mean task accuracy against relative perplexity; the shaded strip is "perplexity looks kept"."""
    runs, means = _by_ratio(page), mean_changes(page.results)
    if runs.empty:
        return NO_TASK
    shown, far = runs[runs["x"] <= FAR], runs[runs["x"] > FAR]
    frame = shown[[*KEYS, "x", "x_lo", "x_hi"]].assign(**{c: 100 * shown[c] for c in ("value", "lo", "hi")})
    patterns, last = frame["target"].str.contains(":"), frame.groupby("method")["x"].transform("max")
    names = [run_name(line) for line in frame.to_dict("records")]
    labels = frame["target"].mask((frame["x"] == last) & ~patterns, pd.Series(names, frame.index))
    x = Axis(PERPLEXITY.compared + ", geometric mean over texts", 10, suffix="×", band=(1.0, KEPT),
             limits=(0.97, 1.6 * frame["x_hi"].max()))  # fmt: skip
    guessing = 100 * (means["chance"].iloc[0] - means["dense"].iloc[0])
    y = Axis(ACCURACY.compared, lines={"": 0.0, "guessing": guessing})
    drawing = scatter(frame, x, y, size=(6.4, 4.0), hollow=patterns, labels=labels, key=True)
    said = _kept_sentence(runs)
    beyond = f" Beyond {FAR:g}× and not drawn: {listing([run_name(r) for r in far.to_dict('records')])}."
    caption = (
        f"Task loss against perplexity, one point per compressed model (open markers: N:M). {said} Shaded: perplexity "
        f"within {PERCENT} of the dense model's. Bars: 95 % bootstrap intervals, paired with the dense model."
        + beyond
        * bool(len(far))
    )
    return drawing, caption, f"Accuracy change against perplexity. {said}"


@CHAPTER.figure("fig-perplexity")
def _perplexity(page: Page):
    """Perplexity relative to the dense model against sparsity, one panel per held-out text."""
    focus, frame = _focus(page), changes(page.results, PERPLEXITY, "eval_set")
    if frame.empty:
        return "There is no compressed run."
    whole, texts, highest = changes(page.results, PERPLEXITY), list(frame["over"].unique()), frame["value"].max()
    said = method_values(whole[whole["target"] == focus], "value", times)
    y = Axis(PERPLEXITY.compared, 10, suffix="×", limits=(0.8, min(1.5 * highest, HIGHEST)), lines={"dense": 1.0})
    frame = frame.assign(panel=frame["over"])[[*KEYS, "panel", "value", "lo", "hi", "n"]]
    drawing = _over_targets(frame, y, columns=2, size=(6.6, 2.6), share=(True, True))
    caption = (
        f"Perplexity relative to the dense model on {len(texts)} held-out texts (log scale). At {focus}: {said}. Bars: "
        f"95 % bootstrap intervals over up to {frame['n'].max()} windows a text, paired with the dense model."
        + (f" Cut at {HIGHEST:,.0f}×; the highest is {times(highest)}." if highest > HIGHEST else "")
    )
    alt = f"Lines of relative perplexity against sparsity on {listing(texts)}. At {focus} sparsity perplexity is {said}"
    return drawing, caption, f"{alt} the dense model's."


@CHAPTER.figure("fig-accuracy")
def _accuracy(page: Page):
    """Mean task accuracy against sparsity for each domain, with the dense model's and chance's lines."""
    focus, means, frame = _focus(page), dense_means(page.results), changes(page.results, ACCURACY, "domain")
    if frame.empty:
        return NO_TASK
    domains = [g for g in groups_of(tasks(page.results)) if g in set(frame["over"])]
    table = accuracy_tasks(page.results)
    names = {d: f"{d} tasks ({(table['domain'] == d).sum()})" for d in domains}
    dense = frame["over"].map({d: means[d].value for d in domains})
    frame = frame.assign(panel=frame["over"].map(names), **{c: 100 * (dense + frame[c]) for c in ("value", "lo", "hi")})
    frame = frame.sort_values("over", key=lambda over: over.map(domains.index), kind="stable")
    limits = (frame["lo"].min() - 3, max(frame["hi"].max(), *(100 * means[d].hi for d in domains)) + 3)
    chance = table.groupby("domain")["chance"].mean()
    levels = {d: {"dense": 100 * means[d].value, "chance": 100 * chance[d]} for d in domains}
    bands = {d: (100 * means[d].lo, 100 * means[d].hi) for d in domains}
    y = {names[d]: Axis("mean accuracy (%)", limits=limits, lines=levels[d], band=bands[d]) for d in domains}
    whole = changes(page.results, ACCURACY)
    said = method_values(whole[whole["target"] == focus], "value", point_change)
    drawing = _over_targets(frame[[*KEYS, "panel", "value", "lo", "hi", "n"]], y, columns=len(domains),
                            size=(2.4 * len(domains) + 1.0, 3.2), share=(True, True))  # fmt: skip
    caption = (
        f"Mean accuracy against sparsity, by domain. At {focus}, over all {len(table)} usable tasks: {said}. Band: the "
        "dense model's 95 % interval; bars: 95 % intervals of the paired difference from it. Tasks on which the dense "
        "model is not above chance are left out"
        + (", and AUC tasks are in the table." if (tasks(page.results)["metric"] == "auc").any() else ".")
    )
    return drawing, caption, f"Mean task accuracy against sparsity for {listing(domains)} tasks. At {focus}: {said}."


@CHAPTER.figure("fig-tasks")
def _every_task(page: Page):
    """Every task's score against sparsity, one small panel each."""
    focus, table, frame = _focus(page), tasks(page.results), task_changes(page.results)
    if frame.empty:
        return NO_TASK
    table = table.set_index("eval_set")
    dense = frame["eval_set"].map(table["value"])
    names = {t: f"{t}{'' if line['usable'] else ': at chance'}" for t, line in table.iterrows()}
    frame = frame.assign(target=frame["pattern"], panel=frame["eval_set"].map(names))
    frame = frame.assign(**{c: 100 * (dense + frame[d]) for c, d in (("value", "change"), ("lo", "lo"), ("hi", "hi"))})
    frame = frame.merge(page.runs[["run_id", "calibration", "weight"]], on="run_id")
    y = {names[t]: Axis("score (%)" * (i % 3 == 0), lines={"": 100 * line["value"], "chance": 100 * line["chance"]})
         for i, (t, line) in enumerate(table.iterrows())}  # fmt: skip
    here = frame[(frame["target"] == focus) & frame["usable"].astype(bool)]
    fell = int(((here["p_holm"] < LEVEL) & (here["change"] < 0)).sum())
    said = f"{fell} of {len(here)} (task, method) pairs at {focus} fall significantly (Holm-corrected p < {LEVEL})"
    drawing = _over_targets(frame[[*KEYS, "panel", "value", "lo", "hi", "n"]], y, columns=3, size=(6.6, 1.75),
                            ends=False, key=True)  # fmt: skip
    unusable = " At chance: the dense model's interval includes chance, so no claim rests on these tasks."
    caption = f"Every task against sparsity: {said}. Solid line: dense model."
    caption += unusable * bool((~table["usable"]).any())
    return (
        drawing,
        caption,
        f"Small panels of task score against sparsity for {len(table)} tasks. {said[0].upper()}{said[1:]}.",
    )


def _over_targets(frame: pd.DataFrame, y, **options):
    """A line per method over the percentages, open markers for N:M in columns of their own."""
    patterns = frame["target"].str.contains(":")
    line, x = frame["method"].mask(patterns, ""), Axis(SPARSITY if patterns.any() else "sparsity (%)")
    return lines(frame, x, y, across="target", line=line, hollow=patterns, aside=0.9, **options)


# ------------------------------------------------------------------------------------------ tables


def _perplexity_cell(results: Results, run_id: str, text: str) -> str:
    rows = results.only(run_id=run_id, metric="perplexity", eval_set=text)
    return "" if rows.empty else cell(rows.iloc[0], write=number)


@CHAPTER.table("headline")
def _headline(page: Page) -> Table:
    """One line per measure (perplexity of a text, mean accuracy of a domain), one column per model at the focus."""
    results, focus, means = page.results, _focus(page), dense_means(page.results)
    runs = results.runs[(results.runs["method"] == DENSE) | (results.runs["target"] == focus)]
    ids = {style_of(method).label: part["run_id"].iloc[0] for method, part in by_method(runs)}
    texts = results.only(run_id=results.dense_id, metric="perplexity")["eval_set"]
    body = [
        [f"perplexity, {t.replace('_', ' ')}", *[_perplexity_cell(results, i, t) for i in ids.values()]] for t in texts
    ]
    by_domain = pd.concat([changes(results, ACCURACY, "domain"), changes(results, ACCURACY)])
    for group, mean in means.items():
        over = "all" if group == "all tasks" else group
        cells = [mean.map(lambda share: 100 * share).text("{:.1f}".format)]
        for run_id in list(ids.values())[1:]:
            line = by_domain[(by_domain["run_id"] == run_id) & (by_domain["over"] == over)].iloc[0]
            cells.append(interval(*(100 * (mean.value + line[c]) for c in ("value", "lo", "hi")), "{:.1f}".format))
        body.append([f"accuracy, {over} (%)", *cells])
    note = (
        f"Compressed models at {focus}. In brackets: 95 % bootstrap intervals, over windows for perplexity, over items "
        "for accuracy; a compressed model's accuracy has the interval of its paired difference from the dense model. "
        "Means are over tasks on which the dense model is above chance."
    )
    return Table(["", *ids], body, note)


@CHAPTER.table("perplexity")
def _perplexities(page: Page) -> Table:
    """Perplexity of every run on every text, with intervals."""
    results = page.results
    rows, body = results.only(metric="perplexity"), []
    texts = list(rows["eval_set"].unique())
    for method, part in by_method(results.runs):
        for line in part.sort_values("target", key=lambda t: t.map(target_order)).to_dict("records"):
            name = style_of(method).label + ("" if method == DENSE else f"\u00a0{line['target']}")
            body.append([name, *[_perplexity_cell(results, line["run_id"], text) for text in texts]])
    note = f"95 % bootstrap intervals over at most {rows['n'].max()} windows of held-out text."
    return Table(["", *texts], body, note)


@CHAPTER.table("tasks")
def _task_table(page: Page) -> Table:
    """Every task at the focus: the dense score, chance, each method's change; * marks Holm p < 5 %."""
    focus, table, frame = _focus(page), tasks(page.results), task_changes(page.results)
    frame = frame[frame["pattern"] == focus] if len(frame) else pd.DataFrame(columns=["method", "eval_set"])
    methods, body = [method for method, _ in by_method(frame)], []
    for task in table.to_dict("records"):
        name = task["eval_set"] + (" (AUC)" if task["metric"] == "auc" else "") + ("" if task["usable"] else " †")
        score = interval(*(100 * task[c] for c in ("value", "lo", "hi")), "{:.1f}".format)
        cells = [name, task["domain"], f"{100 * task['chance']:.0f}", score]
        for method in methods:
            part = frame[(frame["eval_set"] == task["eval_set"]) & (frame["method"] == method)]
            cells.append(_change_cell(part.iloc[0]) if len(part) else "")
        body.append(cells)
    least, most = table["n"].min(), table["n"].max()
    span = most if least == most else f"{least} to {most}"
    note = (
        f"Scores in %, changes in points at {focus}, on {span} items a task. "
        "In brackets: 95 % bootstrap intervals, those of changes paired with the dense model. \\* marks a change "
        f"with Holm-corrected p < {LEVEL} (sign test on the items that changed; for AUC, bootstrap), over the usable "
        "tasks and methods of this table. † the dense model's interval includes chance: shown, used for no claim."
    )
    return Table(["task", "domain", "chance", "dense", *[style_of(m).label for m in methods]], body, note, 2)


def _change_cell(line: pd.Series) -> str:
    star = r"\*" if line["p_holm"] < LEVEL else ""
    return f"{points(line['change'])}{star} [{points(line['lo'])}, {points(line['hi'])}]"


def _broken_tasks(page: Page, focus: str) -> str:
    frame, table, texts = task_changes(page.results), tasks(page.results), []
    frame = frame[(frame["pattern"] == focus) & frame["usable"].astype(bool)] if len(frame) else frame
    for method, part in by_method(frame) if len(frame) else ():
        fell = part[(part["p_holm"] < LEVEL) & (part["change"] < 0)].sort_values("change")
        names = listing(list(fell["eval_set"])) if len(fell) else "none"
        texts.append(f"{style_of(method).label}: {len(fell)} of {len(part)} ({names})")
    text = (
        f"Tasks that fall significantly at {focus} (Holm-corrected p < {LEVEL}), {'; '.join(texts)}." if texts else ""
    )
    left_out = list(table[~table["usable"]]["eval_set"])
    return text + (f" Left out, because the dense model is not above chance: {listing(left_out)}." if left_out else "")


@lru_cache(maxsize=8)
def _breaking_points(page: Page) -> pd.DataFrame:
    """The sparsity at which a task has lost half of what the dense model has above chance, by method and task.

    Linear between runs; `value` is 1 where the task never falls so far within the runs (`censored`).
    """
    rows = []
    for method, runs in _over_sparsity(page):
        xs = np.array([0.0, *runs["sparsity"]])
        for task in accuracy_tasks(page.results).to_dict("records"):
            pairs = [paired(page.results, i, None, ACCURACY, [task["eval_set"]]) for i in runs["run_id"]]
            draws = [bootstrap_means(pair.groups()) for pair in pairs]
            limit = -HALF * (task["value"] - task["chance"])
            place = Estimate.of_draws(_first_below(xs, np.stack([np.zeros_like(draws[0]), *draws]), limit), 0)
            line = {"method": method, "eval_set": task["eval_set"], **vars(place)}
            rows.append(line | {"censored": place.value >= 1, "last": xs[-1]})
    return pd.DataFrame(rows, columns=["method", "eval_set", "value", "lo", "hi", "censored", "last"])


def _first_below(xs: np.ndarray, curve: np.ndarray, limit: float) -> np.ndarray:
    """Where each column of `curve` [points, draws] first falls to `limit`, linear between `xs`; 1 if never."""
    below = curve[1:] <= limit
    k, columns = below.argmax(axis=0), np.arange(curve.shape[1])
    before, after = curve[k, columns], curve[k + 1, columns]
    crossing = xs[k] + (xs[k + 1] - xs[k]) * (before - limit) / np.maximum(before - after, 1e-12)
    return np.where(below.any(axis=0), crossing, 1.0)


@CHAPTER.table("breaking")
def _breaking_table(page: Page) -> Table:
    """Tasks in the order in which they break, with the sparsity of each method."""
    frame = _breaking_points(page)
    methods, body = [method for method, _ in by_method(frame)], []
    for task in frame.groupby("eval_set")["value"].mean().sort_values().index:
        part = frame[frame["eval_set"] == task].set_index("method")
        body.append([task, *[_breaking_cell(part.loc[m]) if m in part.index else "" for m in methods]])
    note = (
        "Sparsity (%) at which a task has lost half of what the dense model has above chance, first to break first; "
        "95 % bootstrap intervals over items. “Beyond” is the highest sparsity run."
    )
    return Table(["task", *[style_of(m).label for m in methods]], body, note)


def _breaking_cell(line: pd.Series) -> str:
    beyond = f"beyond {100 * line['last']:.0f}"
    value, lo, hi = (f"{100 * line[c]:.0f}" if line[c] < 1 else beyond for c in ("value", "lo", "hi"))
    return (beyond + (f" [{lo}, –]" if line["lo"] < 1 else "")) if line["censored"] else f"{value} [{lo}, {hi}]"


def _first_to_break(page: Page) -> str:
    order = _breaking_points(page).groupby("eval_set")["value"].mean().sort_values()
    return f"First to break are {listing(list(order.index[:2]))}; the last is {order.index[-1]}." if len(order) else ""


@CHAPTER.table("allocation")
def _allocation_table(page: Page) -> Table:
    """Uneven sparsity by outliers (OWL) against even sparsity, run for run."""
    results, body = page.every, []
    for run_id, config in results.configs.items():
        even = config | {"allocation": "uniform"}
        for twin in (
            [i for i, other in results.configs.items() if other == even] if config.get("allocation") == "owl" else ()
        ):
            both = [paired(results, run_id, twin, q).estimate().map(q.change) for q in (PERPLEXITY, ACCURACY)]
            body.append([run_name(results.describe_run(run_id)), both[0].text(times), both[1].text(points)])
    note = (
        "Uneven sparsity (OWL) against even sparsity of the same method and mean: perplexity over all texts, change of "
        "mean accuracy in points; 95 % bootstrap intervals, paired on windows and items. Below 1× OWL is better."
    )
    return Table(["", "perplexity, OWL / even", "accuracy, OWL − even (points)"], body, note)
