"""Written answers after task-specific and general calibration: scores and paired differences.

Source of the comparison: Khanal & Capone 2024 (arXiv 2409.11233), who calibrate LLaMA-2-7B on Alpaca and on C4 and
score answers to instructions of the set calibrated on and of an unseen one.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from crosscal.results.frame import DENSE, Results
from crosscal.stats import LEVEL, Estimate, bootstrap_mean, holm, sign_flip_p
from crosscal_book.marks import target_order
from crosscal_book.numbers.sources import Group
from crosscal_book.numbers.spreads import name_of
from crosscal_book.style import by_method
from crosscal_book.words import points

ENDING = " answers"
SCORES = {"exact_match": "exact match", "f1": "F1", "rouge1": "ROUGE-1"}


@dataclass(frozen=True, eq=False)
class Written:
    """The runs that wrote the same `sets` of answers, a line each; `task` is the source that a set comes from."""

    results: Results
    runs: pd.DataFrame
    general: str
    task: str
    sets: tuple[str, ...]

    @classmethod
    def of(cls, results: Results, general: str) -> "Written | None":
        """Return the runs that wrote answers; None where no task data can be compared with general data."""
        wrote = {i: {name for name in results.items[i] if name.endswith(ENDING)} for i in results.run_ids}
        runs = results.runs[[bool(wrote[run_id]) for run_id in results.runs["run_id"]]]
        runs = runs.drop_duplicates(["method", "target", "calibration"]).reset_index(drop=True)
        sets = set.intersection(*(wrote[run_id] for run_id in runs["run_id"])) if len(runs) else set()
        tasks = [s for s in runs["calibration"].unique() if s not in ("", general) and f"{s}{ENDING}" in sets]
        if not tasks:
            return None
        ordered = tuple(sorted(sets, key=lambda name: (name != f"{tasks[0]}{ENDING}", name)))
        written = cls(results, runs, general, tasks[0], ordered)
        return written if written.pairs else None

    @property
    def pairs(self) -> list[Group]:
        """Return the groups calibrated on both sources."""
        order = by_method(self.runs[self.runs["calibration"] == self.general])
        groups = [(m, t) for m, part in order for t in sorted(part["target"], key=_order)]
        return [group for group in groups if self.run(group, self.task)]

    def run(self, group: Group, source: str) -> str | None:
        """Return the run of a group on a source."""
        runs = self.runs[(self.runs["method"] == group[0]) & (self.runs["target"] == group[1])]
        return next(iter(runs.loc[runs["calibration"] == source, "run_id"]), None)

    def scores(self, run_id: str, name: str, score: str) -> np.ndarray:
        """Return a score of every item, in the order of the first run's items."""
        first, items = self.results.items[self.runs["run_id"].iloc[0]][name], self.results.items[run_id][name]
        by_id = dict(zip(items["id"], items[score], strict=True))
        return np.array([by_id[i] for i in first["id"]], dtype=float)

    def gain(self, name: str, score: str, groups: list[Group] | None = None) -> Estimate:
        """Return task data's score less general data's, each item's mean over groups, with the sign flips' p."""
        sides = (self.task, self.general)
        scores = [[self.scores(self.run(g, side), name, score) for g in groups or self.pairs] for side in sides]
        items = np.mean(np.array(scores[0]) - np.array(scores[1]), axis=0)
        return replace(bootstrap_mean([items]), p=sign_flip_p([items]))

    def is_seen(self, name: str) -> bool:
        """Return whether a set's instructions come from the source calibrated on."""
        return name == f"{self.task}{ENDING}"

    def label(self, name: str) -> str:
        """Return a set for a sentence: `alpaca answers (seen)`."""
        return f"{name} ({'seen' if self.is_seen(name) else 'unseen'})"

    def rows(self, score: str) -> pd.DataFrame:
        """Return the gain in one score on each set, the mean over groups."""
        found = []
        for name in self.sets:
            facts = {"name": name, "which": "the same" if self.is_seen(name) else "another", "pairs": len(self.pairs)}
            found.append(vars(self.gain(name, score)) | facts | {"general": self.general, "task": self.task})
        return pd.DataFrame(found)

    def differences(self) -> pd.DataFrame:
        """Return every gain in points, by set (`facet`), score (`panel`), and group or all of them, with Holm's p."""
        found = []
        for name in self.sets:
            for group in [*self.pairs, None]:
                for score, label in SCORES.items():
                    gain = self.gain(name, score, [group] if group else None)
                    facts = {"facet": self.label(name), "panel": label, "set": name, "name": "mean of all"}
                    facts |= {"series": "mean", "method": "", "target": ""}
                    if group:
                        facts |= {"series": group[0], "method": group[0], "target": group[1], "name": name_of(group)}
                        facts |= {"run_id": self.run(group, self.task), "other": self.run(group, self.general)}
                    found.append(facts | vars(gain.map(lambda score: 100 * score)))
        frame = pd.DataFrame(found)
        single = frame["method"] != ""
        frame.loc[single, "p_holm"] = holm(frame.loc[single, "p"])
        return frame

    def means_text(self) -> str:
        """Return the mean gains of all scores on each set, for a sentence."""
        parts = []
        for name in self.sets:
            gains = {label: self.gain(name, score) for score, label in SCORES.items()}
            parts.append(f"{self.label(name)}: {', '.join(f'{la} {g.text(points)}' for la, g in gains.items())} points")
        return "; ".join(parts)

    def table(self) -> list[list[str]]:
        """Return a line of text for every set, model and calibration, and the paired differences."""
        body, differences = [], self.differences()
        plain = self.runs[self.runs["calibration"] == ""].sort_values("method", key=lambda m: m != DENSE, kind="stable")
        for name in self.sets:
            for line in plain.to_dict("records"):
                model = DENSE if line["method"] == DENSE else name_of((line["method"], line["target"]))
                body.append([name, model, "", *self._cells(line["run_id"], name)])
            for group in self.pairs:
                for source in (self.general, self.task):
                    body.append([name, name_of(group), source, *self._cells(self.run(group, source), name)])
                own = differences[(differences["set"] == name) & (differences["name"] == name_of(group))]
                texts = [_difference(line) for line in own.to_dict("records")]
                body.append([name, name_of(group), f"{self.task} less {self.general}", *texts])
        return body

    def _cells(self, run_id: str, name: str) -> list[str]:
        found = (bootstrap_mean([self.scores(run_id, name, score)]) for score in SCORES)
        return [one.map(lambda score: 100 * score).text("{:.1f}".format) for one in found]


def _difference(line: dict) -> str:
    value, lo, hi = (points(line[end] / 100) for end in ("value", "lo", "hi"))
    star = r"\*" if line["p_holm"] < LEVEL else ""
    return f"{value}{star} [{lo}, {hi}]"


def _order(target: str) -> tuple:
    return (2.0, target) if "bit" in target else target_order(target)
