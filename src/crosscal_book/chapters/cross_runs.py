"""The runs of a cross-calibration study by method, domain, weight and draw, and what each loses on which text."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd

from crosscal.results.compare import accuracy_tasks, differences
from crosscal.results.frame import DENSE, Results
from crosscal.text import domain_of
from crosscal_book.axes import by_method
from crosscal_book.chapters.cross_paired import Paired

GENERAL = "general"
HALF = 0.5  # the default weight of the domain (Williams et al. 2025)
MIX, DOUBLED, TOGETHER = "mix", "doubled", "together"
RUN_COLUMNS = ["run_id", "method", "pattern", "kind", "source", "role", "weight", "seed", "n_windows"]
PART_SHARES = {"domain": (1.0, 0.0), GENERAL: (0.0, 1.0), "mean": (0.5, 0.5)}
"""Weight of the domain's text and of the general texts in each measure."""


class Pair(NamedTuple):
    """A method at a target, calibrated for one domain source."""

    method: str
    pattern: str
    kind: str
    source: str


@lru_cache(maxsize=4)
def by_model(results: Results) -> dict[str, Results]:
    """The results of each model apart, each with its own dense run, in the order in which they were asked for.

    A model of which only the dense run is stored is left out: there is nothing to compare it with yet.
    """
    found = {}
    for model, rows in results.rows.groupby("model", sort=False):
        if (rows["method"] == DENSE).all():
            continue
        ids = set(rows["run_id"])
        parts = [{i: v for i, v in part.items() if i in ids} for part in _by_run(results)]
        found[str(model)] = Results(rows.reset_index(drop=True), *parts)
    return found


def _by_run(results: Results) -> tuple[dict, dict, dict]:
    return results.items, results.provenance, results.configs


@dataclass(frozen=True, eq=False)
class Mixes:
    """One model's runs: `runs` has a line for each (run, domain source) that the run can be asked about.

    `role` is `MIX` (general text, the domain's, or both), `DOUBLED` (general text, more windows than the mixes have)
    or `TOGETHER` (general text and several domains).
    """

    results: Results
    runs: pd.DataFrame
    seed: int

    @property
    def sources(self) -> list[str]:
        """The domain sources."""
        return list(dict.fromkeys(self.runs["source"]))

    def pairs(self, needed: Sequence[tuple[str, float]] = ((MIX, 0.0), (MIX, HALF), (MIX, 1.0))) -> list[Pair]:
        """The (method, domain) pairs that have all these (role, weight) runs at the first draw, in the book's order."""
        order = [tuple(line) for _, part in by_method(self.runs) for line in part[list(Pair._fields)].to_numpy()]
        pairs = [Pair(*line) for line in dict.fromkeys(order)]
        return [pair for pair in pairs if all(self.run(pair, weight, role) for role, weight in needed)]

    def weights(self, pair: Pair) -> list[float]:
        """The weights of the domain that a pair has runs at, ascending."""
        return sorted(self._index.get((pair, MIX, self.seed), {}))

    def seeds(self, pair: Pair) -> list[int]:
        """The draws at which a pair has the mix at `HALF` and both its sources, ascending."""
        seeds = sorted(int(seed) for seed in self.runs["seed"].unique())
        return [seed for seed in seeds if all(self.run(pair, w, seed=seed) for w in (0.0, HALF, 1.0))]

    def run(self, pair: Pair, weight: float | None = None, role: str = MIX, seed: int | None = None) -> str | None:
        """The run of a pair; None when it is not stored."""
        runs = self._index.get((pair, role, self.seed if seed is None else seed), {})
        return runs.get(weight) if role == MIX else next(iter(runs.values()), None)

    def loss(self, run_id: str, source: str, part: str) -> Paired:
        """Log perplexity over the dense model's, per window: on the domain's text, the general texts, or their mean."""
        texts = domain_texts(self.results, source)
        domain, general = PART_SHARES[part]
        weights = {t: domain / len(texts) for t in texts}
        others = general_texts(self.results, source)
        weights |= {t: general / len(others) for t in others}
        weights = {text: weight for text, weight in weights.items() if weight}
        dense, run = self.results.items[self.results.dense_id], self.results.items[run_id]
        return Paired({t: np.array(run[t]["nll"]) - np.array(dense[t]["nll"]) for t in weights}, weights)

    def gain(self, pair: Pair, part: str, rival: str, seed: int | None = None) -> Paired:
        """By how much the pair's mix at `HALF` is better than the run `rival`, in log perplexity per window."""
        cross = self.run(pair, HALF, seed=seed)
        return self.loss(rival, pair.source, part) - self.loss(cross, pair.source, part)

    def task_change(self, run_id: str, domain: str) -> Paired | None:
        """Change of accuracy on a domain's usable tasks, item by item; None unless the run was asked all of them."""
        table = accuracy_tasks(self.results)
        names = list(table.loc[table["domain"] == domain, "eval_set"])
        if not names or not all(name in self.results.items[run_id] for name in names):
            return None
        return Paired.equal({name: differences(self.results, run_id, name) for name in names})

    @cached_property
    def _index(self) -> dict[tuple[Pair, str, int], dict[float, str]]:
        """The runs of each (pair, role, draw) by weight."""
        index: dict[tuple[Pair, str, int], dict[float, str]] = {}
        for run in self.runs.to_dict("records"):
            key = (Pair(*(run[name] for name in Pair._fields)), run["role"], int(run["seed"]))
            index.setdefault(key, {}).setdefault(round(run["weight"], 6), run["run_id"])
        return index


