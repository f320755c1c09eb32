"""Which number foretells what a model loses: rank correlations over runs, with intervals that know what was drawn.

One bootstrap serves all numbers, so that their differences are paired. Each draw takes

* windows of each text and items of each task, with replacement, *the same for every run*: a hard item is hard for all,
  and only so does the noise that runs share cancel as it does in the data;
* settings (method, target and allocation) with replacement, each with all its runs: runs that differ only in
  calibration text or draw are near copies, and to count them as independent would make every interval too short.

Resampled windows and items add the noise of a second draw to that of the first, which lowers a correlation; few runs
make draws lopsided near a correlation of 1. So an interval spans both the middle 95 % of the draws and the same moved
until their median is the estimate (correlations on Fisher's z scale): what another such study, of equal size, could
have found, and rather too wide than too narrow.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from crosscal.results.compare import PROMPTS, accuracy_tasks, paired
from crosscal.results.frame import DENSE, Results
from crosscal.results.quantities import ACCURACY
from crosscal.stats import Estimate, multinomial_counts, two_sided_p
from crosscal_book.style import by_method, style_of

DRAWS = 2000
MIN_SETTINGS = 6  # with fewer, a bootstrap over settings says nothing; set before any run was seen
MIN_RUNS = 8  # the same for the runs of one setting
FLOAT32 = "float32"  # the dense model in other arithmetic: no compression, but the noise floor of all comparisons
ALL, MILD, HARSH = "all runs", "milder half", "harsher half"
PRUNING, QUANTIZATION, FLOOR = "pruning", "quantization", "noise floor"
LOSS, FLIPS = "loss", "flips"
OUTCOMES = {LOSS: "task loss", FLIPS: "answer flips"}


@dataclass(frozen=True)
class Predictor:
    """A number that could foretell task loss: its name, its per-window measure (none for layers) and its text.

    `sign` is -1 where more means less harm, so that every correlation is positive when the number is of use.
    """

    label: str
    measure: str
    prompts: bool = False
    sign: float = 1.0


PREDICTORS = {
    "perplexity": Predictor("perplexity", "nll"),
    "js": Predictor("JS", "js_divergence"),
    "kl": Predictor("KL(dense ‖ compressed)", "kl_divergence"),
    "kl_reverse": Predictor("KL(compressed ‖ dense)", "kl_divergence_reverse"),
    "top1": Predictor("top-1 disagreement", "top1_agreement", sign=-1.0),
    "layers": Predictor("layer error", ""),
    "perplexity_prompts": Predictor("perplexity, task prompts", "nll", prompts=True),
    "js_prompts": Predictor("JS, task prompts", "js_divergence", prompts=True),
}
VARIABLES = (*PREDICTORS, *OUTCOMES)


@dataclass(frozen=True, eq=False)
class Sample:
    """The numbers of every run but the dense one, and their resamples.

    `runs` has a line per run with its `setting` and `kind`; `values` is [variables, runs, 1 + draws], the estimate
    first and NaN where a run lacks a number. Windows and items are resampled alike in all runs and for all variables.
    """

    runs: pd.DataFrame
    values: np.ndarray

    def of(self, variable: str) -> np.ndarray:
        """Return the estimates of one variable: [runs]."""
        return self.values[VARIABLES.index(variable), :, 0]

    def interval(self, variable: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the lower and upper ends of the runs' 95 % intervals, over windows or items: [runs] each."""
        lo, hi = np.percentile(self.values[VARIABLES.index(variable), :, 1:], [2.5, 97.5], axis=1)
        return lo, hi

    @property
    def compressed(self) -> np.ndarray:
        """Which runs are compressed, the noise floor being none: [runs]."""
        return (self.runs["kind"] != FLOOR).to_numpy()

    @property
    def floor(self) -> int | None:
        """The line of the dense model in float32, where it was run and is not the dense model itself."""
        rows = np.flatnonzero(~self.compressed)
        usable = len(rows) and self.compressed.any() and np.isfinite(self.of("js")).all() and self.of("js")[rows[0]] > 0
        return int(rows[0]) if usable else None


def texts_of(results: Results, prompts: bool = False) -> list[str]:
    """Return the dense run's held-out texts, or the text that is made of the tasks' prompts."""
    rows = results.only(run_id=results.dense_id, metric="perplexity")
    return list(rows.loc[(rows["domain"] == PROMPTS) == prompts, "eval_set"])


