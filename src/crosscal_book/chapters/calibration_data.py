"""Chapter 3's runs as numbers that may be subtracted: what varies between two of them, and with which uncertainty.

Everything here is an array whose first entry is the value and whose others are bootstrap draws of it over windows or
items, the same draws for all runs, so that differences are paired. To a difference between runs that were calibrated on
different windows the spread over draws of the calibration text is added (`draw_noise`), because the runs would
have come out otherwise on another draw.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import pandas as pd

from crosscal.results.compare import PROMPTS, accuracy_tasks, differences
from crosscal.results.frame import DENSE, Results
from crosscal.stats import DRAWS, Estimate, bootstrap_means
from crosscal_book.axes import by_method
from crosscal_book.words import points, run_name, times

RANDOM, SELF = "random", "self"
"""Sources that are no text (random tokens) and that the model wrote."""
SETTING = ["method", "pattern", "calibration", "n_windows", "window", "seed", "schedule"]

Group = tuple[str, str]
"""A method and what it compresses to, such as ("sparsegpt", "50%")."""


@dataclass(frozen=True)
class Measure:
    """What a run is judged by: where its items are, how a difference is drawn (`scale`) and written (`text`)."""

    name: str
    key: str
    axis: str
    scale: Callable[[float], float]
    text: Callable[[float], str]


def percent(log_change: float) -> str:
    """A difference of log perplexity as a relative change.

    >>> percent(math.log(1.025)), percent(0.0)
    ('+2.5 %', '+0.0 %')
    """
    return f"{points(math.expm1(log_change))} %"


PERPLEXITY = Measure("perplexity", "nll", "perplexity (%)", lambda x: 100 * np.expm1(x), percent)
DIVERGENCE = Measure("JS divergence", "js_divergence", "JS divergence (nats)", lambda x: x, "{:+.4f} nats".format)
ACCURACY = Measure("accuracy", "correct", "accuracy (points)", lambda x: 100 * x, lambda x: f"{points(x)} points")
MEASURES = (PERPLEXITY, DIVERGENCE, ACCURACY)


@dataclass(frozen=True, eq=False)
class Evidence:
    """The runs that differ in nothing but method, target and calibration, beside one dense run.

    `runs` has one line per run: `run_id` and the columns of `SETTING`. `size` (windows, tokens in each) and `seed` are
    those of most runs; `general` is the source that others are compared with.
    """

    results: Results
    runs: pd.DataFrame
    general: str
    size: tuple[int, int]
    seed: int

    def pick(self, group: Group | None = None, **equal: object) -> pd.DataFrame:
        """The runs of a method and pattern whose columns have these values."""
        wanted = dict(zip(("method", "pattern"), group or (), strict=False)) | equal
        kept = self.runs
        for column, value in wanted.items():
            kept = kept[kept[column] == value]
        return kept

    def draws(self, group: Group, source: str) -> list[str]:
        """The runs on draws of one source at the usual size."""
        return list(self._usual.get((*group, source), {}).values())

    def base(self, group: Group, source: str) -> str | None:
        """The run on the first draw of a source at the usual size."""
        return self._usual.get((*group, source), {}).get(self.seed)

    @cached_property
    def _usual(self) -> dict[tuple[str, str, str], dict[int, str]]:
        """Runs of the usual size by method, pattern and source, and by seed."""
        found: dict[tuple[str, str, str], dict[int, str]] = {}
        for line in self.pick(n_windows=self.size[0], window=self.size[1]).sort_values("seed").to_dict("records"):
            key = (line["method"], line["pattern"], line["calibration"])
            found.setdefault(key, {})[line["seed"]] = line["run_id"]
        return found

    @cached_property
    def lines(self) -> dict[str, dict]:
        """Each run's line of `runs`."""
        return {line["run_id"]: line for line in self.runs.to_dict("records")}

    @cached_property
    def groups(self) -> list[Group]:
        """Methods, in the book's order, with the patterns that they were calibrated for."""
        calibrated = self.runs[self.runs["calibration"] != ""]
        return [(m, p) for m, lines in by_method(calibrated) for p in sorted(lines["pattern"].unique())]

    def sources(self, group: Group | None = None, text_only: bool = False) -> list[str]:
        """Sources with a first draw at the usual size: the general one, the others by name, then those no one wrote."""
        groups = [group] if group else self.groups
        found = {key[2] for key, runs in self._usual.items() if key[:2] in groups and self.seed in runs}
        order = sorted(found, key=lambda s: (s == RANDOM, s == SELF, s != self.general, s))
        return [source for source in order if not (text_only and source == RANDOM)]

    def sets(self, measure: Measure) -> tuple[str, ...]:
        """The evaluation sets a mean is taken over: all texts but the tasks' prompts, or the usable accuracy tasks."""
        if measure is ACCURACY:
            return tuple(accuracy_tasks(self.results)["eval_set"])
        rows = self.results.only(metric="perplexity", run_id=self.results.dense_id)
        return tuple(rows.loc[rows["domain"] != PROMPTS, "eval_set"])


