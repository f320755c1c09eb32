"""Chapter 1: does a model that keeps its perplexity keep its tasks, and do equal perplexities mean equal tasks?"""

from dataclasses import replace
from functools import lru_cache
from itertools import combinations, product

import numpy as np
import pandas as pd

from crosscal.plan.parameters import Settings
from crosscal.results.compare import ALL_TASKS, accuracy_tasks, changes, groups_of, paired, run_measures, tasks
from crosscal.results.frame import DENSE, Results, model_names
from crosscal.results.quantities import ACCURACY, PERPLEXITY
from crosscal.stats import LEVEL, Estimate, auc_difference, bootstrap_mean, bootstrap_means, holm, sign_test_p
from crosscal.types import Unstructured
from crosscal_book.chapter import Chapter, Page
from crosscal_book.claims import FACTS, Comparison, every, some
from crosscal_book.drawing import Axis
from crosscal_book.marks import lines, scatter, target_order
from crosscal_book.style import STYLES, style_of
from crosscal_book.tables import Table
from crosscal_book.words import KEPT, cell, listing, method_values, number, p_text, points, run_name, times

# All set before any run was seen: a mean loss below one point is called none; two methods' tasks count as equal when
# the interval of their difference stays within two points; a task is broken where it has lost half of what the dense
# model has above chance. Methods are compared at relative perplexities of `RATIOS`, each read off the line between two
# runs whose perplexities are at most `FAR_APART` times each other.
MARGIN, EQUAL, HALF, RATIOS, FAR_APART = 0.01, 0.02, 0.5, (1.25, 1.5, 2.0, 3.0), 3.0
FAR, HIGHEST = 100.0, 1000.0  # relative perplexities at which the axes of trade-off and of texts end
TRADE_OFF, PERCENT, ENDS = "fig-loss-perplexity", f"{100 * (KEPT - 1):.0f} %", ["value", "lo", "hi"]
NO_TASK = "The dense model is above chance on no accuracy task, so there is nothing to compare: ask more items."


def _uniform(results: Results, _: Settings) -> Results:
    """Runs that prune all blocks alike, by method and target; uneven sparsity has a table of its own."""
    kept = [i for i in results.run_ids if results.configs.get(i, {}).get("allocation", "uniform") == "uniform"]
    rows, places = results.subset(kept).rows, {method: place for place, method in enumerate(STYLES)}
    rows = rows.sort_values("pattern", key=lambda targets: targets.map(target_order), kind="stable")
    rows = rows.sort_values("method", key=lambda methods: methods.map(places), kind="stable")
    return replace(results.subset(kept), rows=rows)


def _focus(page: Page) -> tuple[str, pd.DataFrame]:
    """The target that takeaways and tables look at, the one asked for, else the least sparse that was run; its runs."""
    runs = run_measures(page.results, PERPLEXITY, ACCURACY)
    focus = str(Unstructured(getattr(page.settings, "sparsity", 0.5)))
    focus = focus if focus in set(runs["target"]) else min(runs["target"], key=target_order, default=focus)
    return focus, runs[runs["target"] == focus]


def _note(page: Page) -> list[str]:
    """Each method at the focus, what was left out, and which tasks break."""
    (focus, runs), changed, order = _focus(page), _task_changes(page), list(_breaking_points(page)["eval_set"].unique())
    fell = changed[changed["fell"]].sort_values("value").groupby("run_id")["eval_set"].agg(list)
    columns = {
        "": run_name,
        "perplexity": lambda run: cell(run, "perplexity"),
        f"accuracy, {len(accuracy_tasks(page.results))} tasks (points)": lambda run: cell(run, "accuracy", points),
        "tasks that fall significantly": lambda run: listing(fell.get(run["run_id"], ["none"])),
    }
    opening = f"At {focus} sparsity on {model_names(page.results.rows)}, {(runs['perplexity'] <= KEPT).sum()} of "
    opening += f"{len(runs)} methods keep perplexity within {PERCENT}:"
    unusable = [task["eval_set"] for task in _tasks(page) if not task["usable"]]
    left_out = f"Left out, because the dense model is not above chance: {listing(unusable)}." * bool(unusable)
    first = f"First to break are {listing(order[:2])}; the last is {order[-1]}." if order else ""
    return [opening, str(Table.of(runs, columns)), left_out, first]


