"""What a mix of general and domain text gains over its rivals: rows that claims are judged by, frames of figures.

Changes are of log perplexity, the mix's less the rival's, per window, so that negative is better. Rows hold the
one-sided p-values of Welch's t test over windows: `p_yes` of the claim's being false, `p_no` of its being true.
"""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import pandas as pd

from crosscal.results.frame import DENSE
from crosscal.stats import Estimate, Paired, bootstrap_mean, holm, student_mean, student_p
from crosscal_book.numbers.mixes import ALL, BOTH, DOMAIN, DOUBLED, GENERAL, HALF, MIX, SHARES, TOGETHER, Mixes, Pair
from crosscal_book.style import style_of
from crosscal_book.words import listing, number, percent, points, run_name

# Differences below one per cent of perplexity, or one point of accuracy, are called none: less than one would change a
# default for. Set before any of these runs was seen.
MARGIN, TASK_MARGIN = float(np.log(1.01)), 0.01
PANELS = ("domain text, against general text alone", "general texts, against the domain alone")
FEW_DRAWS = 3  # fewer draws say nothing about their spread


class Gains(Mixes):
    """The comparisons of one model's mixes."""

    def versus(self, rivals: Mapping[Pair, str], part: str, **more: object) -> list[dict]:
        """Return the change of every pair's mix from its rival run in per cent, a line each, with `more` columns."""
        return [
            pair.facts
            | {"run_id": self.run(pair, HALF), "other": rival}
            | more
            | in_percent(self.change(pair, part, rival))
            for pair, rival in rivals.items()
        ]

    def paths(self, on_tasks: bool = False) -> pd.DataFrame:
        """Return domain (`x`) and general loss (`value`) at every weight of a pair, or points of accuracy on tasks.

        Intervals are of the difference from `HALF`, and at `HALF` of the point itself; they are laid around the point.
        Pairs with fewer than two weights are left out.
        """
        found = []
        for pair in self.pairs(((MIX, HALF),)):
            sides = (self.task_domain(pair.source), "general") if on_tasks else (DOMAIN, GENERAL)
            runs = {weight: self.run(pair, weight) for weight in self.weights(pair)}
            places = {
                w: [self._place(run, runs[HALF], pair.source, s, on_tasks) for s in sides] for w, run in runs.items()
            }
            known = {weight: two for weight, two in places.items() if None not in two}
            for weight, two in known.items() if len(known) > 1 else ():
                line = pair.facts | {"run_id": runs[weight], "weight": weight, "facet": run_name(pair.facts)}
                ends = dict(zip(("x", "x_lo", "x_hi", "value", "lo", "hi"), (*two[0], *two[1]), strict=True))
                found.append(line | {"panel": pair.source} | ends)
        return pd.DataFrame(found)

    def _place(self, run_id: str, half_id: str, source: str, side: str, on_tasks: bool) -> tuple | None:
        """A run's value on one axis of a path, and its interval around it."""
        measure = self.task_change if on_tasks else lambda one, part: self.loss(one, source, part)
        own, half = measure(run_id, side), measure(half_id, side)
        if own is None or half is None:
            return None
        bar, scale = (own if run_id == half_id else own - half).estimate(), 100 if on_tasks else 1
        return tuple(scale * (own.value + end - bar.value) for end in (bar.value, bar.lo, bar.hi))

    def by_sides(self) -> pd.DataFrame:
        """Return both changes (`sides`) of every pair in per cent, a panel each, and below each kind its mean."""
        found = []
        for kind in dict.fromkeys(pair.kind for pair in self.pairs()):
            pairs, rivals = [p for p in self.pairs() if p.kind == kind], ((DOMAIN, 0.0), (GENERAL, 1.0))
            for panel, (part, weight), mean in zip(PANELS, rivals, self.sides(pairs), strict=True):
                lines = self.versus({pair: self.run(pair, weight) for pair in pairs}, part, panel=panel)
                found += [line | {"series": line["method"]} for line in lines]
                found.append({"name": kind, "series": "mean", "panel": panel, **in_percent(mean)})
        return pd.DataFrame(found)

    def by_rival(self) -> pd.DataFrame:
        """Return the change of every pair's mix from its rivals in per cent, a facet per rival, a panel per measure."""
        every = [(name, runs, part) for name, runs in self.rivals().items() for part in SHARES]
        found = [self.versus(runs, part, facet=f"against {name}", panel=part) for name, runs, part in every]
        return pd.DataFrame([line for lines in found for line in lines])

    def by_weight(self) -> pd.DataFrame:
        """Return the change from weight 1/2 to every weight in per cent, in the mean of domain and general text."""
        found = []
        for pair in self.pairs():
            for weight in self.weights(pair):
                line = pair.facts | {"run_id": self.run(pair, weight), "panel": pair.source, "weight": weight}
                found.append(line | in_percent(-self.change(pair, BOTH, line["run_id"])))
        return pd.DataFrame(found)

    def every_run(self) -> list[list[str]]:
        """Return a line of text for every run and domain: perplexity on both kinds of text, change on both of tasks."""
        body = []
        for source in self.sources:
            dense = {
                "run_id": self.results.dense_id,
                "method": DENSE,
                "target": "",
                "role": "",
                "weight": 0,
                "seed": "",
            }
            for run in [dense, *self.runs[self.runs["source"] == source].to_dict("records")]:
                weight = run.get("weight", 0.0)
                named = {DOUBLED: "0, twice the windows", TOGETHER: f"{weight:.2g}, all sources", "": ""}
                cells = [run_name(run).strip(), named.get(run["role"], f"{weight:g}"), str(run["seed"])]
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
            draws = zip(seeds, runs, values, strict=True)
            found += [
                facts | {"series": "draw", "seed": seed, "run_id": run, "value": value} for seed, run, value in draws
            ]
            spread = float(np.std(np.exp(values), ddof=1)) if len(seeds) > 1 else np.nan
            found.append(facts | {"series": "mean", "sd": spread} | vars(student_mean(values)))
        return pd.DataFrame(found).drop(columns="p", errors="ignore")

    def means_over(self, pairs: Sequence[Pair], seeds: Sequence[int]) -> list[Estimate]:
        """Return both mean changes (`sides`) as fractions of perplexity, with Student's intervals over draws."""
        sides = zip(*(self.sides(pairs, seed) for seed in seeds), strict=True)
        return [student_mean([part.value for part in side]).map(np.expm1) for side in sides]

    def drawn_text(self) -> list[list[str]]:
        """Return a line of text for every pair and weight: mean and SD of both relative perplexities over draws."""
        frame, body = self.losses_by_draw(), []
        means = frame[(frame["series"] == "mean") & frame["sd"].notna()] if len(frame) else pd.DataFrame()
        for (_, weight), part in means.groupby(["name", "weight"], sort=False) if len(means) else ():
            cells = [run_name(part.iloc[0]), part["domain"].iloc[0], f"{weight:g}"]
            for line in part.to_dict("records"):
                value, lo, hi = (np.exp(line[end]) for end in ("value", "lo", "hi"))
                cells += [f"{value:.3f}× [{lo:.3f}, {hi:.3f}]", f"{line['sd']:.3f}"]
            body.append(cells)
        return body

    def costs(self) -> list[list[str]]:
        """Return a line of text for each method and set of calibration texts: tokens, runs, seconds and memory."""
        keys, body = ["method", "target", "calibration", "n_windows", "window"], []
        for (method, target, texts, n, window), part in self.runs.drop_duplicates("run_id").groupby(keys, sort=False):
            name, tokens = run_name({"method": method, "target": target}), n * window * len(texts.split("+"))
            ends = [
                [f"{end:,.0f}" for end in (v.min(), v.max())] for v in (part["seconds"], part["peak_bytes"] / 2**20)
            ]
            spans = [" to ".join(dict.fromkeys(two)) for two in ends]
            body.append([name, texts.replace("+", " + "), f"{tokens:,}", str(len(part)), *spans])
        return body

    def keeping(self, by: str = "") -> pd.DataFrame:
        """Return both changes (`sides`) of every pair: `value` on the domain, `general` beside it; and their means.

        The means, over all or by a column, are texts: `own` on the domain and `rest`.
        """
        found = []
        for pair in self.pairs():
            domain, general = self.sides([pair])
            beside = {f"general{end}": v for end, v in zip(("", "_lo", "_hi"), _ratio(general).values(), strict=False)}
            line = pair.facts | {"kind": pair.kind, "pair": pair, "run_id": self.run(pair, HALF)}
            tests = _both([_lower(domain), _lower(general)]) | {"support": -max(domain.value, general.value)}
            found.append(line | _ratio(domain) | beside | tests)
        rows = pd.DataFrame(found).assign(total=len(found))
        for _, part in rows.groupby(by or (lambda _: ""), sort=False) if found else ():
            own, rest = (change_text(side) for side in self.sides(list(part["pair"])))
            rows.loc[part.index, ["own", "rest"]] = own, rest
        return rows if found else pd.DataFrame()

    def task_gains(self) -> pd.DataFrame:
        """Return accuracy gained on domain tasks over general text alone, on general tasks over the domain alone."""
        found = []
        for pair in self.pairs():
            sides = ((0.0, self.task_domain(pair.source)), (1.0, "general"))
            runs = [self.task_change(self.run(pair, w), domain) for weight, domain in sides for w in (HALF, weight)]
            if None not in runs:
                found.append((runs[0] - runs[1], runs[2] - runs[3]))
        if not found:
            return pd.DataFrame()
        both = [Paired.pool(side) for side in zip(*found, strict=True)]
        own, rest = (side.estimate().text(points).replace(" [", " points [") for side in both)
        tests = _both([{"p_yes": side.p_above(), "p_no": side.p_below(TASK_MARGIN)} for side in both])
        line = vars(both[0].estimate()) | tests | {"name": "tasks", "own": own, "rest": rest, "pairs": len(found)}
        return pd.DataFrame([line]).drop(columns="p")

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
            tests = {"p_yes": p_yes, "p_yes_holm": p_yes, "p_no": p_no}
            ids = {"run_id": self.run(pair, HALF), "other": self.run(pair, best), "best": best}
            found.append(pair.facts | ids | _ratio(costs[best]) | tests)
        tried = sorted({weight for pair in self.pairs() for weight in self.weights(pair)})
        return pd.DataFrame(found).assign(weights=listing([f"{weight:g}" for weight in tried]))

    def against(self, rival: str) -> pd.DataFrame:
        """Return the mean change over a rival's pairs, on the domain and on general texts apart, and mean costs."""
        runs, found = self.rivals().get(rival, {}), []
        for part, side in ((DOMAIN, "on the domain"), (GENERAL, "on general texts")) if runs else ():
            change = self.pooled(runs, part)
            found.append({"name": side, "side": side, "pairs": len(runs)} | _tested(change))
        own = [self.run(pair, HALF) for pair in runs]
        return (
            pd.DataFrame(found).assign(own=self.cost(own), rival=self.cost(list(runs.values())))
            if runs
            else pd.DataFrame()
        )

    def cost(self, run_ids: Sequence[str]) -> str:
        """Return mean seconds and memory, beyond the loaded model, of some runs' compression."""
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
            texts[kind] = change_text(changes[-1])
            texts[f"{kind}_back"] = f"{back.value:.0f} % [{back.lo:.0f}, {back.hi:.0f}] of what was lost"
        return pd.DataFrame([{"name": "gap", **_tested(changes[0] - changes[1]), **texts}] if common else [])

    def all_in_one(self) -> pd.DataFrame:
        """Return the change on a pair's domain from its own mix to one mix of all sources."""
        found = []
        for pair, run_id in self.rivals().get(ALL, {}).items():
            cost = -self.change(pair, DOMAIN, run_id)
            tests = {"p_yes": cost.p_below(MARGIN), "p_no": cost.p_above(MARGIN)}
            found.append(pair.facts | {"run_id": run_id, "other": self.run(pair, HALF)} | _ratio(cost) | tests)
        return pd.DataFrame(found)

    def over_draws(self) -> pd.DataFrame:
        """Return both mean changes over draws, tested by Student's t over draws (two-sided) and over all windows."""
        pairs, seeds = self.drawn()
        if len(seeds) < FEW_DRAWS:
            return pd.DataFrame()
        texts, tests = [], []
        for parts in zip(*(self.sides(pairs, seed) for seed in seeds), strict=True):
            values, windows = [part.value for part in parts], _lower(Paired.pool(parts))
            mean = student_mean(values).map(np.expm1)
            texts.append(f"{mean.text(percent)} (SD {100 * np.std(values, ddof=1):.1f} %)")
            yes, no = (2 * student_p(values, limit, above) for limit, above in ((0.0, False), (-MARGIN, True)))
            tests.append({"p_yes": max(yes, windows["p_yes"]), "p_no": max(no, 2 * windows["p_no"])})
        alone = {p: zip(*(self.sides([p], seed) for seed in seeds), strict=True) for p in pairs}
        others = [
            p.name for p, two in alone.items() if max(student_mean([s.value for s in one]).hi for one in two) >= 0
        ]
        line = {"name": "draws", "value": mean.value, "lo": mean.lo, "hi": mean.hi, "own": texts[0], "rest": texts[1]}
        line |= {"draws": len(seeds), "methods": listing(dict.fromkeys(style_of(p.method).label for p in pairs))}
        line |= {"alone": len(pairs) - len(others), "pairs": len(pairs)}
        line |= {"others": f", not {'; '.join(others)}" if others else ""}
        line |= {"p_yes": max(t["p_yes"] for t in tests), "p_no": min(t["p_no"] for t in tests)}
        return pd.DataFrame([line])


