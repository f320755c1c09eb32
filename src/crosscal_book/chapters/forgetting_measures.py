"""How much of each skill a compressed model keeps, and contrasts between two tasks that ask the same questions.

A task's accuracy is put on a common axis as the *share of skill kept*: (accuracy - chance) / (dense accuracy -
chance), 1 for the dense model and 0 for guessing. A skill's share is the ratio of the means over its tasks, which one
task near chance cannot blow up.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from crosscal.metrics.tasks import TASKS
from crosscal.results.compare import ALL_TEXTS, accuracy_tasks, text_changes
from crosscal.results.frame import DENSE, Results
from crosscal.stats import DRAWS, Estimate

SKILLS = ("knowledge", "reading", "language")
RUINED = 10.0
"""A run with at least this many times the dense perplexity has collapsed, and says more about collapse than about what
goes first: near guessing, all skills are alike. Set before the runs were made; such runs are drawn, but enter no
verdict, and the table shows what their being counted would change."""


@dataclass(frozen=True)
class Contrast:
    """What compression does to one task less what it does to another that asks the same questions.

    `share` compares the shares of skill kept, `points` the changes of accuracy (of 1), `margin` the changes of the
    right option's log-probability less the best other one's (nats). Negative: the first task suffers more.
    """

    share: Estimate
    points: Estimate
    margin: Estimate


@lru_cache(maxsize=8)
def prepared(results: Results) -> Results:
    """The runs with only what all were evaluated on."""
    return results.common()


@lru_cache(maxsize=8)
def skills(results: Results) -> dict[str, list[str]]:
    """The usable tasks of each skill; variants with perturbed questions are left to the robustness contrasts."""
    usable = list(accuracy_tasks(prepared(results))["eval_set"])
    own = [task for task in usable if task in TASKS and not TASKS[task].variant_of]
    found = {skill: [task for task in own if TASKS[task].skill == skill] for skill in SKILLS}
    return {skill: members for skill, members in found.items() if members}


def variant_pairs(results: Results, ending: str) -> list[tuple[str, str]]:
    """(perturbed task, its base task), both usable, for the variants whose names end so.

    A variant on which the dense model is no better than guessing has no skill to lose.
    """
    usable = set(accuracy_tasks(prepared(results))["eval_set"])
    tasks = [TASKS[name] for name in usable if name in TASKS]
    pairs = [(t.name, t.variant_of) for t in tasks if t.variant_of in usable and t.name.endswith(ending)]
    return sorted(pairs)


def reading_pairs(results: Results) -> list[tuple[str, str]]:
    """(knowledge task, reading task) that ask the same questions, both usable."""
    usable = set(accuracy_tasks(prepared(results))["eval_set"])
    tasks = [TASKS[name] for name in usable if name in TASKS]
    pairs = [(t.paired_with, t.name) for t in tasks if t.skill == "reading" and t.paired_with in usable]
    return sorted(pairs)


@lru_cache(maxsize=8)
def compressed(results: Results) -> pd.DataFrame:
    """One line per compressed run, the mildest by perplexity first: what it is, `storage_bits`, `ratio` and interval.

    `ratio` is NaN without held-out text. `ruined` marks runs that no contrast uses.
    """
    results = prepared(results)
    runs = results.rows[results.rows["method"] != DENSE].drop_duplicates("run_id")
    runs = runs[["run_id", "method", "pattern", "calibration", "storage_bits"]]
    ratios = text_changes(results)
    ratios = ratios[ratios["eval_set"] == ALL_TEXTS].rename(columns={"lo": "ratio_lo", "hi": "ratio_hi"})
    runs = runs.merge(ratios[["run_id", "ratio", "ratio_lo", "ratio_hi"]], on="run_id", how="left")
    runs["ruined"] = runs["ratio"] >= RUINED
    return runs.sort_values("ratio", kind="stable").reset_index(drop=True)


def readable(results: Results) -> list[str]:
    """The ids of the compressed runs that still predict text, the mildest first."""
    runs = compressed(results)
    return list(runs.loc[~runs["ruined"], "run_id"])


@lru_cache(maxsize=8)
def kept_shares(results: Results) -> pd.DataFrame:
    """The share of each skill that every compressed run keeps: `run_id`, `skill`, `kept`, `lo`, `hi`, `tasks`, `n`."""
    lines, chances = [], _chances(results)
    for run_id in compressed(results)["run_id"]:
        for skill, members in skills(results).items():
            columns = [_columns(results, [results.dense_id, run_id], [task], "correct") for task in members]
            chance = float(np.mean([chances[task] for task in members]))
            kept = resampled(columns, lambda means, chance=chance: _share(means[:, 1], means[:, 0], chance))
            line = {"kept": kept.value, "lo": kept.lo, "hi": kept.hi, "tasks": len(members), "n": kept.n}
            lines.append({"run_id": run_id, "skill": skill, **line})
    return pd.DataFrame(lines, columns=["run_id", "skill", "kept", "lo", "hi", "tasks", "n"])


@lru_cache(maxsize=8)
def margin_shifts(results: Results) -> pd.DataFrame:
    """The mean change of the margins of each skill, in standard deviations of the dense model's margins.

    Margins move before answers do, and so tell most where the dense model is nearly always right.
    """
    lines = []
    for run_id in compressed(results)["run_id"]:
        for skill, members in skills(results).items():
            columns = [_columns(results, [results.dense_id, run_id], [task], "margin") for task in members]
            scaled = [pair / max(pair[:, 0].std(), 1e-12) for pair in columns]
            shift = resampled(scaled, lambda means: means[:, 1] - means[:, 0])
            lines.append({"run_id": run_id, "skill": skill, "shift": shift.value, "lo": shift.lo, "hi": shift.hi})
    return pd.DataFrame(lines, columns=["run_id", "skill", "shift", "lo", "hi"])


@lru_cache(maxsize=256)
def contrast(results: Results, run_ids: tuple[str, ...], pairs: tuple[tuple[str, str], ...]) -> Contrast:
    """The mean over runs of the first tasks' loss less the second tasks', paired by item id.

    All runs answer the same items, so items are resampled for all of them together; `pairs` are averaged.
    Needs at least one run and one pair.
    """
    order = [results.dense_id, *run_ids]
    correct = [_columns(results, order, pair, "correct") for pair in pairs]
    margins = [_columns(results, order, pair, "margin") for pair in pairs]
    chances = _chances(results)
    chance = np.mean([[chances[name] for name in pair] for pair in pairs], axis=0)

    def shares(means: np.ndarray) -> np.ndarray:
        first, second = np.split(means, 2, axis=1)
        kept = [_share(m[:, 1:], m[:, :1], c) for m, c in zip((first, second), chance, strict=True)]
        return (kept[0] - kept[1]).mean(axis=1)

    def changes(means: np.ndarray) -> np.ndarray:
        first, second = np.split(means, 2, axis=1)
        return ((first[:, 1:] - first[:, :1]) - (second[:, 1:] - second[:, :1])).mean(axis=1)

    return Contrast(resampled(correct, shares), resampled(correct, changes), resampled(margins, changes))


def dense_gap(results: Results, pairs: Sequence[tuple[str, str]]) -> Estimate:
    """How much lower the dense model scores on the first tasks than on the second, paired by item id (of 1)."""
    columns = [_columns(results, [results.dense_id], pair, "correct") for pair in pairs]
    return resampled(columns, lambda means: means[:, 0] - means[:, 1])


def shared_items(results: Results, pairs: Sequence[tuple[str, str]]) -> int:
    """How many questions the pairs share."""
    return sum(len(_columns(results, [results.dense_id], pair, "correct")) for pair in pairs)


def resampled(groups: Sequence[np.ndarray], statistic: Callable[[np.ndarray], np.ndarray]) -> Estimate:
    """A statistic of the columns' means over groups [items, columns], with its 95 % percentile bootstrap interval.

    Items are resampled within their group, whole lines at a time; groups weigh the same. `statistic` maps means
    [draws, columns] to [draws]; draws where it is NaN are left out. `p` is twice the smaller share of draws on either
    side of 0.

    >>> resampled([np.array([[1.0, 0.0], [1.0, 0.0]])], lambda means: means[:, 0] - means[:, 1]).value
    1.0
    """
    means = np.zeros((DRAWS, groups[0].shape[1]))
    for number, group in enumerate(groups):
        means += _counts(len(group), number) @ group / len(group) / len(groups)
    drawn = statistic(means)
    drawn = drawn[~np.isnan(drawn)]
    value = statistic(np.mean([group.mean(axis=0) for group in groups], axis=0, keepdims=True))
    lo, hi = np.percentile(drawn, [2.5, 97.5])
    one_side = min(np.count_nonzero(drawn >= 0), np.count_nonzero(drawn <= 0))
    p = min(1.0, 2 * (1 + one_side) / (1 + len(drawn)))
    return Estimate(float(value[0]), float(lo), float(hi), sum(len(group) for group in groups), float(p))


def significant(estimate: Estimate) -> bool:
    """Whether the 95 % interval excludes 0."""
    return estimate.hi < 0 or estimate.lo > 0


@lru_cache(maxsize=32)
def _counts(size: int, number: int) -> np.ndarray:
    """How often each item is in each resample, [draws, size]; the same for all runs, so that they can be compared."""
    random = np.random.default_rng((0, number))
    return random.multinomial(size, np.full(size, 1 / size), size=DRAWS).astype(float)


def _share(after: np.ndarray, before: np.ndarray, chance: float) -> np.ndarray:
    """The share of skill kept; NaN in the rare resample where the dense model does not beat guessing."""
    room = np.where(before - chance > 1e-9, before - chance, math.nan)
    return (after - chance) / room


@lru_cache(maxsize=8)
def _chances(results: Results) -> dict[str, float]:
    table = accuracy_tasks(prepared(results))
    return dict(zip(table["eval_set"], table["chance"], strict=True))


def _columns(results: Results, run_ids: Sequence[str], tasks: Sequence[str], key: str) -> np.ndarray:
    """[items that the tasks share, tasks x runs]: the runs of the first task, then those of the second."""
    ids = [i for i in results.items[results.dense_id][tasks[0]]["id"] if _has_all(results, tasks, i)]
    columns = []
    for task in tasks:
        for run_id in run_ids:
            entry = results.items[run_id][task]
            by_id = dict(zip(entry["id"], entry[key], strict=True))
            columns.append([by_id[i] for i in ids])
    return np.array(columns, dtype=float).T


def _has_all(results: Results, tasks: Sequence[str], item: object) -> bool:
    return all(item in _ids(results, task) for task in tasks)


@lru_cache(maxsize=64)
def _ids(results: Results, task: str) -> frozenset:
    return frozenset(results.items[results.dense_id][task]["id"])
