"""What a report card measures: losses against the dense model, each with interval and word; settings compared.

The words stand beside the numbers so that nobody needs colour to read the card: `kept`, `some loss`, `much loss`, and
`unclear` where the interval holds both sides of a limit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from crosscal.plan.parameters import ReportCardSettings
from crosscal.results.compare import PROMPTS, accuracy_tasks, differences
from crosscal.results.frame import DENSE, Results
from crosscal.stats import Estimate, bootstrap_mean, sign_flip_p
from crosscal.text import domain_of
from crosscal.types import parse_target
from crosscal_book.words import KEPT

# kind of measure -> (at most this is kept, from this on it is much). A convention, set before any run was seen:
# perplexity as in the study's other chapters, and doubled; JS divergence is to first order a quarter of KL, which is
# the expected rise of the log-perplexity on text of the dense model's own; of a task's items a change of 3 in 100 is
# about what can be seen in a few hundred, and 10 in 100 is what a user notices.
LIMITS = {
    "ratio": (KEPT, 2.0),
    "divergence": (math.log(KEPT) / 4, math.log(2.0) / 4),
    "flips": (0.05, 0.20),
    "change": (0.03, 0.10),
}
KEPT_WORD, SOME, MUCH, UNCLEAR = "kept", "some loss", "much loss", "unclear"
GENERAL = "general text"
Weight = float | None
"""The weight of the domain text, or None for a method that reads no text."""


@dataclass(frozen=True)
class Measure:
    """One loss of one run: `kind` names its limits, `estimate` is the loss itself (a change is negative when lost)."""

    name: str
    kind: str
    estimate: Estimate

    @property
    def word(self) -> str:
        """What the interval says, by `LIMITS`."""
        least, great = LIMITS[self.kind]
        lo, hi = self.estimate.lo, self.estimate.hi
        if self.kind == "change":
            lo, hi = -hi, -lo
        if hi <= least:
            return KEPT_WORD
        if lo <= least:
            return UNCLEAR
        return MUCH if lo >= great else SOME


@dataclass(frozen=True)
class Texts:
    """The held-out texts of a card: the domain's (one or none) and those that stand for general text."""

    domain: tuple[str, ...]
    general: tuple[str, ...]


def short(source: str) -> str:
    """A text source for people: a file by its name alone.

    >>> short("/home/me/notes.jsonl"), short("pubmed"), short("hub:FiscalNote/billsum")
    ('notes.jsonl', 'pubmed', 'hub:FiscalNote/billsum')
    """
    return source if source.startswith("hub:") else source.replace("\\", "/").rsplit("/", 1)[-1]


@lru_cache(maxsize=8)
def runs_by_weight(results: Results, settings: ReportCardSettings) -> dict[Weight, str]:
    """The run of each weight that was asked for and is stored, by weight; data-free methods have one, under None."""
    runs = results.rows[results.rows["method"] == settings.method].drop_duplicates("run_id")
    runs = runs[runs["pattern"] == str(parse_target(settings.target))]
    runs = runs[(runs["seed"] == settings.seed) & (runs["model"] == settings.model)]
    found: dict[Weight, str] = {}
    for run in runs.to_dict("records"):
        found.setdefault(_weight(run, settings), run["run_id"])
    if None in found:
        return {None: found[None]}
    return {weight: found[weight] for weight in sorted(set(settings.weights)) if weight in found}


def _weight(run: dict, settings: ReportCardSettings) -> Weight:
    mixed = round(float(run["mix_weight"]), 6)
    known = {"": None, settings.general: 0.0, settings.domain: 1.0, f"{settings.general}+{settings.domain}": mixed}
    weight = known.get(run["calibration"], -1.0)  # -1: some other text, which no one asked for here
    asked = [w for w in settings.weights if weight is not None and math.isclose(w, weight, abs_tol=1e-6)]
    return asked[0] if asked else weight


@lru_cache(maxsize=8)
def prepared(results: Results, settings: ReportCardSettings) -> Results:
    """The dense run and those of the card, with only what all were evaluated on."""
    return results.subset(list(runs_by_weight(results, settings).values())).common()


