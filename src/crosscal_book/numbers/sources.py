"""Runs on different calibration texts and draws of them: what varies between two, and with which uncertainty.

A *group* is a method and what it compresses to. Values are arrays whose first entry is the value and whose others are
bootstrap draws of it over windows or items, the same draws for all runs, so that differences are paired. To a
difference between runs that were calibrated on different windows the spread over draws of the calibration text is
added (`Sources.noise`), because the runs would have come out otherwise on another draw.

Rows of claims hold the one-sided p-values of a bootstrap: `p_yes` of the claim's being false, `p_no` of its being true.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd

from crosscal.results.compare import accuracy_tasks, paired, shared_texts
from crosscal.results.frame import DENSE, Results
from crosscal.results.quantities import ACCURACY, DIVERGENCE, PERPLEXITY, Quantity
from crosscal.stats import DRAWS, Estimate, bootstrap_means, holm
from crosscal_book.style import by_method, style_of
from crosscal_book.words import percent, points, run_name, times

RANDOM, SELF = "random", "self"  # sources that are no text (random tokens), and that the model wrote
SETTING = ["method", "target", "calibration", "n_windows", "window", "seed", "schedule"]
MIN_TEXTS = 4  # a spread over fewer texts says little about texts
KINDS = ["draw", "source", "range", "size", "method"]
SIZES = {
    PERPLEXITY: (lambda change: 100 * np.expm1(change), 1, "%"),
    DIVERGENCE: (float, 4, "nats"),
    ACCURACY: (lambda change: 100 * change, 1, "points"),
}
"""How sizes of effects are stated: scale, digits and unit."""
Group = tuple[str, str]
Sets = tuple[str, ...] | None


class _Noise(NamedTuple):
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
        plain = runs[
            (runs["method"] != DENSE)
            & (runs["allocation"] == "uniform")
            & runs["options"].isin(("", "act_order=False"))
        ]
        self.runs = plain.drop_duplicates(SETTING)[["run_id", *SETTING]].reset_index(drop=True)
        written = {i: any(name.endswith(" answers") for name in results.items[i]) for i in runs["run_id"]}
        dense = min(runs.loc[runs["method"] == DENSE, "run_id"], key=lambda run_id: written[run_id])
        self.results = results.only_runs([dense, *self.runs["run_id"]]).common()
        calibrated, self.size, self.seed = self.runs[self.runs["calibration"] != ""], (0, 0), 0
        if len(calibrated):
            windows, tokens, seeds = (calibrated[name].tolist() for name in ("n_windows", "window", "seed"))
            self.size = Counter(zip(windows, tokens, strict=True)).most_common(1)[0][0]
            self.seed = Counter(seeds).most_common(1)[0][0]
        targets = [(m, lines["target"].unique()) for m, lines in by_method(calibrated)]
        self.groups: list[Group] = [(method, target) for method, some in targets for target in sorted(some)]
        self._lines = self.runs.set_index("run_id").to_dict("index")
        self._usual: dict[tuple[str, str, str], dict[int, str]] = {}
        for line in self.pick(n_windows=self.size[0], window=self.size[1]).sort_values("seed").to_dict("records"):
            key = (line["method"], line["target"], line["calibration"])
            self._usual.setdefault(key, {})[line["seed"]] = line["run_id"]
        self._levels: dict[tuple, np.ndarray] = {}

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
        return {s: run_id for s in self.sources(group, text_only=True) if (run_id := self.base(group, s))}

    def sets(self, quantity: Quantity) -> tuple[str, ...]:
        """Return the evaluation sets a mean is taken over: all texts but the tasks' prompts, or usable tasks."""
        return tuple(accuracy_tasks(self.results)["eval_set"]) if quantity is ACCURACY else shared_texts(self.results)

    @property
    def quantities(self) -> list[Quantity]:
        """The quantities that all runs have."""
        return [quantity for quantity in SIZES if self.sets(quantity)]

    def level(self, run_id: str, quantity: Quantity, sets: Sets = None) -> np.ndarray:
        """Return a run's value beside the dense model's, then its bootstrap draws: [1 + draws].

        Log of the perplexity ratio, divergence or change of accuracy; the mean over sets, each weighing the same.
        """
        key = (run_id, quantity.name, sets)
        if key not in self._levels:
            both = paired(self.results, run_id, None, quantity, sets or self.sets(quantity))
            self._levels[key] = bootstrap_means(both.groups() if both else [])
        return self._levels[key]

    def noise(self, group: Group, quantity: Quantity, sets: Sets = None) -> _Noise | None:
        """Return the SD over draws of the general text; of a group drawn once, the largest of its method, else of all.

        None where nothing was drawn twice: intervals then say nothing about other draws.
        """
        same = [other for other in self.groups if other[0] == group[0]]
        for some in ([group], same, self.groups):
            drawn = [(g, ids) for g in some if len(ids := self.draws(g, self.general)) > 1]
            values = [(g, [self.level(i, quantity, sets)[0] for i in ids]) for g, ids in drawn]
            if values:
                noises = (_Noise(float(np.std(own, ddof=1)), len(own) - 1, g) for g, own in values)
                return max(noises, key=lambda noise: noise.sd)
        return None

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
        return change if noise is None else change + noise.sd * math.sqrt(share) * _student_draws(noise.freedom)

    def along(self, group: Group, column: str) -> pd.DataFrame:
        """Return the first draw's runs over a column, ascending.

        "n_windows": in the window length that most numbers of windows share, empty with fewer than three; "window": of
        as many tokens as usual, empty with one length.
        """
        runs, least = self.pick(group, calibration=self.general, seed=self.seed), 3 if column == "n_windows" else 2
        if column == "window":
            runs = runs[runs["n_windows"] * runs["window"] == math.prod(self.size)]
        elif len(runs):
            runs = runs[runs["window"] == runs.groupby("window")["n_windows"].nunique().idxmax()]
        return runs.sort_values(column) if len(runs) >= least else runs.iloc[:0]

    def _deviations(self, run_ids: Sequence[str], quantity: Quantity) -> np.ndarray:
        """The SD over some runs, then over the bootstrap draws of them: [1 + draws]."""
        return np.std([self.level(run_id, quantity) for run_id in run_ids], axis=0, ddof=1)

    def sd_over(self, run_ids: Sequence[str], quantity: Quantity) -> np.ndarray:
        """Return the SD over some runs, whose draws also carry the chi-squared law of a variance of so few values."""
        freedom = len(run_ids) - 1
        few = np.random.default_rng(12).chisquare(freedom, DRAWS) / freedom
        return self._deviations(run_ids, quantity) / np.sqrt(np.concatenate([[1.0], few]))

    def source_to_draw(self, group: Group, quantity: Quantity) -> np.ndarray | None:
        """Return SD due to the source over SD due to the draw; None with fewer than `MIN_TEXTS` texts or two draws.

        Sources vary by both, V = source^2 + draw^2, so the ratio squared is V / draw^2 - 1. The random effects analysis
        of variance: V over the draws' variance, over the truth, follows F with (texts - 1, draws - 1) degrees of
        freedom.
        """
        texts, repeats = list(self.texts(group).values()), self.draws(group, self.general)
        if len(texts) < MIN_TEXTS or len(repeats) < 2:
            return None
        over, under = (self._deviations(run_ids, quantity) for run_ids in (texts, repeats))
        law = np.concatenate([[1.0], np.random.default_rng(13).f(len(texts) - 1, len(repeats) - 1, DRAWS)])
        ratio = np.sqrt(np.maximum((over / np.maximum(under, 1e-12)) ** 2 / law - 1, 0))
        return ratio if under[0] else None

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
        c = 2 * _student_draws(len(shared) - 2) * np.sqrt(apart / (len(shared) - 2))
        return np.sqrt(va / np.maximum(vb, 1e-30)) * 2 / (c + np.sqrt(c * c + 4)), len(shared)

    def method_gap(self, first: Group, second: Group, quantity: Quantity) -> np.ndarray | None:
        """Return one group's value less another's, the mean over draws that both have; None without such a draw."""
        one, other = (self._usual.get((*group, self.general), {}) for group in (first, second))
        seeds = [seed for seed in one if seed in other]
        if not seeds:
            return None
        gaps = np.array([self.level(one[s], quantity) - self.level(other[s], quantity) for s in seeds])
        change = gaps.mean(axis=0)
        if len(seeds) > 1:
            return change + gaps[:, 0].std(ddof=1) / math.sqrt(len(seeds)) * _student_draws(len(seeds) - 1)
        known = [noise for noise in (self.noise(group, quantity) for group in (first, second)) if noise]
        return change + sum(noise.sd * _student_draws(noise.freedom) for noise in known) if known else change

    def spreads(self) -> Iterator[tuple[Quantity, Group, str, str, np.ndarray]]:
        """Yield all that moves a result, as sizes without sign: quantity, group, cause, kind and [1 + draws].

        Kinds are "draw", "source" (SDs), "range" (over texts), "size" (fewest to most windows) or "method" (to each
        other method at the same target).
        """
        for quantity, group in product(self.quantities, self.groups):
            for what, kind, draws in self._spreads_of(group, quantity):
                yield quantity, group, what, kind, draws if draws[0] >= 0 else -draws

    def _spreads_of(self, group: Group, quantity: Quantity) -> Iterator[tuple[str, str, np.ndarray]]:
        for kind, ids, what in self._repeated(group):
            yield f"{what} (SD)", kind, self.sd_over(ids, quantity)
            if kind == "source":
                every = np.array([self.level(run_id, quantity) for run_id in ids])
                yield f"{what} (range)", "range", every.max(axis=0) - every.min(axis=0)
        sizes = self.along(group, "n_windows").to_dict("records")
        if sizes:
            change = self.gap([sizes[0]["run_id"]], [sizes[-1]["run_id"]], quantity)
            yield f"{sizes[0]['n_windows']} instead of {sizes[-1]['n_windows']} windows", "size", change
        for other in self.groups[self.groups.index(group) + 1 :]:
            change = self.method_gap(group, other, quantity) if other[1] == group[1] else None
            if change is not None:
                yield f"{style_of(group[0]).label} or {style_of(other[0]).label}", "method", change

    def _repeated(self, group: Group) -> list[tuple[str, list[str], str]]:
        """The runs of a group that have a spread: over draws, if there are two, and over sources, if enough."""
        repeats, texts = self.draws(group, self.general), list(self.texts(group).values())
        draw, source = ("draw", repeats, f"draw of {self.general}"), ("source", texts, "source of text")
        return [draw] * (len(repeats) > 1) + [source] * (len(texts) >= MIN_TEXTS)

    # ---------------------------------------------------------------- frames of figures

    def by_source(self) -> pd.DataFrame:
        """Return every quantity after every source (a ratio, nats, points), the mean over its draws, a panel each."""
        found = []
        for quantity, source in product(self.quantities, self.sources()):
            scale = SIZES[ACCURACY][0] if quantity is ACCURACY else quantity.change
            for group in (g for g in self.groups if len(self.sources(g)) > 1 and self.base(g, source)):
                facts = {"panel": quantity.name, "calibration": source, "run_id": self.base(group, source)}
                runs = self.draws(group, source)
                found.append(_point(group, self.gap(runs, [], quantity), scale, **facts, draws=len(runs)))
        return pd.DataFrame(found)

    def by_text(self, group: Group) -> pd.DataFrame:
        """Return a group's perplexity ratio on every text after every source, and `beside` the general one (%)."""
        found = []
        for text, source in product(self.every_text, self.sources(group)):
            ids, usual = self.draws(group, source), self.draws(group, self.general)
            beside = self.gap(ids, usual, PERPLEXITY, (text,))[0] if source != self.general else 0.0
            facts = {"text": text, "calibration": source, "run_id": self.base(group, source)}
            facts["beside"] = 100 * math.expm1(beside)
            found.append(_point(group, self.gap(ids, [], PERPLEXITY, (text,)), np.exp, **facts))
        return pd.DataFrame(found)

    @property
    def every_text(self) -> list[str]:
        """All held-out texts, the tasks' prompts among them."""
        return list(self.results.only(metric="perplexity", run_id=self.results.dense_id)["eval_set"])

    def by_size(self, column: str) -> pd.DataFrame:
        """Return perplexity ratios over the number ("n_windows") or the length ("window") of windows."""
        found = []
        for group in self.groups:
            for line in self.along(group, column).to_dict("records"):
                facts = {"panel": "", "x": line[column], "run_id": line["run_id"], "window": line["window"]}
                found.append(_point(group, self.gap([line["run_id"]], [], PERPLEXITY), np.exp, **facts))
        return pd.DataFrame(found)

    def effects(self) -> pd.DataFrame:
        """Return all that moves a result (`spreads`), without sign, in the units of `SIZES`, a panel per quantity."""
        spreads = sorted(self.spreads(), key=lambda line: KINDS.index(line[3]))
        return pd.DataFrame(_point(group, draws, SIZES[quantity][0], panel=quantity.name, name=what, kind=kind)
                            for quantity, group, what, kind, draws in spreads)  # fmt: skip

    # ---------------------------------------------------------------- texts and lines of tables

    def change_text(self, plus: Sequence[str], minus: Sequence[str]) -> str:
        """Return the change of perplexity from some runs to others as text."""
        return _text(self.gap(plus, minus, PERPLEXITY), percent, np.expm1)

    def draw_and_source(self, group: Group) -> str:
        """Return the SDs of perplexity over draws and over sources as text; "" without any."""
        parts = [
            f"{kind} {_amount(self.sd_over(ids, PERPLEXITY), PERPLEXITY, ' %')}"
            for kind, ids, _ in self._repeated(group)
        ]
        return f"{name_of(group)} SD by {' and by '.join(parts)}" if parts else ""

    def source_lines(self) -> list[list[str]]:
        """Return perplexity on every text and their mean, divergence and accuracy, after every source, as text."""
        body = []
        for group, source in ((g, source) for g in self.groups for source in self.sources(g)):
            ids = self.draws(group, source)
            cells = [self._ratio(ids, (text,), own=text == source) for text in self.every_text]
            label = source + (f" ({len(ids)} draws)" if len(ids) > 1 else "")
            body.append([name_of(group), label, *cells, self._ratio(ids), *self._others(ids)])
        return body

    def spread_lines(self) -> list[list[str]]:
        """Return everything that moves a result, of each group and quantity, as text."""
        every, body = list(self.spreads()), []
        for group in self.groups:
            lines: dict[str, dict[Quantity, str]] = {}
            for quantity, _, what, _, draws in (one for one in every if one[1] == group):
                lines.setdefault(what, {})[quantity] = _amount(draws, quantity)
            ratios = {q: r for q in self.quantities if (r := self.source_to_draw(group, q)) is not None}
            if ratios:
                own = {quantity: _text(ratio, "{:.1f}".format) for quantity, ratio in ratios.items()}
                lines["SD due to source / SD due to draw"] = own
            body += [[name_of(group), what, *(cells.get(q, "") for q in SIZES)] for what, cells in lines.items()]
        return body

    def size_lines(self) -> list[list[str]]:
        """Return what every number and length of windows of the first draw gives, as text."""
        body = []
        for group in self.groups:
            runs = self.pick(group, calibration=self.general, seed=self.seed).sort_values(["window", "n_windows"])
            usual = self.base(group, self.general)
            for run in runs.to_dict("records") if len(runs) > 1 else ():
                ids, size = [run["run_id"]], f"{run['n_windows']} × {run['window']}"
                beside = self.change_text(ids, [usual]) if usual and usual not in ids else ""
                body.append([name_of(group), size, self._ratio(ids), beside, *self._others(ids)])
        return body

    def _ratio(self, ids: Sequence[str], sets: Sets = None, own: bool = False) -> str:
        value, rest = _text(self.gap(ids, [], PERPLEXITY, sets), times, np.exp).split(" ", 1)
        return f"{f'**{value}**' if own else value} {rest.replace('×', '')}"

    def _others(self, ids: Sequence[str]) -> list[str]:
        known = ((q, write) for q, write in ((DIVERGENCE, "{:.4f}".format), (ACCURACY, points)))
        return [_text(self.gap(ids, [], q), write) if self.sets(q) else "" for q, write in known]

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
        special = set(rows.loc[~rows["domain"].isin(["general", "tasks"]), "eval_set"]) & set(self.sources())
        for text, group in product((t for t in self.sets(PERPLEXITY) if t in special), self.groups):
            own, others = self.draws(group, text), [s for s in self.sources(group) if s != text]
            gaps = {s: self.gap(own, self.draws(group, s), PERPLEXITY, (text,)) for s in others if own}
            if gaps:
                rival = max(gaps, key=lambda source: gaps[source][0])
                tests = {"p_yes": max(_p_not_below(gap) for gap in gaps.values())}
                tests["p_no"] = float(holm([_p_not_above(gap) for gap in gaps.values()]).min())
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
            sizes = self.along(group, "n_windows")
            if len(sizes):
                ids, counts = list(sizes["run_id"]), list(sizes["n_windows"])
                whole, last = (self.gap(ids[-1:], few, PERPLEXITY) for few in (ids[:1], ids[-2:-1]))
                step = _text(last, percent, np.expm1)
                steps = f"from {counts[0]} to {counts[-1]} windows (last step, from {counts[-2]}: {step})"
                row, growing = _row(group, f"{name_of(group)} {steps}", whole), _p_not_below(last, -limit)
                steady = 2 * max(_p_not_below(last, limit), _p_not_above(last, -limit))
                yield row | {"p_yes": max(row["p_yes"], steady), "p_no": min(1.0, 2 * min(row["p_no"], growing))}


