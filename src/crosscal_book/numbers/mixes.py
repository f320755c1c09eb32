"""What a mix of general and domain text gains over its rivals: rows that claims are judged by, frames of figures.

A *pair* is a method at a target, calibrated for one domain source. Changes are of log perplexity, the mix's less the
rival's, per window, so that negative is better. Rows hold the one-sided p-values of Welch's t test over windows:
`p_yes` of the claim's being false, `p_no` of its being true.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd

from crosscal.results.compare import accuracy_tasks, paired
from crosscal.results.frame import DENSE, Results
from crosscal.results.quantities import ACCURACY, PERPLEXITY
from crosscal.stats import Estimate, Paired, bootstrap_mean, holm, student_mean, student_p
from crosscal.text import domain_of
from crosscal_book.style import by_method, style_of
from crosscal_book.words import listing, number, percent, points, run_name

GENERAL, DOMAIN, BOTH = "general texts", "domain text", "mean of both"
SHARES = {DOMAIN: (1.0, 0.0), GENERAL: (0.0, 1.0), BOTH: (0.5, 0.5)}  # of domain and general text in each measure
HALF = 0.5  # the default weight of the domain (Williams et al. 2025)
MIX, DOUBLED, TOGETHER = "mix", "doubled", "together"
TWICE, DPRUNER, ALL = "twice the general text", "D-Pruner", "one mix of all sources"
# Differences below one per cent of perplexity, or one point of accuracy, are called none: less than one would change a
# default for. Set before any of these runs was seen.
MARGIN, TASK_MARGIN = float(np.log(1.01)), 0.01
PANELS = ("domain text, against general text alone", "general texts, against the domain alone")
FEW_DRAWS = 3  # fewer draws say nothing about their spread


class _Pair(NamedTuple):
    """A method at a target, calibrated for one domain source."""

    method: str
    target: str
    kind: str
    source: str

    @property
    def name(self) -> str:
        """The pair for a sentence: `SparseGPT, pubmed`."""
        return f"{style_of(self.method).label}, {self.source}"

    @property
    def facts(self) -> dict:
        """The pair as columns of a row."""
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
            key = (_Pair(*(line[field] for field in _Pair._fields)), line["role"], int(line["seed"]))
            self._ids.setdefault(key, {}).setdefault(round(line["weight"], 6), line["run_id"])

    def _roles(self, line: Mapping, general: str, usual: int) -> list[tuple[str, str, float]]:
        """What a run is to each domain source: (source, role, weight of the domain)."""
        parts, role = line["calibration"].split("+"), MIX if line["n_windows"] == usual else DOUBLED
        if parts == [general]:
            return [(source, role, 0.0) for source in self.sources]
        if role == DOUBLED:
            return []
        weight = 1.0 if len(parts) == 1 else float(line["weight"])
        if len(parts) == 1 or (len(parts) == 2 and parts[0] == general):
            return [(source, MIX, weight) for source in self.sources if source == parts[-1]]
        return [(s, TOGETHER, weight) for s in self.sources if parts[0] == general and s in parts]

    def texts_of(self, source: str) -> tuple[list[str], list[str]]:
        """Return the held-out texts of a source (its own, else its domain's), and the general ones beside them."""
        own = self.texts[self.texts["eval_set"] == source]
        own = list((own if len(own) else self.texts[self.texts["domain"] == domain_of(source)])["eval_set"])
        general = self.texts.loc[self.texts["domain"] == "general", "eval_set"]
        return own, [text for text in general if text not in own]

    def has(self, pair: _Pair, weight: float, role: str = MIX, seed: int | None = None) -> bool:
        """Return whether a run of a pair is stored."""
        runs = self._ids.get((pair, role, self.seed if seed is None else seed), {})
        return weight in runs if role == MIX else bool(runs)

    def run(self, pair: _Pair, weight: float, role: str = MIX, seed: int | None = None) -> str:
        """Return a stored run of a pair."""
        runs = self._ids[pair, role, self.seed if seed is None else seed]
        return runs[weight] if role == MIX else next(iter(runs.values()))

    def pairs(self, needed: Sequence[tuple] = ((MIX, 0.0), (MIX, HALF), (MIX, 1.0))) -> list[_Pair]:
        """Return the pairs that have all these (role, weight) runs at the first draw, in the book's order."""
        order = [tuple(line) for _, part in by_method(self.runs) for line in part[list(_Pair._fields)].to_numpy()]
        pairs = [_Pair(*line) for line in dict.fromkeys(order)]
        return [pair for pair in pairs if all(self.has(pair, weight, role) for role, weight in needed)]

    def weights(self, pair: _Pair) -> list[float]:
        """Return the weights of the domain that a pair has runs at, ascending."""
        return sorted(self._ids.get((pair, MIX, self.seed), {}))

    def loss(self, run_id: str, source: str, part: str) -> Paired:
        """Return log perplexity over the dense model's, per window, on one of `SHARES`."""
        shares = zip(self.texts_of(source), SHARES[part], strict=True)
        weights = {text: share / len(texts) for texts, share in shares for text in texts if share}
        both = paired(self.results, run_id, None, PERPLEXITY, list(weights))
        return Paired(both.values if both else {}, weights)

    def change(self, pair: _Pair, part: str, rival: str, seed: int | None = None) -> Paired:
        """Return the log perplexity of the pair's mix at `HALF` less that of another run, per window."""
        return self.loss(self.run(pair, HALF, seed=seed), pair.source, part) - self.loss(rival, pair.source, part)

    def pooled(self, rivals: Mapping[_Pair, str], part: str, seed: int | None = None) -> Paired:
        """Return the mean over pairs of the change from each pair's rival run."""
        return Paired.pool([self.change(pair, part, run_id, seed) for pair, run_id in rivals.items()])

    def sides(self, pairs: Iterable[_Pair], seed: int | None = None) -> list[Paired]:
        """Return the mix's change on the domain from general text alone, and on general texts from the domain alone."""
        parts = {part: {p: self.run(p, w, seed=seed) for p in pairs} for part, w in ((DOMAIN, 0.0), (GENERAL, 1.0))}
        return [self.pooled(runs, part, seed) for part, runs in parts.items()]

    def rivals(self) -> dict[str, dict[_Pair, str]]:
        """Return the runs that the pairs' mixes at `HALF` are set against, by the rival's name."""
        doubled = [p for p in self.pairs(((MIX, HALF), (DOUBLED, 0.0))) if p.method != "dpruner"]
        pruned = {p: p._replace(method="dpruner") for p in self.pairs(((MIX, HALF),)) if p.method == "sparsegpt"}
        found = {
            TWICE: {pair: self.run(pair, 0.0, DOUBLED) for pair in doubled},
            DPRUNER: {pair: self.run(other, HALF) for pair, other in pruned.items() if self.has(other, HALF)},
            ALL: {p: self.run(p, 0.0, TOGETHER) for p in self.pairs(((MIX, HALF), (TOGETHER, 0.0)))},
        }
        return {name: runs for name, runs in found.items() if runs}

    def drawn(self) -> tuple[list[_Pair], list[int]]:
        """Return the pairs with the most draws of the mix and of both its sources, and those draws' seeds."""
        every = sorted(int(seed) for seed in self.runs["seed"].unique())
        seeds = {p: [s for s in every if all(self.has(p, w, seed=s) for w in (0.0, HALF, 1.0))] for p in self.pairs()}
        pairs = [pair for pair, own in seeds.items() if len(own) == max(map(len, seeds.values()))]
        return pairs, sorted(set.intersection(*(set(seeds[pair]) for pair in pairs))) if pairs else []

    def task_domain(self, source: str) -> str:
        """Return the domain of a source, as tasks are labelled."""
        return dict(zip(self.texts["eval_set"], self.texts["domain"], strict=True))[self.texts_of(source)[0][0]]

    def task_change(self, run_id: str, domain: str) -> Paired | None:
        """Return the change of accuracy on a domain's usable tasks; None unless the run was asked all of them."""
        table = accuracy_tasks(self.results)
        names = list(table.loc[table["domain"] == domain, "eval_set"])
        asked = names and all(name in self.results.items[run_id] for name in names)
        return paired(self.results, run_id, None, ACCURACY, names) if asked else None

    # ---------------------------------------------------------------- frames of figures, lines of tables

    def _versus(self, rivals: Mapping[_Pair, str], part: str, **more: object) -> Iterator[dict]:
        """The change of every pair's mix from its rival run in per cent, a line each, with `more` columns."""
        for pair, rival in rivals.items():
            facts = pair.facts | {"run_id": self.run(pair, HALF), "other": rival} | more
            yield facts | _stated(self.change(pair, part, rival), _in_percent)

    def paths(self, on_tasks: bool = False) -> pd.DataFrame:
        """Return domain (`x`) and general loss (`value`) at every weight of a pair, or points of accuracy on tasks.

        Intervals are of the difference from `HALF`, and at `HALF` of the point itself; they are laid around the point.
        Pairs with fewer than two weights are left out.
        """
        found = []
        for pair in self.pairs(((MIX, HALF),)):
            sides = (self.task_domain(pair.source), "general") if on_tasks else (DOMAIN, GENERAL)
            known, half = [], self.run(pair, HALF)
            for weight in self.weights(pair):
                run_id = self.run(pair, weight)
                two = [end for side in sides for end in self._place(run_id, half, pair.source, side, on_tasks)]
                line = pair.facts | {"run_id": run_id, "weight": weight, "facet": run_name(pair.facts)}
                ends = dict(zip(("x", "x_lo", "x_hi", "value", "lo", "hi"), two, strict=False))
                known += [line | {"panel": pair.source} | ends] if len(ends) == 6 else []
            found += known if len(known) > 1 else []
        return pd.DataFrame(found)

    def _place(self, run_id: str, half_id: str, source: str, side: str, on_tasks: bool) -> Iterator[float]:
        """A run's value on one axis of a path, and its interval around it; nothing where one was not measured."""
        measure = self.task_change if on_tasks else lambda one, part: self.loss(one, source, part)
        own, half = measure(run_id, side), measure(half_id, side)
        if own is not None and half is not None:
            bar, scale = (own if run_id == half_id else own - half).estimate(), 100 if on_tasks else 1
            yield from (scale * (own.value + end - bar.value) for end in (bar.value, bar.lo, bar.hi))

    def by_sides(self) -> pd.DataFrame:
        """Return both changes (`sides`) of every pair in per cent, a panel each, and below each kind its mean."""
        found = []
        for kind in dict.fromkeys(pair.kind for pair in self.pairs()):
            pairs, rivals = [p for p in self.pairs() if p.kind == kind], ((DOMAIN, 0.0), (GENERAL, 1.0))
            for panel, (part, weight), mean in zip(PANELS, rivals, self.sides(pairs), strict=True):
                lines = self._versus({pair: self.run(pair, weight) for pair in pairs}, part, panel=panel)
                found += [line | {"series": line["method"]} for line in lines]
                found.append({"name": kind, "series": "mean", "panel": panel, **_stated(mean, _in_percent)})
        return pd.DataFrame(found)

    def by_rival(self) -> pd.DataFrame:
        """Return the change of every pair's mix from its rivals in per cent, a facet per rival, a panel per measure."""
        every = [(name, runs, part) for name, runs in self.rivals().items() for part in SHARES]
        found = [self._versus(runs, part, facet=f"against {name}", panel=part) for name, runs, part in every]
        return pd.DataFrame([line for lines in found for line in lines])

    def by_weight(self) -> pd.DataFrame:
        """Return the change from weight 1/2 to every weight in per cent, in the mean of domain and general text."""
        found = []
        for pair, weight in ((p, weight) for p in self.pairs() for weight in self.weights(p)):
            line = pair.facts | {"run_id": self.run(pair, weight), "panel": pair.source, "weight": weight}
            found.append(line | _stated(-self.change(pair, BOTH, line["run_id"]), _in_percent))
        return pd.DataFrame(found)

    def every_run(self) -> list[list[str]]:
        """Return a line of text for every run and domain: perplexity on both kinds of text, change on both of tasks."""
        body, dense = [], {"run_id": self.results.dense_id, "method": DENSE, "target": "", "role": "", "seed": ""}
        for source in self.sources:
            for run in [dense | {"weight": 0}, *self.runs[self.runs["source"] == source].to_dict("records")]:
                named = {DOUBLED: "0, twice the windows", TOGETHER: f"{run['weight']:.2g}, all sources", "": ""}
                cells = [run_name(run).strip(), named.get(run["role"], f"{run['weight']:g}"), str(run["seed"])]
                for texts in self.texts_of(source):
                    losses = [np.array(self.results.items[run["run_id"]][text]["nll"]) for text in texts]
                    cells.append(bootstrap_mean(losses).map(np.exp).text(number))
                for domain in (self.task_domain(source), "general"):
                    change = self.task_change(run["run_id"], domain) if run["role"] else None
                    cells.append(change.estimate().text(points) if change else "")
                body.append([source, *cells])
        return body

    def losses_by_draw(self) -> pd.DataFrame:
        """Return the loss of every draw at weights 0, 1/2 and 1 of the pairs with most draws, and its mean over draws.

        `series` is "draw" or "mean"; a mean has Student's interval, and the SD of relative perplexity over draws.
        """
        (pairs, seeds), found = self.drawn(), []
        for pair, part, weight in product(pairs, (DOMAIN, GENERAL), (0.0, HALF, 1.0)):
            runs = [self.run(pair, weight, seed=seed) for seed in seeds]
            values = [self.loss(run_id, pair.source, part).value for run_id in runs]
            facts = pair.facts | {"facet": pair.name, "panel": part, "weight": weight}
            for seed, run_id, value in zip(seeds, runs, values, strict=True):
                found.append(facts | {"series": "draw", "seed": seed, "run_id": run_id, "value": value})
            spread = float(np.std(np.exp(values), ddof=1)) if len(seeds) > 1 else np.nan
            found.append(facts | {"series": "mean", "sd": spread} | vars(student_mean(values)))
        return pd.DataFrame(found).drop(columns="p", errors="ignore")

    def means_over(self, pairs: Sequence[_Pair], seeds: Sequence[int]) -> list[Estimate]:
        """Return both mean changes (`sides`) as fractions of perplexity, with Student's intervals over draws."""
        sides = zip(*(self.sides(pairs, seed) for seed in seeds), strict=True)
        return [student_mean([part.value for part in side]).map(np.expm1) for side in sides]

    def drawn_text(self) -> list[list[str]]:
        """Return a line of text for every pair and weight: mean and SD of both relative perplexities over draws."""
        frame, body = self.losses_by_draw(), {}
        means = frame[(frame["series"] == "mean") & frame["sd"].notna()] if len(frame) else frame
        for line in means.to_dict("records"):
            cells = [run_name(line), line["domain"], f"{line['weight']:g}"]
            value, lo, hi = (np.exp(line[end]) for end in ("value", "lo", "hi"))
            body.setdefault((line["name"], line["weight"]), cells)
            body[line["name"], line["weight"]] += [f"{value:.3f}× [{lo:.3f}, {hi:.3f}]", f"{line['sd']:.3f}"]
        return list(body.values())

    def costs(self) -> list[list[str]]:
        """Return a line of text for each method and set of calibration texts: tokens, runs, seconds and memory."""
        keys, body = ["method", "target", "calibration", "n_windows", "window"], []
        for _, part in self.runs.drop_duplicates("run_id").groupby(keys, sort=False):
            line = part.iloc[0].to_dict()
            texts, spans = line["calibration"].split("+"), []
            for values in (part["seconds"], part["peak_bytes"] / 2**20):
                spans.append(" to ".join(dict.fromkeys(f"{end:,.0f}" for end in (values.min(), values.max()))))
            tokens = f"{line['n_windows'] * line['window'] * len(texts):,}"
            body.append([run_name(line), " + ".join(texts), tokens, str(len(part)), *spans])
        return body

    # ---------------------------------------------------------------- rows of claims

    def keeping(self, by: str = "") -> pd.DataFrame:
        """Return both changes (`sides`) of every pair: `value` on the domain, `general` beside it; and their means.

        The means, over all or by a column, are texts: `own` on the domain and `rest`.
        """
        found = []
        for pair in self.pairs():
            domain, general = self.sides([pair])
            ends = zip(("", "_lo", "_hi"), _stated(general).values(), strict=False)
            line = pair.facts | {"kind": pair.kind, "pair": pair, "run_id": self.run(pair, HALF)}
            line |= {f"general{end}": value for end, value in ends}
            tests = _both([_lower(domain), _lower(general)]) | {"support": -max(domain.value, general.value)}
            found.append(line | _stated(domain) | tests)
        rows = pd.DataFrame(found).assign(total=len(found))
        for _, part in rows.groupby(by or (lambda _: ""), sort=False) if found else ():
            own, rest = (_change_text(side) for side in self.sides(list(part["pair"])))
            rows.loc[part.index, ["own", "rest"]] = own, rest
        return rows if found else pd.DataFrame()

    def task_gains(self) -> pd.DataFrame:
        """Return accuracy gained on domain tasks over general text alone, on general tasks over the domain alone."""
        found: list[list[Paired]] = []
        for pair in self.pairs():
            asked = product(((0.0, self.task_domain(pair.source)), (1.0, "general")), (True, False))
            runs = (self.task_change(self.run(pair, HALF if own else w), domain) for (w, domain), own in asked)
            known = [run for run in runs if run is not None]
            found += [[known[0] - known[1], known[2] - known[3]]] if len(known) == 4 else []
        if not found:
            return pd.DataFrame()
        both = [Paired.pool(side) for side in zip(*found, strict=True)]
        own, rest = (side.estimate().text(points).replace(" [", " points [") for side in both)
        tests = _both([{"p_yes": side.p_above(), "p_no": side.p_below(TASK_MARGIN)} for side in both])
        line = {"name": "tasks", "own": own, "rest": rest, "pairs": len(found)}
        return pd.DataFrame([line | _stated(both[0], float) | tests])

    def regrets(self) -> pd.DataFrame:
        """Return the change from the `best` other weight to `HALF`, in the mean of domain and general text, by pair.

        `p_yes`: no other weight is better by `MARGIN` (intersection-union, not to be corrected further); `p_no`: some
        is (Holm over the weights).
        """
        found = []
        for pair in self.pairs():
            costs = {w: self.change(pair, BOTH, self.run(pair, w)) for w in self.weights(pair) if w != HALF}
            best = max(costs, key=lambda w: costs[w].value)
            p_yes = max(cost.p_below(MARGIN) for cost in costs.values())
            p_no = float(holm([cost.p_above(MARGIN) for cost in costs.values()]).min())
            facts = {"run_id": self.run(pair, HALF), "other": self.run(pair, best), "best": best}
            facts |= {"p_yes": p_yes, "p_yes_holm": p_yes, "p_no": p_no}
            found.append(pair.facts | facts | _stated(costs[best]))
        tried = sorted({weight for pair in self.pairs() for weight in self.weights(pair)})
        return pd.DataFrame(found).assign(weights=listing([f"{weight:g}" for weight in tried]))

    def against(self, rival: str) -> pd.DataFrame:
        """Return the mean change over a rival's pairs, on the domain and on general texts apart, and mean costs."""
        runs, found = self.rivals().get(rival, {}), []
        costs = {"own": [self.run(pair, HALF) for pair in runs], "rival": list(runs.values())}
        texts = {name: self._cost(ids) for name, ids in costs.items() if ids}
        for part, side in ((DOMAIN, "on the domain"), (GENERAL, "on general texts")) if runs else ():
            change = self.pooled(runs, part)
            found.append({"name": side, "side": side, "pairs": len(runs)} | _stated(change) | _lower(change) | texts)
        return pd.DataFrame(found)

    def _cost(self, run_ids: Sequence[str]) -> str:
        """Mean seconds and memory, beyond the loaded model, of some runs' compression."""
        runs = self.results.runs.set_index("run_id").loc[list(run_ids)]
        return f"{runs['seconds'].mean():,.0f} s and {runs['peak_bytes'].mean() / 2**20:,.0f} MiB"

    def by_kind(self) -> pd.DataFrame:
        """Return pruning's change on the domain from general text alone less quantization's, over shared domains."""
        pairs = self.pairs(((MIX, 0.0), (MIX, HALF)))
        groups = {kind: [p for p in pairs if p.kind == kind] for kind in ("pruning", "quantization")}
        common = set.intersection(*({pair.source for pair in group} for group in groups.values()))
        changes, texts = [], {}
        for kind, group in groups.items() if common else ():
            bases = {pair: self.run(pair, 0.0) for pair in group if pair.source in common}
            changes.append(self.pooled(bases, DOMAIN))
            lost = Paired.pool([self.loss(run_id, pair.source, DOMAIN) for pair, run_id in bases.items()])
            back = (-changes[-1]).share_of(lost).map(lambda share: 100 * share)
            texts[kind] = _change_text(changes[-1])
            texts[f"{kind}_back"] = f"{back.value:.0f} % [{back.lo:.0f}, {back.hi:.0f}] of what was lost"
        gap = changes[0] - changes[1] if common else None
        return pd.DataFrame([{"name": "gap", **_stated(gap), **_lower(gap), **texts}] if gap else [])

    def all_in_one(self) -> pd.DataFrame:
        """Return the change on a pair's domain from its own mix to one mix of all sources."""
        found = []
        for pair, run_id in self.rivals().get(ALL, {}).items():
            cost = -self.change(pair, DOMAIN, run_id)
            tests = {"p_yes": cost.p_below(MARGIN), "p_no": cost.p_above(MARGIN)}
            found.append(pair.facts | {"run_id": run_id, "other": self.run(pair, HALF)} | _stated(cost) | tests)
        return pd.DataFrame(found)

    def over_draws(self) -> pd.DataFrame:
        """Return both mean changes over draws, tested by Student's t over draws (two-sided) and over all windows."""
        pairs, seeds = self.drawn()
        if len(seeds) < FEW_DRAWS:
            return pd.DataFrame()
        texts, tests, means = [], [], self.means_over(pairs, seeds)
        for mean, parts in zip(means, zip(*(self.sides(pairs, seed) for seed in seeds), strict=True), strict=True):
            values, windows = [part.value for part in parts], _lower(Paired.pool(parts))
            texts.append(f"{mean.text(percent)} (SD {100 * np.std(values, ddof=1):.1f} %)")
            yes, no = (2 * student_p(values, limit, above) for limit, above in ((0.0, False), (-MARGIN, True)))
            tests.append({"p_yes": max(yes, windows["p_yes"]), "p_no": max(no, 2 * windows["p_no"])})
        others = [p.name for p in pairs if max(mean.hi for mean in self.means_over([p], seeds)) >= 0]
        line = {"name": "draws", "value": means[1].value, "lo": means[1].lo, "hi": means[1].hi, "own": texts[0]}
        line |= {"rest": texts[1], "draws": len(seeds), "alone": len(pairs) - len(others), "pairs": len(pairs)}
        line |= {"methods": listing(list(dict.fromkeys(style_of(pair.method).label for pair in pairs)))}
        line |= {"others": f", not {'; '.join(others)}" if others else ""}
        line |= {"p_yes": max(t["p_yes"] for t in tests), "p_no": min(t["p_no"] for t in tests)}
        return pd.DataFrame([line])


def beyond_sources(path: pd.DataFrame) -> bool:
    """Return whether the point at weight 1/2 of a pair's path lies below the straight line between weights 0 and 1."""
    points = path.set_index("weight")[["x", "value"]].astype(float)
    general, half, domain = (points.loc[w].to_numpy() for w in (0.0, HALF, 1.0))
    line, offset = domain - general, half - general
    if line[0] >= 0 or line[1] <= 0:  # no trade-off: nearer is below both
        return bool(half.sum() < min(general.sum(), domain.sum()))
    return bool(line[0] * offset[1] - line[1] * offset[0] > 0)


def _change_text(change: Paired) -> str:
    """Return a change of log perplexity in per cent, with its interval."""
    return change.estimate().map(np.expm1).text(percent)


def _in_percent(change: float) -> float:
    return 100 * float(np.expm1(change))


def _stated(change: Paired, scale: Callable = np.exp) -> dict:
    """A change of log perplexity as `value`, `lo`, `hi` (a ratio unless scaled otherwise) and `n`."""
    estimate = change.estimate().map(scale)
    return {"value": estimate.value, "lo": estimate.lo, "hi": estimate.hi, "n": estimate.n}


def _lower(change: Paired) -> dict:
    """The p-values of "perplexity is not lower" and of "it is lower by the margin"."""
    return {"p_yes": change.p_below(), "p_no": change.p_above(-MARGIN)}


def _both(tests: Sequence[Mapping]) -> dict:
    """The p-values of two gains at once: of one being none (intersection-union), of both reaching the margin."""
    return {"p_yes": max(t["p_yes"] for t in tests), "p_no": min(1.0, 2 * min(t["p_no"] for t in tests))}
