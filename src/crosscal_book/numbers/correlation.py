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

from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from crosscal.results.compare import PROMPTS, accuracy_tasks, paired
from crosscal.results.frame import DENSE, Results
from crosscal.results.quantities import ACCURACY, QUANTITIES
from crosscal.stats import LEVEL, Estimate, holm, multinomial_counts, two_sided_p
from crosscal_book.claims import OPEN
from crosscal_book.style import by_method, style_of

DRAWS = 2000
MIN_SETTINGS = 6  # with fewer, a bootstrap over settings says nothing; set before any run was seen
MIN_RUNS = 8  # the same for the runs of one setting
FLOAT32 = "float32"  # the dense model in other arithmetic: no compression, but the noise floor of all comparisons
ALL, MILD, HARSH = "all runs", "milder half", "harsher half"
PRUNING, QUANTIZATION, FLOOR = "pruning", "quantization", "noise floor"
KINDS = (ALL, PRUNING, QUANTIZATION)
LOSS, FLIPS = "loss", "flips"
OUTCOMES = {LOSS: "task loss", FLIPS: "answer flips"}


class _Predictor(NamedTuple):
    """A number that could foretell task loss: its name, its quantity, and whether it is taken on the tasks' prompts."""

    label: str
    quantity: str
    prompts: bool = False


PREDICTORS = {
    "perplexity": _Predictor("perplexity", "perplexity"),
    "js": _Predictor("JS", "js_divergence"),
    "kl": _Predictor("KL(dense ‖ compressed)", "kl_divergence"),
    "kl_reverse": _Predictor("KL(compressed ‖ dense)", "kl_divergence_reverse"),
    "top1": _Predictor("top-1 disagreement", "top1_agreement"),
    "layers": _Predictor("layer error", "layer_error"),
    "perplexity_prompts": _Predictor("perplexity, task prompts", "perplexity", prompts=True),
    "js_prompts": _Predictor("JS, task prompts", "js_divergence", prompts=True),
}
VARIABLES = (*PREDICTORS, *OUTCOMES)


class _Sample(NamedTuple):
    """The numbers of every run but the dense one, and their resamples, alike in all runs and for all variables.

    `runs` has a line per run: its `setting`, its `kind`, whether it is `compressed` (the noise floor is not), and each
    variable with its 95 % interval (`js`, `js_lo`, `js_hi`). `values` is [variables, runs, 1 + draws], the estimate
    first and NaN where a run lacks a number. More of a variable means more harm, so `top1` is the negative of the
    `agreement` and `loss` of the `change` of accuracy; perplexity is the logarithm of its ratio to the dense model's.
    """

    runs: pd.DataFrame
    values: np.ndarray


def texts_of(results: Results, prompts: bool = False) -> list[str]:
    """Return the dense run's held-out texts, or the text that is made of the tasks' prompts."""
    rows = results.only(run_id=results.dense_id, metric="perplexity")
    return list(rows.loc[(rows["domain"] == PROMPTS) == prompts, "eval_set"])


@lru_cache(maxsize=8)
def sample(results: Results) -> _Sample:
    """Return all variables of all runs but the dense one, from `results` that all runs share (`Results.common`).

    Task loss is the fall of mean accuracy and answer flips the share of items whose correctness differs from the dense
    model's, either way: both over the usable tasks, tasks weighing the same.
    """
    runs = results.runs[results.runs["method"] != DENSE].reset_index(drop=True)
    compressed, uneven = runs["method"] != FLOAT32, np.where(runs["allocation"] != "uniform", " (OWL)", "")
    setting = [f"{style_of(m).label} {t}" for m, t in zip(runs["method"], runs["target"], strict=True)] + uneven
    values = np.stack([_drawn(results, list(runs["run_id"]), variable) for variable in VARIABLES])
    shown = dict(zip(VARIABLES, values, strict=True))
    shown |= {"agreement": 0.0 - shown["top1"], "change": 0.0 - shown[LOSS]}
    ends = {f"{name}{end}": np.percentile(draws[:, 1:], percent, axis=1)
            for name, draws in shown.items() for end, percent in (("_lo", 2.5), ("_hi", 97.5))}  # fmt: skip
    columns = {name: draws[:, 0] for name, draws in shown.items()} | ends
    kind = runs["kind"].where(compressed, FLOOR)
    return _Sample(runs.assign(setting=setting, kind=kind, compressed=compressed, **columns), values)