@lru_cache(maxsize=8)
def sample(results: Results) -> Sample:
    """Return all variables of all runs but the dense one, from `results` that all runs share (`Results.common`).

    Task loss is the fall of mean accuracy and answer flips the share of items whose correctness differs from the dense
    model's, either way: both over the usable tasks, tasks weighing the same.
    """
    runs = results.runs
    runs = runs[runs["method"] != DENSE].reset_index(drop=True)
    runs["kind"] = runs["kind"].where(runs["method"] != FLOAT32, FLOOR)
    uneven = np.where(runs["allocation"] != "uniform", " (OWL)", "")
    runs["setting"] = [f"{style_of(m).label} {t}" for m, t in zip(runs["method"], runs["target"], strict=True)] + uneven
    return Sample(runs, np.stack([_drawn(results, list(runs["run_id"]), variable) for variable in VARIABLES]))


def window_values(results: Results, run_id: str, text: str, measure: str) -> np.ndarray:
    """Return one value per window: a divergence from the dense model, or how much the loss rose above it."""
    values = np.array(results.items[run_id][text][measure], dtype=float)
    return values - np.array(results.items[results.dense_id][text]["nll"]) if measure == "nll" else values


def _drawn(results: Results, run_ids: list[str], variable: str) -> np.ndarray:
    """One variable: [runs, 1 + draws]."""
    if variable == "layers":
        rows = results.only(metric="layer_error").set_index("run_id")["value"]
        return np.repeat(rows.reindex(run_ids).to_numpy(dtype=float)[:, None], 1 + DRAWS, axis=1)
    if variable in OUTCOMES:
        change = (lambda gaps: -gaps) if variable == LOSS else np.abs
        sets = list(accuracy_tasks(results)["eval_set"])
        moves = {i: paired(results, i, None, ACCURACY, sets) for i in run_ids if sets}
        blocks = {name: np.array([change(moves[i].values[name]) for i in run_ids]) for name in sets}
    else:
        asked = PREDICTORS[variable]
        blocks = {
            text: asked.sign * np.array([window_values(results, i, text, asked.measure) for i in run_ids])
            for text in texts_of(results, asked.prompts)
            if all(asked.measure in results.items[i][text] for i in run_ids)
        }
    if not run_ids or not blocks:
        return np.full((len(run_ids), 1 + DRAWS), np.nan)
    return np.mean([block @ _shares(block.shape[1], name, DRAWS) for name, block in blocks.items()], axis=0)


@lru_cache(maxsize=32)
def _shares(size: int, name: str, draws: int) -> np.ndarray:
    """The share of each window or item of a set in the data and in each resample: [size, 1 + draws]."""
    return np.concatenate([np.ones((1, size)), multinomial_counts(size, draws, (1, *name.encode()))]).T / size


@dataclass(frozen=True)
class Association:
    """The correlations of one scope: `estimates[key]`, for the keys of `associate`, over `n` runs in `settings`."""

    scope: str
    n: int
    settings: int
    estimates: dict[tuple[str, str, str], Estimate]


def scopes(sampled: Sample) -> dict[str, np.ndarray]:
    """Return the runs of each scope, as masks: everything, kinds, single methods, single settings, halves by harm.

    The halves are by the mean of a run's two ranks, in perplexity and in JS, so that neither number's range is cut more
    than the other's. Single settings are those with at least `MIN_RUNS` runs: same compression, other calibration.
    """
    runs, kept = sampled.runs, sampled.compressed
    masks = {ALL: kept}
    masks |= {kind: (runs["kind"] == kind).to_numpy() for kind in (PRUNING, QUANTIZATION)}
    methods = [method for method, _ in by_method(runs[kept])]
    masks |= {style_of(method).label: (runs["method"] == method).to_numpy() for method in methods}
    rank = sum(pd.Series(sampled.of(name)).where(kept).rank() for name in ("perplexity", "js"))
    masks |= {MILD: (rank <= rank.median()).to_numpy(), HARSH: (rank > rank.median()).to_numpy()}
    counts = runs.loc[kept, "setting"].value_counts()
    masks |= {s: (runs["setting"] == s).to_numpy() for s in sorted(counts[counts >= MIN_RUNS].index)}
    return masks