@lru_cache(maxsize=8)
def gather(results: Results, general: str) -> Evidence:
    """The runs to compare, each setting once, on the texts and tasks that all of them were evaluated on."""
    runs = results.rows.drop_duplicates("run_id")
    dense = runs[runs["method"] == DENSE]
    plain = [i for i in runs["run_id"] if _is_plain(results.configs.get(i, {}))]
    kept = runs[(runs["method"] != DENSE) & runs["run_id"].isin(plain)].drop_duplicates(SETTING)
    kept = kept[["run_id", *SETTING]].reset_index(drop=True)
    first = min(dense["run_id"], key=lambda i: any(name.endswith(" answers") for name in results.items[i]))
    narrow = narrowed(results, [first, *kept["run_id"]]).common()
    calibrated = kept[kept["calibration"] != ""]
    sizes = calibrated.groupby(["n_windows", "window"], sort=False).size()
    seeds = calibrated.groupby("seed", sort=False).size()
    size = tuple(int(x) for x in sizes.idxmax()) if len(sizes) else (0, 0)
    return Evidence(narrow, kept, general, size, int(seeds.idxmax()) if len(seeds) else 0)


def narrowed(results: Results, run_ids: Sequence[str]) -> Results:
    """Only these runs: unlike `Results.subset`, it chooses between several dense runs."""
    wanted = set(run_ids)
    rows = results.rows[results.rows["run_id"].isin(wanted)].reset_index(drop=True)
    return replace(results, rows=rows, items={i: v for i, v in results.items.items() if i in wanted})


def _is_plain(config: dict) -> bool:
    return config.get("allocation", "uniform") == "uniform" and not config.get("options")


@lru_cache(maxsize=2048)
def level(evidence: Evidence, run_id: str, measure: Measure, sets: tuple[str, ...] | None = None) -> np.ndarray:
    """A run's value beside the dense model's, then its bootstrap draws: [1 + draws].

    Log of the perplexity ratio, JS divergence, or change of accuracy; the mean over `sets`, each weighing the same.
    """
    results, chosen = evidence.results, sets or evidence.sets(measure)
    if measure is ACCURACY:
        return bootstrap_means([differences(results, run_id, task) for task in chosen])
    found = [np.array(results.items[run_id][text][measure.key]) for text in chosen]
    if measure is PERPLEXITY:
        dense = results.items[results.dense_id]
        found = [values - np.array(dense[t][measure.key]) for t, values in zip(chosen, found, strict=True)]
    return bootstrap_means(found)


def measures_of(evidence: Evidence) -> list[Measure]:
    """The measures that all runs have."""
    return [measure for measure in MEASURES if evidence.sets(measure)]


@dataclass(frozen=True)
class Noise:
    """The SD of a run's value over draws of its calibration text, the degrees of freedom behind it, and whose it is."""

    sd: float
    freedom: int
    group: Group


