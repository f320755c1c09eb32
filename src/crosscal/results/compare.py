"""Compressed runs against the dense run, on the same windows and the same items."""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

from crosscal.results.frame import DENSE, Results
from crosscal.results.quantities import ACCURACY, Quantity
from crosscal.stats import LEVEL as LEVEL
from crosscal.stats import Estimate, Paired, auc_difference, bootstrap_mean, holm, sign_flip_p, sign_test_p

TASK_METRICS = ("accuracy", "accuracy_per_char", "auc")
ALL_TEXTS = "all texts"
ALL_TASKS = "all tasks"
PROMPTS = "tasks"
"""The domain of the text that is made of the tasks' prompts."""

RUN_COLUMNS = ["run_id", "method", "pattern", "sparsity"]
MEAN_COLUMNS = [*RUN_COLUMNS, "group", "change", "lo", "hi", "n", "p", "tasks", "dense", "chance"]


def chance_of(results: Results, eval_set: str, metric: str) -> float:
    """What guessing scores on a task: as stored with the run, else NaN (0.5 for AUC)."""
    stored = results.provenance[results.dense_id].get("tasks", {})
    if "chance" in stored.get(eval_set, {}):
        return float(stored[eval_set]["chance"])
    return 0.5 if metric == "auc" else math.nan


@lru_cache(maxsize=8)
def shared_texts(results: Results) -> tuple[str, ...]:
    """Return the held-out texts on which every run has a perplexity; the tasks' own prompts are no such text."""
    rows = results.only(metric="perplexity")
    rows = rows[rows["domain"] != PROMPTS]
    sets = [set(part["eval_set"]) for _, part in rows.groupby("run_id")]
    kept = set.intersection(*sets) if len(sets) == len(results.run_ids) else set()
    return tuple(text for text in rows["eval_set"].unique() if text in kept)


def paired(
    results: Results, run_id: str, other: str | None, quantity: Quantity, sets: Sequence[str] | None = None
) -> Paired | None:
    """Return one run's outcomes less another's, per window or item, each evaluation set weighing the same.

    `other` is the dense run when None; of a divergence, which is a distance from it, the run's own values are then
    returned. `sets` are the texts, or usable accuracy tasks, that all runs share unless given; None without any.
    """
    if sets is None:
        sets = accuracy_tasks(results)["eval_set"] if quantity is ACCURACY else shared_texts(results)
    if not len(sets):
        return None
    dense, (key,) = results.items[results.dense_id], quantity.items

    def outcomes(one: str | None, name: str) -> np.ndarray:
        entry = results.items[one or results.dense_id][name]
        if key == "correct" and entry["id"] != dense[name]["id"]:
            by_id = dict(zip(entry["id"], entry[key], strict=True))
            return np.array([by_id[i] for i in dense[name]["id"]], dtype=float)
        return np.array(entry[key], dtype=float)

    alone = quantity.from_dense and other is None
    return Paired.equal({s: outcomes(run_id, s) - (0.0 if alone else outcomes(other, s)) for s in sets})


@lru_cache(maxsize=64)
def changes(results: Results, quantity: Quantity, by: str = "") -> pd.DataFrame:
    """Return every compressed run against the dense run: a line per run, or per run and `by` (eval_set or domain).

    Columns are those of `Results.runs`, `over` (the set, the domain or "all"), and `value`, `lo`, `hi`, `n`. Means are
    over the texts, or usable accuracy tasks, that a run has, each weighing the same; tasks' own prompts are no text.
    """
    runs = results.runs[results.runs["method"] != DENSE]
    if quantity is ACCURACY:
        places = accuracy_tasks(results)[["eval_set", "domain"]]
    else:
        places = results.only(metric=quantity.name)
        places = places.loc[places["domain"] != PROMPTS, ["eval_set", "domain"]].drop_duplicates()
    lines = []
    for run_id in runs["run_id"]:
        own = [name for name, items in results.items[run_id].items() if quantity.items[0] in items]
        present = places[places["eval_set"].isin(own)]
        for over, members in present.groupby(by or (lambda _: "all"), sort=False):
            both = paired(results, run_id, None, quantity, list(members["eval_set"]))
            estimate = both.estimate().map(quantity.change)
            lines.append({"run_id": run_id, "over": over, **vars(estimate)})
    return runs.merge(pd.DataFrame(lines, columns=["run_id", "over", "value", "lo", "hi", "n"]), on="run_id")