def in_percent(change: Paired) -> dict:
    """Return a change of log perplexity as `value`, `lo`, `hi` in per cent, and `n`."""
    estimate = change.estimate().map(lambda value: 100 * float(np.expm1(value)))
    return {"value": estimate.value, "lo": estimate.lo, "hi": estimate.hi, "n": estimate.n}


def beyond_sources(path: pd.DataFrame) -> bool:
    """Return whether the point at weight 1/2 of a pair's path lies below the straight line between weights 0 and 1."""
    points = path.set_index("weight")[["x", "value"]].astype(float)
    general, half, domain = (points.loc[w].to_numpy() for w in (0.0, HALF, 1.0))
    line, offset = domain - general, half - general
    if line[0] >= 0 or line[1] <= 0:  # no trade-off: nearer is below both
        return bool(half.sum() < min(general.sum(), domain.sum()))
    return bool(line[0] * offset[1] - line[1] * offset[0] > 0)


def change_text(change: Paired) -> str:
    """Return a change of log perplexity in per cent, with its interval."""
    return change.estimate().map(np.expm1).text(percent)


def _ratio(change: Paired) -> dict:
    """A change of log perplexity as a ratio with its interval."""
    estimate = change.estimate().map(np.exp)
    return {"value": estimate.value, "lo": estimate.lo, "hi": estimate.hi, "n": estimate.n}


def _lower(change: Paired) -> dict:
    """The p-values of "perplexity is not lower" and of "it is lower by the margin"."""
    return {"p_yes": change.p_below(), "p_no": change.p_above(-MARGIN)}


def _tested(change: Paired) -> dict:
    return _ratio(change) | _lower(change)


def _both(tests: Sequence[Mapping]) -> dict:
    """The p-values of two gains at once: of one being none (intersection-union), of both reaching the margin."""
    return {"p_yes": max(t["p_yes"] for t in tests), "p_no": min(1.0, 2 * min(t["p_no"] for t in tests))}