CHAPTER = Chapter("perplexity", _note, _uniform)


@lru_cache(maxsize=8)
def _by_ratio(page: Page) -> pd.DataFrame:
    """Every compressed run: `x` its perplexity to the dense model's, `value` its change of mean accuracy, ascending."""
    ratios = changes(page.results, PERPLEXITY).rename(columns={"value": "x", "lo": "x_lo", "hi": "x_hi"})
    runs = changes(page.results, ACCURACY).merge(ratios[["run_id", "x", "x_lo", "x_hi"]], on="run_id")
    return runs.sort_values("x", kind="stable")


def _kept(page: Page) -> list[tuple[dict, dict]]:
    dense, runs = {"run_id": page.results.dense_id, "method": DENSE}, _by_ratio(page)
    return [(line | {"ratio": cell(line, "x")}, dense) for line in runs[runs["x"] <= KEPT].to_dict("records")]


def _kept_sentence(page: Page) -> str:
    runs = _by_ratio(page)
    if runs.empty:
        return NO_TASK
    changed, nearest = runs.loc[runs["x"] <= KEPT, "value"], runs.iloc[0]
    if changed.empty:
        return f"No run keeps perplexity within {PERCENT}; the nearest is {run_name(nearest)} at {times(nearest['x'])}"
    said = f"{len(changed)} of {len(runs)} runs keep perplexity within {PERCENT}; mean accuracy there changes by "
    return said + f"{points(changed.min())} to {points(changed.max())} points"


CHAPTER.claim(
    "hidden-loss",
    "Perplexity hides task loss: a model that keeps its perplexity can still lose accuracy",
    Comparison(_kept, ACCURACY, "{first[label]} {first[target]}"),
    some("worse", by=MARGIN),
    evidence=TRADE_OFF,
    paper="khanal2024",
    says=f"of {{count}} runs with perplexity within {PERCENT} of the dense model's, {{shown}} lose accuracy "
    "significantly and {refuted} certainly lose less than a point; the clearest, {name}, has {first[ratio]} the dense "
    "perplexity, and its mean accuracy changes by {change}, {p}",
    brief="accuracy {change} at {first[x]:.2f}× the perplexity ({name})",
    missing=_kept_sentence,
)


@lru_cache(maxsize=64)
def _curves(page: Page, task: str = "") -> dict[str, tuple[pd.DataFrame, np.ndarray]]:
    """Each method's runs over unstructured sparsity, and draws of accuracy changes: the dense run's 0, then theirs."""
    runs, curves = _by_ratio(page).sort_values("sparsity"), {}
    for method in page.runs["method"].unique():
        part = runs[(runs["method"] == method) & ~runs["target"].str.contains(":")]
        pairs = [paired(page.results, i, None, ACCURACY, [task] if task else None) for i in part["run_id"]]
        if len(pairs) > 1:
            draws = np.stack([bootstrap_means(both.groups()) for both in pairs if both])
            curves[method] = (part, np.concatenate([np.zeros_like(draws[:1]), draws]))
    return curves


def _at(curve: tuple[pd.DataFrame, np.ndarray], ratio: float) -> np.ndarray | None:
    """The draws of the change at one relative perplexity, linear in its logarithm; None without runs near enough."""
    logs, x = np.log([1.0, *curve[0]["x"]]), np.log(ratio)
    order = np.argsort(logs, kind="stable")
    right = max(int(np.searchsorted(logs[order], x)), 1)
    if not logs.min() <= x <= logs.max() or logs[order][right] - logs[order][right - 1] > np.log(FAR_APART):
        return None
    (before, after), (least, most) = curve[1][order][right - 1 : right + 1], logs[order][right - 1 : right + 1]
    return before + (x - least) / (most - least) * (after - before)


