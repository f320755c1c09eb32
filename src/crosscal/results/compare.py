"""Compressed runs against the dense run, on the same windows and the same items."""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

from crosscal.results.frame import DENSE, Results
from crosscal.results.quantities import ACCURACY, Quantity
from crosscal.stats import Paired

TASK_METRICS = ("accuracy", "accuracy_per_char", "auc")
ALL_TASKS = "all tasks"
PROMPTS = "tasks"
"""The domain of the text that is made of the tasks' prompts."""


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
        sets = list(accuracy_tasks(results)["eval_set"]) if quantity is ACCURACY else shared_texts(results)
    if len(sets) == 0:
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
            if both := paired(results, run_id, None, quantity, list(members["eval_set"])):
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
def tasks(results: Results) -> pd.DataFrame:
    """The dense run's tasks: domain, metric, value with interval, chance, and whether a claim may rest on them.

    A task is `usable` when the dense model's interval lies above chance; below that, a fall has nowhere to go. Chance
    is that stored with the run, else NaN, and 0.5 for AUC.
    """
    rows = results.only(run_id=results.dense_id)
    rows = rows[rows["metric"].isin(TASK_METRICS)].copy()
    stored = results.provenance[results.dense_id].get("tasks", {})
    unknown = {"auc": 0.5}
    rows["chance"] = [
        float(stored.get(task, {}).get("chance", unknown.get(metric, math.nan)))
        for task, metric in zip(rows["eval_set"], rows["metric"], strict=True)
    ]
    rows["usable"] = ~(rows["lo"] <= rows["chance"])
    return rows[["eval_set", "domain", "metric", "value", "lo", "hi", "n", "chance", "usable"]].reset_index(drop=True)


def accuracy_tasks(results: Results) -> pd.DataFrame:
    """The usable tasks that are scored by accuracy."""
    table = tasks(results)
    return table[table["usable"] & (table["metric"] != "auc")].reset_index(drop=True)


def groups_of(table: pd.DataFrame) -> list[str]:
    """The domains of some tasks, general first, then `ALL_TASKS`; nothing when there are no tasks."""
    domains = sorted(table["domain"].unique(), key=lambda domain: (domain != "general", domain))
    return [*domains, ALL_TASKS] if domains else []
