"""Runs on different calibration texts and draws of them: what varies between two, and with which uncertainty.

A *group* is a method and what it compresses to. Values are arrays whose first entry is the value and whose others are
bootstrap draws of it over windows or items, the same draws for all runs, so that differences are paired. To a
difference between runs that were calibrated on different windows the spread over draws of the calibration text is
added (`Sources.noise`), because the runs would have come out otherwise on another draw.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from crosscal.results.compare import accuracy_tasks, paired, shared_texts
from crosscal.results.frame import DENSE, Results
from crosscal.results.quantities import ACCURACY, DIVERGENCE, PERPLEXITY, Quantity
from crosscal.stats import DRAWS, bootstrap_means
from crosscal_book.style import by_method

RANDOM, SELF = "random", "self"  # sources that are no text (random tokens), and that the model wrote
SETTING = ["method", "target", "calibration", "n_windows", "window", "seed", "schedule"]
Group = tuple[str, str]
Sets = tuple[str, ...] | None


@dataclass(frozen=True)
class Noise:
    """The SD of a run's value over draws of its calibration text, the degrees of freedom behind it, and whose it is."""

    sd: float
    freedom: int
    group: Group


class Sources:
    """The runs that differ in nothing but method, target and calibration, each once, beside one dense run.

    `size` (windows, tokens in each) and `seed` are those of most runs; `general` is the source that others are
    compared with. All is taken on the texts and tasks that every run was evaluated on.
    """

    def __init__(self, results: Results, general: str):
        runs, self.general = results.runs, general
        plain = runs[(runs["method"] != DENSE) & (runs["allocation"] == "uniform") & (runs["options"] == "")]
        self.runs = plain.drop_duplicates(SETTING)[["run_id", *SETTING]].reset_index(drop=True)
        written = {i: any(name.endswith(" answers") for name in results.items[i]) for i in runs["run_id"]}
        dense = min(runs.loc[runs["method"] == DENSE, "run_id"], key=lambda run_id: written[run_id])
        self.results = results.only_runs([dense, *self.runs["run_id"]]).common()
        calibrated = self.runs[self.runs["calibration"] != ""]
        sizes = calibrated.groupby(["n_windows", "window"], sort=False).size()
        self.size = tuple(int(number) for number in sizes.idxmax()) if len(sizes) else (0, 0)
        self.seed = int(calibrated.groupby("seed", sort=False).size().idxmax()) if len(sizes) else 0
        targets = [(m, lines["target"].unique()) for m, lines in by_method(calibrated)]
        self.groups: list[Group] = [(method, target) for method, some in targets for target in sorted(some)]
        self._lines = self.runs.set_index("run_id").to_dict("index")
        usual = self.pick(n_windows=self.size[0], window=self.size[1]).sort_values("seed")
        self._usual: dict[tuple[str, str, str], dict[int, str]] = {}
        for line in usual.to_dict("records"):
            key = (line["method"], line["target"], line["calibration"])
            self._usual.setdefault(key, {})[line["seed"]] = line["run_id"]
        self._levels: dict[tuple, np.ndarray] = {}
        self._noises: dict[tuple, Noise | None] = {}

    def pick(self, group: Group | None = None, **equal: object) -> pd.DataFrame:
        """Return the runs of a group whose columns have these values."""
        kept = self.runs
        for column, value in (dict(zip(("method", "target"), group or (), strict=False)) | equal).items():
            kept = kept[kept[column] == value]
        return kept

    def draws(self, group: Group, source: str) -> list[str]:
        """Return the runs on draws of one source at the usual size."""
        return list(self._usual.get((*group, source), {}).values())

    def base(self, group: Group, source: str) -> str | None:
        """Return the run on the first draw of a source at the usual size."""
        return self._usual.get((*group, source), {}).get(self.seed)

    def sources(self, group: Group | None = None, text_only: bool = False) -> list[str]:
        """Return the sources with a first draw at the usual size: the general one, others by name, `SELF`, `RANDOM`."""
        groups = [group] if group else self.groups
        known = {key[2] for key, runs in self._usual.items() if key[:2] in groups and self.seed in runs}
        order = sorted(known, key=lambda s: (s == RANDOM, s == SELF, s != self.general, s))
        return [source for source in order if not (text_only and source == RANDOM)]

    def texts(self, group: Group) -> dict[str, str]:
        """Return the first draw of each source that is text."""
        return {source: self.base(group, source) for source in self.sources(group, text_only=True)}

    def sets(self, quantity: Quantity) -> tuple[str, ...]:
        """Return the evaluation sets a mean is taken over: all texts but the tasks' prompts, or usable tasks."""
        return tuple(accuracy_tasks(self.results)["eval_set"]) if quantity is ACCURACY else shared_texts(self.results)

    @property
    def quantities(self) -> list[Quantity]:
        """Return the quantities that all runs have."""
        return [quantity for quantity in (PERPLEXITY, DIVERGENCE, ACCURACY) if self.sets(quantity)]

    def level(self, run_id: str, quantity: Quantity, sets: Sets = None) -> np.ndarray:
        """Return a run's value beside the dense model's, then its bootstrap draws: [1 + draws].

        Log of the perplexity ratio, divergence or change of accuracy; the mean over sets, each weighing the same.
        """
        key = (run_id, quantity.name, sets)
        if key not in self._levels:
            both = paired(self.results, run_id, None, quantity, sets or self.sets(quantity))
            self._levels[key] = bootstrap_means(list(both.values.values()))
        return self._levels[key]

    def noise(self, group: Group, quantity: Quantity, sets: Sets = None) -> Noise | None:
        """Return the SD over draws of the general text; of a group drawn once, the largest of its method, else of all.

        None where nothing was drawn twice: intervals then say nothing about other draws.
        """
        key = (group, quantity.name, sets)
        if key not in self._noises:
            own, same = [g for g in self.groups if g == group], [g for g in self.groups if g[0] == group[0]]
            known = ([self._deviation(g, quantity, sets) for g in some] for some in (own, same, self.groups))
            found = next((some for some in ([n for n in one if n] for one in known) if some), [])
            self._noises[key] = max(found, key=lambda noise: noise.sd, default=None)
        return self._noises[key]

    def _deviation(self, group: Group, quantity: Quantity, sets: Sets) -> Noise | None:
        values = [self.level(run_id, quantity, sets)[0] for run_id in self.draws(group, self.general)]
        return Noise(float(np.std(values, ddof=1)), len(values) - 1, group) if len(values) > 1 else None

    def gap(self, plus: Sequence[str], minus: Sequence[str], quantity: Quantity, sets: Sets = None) -> np.ndarray:
        """Return the mean of some runs less that of others, [1 + draws], with windows or items and draws as noise.

        Without others, the runs' own mean. All calibrated runs must be of one group. The SD over draws, known at the
        usual size, is taken to fall with the square root of the number of calibration tokens.
        """
        change, share, group = np.zeros(1 + DRAWS), 0.0, None
        for sign, side in ((1, plus), (-1, minus)):
            for run_id in side:
                line = self._lines[run_id]
                change = change + sign * self.level(run_id, quantity, sets) / len(side)
                if line["calibration"]:
                    group = (line["method"], line["target"])
                    share += math.prod(self.size) / (line["n_windows"] * line["window"]) / len(side) ** 2
        noise = self.noise(group, quantity, sets) if group else None
        return change if noise is None else change + noise.sd * math.sqrt(share) * student_draws(noise.freedom)

    def by_size(self, group: Group) -> pd.DataFrame:
        """Return the first draw's runs in the window length that most numbers of windows share, by their number.

        Empty with fewer than three numbers.
        """
        runs = self.pick(group, calibration=self.general, seed=self.seed)
        if len(runs):
            length = runs.groupby("window")["n_windows"].nunique().idxmax()
            runs = runs[runs["window"] == length].sort_values("n_windows")
        return runs if len(runs) > 2 else runs.iloc[:0]

    def by_length(self, group: Group) -> pd.DataFrame:
        """Return the runs on the first draw with as many tokens as usual, by the window's length; empty with one."""
        runs = self.pick(group, calibration=self.general, seed=self.seed)
        runs = runs[runs["n_windows"] * runs["window"] == math.prod(self.size)].sort_values("window")
        return runs if len(runs) > 1 else runs.iloc[:0]


def student_draws(freedom: int) -> np.ndarray:
    """Return Student's t, one number for each bootstrap draw, with 0 for the value itself."""
    return np.concatenate([[0.0], np.random.default_rng(11).standard_t(freedom, DRAWS)])