def _equal_perplexity(page: Page) -> pd.DataFrame:
    """At each of `RATIOS`, the difference of two methods' accuracy changes; one bootstrap over items pairs them."""
    rows = []
    for ratio, ((one, a), (other, b)) in product(RATIOS, combinations(_curves(page).items(), 2)):
        first, second, name = _at(a, ratio), _at(b, ratio), f"{style_of(one).label} less {style_of(other).label}"
        if first is not None and second is not None:
            rows.append({"name": name, "ratio": ratio, **vars(Estimate.of_draws(first - second, 0, test=True))})
    return pd.DataFrame(rows)


CHAPTER.claim(
    "same-tasks-at-equal-perplexity",
    "At equal perplexity two pruning methods leave the tasks equally good",
    _equal_perplexity,
    every("equal", by=EQUAL),
    on=ACCURACY,
    evidence=TRADE_OFF,
    says="at {ratio:.2f}× the dense perplexity the widest gap is {name}: {change}, {p}",
    missing="no two methods have runs on both sides of one perplexity",
)


@CHAPTER.table("equal-perplexity")
def _equal_table(page: Page) -> Table:
    cells = [(times(ratio), style_of(method).label, Estimate.of_draws(draws, 0).text(points))
             for ratio, (method, curve) in product(RATIOS, _curves(page).items())
             if (draws := _at(curve, ratio)) is not None]  # fmt: skip
    for gap in sorted(page.rows("same-*").to_dict("records"), key=lambda gap: abs(gap["value"])):  # the widest is kept
        text = f"{gap['name']}: {cell(gap, write=points, unit=' points')}, {p_text(gap['p_holm'])}"
        cells.append((times(gap["ratio"]), "widest gap", text))
    return Table.of_cells(cells, "perplexity")


@CHAPTER.figure(TRADE_OFF)
def _trade_off(page: Page):
    runs, table = _by_ratio(page), accuracy_tasks(page.results)
    if runs.empty:
        return NO_TASK
    frame, far = runs[runs["x"] <= FAR], [run_name(run) for run in runs[runs["x"] > FAR].to_dict("records")]
    frame = frame[[*FACTS, "x", "x_lo", "x_hi"]].assign(**{end: 100 * frame[end] for end in ENDS})
    x = Axis(PERPLEXITY.compared + ", geometric mean over texts", 10, suffix="×", band=(1.0, KEPT),
             limits=(0.97, 1.6 * frame["x_hi"].max()))  # fmt: skip
    guessing = 100 * (table["chance"].mean() - table["value"].mean())
    y, patterns = Axis(ACCURACY.compared, lines={"": 0.0, "guessing": guessing}), frame["target"].str.contains(":")
    drawing = scatter(frame, x, y, size=(6.4, 4.0), hollow=patterns, labels=frame["target"])
    said = f"Task loss against perplexity, one point per compressed model (open markers: N:M). {_kept_sentence(page)}."
    rest = f" Shaded: perplexity within {PERCENT} of the dense model's. Bars: 95 % bootstrap intervals, paired with it."
    return drawing, said + rest + f" Beyond {FAR:g}× and not drawn: {listing(far)}." * bool(far), said


def _over_targets(frame: pd.DataFrame, y, **options):
    """A line per method over the percentages, open markers for N:M in columns of their own."""
    frame, x = frame[[*FACTS, "panel", *ENDS, "n"]], Axis("sparsity (%), then N:M patterns (kept:group)")
    patterns = frame["target"].str.contains(":")
    line = frame["method"].mask(patterns, "")
    return lines(frame, x, y, across="target", line=line, hollow=patterns, aside=0.9, **options)


