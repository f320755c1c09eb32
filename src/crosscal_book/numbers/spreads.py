"""How much results vary over draws of the calibration text, over its sources, and between methods; what claims compare.

Rows of claims hold the one-sided p-values of a bootstrap: `p_yes` of the claim's being false, `p_no` of its being true.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd

from crosscal.results.quantities import ACCURACY, DIVERGENCE, PERPLEXITY, Quantity
from crosscal.stats import DRAWS, Estimate, holm
from crosscal_book.numbers.sources import RANDOM, SELF, Group, Sources, student_draws
from crosscal_book.style import style_of
from crosscal_book.words import percent, points, run_name, times

MIN_TEXTS = 4  # a spread over fewer texts says little about texts
KINDS = ["draw", "source", "range", "size", "method"]
SIZES = {
    PERPLEXITY: (lambda change: 100 * np.expm1(change), 1, "%"),
    DIVERGENCE: (float, 4, "nats"),
    ACCURACY: (lambda change: 100 * change, 1, "points"),
}
"""How sizes of effects are stated: scale, digits and unit."""


class Spreads(Sources):
    """Sizes of effects, and the comparisons behind claims."""

    def deviations(self, run_ids: Sequence[str], quantity: Quantity) -> np.ndarray:
        """Return the SD over some runs, then over the bootstrap draws of them: [1 + draws]."""
        return np.std([self.level(run_id, quantity) for run_id in run_ids], axis=0, ddof=1)

    def sd_over(self, run_ids: Sequence[str], quantity: Quantity) -> np.ndarray:
        """Return the SD over some runs, whose draws also carry the chi-squared law of a variance of so few values."""
        freedom = len(run_ids) - 1
        few = np.random.default_rng(12).chisquare(freedom, DRAWS) / freedom
        return self.deviations(run_ids, quantity) / np.sqrt(np.concatenate([[1.0], few]))

    def source_to_draw(self, group: Group, quantity: Quantity) -> np.ndarray | None:
        """Return SD due to the source over SD due to the draw; None with fewer than `MIN_TEXTS` texts or two draws.

        Sources vary by both, V = source^2 + draw^2, so the ratio squared is V / draw^2 - 1. The random effects analysis
        of variance: V over the draws' variance, over the truth, follows F with (texts - 1, draws - 1) degrees of
        freedom.
        """
        texts, repeats = list(self.texts(group).values()), self.draws(group, self.general)
        if len(texts) < MIN_TEXTS or len(repeats) < 2:
            return None
        over, under = (self.deviations(run_ids, quantity) for run_ids in (texts, repeats))
        if under[0] == 0:
            return None
        law = np.concatenate([[1.0], np.random.default_rng(13).f(len(texts) - 1, len(repeats) - 1, DRAWS)])
        return np.sqrt(np.maximum((over / np.maximum(under, 1e-12)) ** 2 / law - 1, 0))

    def spread_ratio(self, first: Group, second: Group, quantity: Quantity) -> tuple[np.ndarray, int] | None:
        """Return the SD over texts of one group over that of another on the same texts, and how many texts.

        The pivot of Pitman and Morgan (1939) for variances of paired values, over bootstrap draws of the windows. None
        with fewer than `MIN_TEXTS` shared texts.
        """
        one, other = self.texts(first), self.texts(second)
        shared = [source for source in one if source in other]
        if len(shared) < MIN_TEXTS:
            return None
        a, b = (np.array([self.level(runs[s], quantity) for s in shared]) for runs in (one, other))
        a, b = a - a.mean(axis=0), b - b.mean(axis=0)
        va, vb, both = (a * a).sum(axis=0), (b * b).sum(axis=0), (a * b).sum(axis=0)
        apart = np.maximum(1 - both**2 / np.maximum(va * vb, 1e-30), 0)
        c = 2 * student_draws(len(shared) - 2) * np.sqrt(apart / (len(shared) - 2))
        return np.sqrt(va / np.maximum(vb, 1e-30)) * 2 / (c + np.sqrt(c * c + 4)), len(shared)

    def method_gap(self, first: Group, second: Group, quantity: Quantity) -> np.ndarray | None:
        """Return one group's value less another's, the mean over draws that both have; None without such a draw."""
        each = [
            self.pick(g, calibration=self.general, n_windows=self.size[0], window=self.size[1]) for g in (first, second)
        ]
        one, other = (runs.set_index("seed")["run_id"] for runs in each)
        seeds = [seed for seed in one.index if seed in other.index]
        if not seeds:
            return None
        gaps = np.array([self.level(one[s], quantity) - self.level(other[s], quantity) for s in seeds])
        change = gaps.mean(axis=0)
        if len(seeds) > 1:
            return change + gaps[:, 0].std(ddof=1) / math.sqrt(len(seeds)) * student_draws(len(seeds) - 1)
        known = [noise for noise in (self.noise(group, quantity) for group in (first, second)) if noise]
        return change + sum(noise.sd * student_draws(noise.freedom) for noise in known) if known else change

    def spreads(self) -> pd.DataFrame:
        """Return all that moves a result, as sizes without sign: a line for each quantity, group and cause (`what`).

        `kind` is "draw", "source" (SDs), "range" (over texts), "size" (fewest to most windows) or "method" (to each
        other method at the same target); `draws` is [1 + draws].
        """
        lines = [
            (quantity, group, what, kind, draws if draws[0] >= 0 else -draws)
            for quantity in self.quantities
            for group in self.groups
            for what, kind, draws in self._spreads_of(group, quantity)
        ]
        return pd.DataFrame(lines, columns=["quantity", "group", "what", "kind", "draws"])

    def _spreads_of(self, group: Group, quantity: Quantity):
        repeats, texts = self.draws(group, self.general), list(self.texts(group).values())
        if len(repeats) > 1:
            yield f"draw of {self.general} (SD)", "draw", self.sd_over(repeats, quantity)
        if len(texts) >= MIN_TEXTS:
            yield "source of text (SD)", "source", self.sd_over(texts, quantity)
            every = np.array([self.level(run_id, quantity) for run_id in texts])
            yield "source of text (range)", "range", every.max(axis=0) - every.min(axis=0)
        sizes = self.by_size(group)
        if len(sizes):
            few, many = sizes.iloc[0], sizes.iloc[-1]
            change = self.gap([few["run_id"]], [many["run_id"]], quantity)
            yield f"{few['n_windows']} instead of {many['n_windows']} windows", "size", change
        for other in self.groups[self.groups.index(group) + 1 :]:
            change = self.method_gap(group, other, quantity) if other[1] == group[1] else None
            if change is not None:
                yield f"{style_of(group[0]).label} or {style_of(other[0]).label}", "method", change

    # ---------------------------------------------------------------- frames of figures

    def point(self, group: Group, values: np.ndarray, scale: Callable, **facts: object) -> dict:
        """Return a value on another scale as a line of a figure's frame, of a series per group."""
        estimate = Estimate.of_draws(values, 0).map(scale)
        ends = {"value": estimate.value, "lo": estimate.lo, "hi": estimate.hi}
        return {"method": group[0], "target": group[1], "series": name_of(group)} | facts | ends

    def by_source(self) -> pd.DataFrame:
        """Return every quantity after every source (a ratio, nats, points), the mean over its draws, a panel each."""
        found = []
        for quantity in self.quantities:
            scale = (lambda change: 100 * change) if quantity is ACCURACY else quantity.change
            for source in self.sources():
                for group in (g for g in self.groups if len(self.sources(g)) > 1 and self.base(g, source)):
                    facts = {"panel": quantity.name, "calibration": source, "run_id": self.base(group, source)}
                    runs = self.draws(group, source)
                    found.append(self.point(group, self.gap(runs, [], quantity), scale, **facts, draws=len(runs)))
        return pd.DataFrame(found)

    def by_text(self, group: Group) -> pd.DataFrame:
        """Return a group's perplexity ratio on every text after every source, and `beside` the general one (%)."""
        found = []
        for text in self.results.only(metric="perplexity", run_id=self.results.dense_id)["eval_set"]:
            for source in self.sources(group):
                ids, usual = self.draws(group, source), self.draws(group, self.general)
                beside = self.gap(ids, usual, PERPLEXITY, (text,))[0] if source != self.general else 0.0
                facts = {"text": text, "calibration": source, "run_id": self.base(group, source)}
                line = self.point(group, self.gap(ids, [], PERPLEXITY, (text,)), np.exp, **facts)
                found.append(line | {"beside": 100 * math.expm1(beside)})
        return pd.DataFrame(found)

    def along(self, column: str, panel: str) -> pd.DataFrame:
        """Return perplexity ratios over the number ("n_windows") or the length ("window") of windows."""
        found = []
        for group in self.groups:
            runs = self.by_size(group) if column == "n_windows" else self.by_length(group)
            for line in runs.to_dict("records"):
                facts = {"panel": panel, "x": line[column], "run_id": line["run_id"], "window": line["window"]}
                found.append(self.point(group, self.gap([line["run_id"]], [], PERPLEXITY), np.exp, **facts))
        return pd.DataFrame(found)

    def change_along(self, run_ids: Sequence[str]) -> str:
        """Return the change of perplexity from the first run to the last as text."""
        return _percent(self.gap(run_ids[-1:], run_ids[:1], PERPLEXITY))

    def effects(self) -> pd.DataFrame:
        """Return all that moves a result (`spreads`), without sign, in the units of `SIZES`, a panel per quantity."""
        spreads = self.spreads().sort_values("kind", key=lambda kinds: kinds.map(KINDS.index), kind="stable")
        return pd.DataFrame(
            self.point(line["group"], line["draws"], SIZES[line["quantity"]][0], panel=line["quantity"].name,
                       name=line["what"], kind=line["kind"]) for line in spreads.to_dict("records")
        )  # fmt: skip

    def draw_and_source(self, group: Group) -> str:
        """Return the SDs of perplexity over draws and over sources as text; "" without any."""
        repeats, texts = self.draws(group, self.general), list(self.texts(group).values())
        known = [("draw", repeats)] * (len(repeats) > 1) + [("source", texts)] * (len(texts) >= MIN_TEXTS)
        parts = [f"{kind} {amount(self.sd_over(ids, PERPLEXITY), PERPLEXITY, ' %')}" for kind, ids in known]
        return f"{name_of(group)} SD by {' and by '.join(parts)}" if parts else ""

    # ---------------------------------------------------------------- lines of tables

    def source_lines(self) -> list[list[str]]:
        """Return perplexity on every text and their mean, divergence and accuracy, after every source, as text."""
        texts, body = self.results.only(metric="perplexity", run_id=self.results.dense_id)["eval_set"], []
        for group, source in ((g, source) for g in self.groups for source in self.sources(g)):
            ids = self.draws(group, source)
            cells = [self._ratio(ids, (text,), own=text == source) for text in texts]
            label = source + (f" ({len(ids)} draws)" if len(ids) > 1 else "")
            body.append([name_of(group), label, *cells, self._ratio(ids), *self._others(ids)])
        return body

    def spread_lines(self) -> list[list[str]]:
        """Return everything that moves a result, of each group and quantity, as text."""
        frame, body = self.spreads(), []
        for group in self.groups:
            own = frame[np.array([one == group for one in frame["group"]], dtype=bool)]
            for what, lines in own.groupby("what", sort=False):
                cells = {n["quantity"]: amount(n["draws"], n["quantity"]) for n in lines.to_dict("records")}
                body.append([name_of(group), what, *[cells.get(quantity, "") for quantity in SIZES]])
            ratios = [self.source_to_draw(group, q) if self.sets(q) else None for q in SIZES]
            texts = ["" if r is None else Estimate.of_draws(r, 0).text("{:.1f}".format) for r in ratios]
            body += [[name_of(group), "SD due to source / SD due to draw", *texts]] if any(texts) else []
        return body

    def size_lines(self) -> list[list[str]]:
        """Return what every number and length of windows of the first draw gives, as text."""
        body = []
        for group in self.groups:
            runs = self.pick(group, calibration=self.general, seed=self.seed).sort_values(["window", "n_windows"])
            usual = self.base(group, self.general)
            for run in runs.to_dict("records") if len(runs) > 1 else ():
                ids = [run["run_id"]]
                beside = _percent(self.gap(ids, [usual], PERPLEXITY)) if usual and usual not in ids else ""
                cells = [self._ratio(ids), beside, *self._others(ids)]
                body.append([name_of(group), f"{run['n_windows']} × {run['window']}", *cells])
        return body

    def _ratio(self, ids: Sequence[str], sets: tuple[str, ...] | None = None, own: bool = False) -> str:
        estimate = Estimate.of_draws(self.gap(ids, [], PERPLEXITY, sets), 0).map(np.exp)
        value = f"**{times(estimate.value)}**" if own else times(estimate.value)
        return f"{value} [{times(estimate.lo).rstrip('×')}, {times(estimate.hi).rstrip('×')}]"

    def _others(self, ids: Sequence[str]) -> list[str]:
        known = ((q, write) for q, write in ((DIVERGENCE, "{:.4f}".format), (ACCURACY, points)))
        return [Estimate.of_draws(self.gap(ids, [], q), 0).text(write) if self.sets(q) else "" for q, write in known]

    # ---------------------------------------------------------------- rows of claims

    def source_rows(self) -> Iterator[dict]:
        """Yield each group's SD due to the source over that due to the draw."""
        for group in self.groups:
            ratio = self.source_to_draw(group, PERPLEXITY)
            if ratio is not None:
                yield _row(group, name_of(group), ratio, 1.0, above=True, scale=float)

    def dependence_rows(self, first: Group, other: str) -> Iterator[dict]:
        """Yield the SD over sources of one group over that of another method, at its target or on a grid."""
        for group in (g for g in self.groups if g[0] == other and (g[1] == first[1] or "bit" in g[1])):
            found = self.spread_ratio(first, group, PERPLEXITY)
            if found:
                name = f"{name_of(first)} to {name_of(group)}, over {found[1]} texts,"
                yield _row(group, name, found[0], 1.0, above=True, scale=float)

    def own_domain_rows(self) -> Iterator[dict]:
        """Yield perplexity on a domain's text after its own source over the best other's, for each text and group.

        Shown where the own source beats every other (the largest p), refuted where one other beats it (Holm).
        """
        rows = self.results.rows
        special = set(rows.loc[~rows["domain"].isin(["general", "tasks"]), "eval_set"])
        for text in (t for t in self.sets(PERPLEXITY) if t in special and t in self.sources()):
            for group in self.groups:
                own, others = self.draws(group, text), [s for s in self.sources(group) if s != text]
                if own and others:
                    gaps = {s: self.gap(own, self.draws(group, s), PERPLEXITY, (text,)) for s in others}
                    rival = max(gaps, key=lambda source: gaps[source][0])
                    tests = {"p_yes": max(p_not_below(gap) for gap in gaps.values())}
                    tests["p_no"] = float(holm([p_not_above(gap) for gap in gaps.values()]).min())
                    yield _row(group, f"{text} (against {rival}), {name_of(group)}", gaps[rival]) | tests

    def self_rows(self, limit: float) -> Iterator[dict]:
        """Yield perplexity after self-written over that after general text; an interval below the limit shows it."""
        for group in self.groups:
            own, others = self.draws(group, SELF), self.draws(group, self.general)
            if own and others:
                row = _row(group, name_of(group), self.gap(own, others, PERPLEXITY), limit)
                yield row | {"p_yes_holm": 2 * row["p_yes"]}  # two-sided; all must show it, so it needs no correction

    def random_rows(self) -> Iterator[dict]:
        """Yield perplexity after each text over that after random tokens."""
        for group in self.groups:
            chance = self.draws(group, RANDOM)
            for source in self.sources(group, text_only=True) if chance else ():
                change = self.gap(self.draws(group, source), chance, PERPLEXITY)
                yield _row(group, f"{source}, {name_of(group)}", change)

    def magnitude_rows(self) -> Iterator[dict]:
        """Yield perplexity after random tokens over magnitude pruning's at the same target."""
        for group in self.groups:
            plain, chance = list(self.pick(("magnitude", group[1]))["run_id"]), self.draws(group, RANDOM)
            if plain and chance:
                yield _row(group, name_of(group), self.gap(chance, plain[:1], PERPLEXITY), above=True)

    def window_rows(self, limit: float) -> Iterator[dict]:
        """Yield perplexity with most over that with fewest windows, shown where the last step is within the limit, too.

        Refuted where more windows harm, or the last step gains more than the limit.
        """
        for group in self.groups:
            sizes = self.by_size(group)
            if len(sizes):
                ids, counts = list(sizes["run_id"]), list(sizes["n_windows"])
                whole, last = (self.gap(ids[-1:], few, PERPLEXITY) for few in (ids[:1], ids[-2:-1]))
                steps = f"from {counts[0]} to {counts[-1]} windows (last step, from {counts[-2]}: {_percent(last)})"
                row = _row(group, f"{name_of(group)} {steps}", whole)
                steady, growing = (
                    2 * max(p_not_below(last, limit), p_not_above(last, -limit)),
                    p_not_below(last, -limit),
                )
                yield row | {"p_yes": max(row["p_yes"], steady), "p_no": min(1.0, 2 * min(row["p_no"], growing))}