@lru_cache(maxsize=2048)
def draw_noise(evidence: Evidence, group: Group, measure: Measure, sets: tuple[str, ...] | None = None) -> Noise | None:
    """The SD over draws of the general text; where a group has one draw, the largest SD of its method, else of all.

    None where nothing was drawn twice: intervals then say nothing about other draws.
    """
    own = [g for g in evidence.groups if g == group]
    same = [g for g in evidence.groups if g[0] == group[0]]
    for candidates in (own, same, evidence.groups):
        found = []
        for candidate in candidates:
            ids = evidence.draws(candidate, evidence.general)
            if len(ids) > 1:
                sd = float(np.std([level(evidence, i, measure, sets)[0] for i in ids], ddof=1))
                found.append(Noise(sd, len(ids) - 1, candidate))
        if found:
            return max(found, key=lambda noise: noise.sd)
    return None


@lru_cache(maxsize=32)
def student(freedom: int) -> np.ndarray:
    """Student's t, one number for each bootstrap draw, with 0 for the value itself."""
    return np.concatenate([[0.0], np.random.default_rng(11).standard_t(freedom, DRAWS)])


def gap(
    evidence: Evidence,
    plus: Sequence[str],
    minus: Sequence[str],
    measure: Measure,
    sets: tuple[str, ...] | None = None,
) -> np.ndarray:
    """Mean of some runs less the mean of others, [1 + draws], with windows or items and calibration draws as noise.

    Without others, the runs' own mean. All calibrated runs must be of one method and pattern. The SD over draws, known
    at the usual size, is taken to fall with the square root of the number of calibration tokens.
    """
    change, share, group = np.zeros(1 + DRAWS), 0.0, None
    for sign, side in ((1, plus), (-1, minus)):
        for run_id in side:
            line = evidence.lines[run_id]
            change = change + sign * level(evidence, run_id, measure, sets) / len(side)
            if line["calibration"]:
                group = (line["method"], line["pattern"])
                share += math.prod(evidence.size) / (line["n_windows"] * line["window"]) / len(side) ** 2
    noise = draw_noise(evidence, group, measure, sets) if group else None
    return change if noise is None else change + noise.sd * math.sqrt(share) * student(noise.freedom)


def estimate(draws: np.ndarray, function: Callable[[np.ndarray], np.ndarray] = lambda x: x) -> Estimate:
    """Value and 95 % interval of an array whose first entry is the value; `function` maps it to another scale."""
    lo, hi = np.percentile(draws[1:], [2.5, 97.5])
    return Estimate(float(function(draws[0])), float(function(lo)), float(function(hi)), len(draws) - 1)


def p_not_below(draws: np.ndarray, limit: float = 0.0) -> float:
    """One-sided p of "the value is at least `limit`": small where it is lower.

    >>> p_not_below(np.array([-1.0, -2.0, -1.0, 1.0]))
    0.5
    """
    return float((1 + np.count_nonzero(draws[1:] >= limit)) / len(draws))


def p_not_above(draws: np.ndarray, limit: float = 0.0) -> float:
    """One-sided p of "the value is at most `limit`": small where it is higher."""
    return p_not_below(-draws, -limit)


def interval(draws: np.ndarray, text: Callable[[float], str]) -> str:
    """`value [low, high]` as text.

    >>> interval(np.array([0.0, 0.0, 0.0]), percent)
    '+0.0 % [+0.0 %, +0.0 %]'
    """
    return estimate(draws).text(text)


def bounds(found: Estimate, between: str = ", ") -> str:
    """The ends of a ratio's interval, as many digits as a ratio has.

    >>> bounds(Estimate(1.5, 1.2, 18.44, 8))
    '1.20, 18.4'
    """
    return between.join(times(end).rstrip("×") for end in (found.lo, found.hi))


def is_group(frame: pd.DataFrame, group: Group) -> np.ndarray:
    """Which lines of a table have this group in their column `group`, [lines] of bool."""
    return np.array([entry == group for entry in frame["group"]], dtype=bool)


def name_of(group: Group) -> str:
    """`SparseGPT 50%`."""
    return run_name({"method": group[0], "pattern": group[1]})
