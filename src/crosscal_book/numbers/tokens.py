"""Divergence token by token: the noise floor of rounding, its tails, and models that only divergence tells apart."""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import pandas as pd

from crosscal.results.compare import paired
from crosscal.results.frame import Results
from crosscal.results.quantities import DIVERGENCE
from crosscal.stats import Estimate
from crosscal_book.numbers.correlation import FLIPS, VARIABLES, sample, texts_of
from crosscal_book.words import KEPT, cell

MATCH = 1.05  # perplexities within 5 % of a common one count as equal
CURVES = 6  # more cannot be told apart
PERCENTILES = (50, 90, 99)


def noise_floor(results: Results) -> tuple[dict | None, str]:
    """Return the line of `sample` that holds the dense model in float32; without one, why there is no noise floor."""
    runs = sample(results).runs
    rows = runs[~runs["compressed"]]
    if rows.empty:
        return None, "the dense model was not run in float32, so the noise of rounding is not known"
    if not runs["compressed"].any() or not np.isfinite(runs["js"]).all():
        return None, "no compressed run has a divergence to compare with the noise of rounding"
    if rows["js"].iloc[0] <= 0:
        return None, "the dense model itself was run in float32, so there is no noise of rounding to compare with"
    return rows.iloc[0].to_dict(), ""


def above_floor(results: Results) -> pd.DataFrame:
    """Return every compressed run's JS over the noise floor's, resampled together, as rows of a claim.

    Each interval must lie above 1, so nothing is to be corrected; sign flips test where a run diverges less.
    """
    (runs, values), (floor, _), found = sample(results), noise_floor(results), []
    if floor is None:
        return pd.DataFrame()
    js = dict(zip(runs["run_id"], values[VARIABLES.index("js")], strict=True))
    for line in runs[runs["compressed"]].to_dict("records"):
        ratio = Estimate.of_draws(js[line["run_id"]] / js[floor["run_id"]], len(runs))
        both = paired(results, line["run_id"], floor["run_id"], DIVERGENCE, texts_of(results))
        tests = {"p_yes": float(ratio.lo <= 1), "p_no": both.estimate(test=True).p if both and ratio.value < 1 else 1.0}
        share = cell(floor, FLIPS, lambda share: f"{100 * share:.1f}").replace(" [", " % [")
        rounding = f"; rounding alone changes {share} of the answers" if share else ""
        facts = {"name": line["setting"], "floor": nats(floor["js"]), "rounding": rounding}
        found.append({**line, **vars(ratio), **tests, "p_yes_holm": tests["p_yes"], **facts})
    return pd.DataFrame(found)


@lru_cache(maxsize=8)
def with_tails(results: Results) -> pd.DataFrame:
    """Return every run of `sample` with `p50`, `p90`, `p99` of JS over tokens and their ends, means over texts.

    Texts are independent, so the distances of the ends add as squares.
    """
    runs, rows = sample(results).runs, results.rows
    rows = rows[rows["eval_set"].isin(texts_of(results))].set_index("run_id")
    rows = rows.assign(lo=(rows["value"] - rows["lo"]) ** 2, hi=(rows["hi"] - rows["value"]) ** 2)
    for percent in PERCENTILES:
        own = rows.loc[rows["metric"] == f"js_divergence_p{percent}", ["value", "lo", "hi"]].groupby("run_id")
        mean, lo, hi = own["value"].mean(), *(own[end].sum() ** 0.5 / own.size() for end in ("lo", "hi"))
        ends = {"": mean, "_lo": mean - lo, "_hi": mean + hi}
        runs = runs.assign(**{f"p{percent}{end}": runs["run_id"].map(values) for end, values in ends.items()})
    return runs


@lru_cache(maxsize=8)
def matched(results: Results) -> pd.DataFrame:
    """Return one run a method, all of nearly equal perplexity (`ratio`): that which most methods come near.

    Only runs whose perplexity rose visibly (beyond `KEPT`) count, if there are any: undamaged models are all alike.
    """
    runs, keys = with_tails(results), {f"{text} tokens" for text in texts_of(results)}
    known = np.array([not keys.isdisjoint(results.items[run_id]) for run_id in runs["run_id"]], dtype=bool)
    runs = runs[runs["compressed"] & np.isfinite(runs["js"]) & known].assign(ratio=np.exp(runs["perplexity"]))
    runs = runs[runs["ratio"] > KEPT] if (runs["ratio"] > KEPT).any() else runs
    best, width = [], np.inf
    for centre in runs["ratio"]:
        gap = np.log(runs["ratio"] / centre).abs()
        nearest = gap[gap <= np.log(MATCH)].groupby(runs["method"]).idxmin()
        chosen = sorted(nearest, key=lambda i: gap[i])[:CURVES]
        if (-len(chosen), gap[chosen].max()) < (-len(best), width):
            best, width = chosen, gap[chosen].max()
    return runs.loc[best]


def curve(results: Results, run: Mapping) -> pd.DataFrame:
    """Return shares of tokens (`x`), and the divergence that such a share reaches: quantiles, as means over texts."""
    items = results.items[run["run_id"]]
    entries = [items[f"{text} tokens"] for text in texts_of(results) if f"{text} tokens" in items]
    x, values = 1 - np.array(entries[0]["quantile"]), np.mean([entry["js_divergence"] for entry in entries], axis=0)
    return pd.DataFrame({"x": x, "value": values})[(x < 1) & (x > 0)]


def run_label(run: pd.Series, runs: pd.DataFrame) -> str:
    """Return a run's setting, calibration text, and number, length and draw of the windows where not the usual ones."""
    if not run["compressed"]:
        return "dense model in float32 (noise floor)"
    if not run["calibration"]:
        return run["setting"]
    calibrated = runs[runs["calibration"] != ""]
    parts = [run["calibration"] + (f" (last {run['weight']:.2g})" if "+" in run["calibration"] else "")]
    sizes = calibrated["n_windows"].astype(str) + " × " + calibrated["window"].astype(str)
    size = f"{run['n_windows']} × {run['window']}"
    parts += [size] if size != sizes.mode().iloc[0] else []
    parts += [f"draw {run['seed']}"] if run["seed"] != calibrated["seed"].mode().iloc[0] else []
    return f"{run['setting']}, {', '.join(parts)}"


def nats(value: float) -> str:
    """Return a divergence, to two or three digits.

    >>> nats(0.1602), nats(0.009)
    ('0.160', '0.0090')
    """
    return f"{value:.3f}" if value >= 0.01 else f"{value:#.2g}"