@lru_cache(maxsize=16)
def run_measures(results: Results, *quantities: Quantity) -> pd.DataFrame:
    """Return one line per compressed run: the columns of `Results.runs`, and each quantity against the dense run.

    A quantity has three columns, such as `perplexity`, `perplexity_lo`, `perplexity_hi`; NaN where it was not measured.
    """
    runs = results.runs[results.runs["method"] != DENSE].reset_index(drop=True)
    for quantity in quantities:
        ends = {"value": quantity.name, "lo": f"{quantity.name}_lo", "hi": f"{quantity.name}_hi"}
        found = changes(results, quantity)[["run_id", *ends]].rename(columns=ends)
        runs = runs.merge(found, on="run_id", how="left")
    return runs


@lru_cache(maxsize=8)
def text_changes(results: Results) -> pd.DataFrame:
    """Perplexity of every compressed run relative to the dense run, for each text and for all texts together.

    One line per (run, text) with `ratio`, `lo`, `hi`: exp of the mean paired difference of the windows' losses. The
    line `ALL_TEXTS` is the geometric mean over texts; the tasks' own prompts are no such text.
    """
    dense = results.items[results.dense_id]
    lines = []
    for run_id, run in _compressed(results):
        rows = results.only(run_id=run_id, metric="perplexity")
        texts = list(rows.loc[rows["domain"] != PROMPTS, "eval_set"])
        losses = {t: np.array(results.items[run_id][t]["nll"]) - np.array(dense[t]["nll"]) for t in texts}
        for name, groups in [(t, [losses[t]]) for t in texts] + [(ALL_TEXTS, list(losses.values()))]:
            ratio = bootstrap_mean(groups).map(math.exp)
            lines.append({**run, "eval_set": name, "ratio": ratio.value, "lo": ratio.lo, "hi": ratio.hi, "n": ratio.n})
    return pd.DataFrame(lines, columns=[*RUN_COLUMNS, "eval_set", "ratio", "lo", "hi", "n"])


@lru_cache(maxsize=8)
def tasks(results: Results) -> pd.DataFrame:
    """The dense run's tasks: domain, metric, value with interval, chance, and whether a claim may rest on them.

    A task is `usable` when the dense model's interval lies above chance; below that, a fall has nowhere to go.
    """
    rows = results.only(run_id=results.dense_id)
    rows = rows[rows["metric"].isin(TASK_METRICS)].copy()
    rows["chance"] = [chance_of(results, e, m) for e, m in zip(rows["eval_set"], rows["metric"], strict=True)]
    rows["usable"] = ~(rows["lo"] <= rows["chance"])
    return rows[["eval_set", "domain", "metric", "value", "lo", "hi", "n", "chance", "usable"]].reset_index(drop=True)


@lru_cache(maxsize=8)
def task_changes(results: Results) -> pd.DataFrame:
    """Every compressed run's change on every task: `change`, `lo`, `hi` (of 1), `p` of no change, `p_holm`.

    Accuracies are tested by the exact sign test on the items that changed, AUC by the bootstrap. Holm's correction
    runs over the usable tasks of all methods at one pattern: the comparisons a reader makes in one table.
    """
    table = tasks(results)
    lines = []
    for run_id, run in _compressed(results):
        present = set(results.only(run_id=run_id)["eval_set"])
        for task in table[table["eval_set"].isin(present)].to_dict("records"):
            estimate = _change(results, run_id, task["eval_set"], task["metric"])
            lines.append({**run, **{k: task[k] for k in ("eval_set", "domain", "metric", "usable")}, **vars(estimate)})
    frame = pd.DataFrame(lines).rename(columns={"value": "change"})
    if frame.empty:
        return frame
    frame["p_holm"] = math.nan
    for _, family in frame[frame["usable"]].groupby("pattern", sort=False):
        frame.loc[family.index, "p_holm"] = holm(family["p"])
    return frame


