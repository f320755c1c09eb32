"""Which number foretells what a model loses: rank correlations over runs, with intervals that know what was drawn.

One bootstrap serves all numbers, so that their differences are paired. Each draw takes

* windows of each text and items of each task, with replacement, *the same for every run*: a hard item is hard for all,
  and only so does the noise that runs share cancel as it does in the data;
* settings (method, pattern and allocation) with replacement, each with all its runs: runs that differ only in
  calibration text or draw are near copies, and to count them as independent would make every interval too short.

Resampled windows and items add the noise of a second draw to that of the first, which lowers a correlation; few runs
make draws lopsided near a correlation of 1. So an interval spans both the middle 95 % of the draws and the same moved
until their median is the estimate (correlations on Fisher's z scale): what another such study, of equal size, could
have shown, and rather too wide than too narrow.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from crosscal.results.frame import Results
from crosscal.stats import LEVEL, Estimate, holm, two_sided_p
from crosscal_book.claims import OPEN
from crosscal_book.numbers.predictors import (
    DRAWS,
    LOSS,
    OUTCOMES,
    PREDICTORS,
    PRUNING,
    QUANTIZATION,
    VARIABLES,
    Sample,
    sample,
)
from crosscal_book.style import by_method, style_of

MIN_SETTINGS = 6  # with fewer, a bootstrap over settings says nothing; set before any run was seen
MIN_RUNS = 8  # the same for the runs of one setting
JS, PERPLEXITIES = "JS", "perplexity"
ALL, MILD, HARSH = "all runs", "milder half", "harsher half"


@dataclass(frozen=True)
class Association:
    """The correlations of one scope: `estimates[key]`, for the keys of `associate`, over `n` runs in `settings`."""

    scope: str
    n: int
    settings: int
    estimates: dict[tuple[str, str, str], Estimate]


def scopes(drawn: Sample) -> dict[str, np.ndarray]:
    """Return the runs of each scope, as masks: everything, kinds, single methods, single settings, and halves by harm.

    The halves are by the mean of a run's two ranks, in perplexity and in JS, so that neither number's range is cut more
    than the other's. Single settings are those with at least `MIN_RUNS` runs: same compression, other calibration.
    """
    runs, kept = drawn.runs, drawn.compressed
    masks = {ALL: kept}
    masks |= {kind: (runs["kind"] == kind).to_numpy() for kind in (PRUNING, QUANTIZATION)}
    methods = [method for method, _ in by_method(runs[kept])]
    masks |= {style_of(method).label: (runs["method"] == method).to_numpy() for method in methods}
    rank = sum(pd.Series(drawn.of(name)).where(kept).rank() for name in ("perplexity", "js"))
    masks |= {MILD: (rank <= rank.median()).to_numpy(), HARSH: (rank > rank.median()).to_numpy()}
    counts = runs.loc[kept, "setting"].value_counts()
    masks |= {s: (runs["setting"] == s).to_numpy() for s in sorted(counts[counts >= MIN_RUNS].index)}
    return masks


@lru_cache(maxsize=64)
def associate(results: Results, scope: str = ALL) -> Association | None:
    """Return the rank correlations of one scope; None where too few runs or settings, or no usable task, can carry any.

    Keys are ("rho", predictor, outcome), its difference from perplexity's ("gain", predictor, outcome), from that of
    the same measure on other text ("prompts", "js", outcome), and the partial correlation of JS at equal perplexity or
    the reverse ("partial", predictor, outcome). `p` tests 0.
    """
    drawn = sample(results)
    mask = scopes(drawn).get(scope)
    if mask is None or not mask.any():
        return None
    values = np.round(drawn.values[:, mask], 10)  # so that equal losses tie, whatever the order of their sums
    settings = drawn.runs.loc[mask, "setting"].to_numpy()
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


def where(results: Results) -> pd.DataFrame:
    """Return the gain of JS over perplexity in every scope that can carry one, with Holm's p over scopes and outcomes.

    Of scopes with the same runs only the first is there; `n` and `settings` count its runs and settings.
    """
    lines, seen = [], set()
    for scope, mask in scopes(sample(results)).items():
        association = None if mask.tobytes() in seen else associate(results, scope)
        seen.add(mask.tobytes())
        for outcome in OUTCOMES if association else ():
            gain = association.estimates.get(("gain", "js", outcome))
            if gain:
                facts = {"scope": scope, "outcome": outcome, "n": association.n, "settings": association.settings}
                lines.append(facts | {"gain": gain, "p": gain.p})
    frame = pd.DataFrame(lines, columns=["scope", "outcome", "n", "settings", "gain", "p"])
    return frame.assign(p_holm=holm(frame["p"]) if len(frame) else frame["p"])


def dots(scopes: Mapping[str, Association | None]) -> pd.DataFrame:
    """Return every number's rank correlation with both outcomes (`series`), a panel for each scope that has some."""
    found = []
    for scope, association in scopes.items():
        for name, asked in PREDICTORS.items() if association else ():
            for outcome in OUTCOMES:
                estimate = association.estimates.get(("rho", name, outcome))
                if estimate:
                    panel = f"{scope} ({association.n} runs, {association.settings} settings)"
                    facts = {"panel": panel, "scope": scope, "name": asked.label, "series": outcome}
                    found.append(facts | vars(estimate))
    return pd.DataFrame(found)