def name_of(group: Group) -> str:
    """Return a group for a sentence: `SparseGPT 50%`."""
    return run_name({"method": group[0], "target": group[1]})


def amount(draws: np.ndarray, quantity: Quantity, unit: str = "") -> str:
    """Return the size of an effect with its interval, in the units of `SIZES`."""
    scale, digits, _ = SIZES[quantity]
    estimate = Estimate.of_draws(draws, 0).map(scale)
    value, lo, hi = (f"{end:.{digits}f}" for end in (estimate.value, estimate.lo, estimate.hi))
    return f"{value}{unit} [{lo}, {hi}]".replace("-", "−")


def _percent(draws: np.ndarray) -> str:
    """A change of log perplexity as text."""
    return Estimate.of_draws(draws, 0).map(np.expm1).text(percent)


def _row(group: Group, name: str, draws: np.ndarray, limit: float = 0.0, above: bool = False, scale=np.exp) -> dict:
    """A comparison: is a value below `limit`, or `above` it? It is stated on the scale of comparisons."""
    estimate, down, up = Estimate.of_draws(draws, 0).map(scale), p_not_below(draws, limit), p_not_above(draws, limit)
    ends = {"value": estimate.value, "lo": estimate.lo, "hi": estimate.hi}
    support = (draws[0] - limit) / max(float(np.std(draws[1:])), 1e-12) * (1 if above else -1)
    tests = {"p_yes": up if above else down, "p_no": down if above else up, "support": support}
    return {"method": group[0], "target": group[1], "name": name} | ends | tests


def p_not_below(draws: np.ndarray, limit: float = 0.0) -> float:
    """Return the one-sided p of "the value is at least `limit`": small where it is lower.

    >>> p_not_below(np.array([-1.0, -2.0, -1.0, 1.0]))
    0.5
    """
    return float((1 + np.count_nonzero(draws[1:] >= limit)) / len(draws))


def p_not_above(draws: np.ndarray, limit: float = 0.0) -> float:
    """Return the one-sided p of "the value is at most `limit`": small where it is higher."""
    return p_not_below(-draws, -limit)