@lru_cache(maxsize=8)
def mixes(results: Results, general: str) -> Mixes:
    """One model's runs sorted by what they were calibrated on; `general` is the general source.

    Domains are the sources that some run mixes with the general one and on whose kind of text all was evaluated. The
    first draw and the number of windows are the least among those runs.
    """
    runs = results.rows.drop_duplicates("run_id")
    runs = runs[(runs["method"] != DENSE) & (runs["calibration"] != "")]
    twos = runs[[_is_mix(text.split("+"), general) for text in runs["calibration"]]]
    sources = list(dict.fromkeys(text.split("+")[1] for text in twos["calibration"]))
    sources = [s for s in sources if domain_texts(results, s) and general_texts(results, s)]
    if twos.empty:
        return Mixes(results, pd.DataFrame(columns=RUN_COLUMNS), 0)
    usual, lines = twos["n_windows"].min(), []
    for run in runs.to_dict("records"):
        kind = "quantization" if run["group"] else "pruning"
        for source, role, weight in _roles(run, general, sources, usual):
            lines.append({**run, "kind": kind, "source": source, "role": role, "weight": weight})
    return Mixes(results, pd.DataFrame(lines, columns=RUN_COLUMNS), int(twos["seed"].min()))


def _is_mix(parts: Sequence[str], general: str) -> bool:
    return len(parts) == 2 and parts[0] == general


def _roles(run: dict, general: str, sources: Sequence[str], usual: int) -> list[tuple[str, str, float]]:
    """What a run is to each domain source: (source, role, weight of the domain)."""
    parts = run["calibration"].split("+")
    role = MIX if run["n_windows"] == usual else DOUBLED
    if parts == [general]:
        return [(source, role, 0.0) for source in sources]
    if role == DOUBLED:
        return []
    if len(parts) == 1 or _is_mix(parts, general):
        weight = 1.0 if len(parts) == 1 else float(run["mix_weight"])
        return [(source, MIX, weight) for source in sources if source == parts[-1]]
    together = parts[0] == general
    return [(source, TOGETHER, float(run["mix_weight"])) for source in sources if together and source in parts]


@lru_cache(maxsize=64)
def domain_texts(results: Results, source: str) -> list[str]:
    """The held-out texts of a calibration source: its own, or else those of the same domain."""
    texts = results.only(run_id=results.dense_id, metric="perplexity")
    own = texts[texts["eval_set"] == source]
    return list((own if len(own) else texts[texts["domain"] == domain_of(source)])["eval_set"])


@lru_cache(maxsize=64)
def general_texts(results: Results, source: str) -> list[str]:
    """The general held-out texts that are not the source's own."""
    texts = results.only(run_id=results.dense_id, metric="perplexity", domain=GENERAL)["eval_set"]
    return [text for text in texts if text not in domain_texts(results, source)]