def name_of(group: Group) -> str:
    """Return a group for a sentence: `SparseGPT 50%`."""
    return run_name({"method": group[0], "target": group[1]})


def _amount(draws: np.ndarray, quantity: Quantity, unit: str = "") -> str:
    """Return the size of an effect with its interval, in the units of `SIZES`."""
    scale, digits, _ = SIZES[quantity]
    return _text(draws, f"{{:.{digits}f}}".format, scale).replace(" [", f"{unit} [").replace("-", "−")


def _text(draws: np.ndarray, write: Callable[[float], str], scale: Callable = float) -> str:
    return Estimate.of_draws(draws, 0).map(scale).text(write)


def _point(group: Group, values: np.ndarray, scale: Callable, **facts: object) -> dict:
    """A value on another scale as a line of a figure's frame, of a series per group."""
    estimate = Estimate.of_draws(values, 0).map(scale)
    ends = {"value": estimate.value, "lo": estimate.lo, "hi": estimate.hi}
    return {"method": group[0], "target": group[1], "series": name_of(group)} | facts | ends


def _row(group: Group, name: str, draws: np.ndarray, limit: float = 0.0, above: bool = False, scale=np.exp) -> dict:
    """A comparison: is a value below `limit`, or `above` it? It is stated on the scale of comparisons."""
    down, up, sign = _p_not_below(draws, limit), _p_not_above(draws, limit), 1 if above else -1
    support = sign * (draws[0] - limit) / max(float(np.std(draws[1:])), 1e-12)
    tests = {"p_yes": up if above else down, "p_no": down if above else up, "support": support}
    return _point(group, draws, scale, name=name) | tests


def _p_not_below(draws: np.ndarray, limit: float = 0.0) -> float:
    """The one-sided p of "the value is at least `limit`": small where it is lower.

    >>> _p_not_below(np.array([-1.0, -2.0, -1.0, 1.0]))
    0.5
    """
    return float((1 + np.count_nonzero(draws[1:] >= limit)) / len(draws))


def _p_not_above(draws: np.ndarray, limit: float = 0.0) -> float:
    return _p_not_below(-draws, -limit)


def _student_draws(freedom: int) -> np.ndarray:
    """Student's t, one number for each bootstrap draw, with 0 for the value itself."""
    return np.concatenate([[0.0], np.random.default_rng(11).standard_t(freedom, DRAWS)])
