"""Runs by the mix of general and domain text they were calibrated on, and what each loses on which text.

A *pair* is a method at a target, calibrated for one domain source.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from crosscal.results.compare import accuracy_tasks, paired
from crosscal.results.frame import DENSE, Results
from crosscal.results.quantities import ACCURACY, PERPLEXITY
from crosscal.stats import Paired
from crosscal.text import domain_of
from crosscal_book.style import by_method, style_of

GENERAL, DOMAIN, BOTH = "general texts", "domain text", "mean of both"
SHARES = {DOMAIN: (1.0, 0.0), GENERAL: (0.0, 1.0), BOTH: (0.5, 0.5)}  # of domain and general text in each measure
HALF = 0.5  # the default weight of the domain (Williams et al. 2025)
MIX, DOUBLED, TOGETHER = "mix", "doubled", "together"
TWICE, DPRUNER, ALL = "twice the general text", "D-Pruner", "one mix of all sources"


class Pair(NamedTuple):
    """A method at a target, calibrated for one domain source."""

    method: str
    target: str
    kind: str
    source: str

    @property
    def name(self) -> str:
        """Return the pair for a sentence: `SparseGPT, pubmed`."""
        return f"{style_of(self.method).label}, {self.source}"

    @property
    def facts(self) -> dict:
        """Return the pair as columns of a row."""
        return {"method": self.method, "target": self.target, "domain": self.source, "name": self.name}


class Mixes:
    """One model's runs; `runs` has a line for each (run, domain source) that the run can be asked about.

    `role` is `MIX` (general text, the domain's, or both), `DOUBLED` (general text, more windows than the mixes have)
    or `TOGETHER` (general text and several domains). Domains are the sources that some run mixes with the general one
    and on whose kind of text all was evaluated; the first draw and the number of windows are the least among those.
    """

    def __init__(self, results: Results, general: str):
        self.results = results
        self.texts = results.only(run_id=results.dense_id, metric="perplexity")
        runs = results.runs[(results.runs["method"] != DENSE) & (results.runs["calibration"] != "")]
        twos = runs[[len(p) == 2 and p[0] == general for p in runs["calibration"].str.split("+")]]
        sources = dict.fromkeys(text.split("+")[1] for text in twos["calibration"])
        self.sources = [source for source in sources if all(self.texts_of(source))]
        self.seed, usual = (int(twos["seed"].min()), int(twos["n_windows"].min())) if len(twos) else (0, 0)
        kinds = runs.assign(kind=np.where(runs["group"] != "", "quantization", "pruning"))
        lines = [
            {**line, "source": source, "role": role, "weight": weight}
            for line in kinds.to_dict("records")
            for source, role, weight in self._roles(line, general, usual)
        ]
        self.runs = pd.DataFrame(lines, columns=[*runs.columns, "source", "role"])
        self._ids: dict[tuple, dict[float, str]] = {}
        for line in lines:
            key = (Pair(*(line[field] for field in Pair._fields)), line["role"], int(line["seed"]))
            self._ids.setdefault(key, {}).setdefault(round(line["weight"], 6), line["run_id"])

    def _roles(self, line: Mapping, general: str, usual: int) -> list[tuple[str, str, float]]:
        """What a run is to each domain source: (source, role, weight of the domain)."""
        parts, role = line["calibration"].split("+"), MIX if line["n_windows"] == usual else DOUBLED
        if parts == [general]:
            return [(source, role, 0.0) for source in self.sources]
        if role == DOUBLED:
            return []
        if len(parts) == 1 or (len(parts) == 2 and parts[0] == general):
            weight = 1.0 if len(parts) == 1 else float(line["weight"])
            return [(source, MIX, weight) for source in self.sources if source == parts[-1]]
        return [(s, TOGETHER, float(line["weight"])) for s in self.sources if parts[0] == general and s in parts]

    def texts_of(self, source: str) -> tuple[list[str], list[str]]:
        """Return the held-out texts of a source (its own, else its domain's), and the general ones beside them."""
        own = self.texts[self.texts["eval_set"] == source]
        own = list((own if len(own) else self.texts[self.texts["domain"] == domain_of(source)])["eval_set"])
        general = self.texts.loc[self.texts["domain"] == "general", "eval_set"]
        return own, [text for text in general if text not in own]

    def pairs(self, needed: Sequence[tuple] = ((MIX, 0.0), (MIX, HALF), (MIX, 1.0))) -> list[Pair]:
        """Return the pairs that have all these (role, weight) runs at the first draw, in the book's order."""
        order = [tuple(line) for _, part in by_method(self.runs) for line in part[list(Pair._fields)].to_numpy()]
        pairs = [Pair(*line) for line in dict.fromkeys(order)]
        return [pair for pair in pairs if all(self.run(pair, weight, role) for role, weight in needed)]

    def weights(self, pair: Pair) -> list[float]:
        """Return the weights of the domain that a pair has runs at, ascending."""
        return sorted(self._ids.get((pair, MIX, self.seed), {}))

    def run(self, pair: Pair, weight: float, role: str = MIX, seed: int | None = None) -> str | None:
        """Return the run of a pair; None when it is not stored."""
        runs = self._ids.get((pair, role, self.seed if seed is None else seed), {})
        return runs.get(weight) if role == MIX else next(iter(runs.values()), None)

    def loss(self, run_id: str, source: str, part: str) -> Paired:
        """Return log perplexity over the dense model's, per window, on one of `SHARES`."""
        shares = zip(self.texts_of(source), SHARES[part], strict=True)
        weights = {text: share / len(texts) for texts, share in shares for text in texts if share}
        return Paired(paired(self.results, run_id, None, PERPLEXITY, list(weights)).values, weights)

    def change(self, pair: Pair, part: str, rival: str, seed: int | None = None) -> Paired:
        """Return the log perplexity of the pair's mix at `HALF` less that of another run, per window."""
        return self.loss(self.run(pair, HALF, seed=seed), pair.source, part) - self.loss(rival, pair.source, part)

    def pooled(self, rivals: Mapping[Pair, str], part: str) -> Paired:
        """Return the mean over pairs of the change from each pair's rival run."""
        return Paired.pool([self.change(pair, part, run_id) for pair, run_id in rivals.items()])

    def sides(self, pairs: Iterable[Pair], seed: int | None = None) -> list[Paired]:
        """Return the mix's change on the domain from general text alone, and on general texts from the domain alone."""
        runs = {part: [(p, self.run(p, w, seed=seed)) for p in pairs] for part, w in ((DOMAIN, 0.0), (GENERAL, 1.0))}
        return [Paired.pool([self.change(p, part, run, seed) for p, run in some]) for part, some in runs.items()]

    def rivals(self) -> dict[str, dict[Pair, str]]:
        """Return the runs that the pairs' mixes at `HALF` are set against, by the rival's name."""
        pruned = {p: self.run(p._replace(method="dpruner"), HALF) for p in self.pairs(((MIX, HALF),))}
        doubled = [p for p in self.pairs(((MIX, HALF), (DOUBLED, 0.0))) if p.method != "dpruner"]
        found = {
            TWICE: {pair: self.run(pair, 0.0, DOUBLED) for pair in doubled},
            DPRUNER: {pair: run_id for pair, run_id in pruned.items() if run_id and pair.method == "sparsegpt"},
            ALL: {p: self.run(p, 0.0, TOGETHER) for p in self.pairs(((MIX, HALF), (TOGETHER, 0.0)))},
        }
        return {name: runs for name, runs in found.items() if runs}

    def drawn(self) -> tuple[list[Pair], list[int]]:
        """Return the pairs with the most draws of the mix and of both its sources, and those draws' seeds."""
        every = sorted(int(seed) for seed in self.runs["seed"].unique())
        seeds = {p: [s for s in every if all(self.run(p, w, seed=s) for w in (0.0, HALF, 1.0))] for p in self.pairs()}
        pairs = [pair for pair, own in seeds.items() if len(own) == max(map(len, seeds.values()))]
        return pairs, sorted(set.intersection(*(set(seeds[pair]) for pair in pairs))) if pairs else []

    def task_domain(self, source: str) -> str:
        """Return the domain of a source, as tasks are labelled."""
        return self.texts.set_index("eval_set").loc[self.texts_of(source)[0][0], "domain"]

    def task_change(self, run_id: str, domain: str) -> Paired | None:
        """Return the change of accuracy on a domain's usable tasks; None unless the run was asked all of them."""
        table = accuracy_tasks(self.results)
        names = list(table.loc[table["domain"] == domain, "eval_set"])
        asked = names and all(name in self.results.items[run_id] for name in names)
        return paired(self.results, run_id, None, ACCURACY, names) if asked else None