def _drawn(results: Results, run_ids: list[str], variable: str) -> np.ndarray:
    """One variable: [runs, 1 + draws]."""
    if variable == "layers":
        rows = results.only(metric="layer_error").set_index("run_id")["value"]
        return np.repeat(rows.reindex(run_ids).to_numpy(dtype=float)[:, None], 1 + DRAWS, axis=1)
    if variable in OUTCOMES:
        quantity, sets = ACCURACY, list(accuracy_tasks(results)["eval_set"])
    else:
        quantity, texts = QUANTITIES[PREDICTORS[variable].quantity], texts_of(results, PREDICTORS[variable].prompts)
        sets = [text for text in texts if all(quantity.items[0] in results.items[i][text] for i in run_ids)]
    if not run_ids or not sets:
        return np.full((len(run_ids), 1 + DRAWS), np.nan)
    harm = np.abs if variable == FLIPS else np.negative if quantity.higher_is_better else np.positive
    moves = [both.values for run_id in run_ids if (both := paired(results, run_id, None, quantity, sets))]
    blocks = {name: harm([move[name] for move in moves]) for name in sets}
    return np.mean([block @ _shares(block.shape[1], name, DRAWS) for name, block in blocks.items()], axis=0)


@lru_cache(maxsize=32)
def _shares(size: int, name: str, draws: int) -> np.ndarray:
    """The share of each window or item of a set in the data and in each resample: [size, 1 + draws]."""
    return np.concatenate([np.ones((1, size)), multinomial_counts(size, draws, (1, *name.encode()))]).T / size