def centred(observed: float, draws: np.ndarray, n: int, fisher: bool) -> Estimate:
    """Return the estimate with an interval over the middle 95 % of the draws, as they are and moved onto it.

    `p` of "it is 0" is the greater of the two that these draws give.

    >>> moved = centred(0.5, np.array([0.1, 0.2, 0.3]), 9, fisher=False)
    >>> moved.lo, moved.hi
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
    base = dict.fromkeys(VARIABLES)
    at = {name: row for row, name in enumerate(np.array(VARIABLES)[whole])}
    if not {"perplexity", *OUTCOMES} <= set(at):
        return
    ranks = spearman(values[whole])
    for name in base:
        if name not in PREDICTORS:
            continue
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


def association_lines(results: Results, scopes: Sequence[str]) -> list[list[str]]:
    """Return every number's correlations in some scopes, and their differences from perplexity's, as text."""
    body = []
    for scope in scopes:
        association = associate(results, scope)
        for name, asked in PREDICTORS.items() if association else ():
            cells = []
            for outcome in OUTCOMES if ("rho", name, LOSS) in association.estimates else ():
                gain = association.estimates.get(("gain", name, outcome))
                cells.append(association.estimates["rho", name, outcome].text(coefficient))
                cells.append(gain.text(gain_text) if gain else "0")
            body += [[scope, asked.label, *cells, f"{association.n}", f"{association.settings}"]] if cells else []
    return body


def where_lines(results: Results) -> list[list[str]]:
    """Return the gain of JS over perplexity in every scope, and which of them is better, as text."""
    body = []
    for scope, part in where(results).groupby("scope", sort=False):
        cells = [cell for _, line in part.iterrows() for cell in (line["gain"].text(gain_text), winner(line))]
        body.append([scope, f"{part['n'].iloc[0]}", f"{part['settings'].iloc[0]}", *cells])
    return body


def winner(line: pd.Series) -> str:
    """Return which of JS and perplexity ranks the runs of a line of `where` better."""
    sure = line["p_holm"] < LEVEL and (line["gain"].lo > 0 or line["gain"].hi < 0)
    return OPEN if not sure else JS if line["gain"].value > 0 else PERPLEXITIES


def coefficient(value: float, digits: int = 2) -> str:
    """Return a correlation, or with three digits a difference of two, with its sign.

    >>> coefficient(-0.043), coefficient(0.0151, 3)
    ('−0.04', '+0.015')
    """
    return f"{value:+.{digits}f}".replace("-", "−")


def gain_text(value: float) -> str:
    """Return a difference of two correlations."""
    return coefficient(value, 3)


def spearman(values: np.ndarray) -> np.ndarray:
    """Return rank correlations of the rows of [variables, runs]; equal values share a rank, a constant row has 0.

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
