"""Written answers after task-specific and general calibration: scores, paired differences, verdicts.

Source of the comparison: Khanal & Capone 2024 (arXiv 2409.11233), who calibrate LLaMA-2-7B on Alpaca and on C4 and
score answers to instructions of the set calibrated on and of an unseen one.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from crosscal.results.compare import LEVEL
from crosscal.results.frame import DENSE, Results
from crosscal.stats import Estimate, bootstrap_mean, holm, sign_flip_p
from crosscal_book.axes import by_method, pattern_order
from crosscal_book.chapters.calibration_data import Group
from crosscal_book.verdicts import FAILS, HOLDS, OPEN, Verdict
from crosscal_book.words import listing, p_text, points

ENDING = " answers"
SCORES = {"exact_match": "exact match", "f1": "F1", "rouge1": "ROUGE-1"}
# Verdicts rest on F1 alone: exact match is rare for open instructions and ROUGE-1 measures almost the same. Chosen
# before any answer was seen, as was the gain below which task data is not called better: one point, as for tasks.
DECIDES = "f1"
GAIN = 0.01
FIGURE = "fig-answers"


@dataclass(frozen=True, eq=False)
class Answers:
    """The runs that wrote answers: one line each in `runs`; `task` is the source that a set of answers comes from."""

    results: Results
    runs: pd.DataFrame
    general: str
    task: str
    sets: tuple[str, ...]

    def scores(self, run_id: str, name: str, score: str) -> np.ndarray:
        """A score of every item, in the order of the first run's items."""
        first, found = self.results.items[self.runs["run_id"].iloc[0]][name], self.results.items[run_id][name]
        by_id = dict(zip(found["id"], found[score], strict=True))
        return np.array([by_id[i] for i in first["id"]], dtype=float)

    def run(self, group: Group, source: str) -> str | None:
        """The run of a method and pattern on a source."""
        found = self.runs[(self.runs["method"] == group[0]) & (self.runs["pattern"] == group[1])]
        found = found[found["calibration"] == source]
        return found["run_id"].iloc[0] if len(found) else None

    @property
    def pairs(self) -> list[Group]:
        """Methods and patterns calibrated on both sources."""
        groups = self.runs[self.runs["calibration"] == self.general]
        found = [(m, p) for m, lines in by_method(groups) for p in sorted(lines["pattern"], key=_order)]
        return [group for group in found if self.run(group, self.task)]

    def difference(self, group: Group, name: str, score: str) -> np.ndarray:
        """Task data's score less general data's, item by item."""
        one, other = self.run(group, self.task), self.run(group, self.general)
        return self.scores(one, name, score) - self.scores(other, name, score)

    def gain(self, name: str, score: str) -> Estimate:
        """The difference, each item's mean over methods and patterns: value, interval and p of no difference."""
        items = np.mean([self.difference(group, name, score) for group in self.pairs], axis=0)
        return _tested(items)

    def is_seen(self, name: str) -> bool:
        """Whether a set's instructions come from the source calibrated on."""
        return name == f"{self.task}{ENDING}"


def _order(pattern: str) -> tuple:
    return pattern_order(pattern) if pattern.endswith("%") or pattern.count(":") else (2.0, pattern)


def _tested(items: np.ndarray) -> Estimate:
    found = bootstrap_mean([items])
    return Estimate(found.value, found.lo, found.hi, found.n, sign_flip_p([items]))


@lru_cache(maxsize=8)
def gather_answers(results: Results, general: str) -> Answers | None:
    """The runs that wrote the same sets of answers; None where no task data can be compared with general data."""
    written = {i: {n for n in results.items[i] if n.endswith(ENDING)} for i in results.run_ids}
    ids = [i for i, names in written.items() if names]
    if not ids:
        return None
    runs = results.rows[results.rows["run_id"].isin(ids)].drop_duplicates("run_id")
    runs = runs[["run_id", "method", "pattern", "calibration"]].drop_duplicates(["method", "pattern", "calibration"])
    sets = set.intersection(*(written[i] for i in runs["run_id"]))
    tasks = [s for s in runs["calibration"].unique() if s not in ("", general) and f"{s}{ENDING}" in sets]
    if not tasks:
        return None
    ordered = tuple(sorted(sets, key=lambda name: (name != f"{tasks[0]}{ENDING}", name)))
    found = Answers(results, runs.reset_index(drop=True), general, tasks[0], ordered)
    return found if found.pairs else None


def differences_table(answers: Answers) -> pd.DataFrame:
    """Every paired difference of a score: `set`, `group`, `score`, `value`, `lo`, `hi`, `p` and Holm's over all."""
    lines = []
    for name in answers.sets:
        for group in answers.pairs:
            for score in SCORES:
                found = _tested(answers.difference(group, name, score))
                lines.append({"set": name, "group": group, "score": score, **vars(found)})
    frame = pd.DataFrame(lines)
    return frame.assign(p_holm=holm(frame["p"]))


def task_data(results: Results, general: str) -> list[Verdict]:
    """Does task data calibrate better than general data, for answers of the same set and of another?

    Each item's F1 after task calibration less that after general calibration, the mean over all methods and patterns
    that have both. A claim holds when the mean over items is above 0 with p below `LEVEL` (sign flips over items, Holm
    over the sets); it does not hold when it is below 0 so, or when its interval excludes a gain of `GAIN`; otherwise
    it cannot be told. Each model was calibrated on one draw of each source.
    """
    claim = "Task data calibrates better than general data, on answers of {} task"
    answers = gather_answers(results, general)
    if answers is None:
        missing = f"no run wrote answers after calibration on task data and on {general}"
        return [Verdict(claim.format(which), OPEN, missing, FIGURE) for which in ("the same", "another")]
    gains = {name: answers.gain(name, DECIDES) for name in answers.sets}
    verdicts = []
    for (name, gain), p in zip(gains.items(), holm([gain.p for gain in gains.values()]), strict=True):
        worse = (p < LEVEL and gain.value < 0) or gain.hi < GAIN
        answer = HOLDS if p < LEVEL and gain.value > 0 else FAILS if worse else OPEN
        which = "the same" if answers.is_seen(name) else "another"
        effect = (
            f"{SCORES[DECIDES]} on {gain.n} {name} changes by {points(gain.value)} points "
            f"[{points(gain.lo)}, {points(gain.hi)}] from {general} to {answers.task}, {p_text(p)}, over "
            f"{len(answers.pairs)} pairs of models"
        )
        brief = f"{SCORES[DECIDES]} {points(gain.value)} points [{points(gain.lo)}, {points(gain.hi)}], {p_text(p)}"
        verdicts.append(Verdict(claim.format(which), answer, effect, FIGURE, brief))
    if len(verdicts) == 1:
        verdicts.append(Verdict(claim.format("another"), OPEN, "no run wrote answers to another task", FIGURE))
    return verdicts


def dense_run(answers: Answers) -> str | None:
    """The dense model's run that wrote answers."""
    found = answers.runs[answers.runs["method"] == DENSE]["run_id"]
    return found.iloc[0] if len(found) else None


def seen_words(answers: Answers) -> str:
    """`alpaca answers (seen) and squad answers (unseen)`."""
    return listing([f"{n} ({'seen' if answers.is_seen(n) else 'unseen'})" for n in answers.sets])