@lru_cache(maxsize=8)
def mean_changes(results: Results) -> pd.DataFrame:
    """Every compressed run's mean accuracy change over the usable accuracy tasks, for each domain and all together.

    Tasks weigh the same; AUC tasks are left out, a fall of AUC is no fall of accuracy. `p` is the sign-flip test's.
    `dense` and `chance` are the means of the same tasks.
    """
    table = accuracy_tasks(results)
    lines = []
    for run_id, run in _compressed(results):
        for group in groups_of(table):
            members = table if group == ALL_TASKS else table[table["domain"] == group]
            gaps = [differences(results, run_id, task) for task in members["eval_set"]]
            estimate = bootstrap_mean(gaps)
            line = {"group": group, "change": estimate.value, "lo": estimate.lo, "hi": estimate.hi, "n": estimate.n}
            line |= {"p": sign_flip_p(gaps), "tasks": len(members), "dense": members["value"].mean()}
            lines.append({**run, **line, "chance": members["chance"].mean()})
    return pd.DataFrame(lines, columns=MEAN_COLUMNS)


@lru_cache(maxsize=8)
def dense_means(results: Results) -> dict[str, Estimate]:
    """The dense run's mean accuracy over the same groups of tasks as `mean_changes`."""
    table, items = accuracy_tasks(results), results.items[results.dense_id]
    members = {group: table if group == ALL_TASKS else table[table["domain"] == group] for group in groups_of(table)}
    return {g: bootstrap_mean([np.array(items[task]["correct"]) for task in m["eval_set"]]) for g, m in members.items()}


def accuracy_tasks(results: Results) -> pd.DataFrame:
    """The usable tasks that are scored by accuracy."""
    table = tasks(results)
    return table[table["usable"] & (table["metric"] != "auc")].reset_index(drop=True)


def groups_of(table: pd.DataFrame) -> list[str]:
    """The domains of some tasks, general first, then `ALL_TASKS`; nothing when there are no tasks."""
    domains = sorted(table["domain"].unique(), key=lambda domain: (domain != "general", domain))
    return [*domains, ALL_TASKS] if domains else []


def _compressed(results: Results) -> list[tuple[str, dict]]:
    runs = results.rows.drop_duplicates("run_id")
    runs = runs[runs["method"] != DENSE]
    return [(run["run_id"], run) for run in runs[RUN_COLUMNS].to_dict("records")]


def differences(results: Results, run_id: str, task: str) -> np.ndarray:
    """Correct in the compressed run minus correct in the dense run, item by item."""
    dense, run = results.items[results.dense_id][task], results.items[run_id][task]
    after = dict(zip(run["id"], run["correct"], strict=True))
    return np.array([after[i] - before for i, before in zip(dense["id"], dense["correct"], strict=True)], dtype=float)


def _change(results: Results, run_id: str, task: str, metric: str) -> Estimate:
    if metric == "auc":
        dense, run = results.items[results.dense_id][task], results.items[run_id][task]
        return auc_difference(np.array(dense["score"]), np.array(run["score"]), np.array(dense["gold"]))
    gaps = differences(results, run_id, task)
    estimate = bootstrap_mean([gaps])
    p = sign_test_p(int((gaps > 0).sum()), int((gaps < 0).sum()))
    return Estimate(estimate.value, estimate.lo, estimate.hi, estimate.n, p)