@CHAPTER.figure("fig-perplexity")
def _perplexity(page: Page):
    frame, (focus, runs) = changes(page.results, PERPLEXITY, "eval_set"), _focus(page)
    if frame.empty:
        return "There is no compressed run."
    frame, top = frame.assign(panel=frame["over"]), float(frame["value"].max())
    y = Axis(PERPLEXITY.compared, 10, suffix="×", limits=(0.8, min(1.5 * top, HIGHEST)), lines={"dense": 1.0})
    said = f"Perplexity relative to the dense model's on {frame['panel'].nunique()} held-out texts (log scale). "
    said += f"At {focus}: {method_values(runs, 'perplexity', times)}."
    rest = f" Bars: 95 % bootstrap intervals over up to {frame['n'].max()} windows a text, paired with the dense model."
    rest += f" Cut at {HIGHEST:,.0f}×; the highest is {times(top)}." * (top > HIGHEST)
    return _over_targets(frame, y, columns=2, size=(6.6, 2.6), share=(True, True)), said + rest, said


@lru_cache(maxsize=8)
def _accuracies(page: Page) -> pd.DataFrame:
    """Mean accuracy (%) by domain, general first, then over all: the dense model's, with chance, and every run's."""
    table, right = accuracy_tasks(page.results), page.results.items[page.results.dense_id]
    changed = pd.concat([changes(page.results, ACCURACY, "domain"), changes(page.results, ACCURACY)])
    frames = [changed[:0].assign(chance=0.0, panel="")]
    for over in [group if group != ALL_TASKS else "all" for group in groups_of(table)]:
        members, runs = table[(table["domain"] == over) | (over == "all")], changed[changed["over"] == over]
        dense = bootstrap_mean([np.array(right[task]["correct"]) for task in members["eval_set"]])
        line = {"run_id": page.results.dense_id, "method": DENSE, "chance": members["chance"].mean(), **vars(dense)}
        whole = pd.concat([pd.DataFrame([line]), runs.assign(**{end: dense.value + runs[end] for end in ENDS})])
        frames.append(whole.assign(over=over, panel=f"{over} tasks ({len(members)})"))
    frame = pd.concat(frames, ignore_index=True)
    return frame.assign(**{column: 100 * frame[column] for column in [*ENDS, "chance"]})


@CHAPTER.figure("fig-accuracy")
def _accuracy(page: Page):
    frame, (focus, runs) = _accuracies(page).query("over != 'all'"), _focus(page)
    if frame.empty:
        return NO_TASK
    limits = (frame["lo"].min() - 3, frame["hi"].max() + 3)
    y, compressed = {}, frame[frame["method"] != DENSE]
    for one in frame[frame["method"] == DENSE].to_dict("records"):
        levels = {"dense": one["value"], "chance": one["chance"]}
        y[one["panel"]] = Axis("mean accuracy (%)", limits=limits, lines=levels, band=(one["lo"], one["hi"]))
    drawing = _over_targets(compressed, y, columns=len(y), size=(2.4 * len(y) + 1, 3.2), share=(True, True))
    said = f"Mean accuracy against sparsity, by domain. At {focus} the mean of all {len(accuracy_tasks(page.results))} "
    said += f"tasks changes by, in points: {method_values(runs, 'accuracy', points)}."
    rest = " Band: the dense model's 95 % interval; bars: 95 % intervals of the paired difference from it. AUC tasks, "
    rest += "and tasks on which the dense model is not above chance, are only in the figure and table of every task."
    return drawing, said + rest, said


def _tasks(page: Page) -> list[dict]:
    """The tasks, with a `title` that marks AUC and tasks at chance."""
    return [task | {"title": task["eval_set"] + " (AUC)" * (task["metric"] == "auc") + " †" * (not task["usable"])}
            for task in tasks(page.results).to_dict("records")]  # fmt: skip