def _scopes(runs: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the runs of each scope, as masks: everything, kinds, single methods, single settings, halves by harm.

    The halves are by the mean of a run's two ranks, in perplexity and in JS, so that neither number's range is cut more
    than the other's. Single settings are those with at least `MIN_RUNS` runs: same compression, other calibration.
    """
    kept = runs[runs["compressed"]]
    rank = kept["perplexity"].rank() + kept["js"].rank()
    counts = kept["setting"].value_counts()
    masks = {ALL: runs["compressed"]} | {kind: runs["kind"] == kind for kind in (PRUNING, QUANTIZATION)}
    masks |= {style_of(method).label: runs["method"] == method for method, _ in by_method(kept)}
    halves = {MILD: rank <= rank.median(), HARSH: rank > rank.median()}
    masks |= {name: half.reindex(runs.index, fill_value=False) for name, half in halves.items()}
    masks |= {setting: runs["setting"] == setting for setting in sorted(counts[counts >= MIN_RUNS].index)}
    return {scope: mask.to_numpy() for scope, mask in masks.items()}


class Association(NamedTuple):
    """The correlations of one scope, over `n` runs in `settings`; none where too few carry any.

    Keys of `estimates` are ("rho", predictor, outcome), its difference from perplexity's ("gain", predictor, outcome),
    from that of the same measure on other text ("prompts", "js", outcome), and the partial correlation of JS at equal
    perplexity or the reverse ("partial", predictor, outcome). `p` tests 0.
    """

    scope: str
    n: int
    settings: int
    estimates: Mapping[tuple[str, str, str], Estimate]

    def text(self, kind: str, predictor: str, outcome: str) -> str:
        """Return an estimate as text, differences to three digits; "" where there is none."""
        found, digits = self.estimates.get((kind, predictor, outcome)), 2 if kind in ("rho", "partial") else 3
        return found.text(lambda value: signed(value, digits)) if found else ""


@lru_cache(maxsize=64)
def associate(results: Results, scope: str = ALL) -> Association:
    """Return the rank correlations of one scope; none where too few runs or settings, or no usable task, carry any."""
    runs, values = sample(results)
    mask = _scopes(runs)[scope]
    settings = runs.loc[mask, "setting"].to_numpy()
    n, names = len(settings), np.unique(settings)
    values = np.round(values[:, mask], 10)  # so that equal losses tie, whatever the order of their sums
    one = len(names) == 1 and n >= MIN_RUNS
    observed = dict(_statistics(values[:, :, 0])) if one or len(names) >= MIN_SETTINGS else {}
    if not observed:
        return Association(scope, n, len(names), {})
    units = list(np.arange(n)[:, None]) if one else [np.flatnonzero(settings == name) for name in names]
    random, draws = np.random.default_rng(2), {key: np.zeros(DRAWS) for key in observed}
    for draw in range(DRAWS):
        picked = np.concatenate([units[i] for i in random.integers(0, len(units), len(units))])
        for key, value in _statistics(values[:, picked, 1 + draw]):
            if key in draws:
                draws[key][draw] = value
    found = {k: _centred(observed[k], draws[k], n, fisher=k[0] in ("rho", "partial")) for k in observed}
    return Association(scope, n, len(names), found)


@lru_cache(maxsize=8)
def where(results: Results) -> pd.DataFrame:
    """Return the gain of JS over perplexity in every scope that can carry one, with Holm's p over scopes and outcomes.

    Of scopes with the same runs only the first is there.
    """
    first = {mask.tobytes(): scope for scope, mask in reversed(_scopes(sample(results).runs).items())}
    found = [associate(results, scope) for scope in reversed(first.values())]
    frame = pd.DataFrame(
        {"scope": one.scope, "settings": one.settings, "outcome": key[2]} | vars(one.estimates[key])
        for one, key in product(found, [("gain", "js", outcome) for outcome in OUTCOMES])
        if key in one.estimates
    )
    return frame.assign(p_holm=holm(frame["p"].tolist())) if len(frame) else frame


def better(line: Mapping) -> str:
    """Return which of JS and perplexity is better in a line of `where`, after Holm's correction."""
    sure = line["p_holm"] < LEVEL and (line["lo"] > 0 or line["hi"] < 0)
    return OPEN if not sure else "JS" if line["value"] > 0 else "perplexity"


def _centred(observed: float, draws: np.ndarray, n: int, fisher: bool) -> Estimate:
    """Return the estimate with an interval over the middle 95 % of the draws, as they are and moved onto it.

    `p` of "it is 0" is the greater of the two that these draws give.

    >>> estimate = _centred(0.5, np.array([0.1, 0.2, 0.3]), 9, fisher=False)
    >>> estimate.lo, estimate.hi
    (0.105, 0.595)
    """
    scale = (lambda x: np.arctanh(np.clip(x, -0.9995, 0.9995))) if fisher else np.asarray
    plain = scale(draws)
    both = np.stack([plain, plain - np.median(plain) + scale(observed)])
    ends = np.percentile(both, [2.5, 97.5], axis=1)
    lo, hi = (np.tanh(ends) if fisher else ends).round(6)
    return Estimate(float(observed), float(lo.min()), float(hi.max()), n, max(map(two_sided_p, both)))


def _statistics(values: np.ndarray) -> Iterator[tuple[tuple[str, str, str], float]]:
    """Every correlation of `Association` in one table of values, [variables, runs]; a missing number costs its runs."""
    known = np.isfinite(values)
    names = [name for name, row in zip(VARIABLES, known, strict=True) if row.all()]
    if not {"perplexity", *OUTCOMES} <= set(names):
        return
    rho = _correlations(values, names)
    for name in PREDICTORS:
        table = rho
        if name not in names:  # some runs lack it: its correlation and perplexity's are then over the others
            has = known[VARIABLES.index(name)]
            if has.sum() < MIN_SETTINGS:
                continue
            table = _correlations(values[:, has], [name, "perplexity", *OUTCOMES])
        for outcome in OUTCOMES:
            yield ("rho", name, outcome), table[name, outcome]
            if name != "perplexity":
                yield ("gain", name, outcome), table[name, outcome] - table["perplexity", outcome]
    for end in OUTCOMES if "js" in names else ():
        for one, other in (("js", "perplexity"), ("perplexity", "js")):
            rest = (1 - rho["js", "perplexity"] ** 2) * (1 - rho[other, end] ** 2)
            gap = rho[one, end] - rho["js", "perplexity"] * rho[other, end]
            yield ("partial", one, end), gap / np.sqrt(rest) if rest > 1e-9 else 0.0
        if "js_prompts" in names:
            yield ("prompts", "js", end), rho["js_prompts", end] - rho["js", end]


def _correlations(values: np.ndarray, names: list[str]) -> dict[tuple[str, str], float]:
    table = _spearman(values[[VARIABLES.index(name) for name in names]])
    return {(one, other): table[i, j] for i, one in enumerate(names) for j, other in enumerate(names)}


def _spearman(values: np.ndarray) -> np.ndarray:
    """Return rank correlations of the rows of [variables, runs], equal values sharing their mean rank.

    A constant row has 0 with all others. Own code, because scipy's takes thousands of calls a second too few; summed
    without BLAS, whose last digits depend on its threads, and rounded, so that equal correlations are equal.

    >>> _spearman(np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 15.0], [1.0, 1.0, 1.0]])).round(2)[0].tolist()
    [1.0, 0.5, 0.0]
    """
    ranks = rankdata(values, axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    length = np.sqrt((ranks**2).sum(axis=1))
    ranks /= np.where(length > 0, length, 1.0)[:, None]
    return np.einsum("ik,jk->ij", ranks, ranks).round(12)


def signed(value: float, digits: int = 2) -> str:
    """Return a correlation, or with three digits a difference of two, with its sign.

    >>> signed(-0.043), signed(0.0151, 3)
    ('−0.04', '+0.015')
    """
    return f"{value:+.{digits}f}".replace("-", "−")
