"""Two runs on the same windows: how their perplexities compare, and what a family of such comparisons says."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from crosscal.results.compare import LEVEL, PROMPTS
from crosscal.results.frame import DENSE, Results
from crosscal.stats.estimates import Estimate, bootstrap_mean, holm, sign_flip_p
from crosscal_book.verdicts import FAILS, HOLDS, OPEN
from crosscal_book.words import listing, p_text, times

# An advantage of less than one per cent of perplexity is called none. Chosen before runs were seen: what is published
# for GPTQ against RTN at 3 bits, groups of 128 (LLaMA-2-7B, 6.32 to 6.43 against 6.66) is more than three times that.
MARGIN = 0.01
PAIR_COLUMNS = ["kind", "first", "second", "name", "ratio", "lo", "hi", "n", "p", "p_holm"]


def shared_texts(results: Results) -> list[str]:
    """The texts on which every run has a perplexity; the tasks' own prompts are no such text."""
    rows = results.only(metric="perplexity")
    rows = rows[rows["domain"] != PROMPTS]
    sets = [set(part["eval_set"]) for _, part in rows.groupby("run_id")]
    kept = set.intersection(*sets) if len(sets) == len(results.run_ids) else set()
    return [text for text in rows["eval_set"].unique() if text in kept]


def window_means(results: Results, run_id: str, metric: str) -> list[np.ndarray]:
    """A run's means per window, one array for each shared text; `metric` is "nll" or a divergence."""
    return [np.array(results.items[run_id][text][metric]) for text in shared_texts(results)]


def excess(results: Results, run_id: str) -> list[np.ndarray]:
    """A run's loss above the dense model's, window by window, in nats per token."""
    pairs = zip(window_means(results, run_id, "nll"), window_means(results, results.dense_id, "nll"), strict=True)
    return [run - dense for run, dense in pairs]


def perplexity_ratio(results: Results, first: str, second: str) -> Estimate:
    """The first run's perplexity over the second's, geometric mean over texts, paired on windows.

    95 % bootstrap interval over windows; `p` of equal perplexities is the sign-flip test's.
    """
    pairs = zip(window_means(results, first, "nll"), window_means(results, second, "nll"), strict=True)
    gaps = [one - other for one, other in pairs]
    found = bootstrap_mean(gaps).map(math.exp)
    return Estimate(found.value, found.lo, found.hi, found.n, sign_flip_p(gaps))


def mean_divergence(results: Results, run_id: str) -> Estimate:
    """Jensen-Shannon divergence from the dense model, nats per token, mean over texts."""
    return bootstrap_mean(window_means(results, run_id, "js_divergence"))


def comparisons(results: Results, pairs: Iterable[tuple[str, str, str, str]]) -> pd.DataFrame:
    """One line for each (kind, first run, second run, name), without Holm's correction, which belongs to a family."""
    if not shared_texts(results):
        pairs = ()
    lines = []
    for kind, first, second, name in pairs:
        found = perplexity_ratio(results, first, second)
        line = {"kind": kind, "first": first, "second": second, "name": name, "ratio": found.value}
        lines.append(line | {"lo": found.lo, "hi": found.hi, "n": found.n, "p": found.p})
    return pd.DataFrame(lines, columns=PAIR_COLUMNS[:-1])


def corrected(pairs: pd.DataFrame) -> pd.DataFrame:
    """The same comparisons with Holm's correction over all of them."""
    return pairs.assign(p_holm=holm(pairs["p"]) if len(pairs) else pairs["p"])


def judge(pairs: pd.DataFrame) -> str:
    """Whether the first run beats the second in *every* comparison.

    Holds when each has a ratio below 1 with Holm-corrected p below `LEVEL`. One counterexample refutes it: a ratio
    above 1 with such a p, or an interval that leaves no room for an advantage of `MARGIN`. Otherwise, and without
    any comparison, it cannot be told.
    """
    if pairs.empty:
        return OPEN
    sure = pairs["p_holm"] < LEVEL
    if (sure & (pairs["ratio"] < 1)).all():
        return HOLDS
    refuted = (sure & (pairs["ratio"] > 1)) | (~sure & (pairs["lo"] > 1 - MARGIN))
    return FAILS if refuted.any() else OPEN


def judge_equal(pairs: pd.DataFrame, margin: float) -> str:
    """Whether the first run is as good as the second, to within `margin`, in *every* comparison.

    Holds when the whole interval of each lies below 1 + margin. It is refuted by one ratio above 1 + margin with
    Holm-corrected p below `LEVEL`. A first run that is better is as good.
    """
    if pairs.empty:
        return OPEN
    if (pairs["hi"] < 1 + margin).all():
        return HOLDS
    worse = (pairs["ratio"] > 1 + margin) & (pairs["p_holm"] < LEVEL)
    return FAILS if worse.any() else OPEN


def pair_text(pairs: pd.DataFrame) -> str:
    """The comparisons in words, each with its interval and p.

    >>> line = {"name": "GPTQ to RTN", "ratio": 0.8, "lo": 0.7, "hi": 0.9, "p_holm": 0.0}
    >>> pair_text(pd.DataFrame([line]))
    'GPTQ to RTN 0.80× [0.70×, 0.90×] (p < 0.001)'
    """
    return listing(
        [f"{p['name']} {interval(p['ratio'], p['lo'], p['hi'])} ({p_text(p['p_holm'])})" for p in _records(pairs)]
    )


def interval(value: float, lo: float, hi: float, text=times) -> str:
    """A value with its interval.

    >>> interval(1.0, 0.9, 1.1)
    '1.00× [0.90×, 1.10×]'
    """
    return f"{text(value)} [{text(lo)}, {text(hi)}]"


def run_table(results: Results) -> pd.DataFrame:
    """One line for each compressed run: what was asked and what its rows say is the same in all of them."""
    runs = results.rows.drop_duplicates("run_id")
    runs = runs[runs["method"] != DENSE].reset_index(drop=True)
    options = [dict(results.configs.get(run_id, {}).get("options", [])) for run_id in runs["run_id"]]
    return runs.assign(act_order=[bool(o.get("act_order", False)) for o in options])


def _records(frame: pd.DataFrame) -> Sequence[dict]:
    return frame.to_dict("records")