@lru_cache(maxsize=8)
def _task_changes(page: Page) -> pd.DataFrame:
    """Every run's change on every task, and which `fell`: sign test (AUC: bootstrap), Holm over a target's tasks."""
    rows, before = [], page.results.items[page.results.dense_id]
    for run, task in product(page.runs.to_dict("records"), _tasks(page)):
        name, after = task["eval_set"], page.results.items[run["run_id"]]
        if name in after and task["metric"] == "auc":
            scores = (np.array(part) for part in (before[name]["score"], after[name]["score"], before[name]["gold"]))
            rows.append({**run, **task, "dense": task["value"], **vars(auc_difference(*scores))})
        elif name in after and (both := paired(page.results, run["run_id"], None, ACCURACY, [name])):
            up, down = (int((sign * both.values[name] > 0).sum()) for sign in (1, -1))
            rows.append({**run, **task, "dense": task["value"], **vars(both.estimate()), "p": sign_test_p(up, down)})
    frame = pd.DataFrame(rows, columns=None if rows else [*page.runs, *tasks(page.results), "title", "dense", "p"])
    frame["p_holm"] = frame[frame["usable"].astype(bool)].groupby("target")["p"].transform(holm)
    return frame.assign(fell=(frame["p_holm"] < LEVEL) & (frame["value"] < 0))


@CHAPTER.figure("fig-tasks")
def _every_task(page: Page):
    frame, focus = _task_changes(page), _focus(page)[0]
    if frame.empty:
        return NO_TASK
    here = frame[(frame["target"] == focus) & frame["usable"]]
    frame = frame.assign(panel=frame["title"], **{end: 100 * (frame["dense"] + frame[end]) for end in ENDS})
    y = {task["title"]: Axis("score (%)" * (number % 3 == 0),
                             lines={"": 100 * task["value"], "chance": 100 * task["chance"]})
         for number, task in enumerate(_tasks(page))}  # fmt: skip
    said = f"Every task against sparsity: {here['fell'].sum()} of {len(here)} (task, method) pairs at {focus} fall "
    said += f"significantly (Holm-corrected p < {LEVEL})."
    rest = " Solid line: dense model; open markers: N:M. † its interval includes chance: no claim rests on the task."
    return _over_targets(frame, y, columns=3, size=(6.6, 1.75), ends=False, key=True), said + rest, said


@CHAPTER.table("headline")
def _headline(page: Page) -> Table:
    focus, at_focus = _focus(page)
    labels = {line["run_id"]: style_of(line["method"]).label for line in at_focus.to_dict("records")}
    labels[page.results.dense_id] = DENSE
    rows = page.results.only(metric="perplexity").to_dict("records")
    cells = [(f"perplexity, {line['eval_set'].replace('_', ' ')}", labels[line["run_id"]], cell(line, write=number))
             for line in rows if line["run_id"] in labels]  # fmt: skip
    cells += [(f"accuracy, {line['over']} (%)", labels[line["run_id"]], cell(line, write="{:.1f}".format))
              for line in _accuracies(page).to_dict("records") if line["run_id"] in labels]  # fmt: skip
    note = f"Compressed models at {focus}. In brackets: 95 % bootstrap intervals, over windows for perplexity, over "
    note += "items for accuracy; a compressed model's is that of its paired difference from the dense model. Means are "
    note += "over tasks on which the dense model is above chance."
    return Table.of_cells(cells, "", note)


@CHAPTER.table("perplexity")
def _perplexities(page: Page) -> Table:
    rows = page.results.only(metric="perplexity")
    cells = [(run_name(line).removesuffix(" 0%").replace(" ", "\u00a0"), line["eval_set"], cell(line, write=number))
             for line in rows.to_dict("records")]  # fmt: skip
    return Table.of_cells(cells, "", f"95 % bootstrap intervals over at most {rows['n'].max()} windows of a text.")


