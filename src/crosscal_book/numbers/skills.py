"""What compressed runs keep of each skill, and contrasts of tasks that ask the same questions.

A task's accuracy is put on a common axis as the *share of skill kept*: (accuracy - chance) / (dense accuracy - chance),
1 for the dense model and 0 for guessing. A skill's share is the ratio of the means over its tasks, which one task near
chance cannot blow up.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from crosscal.metrics.tasks import TASKS
from crosscal.results.compare import accuracy_tasks, paired, run_measures
from crosscal.results.frame import Results
from crosscal.results.quantities import ACCURACY, PERPLEXITY
from crosscal.stats import Estimate, bootstrap_statistic, holm
from crosscal_book.claims import FACTS
from crosscal_book.words import cell, listing, points, run_name

# A run with at least so many times the dense perplexity has collapsed, and says more of collapse than of what goes
# first: it enters no contrast. Set before the runs were made.
RUINED = 10.0
SKILLS, ENDS, POOLED = ("knowledge", "reading", "language"), ["value", "lo", "hi"], "mean of runs"
READING, TYPOS, REPHRASING = ("knowledge", "reading"), ("with typos", "plain"), ("with rephrasing", "plain")


@dataclass(frozen=True, eq=False)
class Skills:
    """The skills of some runs. Tables have the columns of `Results.runs`, and `value`, `lo`, `hi`, `n`, `p`."""

    results: Results

    @cached_property
    def usable(self) -> pd.DataFrame:
        """The usable accuracy tasks by name, with the registry's skill, base task and task of the same questions."""
        table, facts = accuracy_tasks(self.results), ("skill", "variant_of", "paired_with")
        known = {fact: [getattr(TASKS.get(name), fact, "") for name in table["eval_set"]] for fact in facts}
        return table.assign(**known).set_index("eval_set")

    @property
    def main(self) -> list[str]:
        """The usable tasks without perturbed variants, which ask the same questions again."""
        return list(self.usable.query("variant_of == ''").index)

    @property
    def members(self) -> dict[str, list[str]]:
        """The main tasks of each skill that has some."""
        skill = self.usable.loc[self.main, "skill"]
        return {name: list(skill.index[skill == name]) for name in SKILLS if (skill == name).any()}

    @cached_property
    def pairs(self) -> dict[tuple[str, str], list[tuple[str, str]]]:
        """The pairs of usable tasks that ask the same questions, by contrast."""
        lines = [(name, *facts) for name, *facts in self.usable[["skill", "variant_of", "paired_with"]].itertuples()]
        found = {READING: sorted((other, name) for name, skill, _, other in lines if skill == "reading")}
        for kind, ending in ((TYPOS, "_typos"), (REPHRASING, "_rephrased")):
            found[kind] = sorted((name, base) for name, _, base, _ in lines if name.endswith(ending))
        usable = {kind: [p for p in pairs if set(p) <= set(self.usable.index)] for kind, pairs in found.items()}
        return {kind: pairs for kind, pairs in usable.items() if pairs}

    @cached_property
    def runs(self) -> pd.DataFrame:
        """The compressed runs with a `name` each, the mildest by perplexity first, and which are `ruined`."""
        runs = run_measures(self.results, PERPLEXITY).sort_values("perplexity", kind="stable").reset_index(drop=True)
        names = pd.Series([run_name(run) for run in runs.to_dict("records")], runs.index, dtype=object)
        names = names.mask(names.duplicated(keep=False), names + ", " + runs["calibration"])
        return runs.assign(name=names, ruined=runs["perplexity"] >= RUINED)

    @property
    def readable(self) -> int:
        """The number of runs that still predict text."""
        return int((~self.runs["ruined"]).sum())

    @cached_property
    def kept(self) -> pd.DataFrame:
        """What every run keeps of each skill: the share of "correct" (%), and the shift of the "margin" (`key`).

        Margins move before answers do; theirs is the mean change in standard deviations of the dense model's.
        """
        rows = []
        for run in self.runs.to_dict("records"):
            for skill, tasks in self.members.items():
                order, chance = [self.results.dense_id, run["run_id"]], self.usable.loc[tasks, "chance"].mean()
                answers, margins = ([self.columns(order, [t], key) for t in tasks] for key in ("correct", "margin"))
                scaled = [group / max(group[:, 0].std(), 1e-12) for group in margins]
                share = bootstrap_statistic(answers, lambda m, c=chance: 100 * _share(m[:, 1], m[:, 0], c))
                rows.append({**run, "skill": skill, "key": "correct", **vars(share)})
                shift = bootstrap_statistic(scaled, lambda m: m[:, 1] - m[:, 0])
                rows.append({**run, "skill": skill, "key": "margin", **vars(shift)})
        return pd.DataFrame(rows, columns=None if rows else [*self.runs, "skill", "key", *ENDS, "n"])

    @cached_property
    def changed(self) -> pd.DataFrame:
        """The accuracy change of each `skill` in each run, and over the "main" tasks; how skills `moved`, in words."""
        rows = []
        for run in self.runs.to_dict("records"):
            sets = {**self.members, "main": self.main}
            pairs = {skill: paired(self.results, run["run_id"], None, ACCURACY, names) for skill, names in sets.items()}
            found = {skill: vars(both.estimate(test=True)) for skill, both in pairs.items() if both}
            moved = [f"{skill} {cell(found[skill], write=points, unit=' points')}" for skill in self.members]
            told = {"moved": listing(moved), "ratio": cell(run, "perplexity")}
            rows += [{**run, **told, "skill": skill, **one} for skill, one in found.items()]
        return pd.DataFrame(rows, columns=None if rows else [*self.runs, "moved", "ratio", "skill", *ENDS, "n", "p"])

    @cached_property
    def contrasts(self) -> pd.DataFrame:
        """Every contrast (`kind`) on every `scale`: of all runs that still predict text together, and of each alone.

        Holm's correction runs over the runs alone, and over both perturbations of all runs together.
        """
        runs, rows = self.runs, []
        readable = runs[~runs["ruined"]]
        parts = [(POOLED, POOLED, readable)]
        parts += [("all", f"{POOLED}, collapsed ones too", runs)] if runs["ruined"].any() else []
        parts += [("run", name, part) for name, part in readable.groupby("name", sort=False)]
        for kind, pairs in self.pairs.items() if len(readable) else ():
            for series, name, part in parts:
                facts = {fact: part.iloc[0][fact] if series == "run" else "" for fact in FACTS}
                facts |= {"kind": kind, "series": series, "name": name, "family": kind if series == "run" else kind[1]}
                estimates = self.contrast(list(part["run_id"]), pairs)
                rows += [{**facts, "scale": scale, **vars(one)} for scale, one in estimates.items()]
        frame = pd.DataFrame(rows, columns=[*FACTS, "kind", "series", "name", "family", "scale", *ENDS, "n", "p"])
        return frame.assign(p_holm=frame.groupby(["scale", "series", "family"])["p"].transform(holm))

    def contrast(self, run_ids: Sequence[str], pairs: Sequence[tuple[str, str]]) -> dict[str, Estimate]:
        """Return what compression does to the first tasks less what it does to the second, mean over runs and pairs.

        `share` compares shares of skill kept, `points` changes of accuracy, `margin` changes of the right option's
        log-probability less the best other one's (nats); negative: the first tasks suffer more. All runs answer the
        same items, so items are resampled for all of them together.
        """
        order = [self.results.dense_id, *run_ids]
        correct, margins = ([self.columns(order, pair, key) for pair in pairs] for key in ("correct", "margin"))
        chance = np.mean([self.usable.loc[list(pair), "chance"] for pair in pairs], axis=0)

        def gap(means: np.ndarray, shares: bool = False) -> np.ndarray:
            parts = zip(np.split(means, 2, axis=1), chance, strict=True)
            first, second = (_share(m[:, 1:], m[:, :1], c) if shares else m[:, 1:] - m[:, :1] for m, c in parts)
            return (first - second).mean(axis=1)

        share = bootstrap_statistic(correct, lambda means: gap(means, shares=True))
        return {
            "share": share,
            "points": bootstrap_statistic(correct, gap),
            "margin": bootstrap_statistic(margins, gap),
        }

    def dense_gap(self, kind: tuple[str, str]) -> Estimate:
        """Return how much lower the dense model scores on the first tasks than on the second, paired by item (of 1)."""
        groups = [self.columns([self.results.dense_id], pair, "correct") for pair in self.pairs[kind]]
        return bootstrap_statistic(groups, lambda means: means[:, 0] - means[:, 1])

    def columns(self, run_ids: Sequence[str], names: Sequence[str], key: str) -> np.ndarray:
        """Return [items that the tasks share, tasks x runs]: the runs of the first task, then those of the second."""
        items, dense = self.results.items, self.results.items[self.results.dense_id]
        entries = [items[run_id][name] for name in names for run_id in run_ids]
        by_id = [dict(zip(entry["id"], entry[key], strict=True)) for entry in entries]
        shared = set.intersection(*(set(dense[name]["id"]) for name in names))
        ids = [i for i in dense[names[0]]["id"] if i in shared]
        return np.array([[column[i] for i in ids] for column in by_id], dtype=float).T


def _share(after: np.ndarray, before: np.ndarray, chance: float) -> np.ndarray:
    """The share of skill kept; NaN in the rare resample where the dense model does not beat guessing."""
    return (after - chance) / np.where(before - chance > 1e-9, before - chance, math.nan)
