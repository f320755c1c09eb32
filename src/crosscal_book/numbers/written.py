"""Written answers after task-specific and general calibration: scores and paired differences.

Source of the comparison: Khanal & Capone 2024 (arXiv 2409.11233), who calibrate LLaMA-2-7B on Alpaca and on C4 and
score answers to instructions of the set calibrated on and of an unseen one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from crosscal.results.frame import DENSE, Results
from crosscal.stats import LEVEL, Estimate, bootstrap_mean, holm, sign_flip_p
from crosscal_book.marks import target_order
from crosscal_book.numbers.sources import Group, name_of
from crosscal_book.style import by_method
from crosscal_book.words import points

ENDING = " answers"
SCORES = {"exact_match": "exact match", "f1": "F1", "rouge1": "ROUGE-1"}


@dataclass(frozen=True, eq=False)
class Written:
    """Runs that wrote the same `sets` of answers, by method, target and source; `task` is the source of the first set.

    `pairs` are the groups calibrated both on it and on general data.
    """

    results: Results
    ids: Mapping[tuple[str, str, str], str]
    pairs: Sequence[Group]
    general: str
    task: str
    sets: Sequence[str]

    @classmethod
    def of(cls, results: Results, general: str) -> "Written | None":
        """Return the runs that wrote answers; None where no task data can be compared with general data."""
        wrote = {i: {name for name in results.items[i] if name.endswith(ENDING)} for i in results.run_ids}
        runs, ids = results.runs[[bool(wrote[run_id]) for run_id in results.runs["run_id"]]], {}
        for line in runs.to_dict("records"):
            ids.setdefault((line["method"], line["target"], line["calibration"]), line["run_id"])
        sets = set.intersection(*(wrote[run_id] for run_id in ids.values())) if ids else set()
        tasks = [s for s in dict.fromkeys(key[2] for key in ids) if s not in ("", general) and f"{s}{ENDING}" in sets]
        order = by_method(runs[runs["calibration"] == general])
        groups = [(m, t) for m, part in order for t in sorted(part["target"].unique(), key=_order)]
        pairs = [group for group in groups if tasks and (*group, tasks[0]) in ids]
        ordered = sorted(sets, key=lambda name: (name != f"{tasks[0]}{ENDING}", name)) if pairs else []
        return cls(results, ids, pairs, general, tasks[0], ordered) if pairs else None

    def scores(self, run_id: str, name: str, score: str) -> np.ndarray:
        """Return a score of every item, in the order of the first run's items."""
        first, items = self.results.items[next(iter(self.ids.values()))][name], self.results.items[run_id][name]
        by_id = dict(zip(items["id"], items[score], strict=True))
        return np.array([by_id[i] for i in first["id"]], dtype=float)

    def gain(self, name: str, score: str, groups: Sequence[Group] = ()) -> Estimate:
        """Return task data's score less general data's, each item's mean over groups, with the sign flips' p."""
        sides = ([self.ids[(*g, side)] for g in groups or self.pairs] for side in (self.task, self.general))
        task, general = (np.array([self.scores(run_id, name, score) for run_id in side]) for side in sides)
        items = np.mean(task - general, axis=0)
        return replace(bootstrap_mean([items]), p=sign_flip_p([items]))

    def label(self, name: str) -> str:
        """Return a set for a sentence: `alpaca answers (seen)`."""
        return f"{name} ({'seen' if name == self.sets[0] else 'unseen'})"

    def rows(self, score: str) -> pd.DataFrame:
        """Return the gain in one score on each set, the mean over groups."""
        facts = {"pairs": len(self.pairs), "general": self.general, "task": self.task}
        which = {name: "the same" if name == self.sets[0] else "another" for name in self.sets}
        return pd.DataFrame(vars(self.gain(n, score)) | facts | {"name": n, "which": which[n]} for n in self.sets)

    def differences(self) -> pd.DataFrame:
        """Return every gain in points, by set (`facet`), score (`panel`), and group or all of them, with Holm's p."""
        found = []
        for name in self.sets:
            for group in [*self.pairs, None]:
                for score, label in SCORES.items():
                    facts = {"facet": self.label(name), "panel": label, "set": name, "name": "mean of all"}
                    facts |= {"series": "mean", "method": "", "target": ""}
                    if group:
                        facts |= {"series": group[0], "method": group[0], "target": group[1], "name": name_of(group)}
                        facts |= {"run_id": self.ids[(*group, self.task)], "other": self.ids[(*group, self.general)]}
                    gain = self.gain(name, score, [group] if group else ())
                    found.append(facts | vars(gain.map(lambda score: 100 * score)))
        frame = pd.DataFrame(found)
        single = frame["method"] != ""
        frame.loc[single, "p_holm"] = holm(frame.loc[single, "p"].tolist())
        return frame

    def means_text(self) -> str:
        """Return the mean gains of all scores on each set, for a sentence."""
        parts = []
        for name in self.sets:
            gains = [f"{label} {self.gain(name, score).text(points)}" for score, label in SCORES.items()]
            parts.append(f"{self.label(name)}: {', '.join(gains)} points")
        return "; ".join(parts)

    def table(self) -> list[list[str]]:
        """Return a line of text for every set, model and calibration, and the paired differences."""
        body, differences = [], self.differences()
        plain = sorted((key for key in self.ids if not key[2]), key=lambda key: key[0] != DENSE)
        for name in self.sets:
            for method, target, _ in plain:
                model = DENSE if method == DENSE else name_of((method, target))
                body.append([name, model, "", *self._cells((method, target, ""), name)])
            for group in self.pairs:
                for source in (self.general, self.task):
                    body.append([name, name_of(group), source, *self._cells((*group, source), name)])
                own = differences[(differences["set"] == name) & (differences["name"] == name_of(group))]
                texts = [_difference(line) for line in own.to_dict("records")]
                body.append([name, name_of(group), f"{self.task} less {self.general}", *texts])
        return body

    def _cells(self, key: tuple[str, str, str], name: str) -> list[str]:
        found = (bootstrap_mean([self.scores(self.ids[key], name, score)]) for score in SCORES)
        return [one.map(lambda score: 100 * score).text("{:.1f}".format) for one in found]


def _difference(line: dict) -> str:
    value, lo, hi = (points(line[end] / 100) for end in ("value", "lo", "hi"))
    star = r"\*" if line["p_holm"] < LEVEL else ""
    return f"{value}{star} [{lo}, {hi}]"


def _order(target: str) -> tuple:
    return (2.0, target) if "bit" in target else target_order(target)