@CHAPTER.table("tasks")
def _task_table(page: Page) -> Table:
    focus, changed, cells = _focus(page)[0], _task_changes(page), []
    for task in _tasks(page):
        score = cell({end: 100 * task[end] for end in ENDS}, write="{:.1f}".format)
        facts = {"domain": task["domain"], "chance": f"{100 * task['chance']:.0f}", "dense": score}
        cells += [(task["title"], *fact) for fact in facts.items()]
    for line in changed[changed["target"] == focus].to_dict("records"):
        text = cell(line, write=points, unit=r"\*" * bool(line["p_holm"] < LEVEL))
        cells.append((line["title"], style_of(line["method"]).label, text))
    note = f"Scores in %, changes in points at {focus}, on up to {tasks(page.results)['n'].max()} items a task. In "
    note += "brackets: 95 % bootstrap intervals, those of changes paired with the dense model. \\* marks a change with "
    note += f"Holm-corrected p < {LEVEL} (sign test on the items that changed; for AUC, bootstrap), over the usable "
    note += "tasks and methods here. † the dense model's interval includes chance: shown, used for no claim."
    return Table.of_cells(cells, "task", note, 2)


@lru_cache(maxsize=8)
def _breaking_points(page: Page) -> pd.DataFrame:
    """The sparsity at which a task lost `HALF` its skill, by method, first to break first; 1 if never (`censored`)."""
    rows = []
    for task in accuracy_tasks(page.results).to_dict("records"):
        limit, name = -HALF * (task["value"] - task["chance"]), task["eval_set"]
        for method, (runs, draws) in _curves(page, name).items():
            place = Estimate.of_draws(_first_below(np.array([0.0, *runs["sparsity"]]), draws, limit), 0)
            last = {"censored": place.value >= 1, "last": runs["sparsity"].iloc[-1]}
            rows.append({"method": method, "eval_set": name, **vars(place), **last})
    frame = pd.DataFrame(rows, columns=["method", "eval_set", *ENDS, "censored", "last"])
    order = frame.groupby("eval_set")["value"].mean()
    return frame.sort_values("eval_set", key=lambda names: names.map(order), kind="stable")


def _first_below(xs: np.ndarray, curve: np.ndarray, limit: float) -> np.ndarray:
    """Where each column of `curve` [points, draws] first falls to `limit`, linear between `xs`; 1 if never."""
    below = curve[1:] <= limit
    k, columns = below.argmax(axis=0), np.arange(curve.shape[1])
    before, after = curve[k, columns], curve[k + 1, columns]
    crossing = xs[k] + (xs[k + 1] - xs[k]) * (before - limit) / np.maximum(before - after, 1e-12)
    return np.where(below.any(axis=0), crossing, 1.0)


@CHAPTER.table("breaking")
def _breaking_table(page: Page) -> Table:
    cells = []
    for line in _breaking_points(page).to_dict("records"):
        beyond = f"beyond {100 * line['last']:.0f}"
        value, lo, hi = (f"{100 * line[end]:.0f}" if line[end] < 1 else beyond for end in ENDS)
        text = f"{beyond}{f' [{lo}, –]' * (line['lo'] < 1)}" if line["censored"] else f"{value} [{lo}, {hi}]"
        cells.append((line["eval_set"], style_of(line["method"]).label, text))
    return Table.of_cells(cells, "task")


@CHAPTER.table("allocation")
def _allocation_table(page: Page) -> Table:
    results, body = page.every, []
    for (run_id, config), (twin, other) in product(results.configs.items(), repeat=2):
        if config.get("allocation") == "owl" and other == config | {"allocation": "uniform"}:
            both = [paired(results, run_id, twin, q).estimate().map(q.change) for q in (PERPLEXITY, ACCURACY)]
            body.append([run_name(results.describe_run(run_id)), both[0].text(times), both[1].text(points)])
    return Table(["", "perplexity, OWL / even", "accuracy, OWL − even (points)"], body)