@lru_cache(maxsize=64)
def associate(results: Results, scope: str = ALL) -> Association | None:
    """Return the rank correlations of one scope; None where too few runs or settings, or no usable task, carry any.

    Keys are ("rho", predictor, outcome), its difference from perplexity's ("gain", predictor, outcome), from that of
    the same measure on other text ("prompts", "js", outcome), and the partial correlation of JS at equal perplexity or
    the reverse ("partial", predictor, outcome). `p` tests 0.
    """
    sampled = sample(results)
    mask = scopes(sampled).get(scope)
    if mask is None or not mask.any():
        return None
    values = np.round(sampled.values[:, mask], 10)  # so that equal losses tie, whatever the order of their sums
    settings = sampled.runs.loc[mask, "setting"].to_numpy()
    names = np.unique(settings)
    units = [np.flatnonzero(settings == name) for name in names]
    if len(names) == 1 and mask.sum() >= MIN_RUNS:
        units = [np.array([i]) for i in range(mask.sum())]
    elif len(names) < MIN_SETTINGS:
        return None
    observed = dict(_statistics(values[:, :, 0]))
    if not observed:
        return None
    random, draws = np.random.default_rng(2), {key: np.zeros(DRAWS) for key in observed}
    for draw in range(DRAWS):
        picked = np.concatenate([units[i] for i in random.integers(0, len(units), len(units))])
        for key, value in _statistics(values[:, picked, 1 + draw]):
            if key in draws:
                draws[key][draw] = value
    n = int(mask.sum())
    estimates = {k: centred(observed[k], draws[k], n, fisher=k[0] in ("rho", "partial")) for k in observed}
    return Association(scope, n, len(names), estimates)


def centred(observed: float, draws: np.ndarray, n: int, fisher: bool) -> Estimate:
    """Return the estimate with an interval over the middle 95 % of the draws, as they are and moved onto it.

    `p` of "it is 0" is the greater of the two that these draws give.

    >>> estimate = centred(0.5, np.array([0.1, 0.2, 0.3]), 9, fisher=False)
    >>> estimate.lo, estimate.hi
    (0.105, 0.595)
    """
    scale = (lambda x: np.arctanh(np.clip(x, -0.9995, 0.9995))) if fisher else (lambda x: np.asarray(x, dtype=float))
    plain, middle = scale(draws), float(scale(observed))
    moved = plain - np.median(plain) + middle
    ends = np.percentile([plain, moved], [2.5, 97.5], axis=1)
    ends = np.tanh(ends) if fisher else ends
    lo, hi = round(float(ends[0].min()), 6), round(float(ends[1].max()), 6)
    return Estimate(float(observed), lo, hi, n, max(two_sided_p(plain), two_sided_p(moved)))


def _statistics(values: np.ndarray) -> Iterator[tuple[tuple[str, str, str], float]]:
    """Every correlation of `associate` in one table of values, [variables, runs]; a missing number costs its runs."""
    whole = np.isfinite(values).all(axis=1)
    at = {name: row for row, name in enumerate(np.array(VARIABLES)[whole])}
    if not {"perplexity", *OUTCOMES} <= set(at):
        return
    ranks = spearman(values[whole])
    for name in PREDICTORS:
        table, place = ranks, at
        if name not in at:  # some runs lack it: its correlation and perplexity's are then over the others
            has = np.isfinite(values[VARIABLES.index(name)])
            if has.sum() < MIN_SETTINGS:
                continue
            rows = [name, "perplexity", *OUTCOMES]
            table = spearman(values[[VARIABLES.index(row) for row in rows]][:, has])
            place = {row: number for number, row in enumerate(rows)}
        for outcome in OUTCOMES:
            rho = table[place[name], place[outcome]]
            yield ("rho", name, outcome), rho
            if name != "perplexity":
                yield ("gain", name, outcome), rho - table[place["perplexity"], place[outcome]]
    for outcome in OUTCOMES if "js" in at else ():
        js, ppl, end = at["js"], at["perplexity"], at[outcome]
        yield ("partial", "js", outcome), _partial(ranks[js, end], ranks[js, ppl], ranks[ppl, end])
        yield ("partial", "perplexity", outcome), _partial(ranks[ppl, end], ranks[js, ppl], ranks[js, end])
        if "js_prompts" in at:
            yield ("prompts", "js", outcome), ranks[at["js_prompts"], end] - ranks[js, end]


def spearman(values: np.ndarray) -> np.ndarray:
    """Return rank correlations of the rows of [variables, runs], equal values sharing their mean rank.

    A constant row has 0 with all others. Own code, because scipy's takes thousands of calls a second too few.

    >>> spearman(np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 15.0], [1.0, 1.0, 1.0]])).round(2)[0].tolist()
    [1.0, 0.5, 0.0]
    """
    ranks = pd.DataFrame(values.T).rank().to_numpy(copy=True).T
    ranks -= ranks.mean(axis=1, keepdims=True)
    length = np.sqrt((ranks**2).sum(axis=1))
    ranks /= np.where(length > 0, length, 1.0)[:, None]
    return ranks @ ranks.T


def _partial(one: float, between: float, other: float) -> float:
    """The correlation `one` once the third variable, correlated by `between` and `other`, is held equal."""
    rest = (1 - between**2) * (1 - other**2)
    return (one - between * other) / np.sqrt(rest) if rest > 1e-9 else 0.0