@lru_cache(maxsize=8)
def texts_of(results: Results, settings: ReportCardSettings) -> Texts:
    """The domain's held-out text, and the texts of the general source's kind, else all general ones, else the others.

    Whether the domain is one of the preset's texts or not, it is never part of the general side; nor are task prompts.
    """
    rows = prepared(results, settings).only(method=DENSE, metric="perplexity")
    rows = rows[rows["domain"] != PROMPTS]
    others = rows[rows["eval_set"] != settings.domain]
    domain = tuple(rows.loc[rows["eval_set"] == settings.domain, "eval_set"])
    for kind in (domain_of(settings.general), "general"):
        if kind != "own" and (others["domain"] == kind).any():
            return Texts(domain, tuple(others.loc[others["domain"] == kind, "eval_set"]))
    return Texts(domain, tuple(others["eval_set"]))


@lru_cache(maxsize=8)
def task_groups(results: Results, settings: ReportCardSettings) -> dict[str, tuple[str, ...]]:
    """The usable accuracy tasks: all, and the domain's own where there are some besides others."""
    table = accuracy_tasks(prepared(results, settings))
    if table.empty:
        return {}
    kind = domain_of(settings.domain)
    own = tuple(table.loc[table["domain"] == kind, "eval_set"])
    groups = {"all tasks": tuple(table["eval_set"])}
    return groups | ({f"{kind} tasks": own} if 0 < len(own) < len(table) else {})


@lru_cache(maxsize=32)
def losses(results: Results, settings: ReportCardSettings, run_id: str) -> list[Measure]:
    """What a run lost against the dense model: perplexity, divergence, flipped answers, accuracy, as far as known."""
    texts, dense, found = texts_of(results, settings), results.dense_id, []
    sides = {short(settings.domain): texts.domain, GENERAL: texts.general}
    sides = {side: names for side, names in sides.items() if names}
    for side, names in sides.items():
        found.append(Measure(f"perplexity, {side}", "ratio", text_ratio(results, run_id, dense, names)))
    for side, names in sides.items():
        means = [results.items[run_id][name].get("js_divergence") for name in names]
        if None not in means:
            found.append(Measure(f"JS divergence, {side}", "divergence", bootstrap_mean([np.array(m) for m in means])))
    groups = task_groups(results, settings)
    if groups:
        flipped = [np.abs(differences(results, run_id, task)) for task in groups["all tasks"]]
        found.append(Measure("answers flipped", "flips", bootstrap_mean(flipped)))
    for group, names in groups.items():
        title = f"accuracy, {group} ({len(names)})"
        found.append(Measure(title, "change", task_change(results, run_id, dense, names)))
    return found


def text_ratio(results: Results, run_id: str, other: str, texts: Sequence[str]) -> Estimate:
    """Perplexity over that of another run, geometric mean over texts, paired by window; p of the sign flips."""
    return _tested([_gap(results, run_id, other, text) for text in texts]).map(math.exp)


def task_change(results: Results, run_id: str, other: str, tasks: Sequence[str]) -> Estimate:
    """Mean accuracy less that of another run, paired by item; p of the sign flips."""
    first = [differences(results, run_id, task) for task in tasks]
    second = [differences(results, other, task) for task in tasks]
    return _tested([one - two for one, two in zip(first, second, strict=True)])


def balanced_ratio(results: Results, settings: ReportCardSettings, run_id: str, other: str) -> Estimate:
    """exp of the mean log-perplexity difference over domain and general text, half each, paired by window.

    With only one of the two sides it is that side's; without any it is NaN.
    """
    sides = [names for names in vars(texts_of(results, settings)).values() if names]
    count = sum(len(names) for names in sides)
    gaps = [_gap(results, run_id, other, text) * count / (len(sides) * len(names)) for names in sides for text in names]
    return _tested(gaps).map(math.exp) if gaps else Estimate(math.nan, math.nan, math.nan, 0)


def weight_name(weight: Weight, settings: ReportCardSettings) -> str:
    """A setting for people.

    >>> weight_name(1.0, ReportCardSettings()), weight_name(0.5, ReportCardSettings())
    ('w = 1 (pubmed alone)', 'w = 0.5')
    """
    if weight is None:
        return "no text"
    alone = {0.0: f" ({short(settings.general)} alone)", 1.0: f" ({short(settings.domain)} alone)"}
    return f"w = {weight:g}{alone.get(weight, '')}"


def _gap(results: Results, run_id: str, other: str, text: str) -> np.ndarray:
    return np.array(results.items[run_id][text]["nll"]) - np.array(results.items[other][text]["nll"])


def _tested(gaps: list[np.ndarray]) -> Estimate:
    found = bootstrap_mean(gaps)
    return Estimate(found.value, found.lo, found.hi, found.n, sign_flip_p(gaps))
