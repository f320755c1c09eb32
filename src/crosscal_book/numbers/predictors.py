"""What was measured of every run that could foretell task loss, the loss itself, and divergence token by token."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from crosscal.results.compare import PROMPTS, accuracy_tasks, paired
from crosscal.results.frame import DENSE, Results
from crosscal.results.quantities import ACCURACY, QUANTITIES
from crosscal.stats import multinomial_counts
from crosscal_book.style import by_method
from crosscal_book.words import KEPT, interval, points, run_name, times

FLOAT32 = "float32"  # the dense model in other arithmetic: no compression, but the noise floor of all comparisons
DRAWS = 2000
PRUNING, QUANTIZATION, FLOOR = "pruning", "quantization", "noise floor"
LOSS, FLIPS = "loss", "flips"
OUTCOMES = {LOSS: "task loss", FLIPS: "answer flips"}
MATCH = 1.05  # perplexities within 5 % of a common one count as equal
CURVES = 6  # more cannot be told apart
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Predictor:
    """A number that could foretell task loss: its name, its quantity (none for layers) and its text.

    `sign` is -1 where more means less harm, so that every correlation is positive when the number is of use.
    """

    label: str
    quantity: str
    prompts: bool = False
    sign: float = 1.0


PREDICTORS = {
    "perplexity": Predictor("perplexity", "perplexity"),
    "js": Predictor("JS", "js_divergence"),
    "kl": Predictor("KL(dense ‖ compressed)", "kl_divergence"),
    "kl_reverse": Predictor("KL(compressed ‖ dense)", "kl_divergence_reverse"),
    "top1": Predictor("top-1 disagreement", "top1_agreement", sign=-1.0),
    "layers": Predictor("layer error", ""),
    "perplexity_prompts": Predictor("perplexity, task prompts", "perplexity", prompts=True),
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

    def losses(self) -> pd.DataFrame:
        """Return the change of accuracy in points over JS and over relative perplexity (`panel`), by compressed run."""
        kept = self.compressed & np.isfinite(self.of(LOSS)) & np.isfinite(self.of("js"))
        facts = self.runs.loc[kept, ["run_id", "method", "target", "calibration", "weight", "seed"]]
        ends = {name: np.stack([self.of(name), *self.interval(name)])[:, kept] for name in (LOSS, "js", "perplexity")}
        value, hi, lo = -100 * ends[LOSS]
        across = {"JS": ends["js"], "perplexity": np.exp(ends["perplexity"])}
        return pd.concat([
            facts.assign(panel=panel, x=x, x_lo=low, x_hi=high, value=value, lo=lo, hi=hi)
            for panel, (x, low, high) in across.items()
        ], ignore_index=True)  # fmt: skip

    @property
    def compressed(self) -> np.ndarray:
        """Return which runs are compressed, the noise floor being none: [runs]."""
        return (self.runs["kind"] != FLOOR).to_numpy()


@lru_cache(maxsize=8)
def shared(results: Results) -> Results:
    """Return the runs with only what all of them were evaluated on; the same object for the same results."""
    return results.common()


@lru_cache(maxsize=8)
def reading_prompts(results: Results) -> Results:
    """Return the runs that read the tasks' prompts; the same object where all did, and for the same results."""
    ids = set(results.only(metric="perplexity", domain=PROMPTS)["run_id"]) - {results.dense_id}
    return results if len(ids) + 1 == len(results.run_ids) else results.subset(sorted(ids))


def texts_of(results: Results, prompts: bool = False) -> list[str]:
    """Return the held-out texts that all runs share, or the text that is made of the tasks' prompts."""
    rows = shared(results).only(run_id=results.dense_id, metric="perplexity")
    return list(rows.loc[(rows["domain"] == PROMPTS) == prompts, "eval_set"])


@lru_cache(maxsize=8)
def sample(results: Results) -> Sample:
    """Return all variables of all runs but the dense one, from what every run was evaluated on.

    Task loss is the fall of mean accuracy and answer flips the share of items whose correctness differs from the dense
    model's, either way: both over the usable tasks that all runs share, tasks weighing the same.
    """
    results = shared(results)
    runs = results.runs[results.runs["method"] != DENSE].reset_index(drop=True)
    uneven = np.where(runs["allocation"] != "uniform", " (OWL)", "")
    settings = [run_name(line) + more for line, more in zip(runs.to_dict("records"), uneven, strict=True)]
    runs = runs.assign(kind=runs["kind"].where(runs["method"] != FLOAT32, FLOOR), setting=settings)
    return Sample(runs, np.stack([_drawn(results, list(runs["run_id"]), variable) for variable in VARIABLES]))


def _drawn(results: Results, run_ids: list[str], variable: str) -> np.ndarray:
    """One variable: [runs, 1 + draws]."""
    if variable == "layers":
        rows = results.only(metric="layer_error").set_index("run_id")["value"]
        return np.repeat(rows.reindex(run_ids).to_numpy(dtype=float)[:, None], 1 + DRAWS, axis=1)
    if variable in OUTCOMES:
        sets, quantity, sign = list(accuracy_tasks(results)["eval_set"]), ACCURACY, -1.0
    else:
        asked = PREDICTORS[variable]
        quantity, sign, texts = QUANTITIES[asked.quantity], asked.sign, texts_of(results, asked.prompts)
        sets = [t for t in texts if all(quantity.items[0] in results.items[run_id][t] for run_id in run_ids)]
    if not run_ids or not sets:
        return np.full((len(run_ids), 1 + DRAWS), np.nan)
    blocks = [paired(results, run_id, None, quantity, sets).values for run_id in run_ids]
    values = {name: sign * np.array([block[name] for block in blocks]) for name in sets}
    if variable == FLIPS:
        values = {name: np.abs(block) for name, block in values.items()}
    return np.mean([block @ _shares(block.shape[1], name) for name, block in values.items()], axis=0)


def _shares(size: int, name: str) -> np.ndarray:
    """The share of each window or item of a set in the data and in each resample: [size, 1 + draws]."""
    drawn = multinomial_counts(size, DRAWS, (1, *name.encode()))
    return np.concatenate([np.ones((1, size)), drawn]).T / size


def noise_floor(results: Results) -> tuple[int | None, str]:
    """Return the line of `sample` that holds the dense model in float32, or why there is none to compare with."""
    drawn = sample(results)
    rows = np.flatnonzero((drawn.runs["kind"] == FLOOR).to_numpy())
    if not len(rows):
        return None, "the dense model was not run in float32, so the noise of rounding is not known"
    if not drawn.compressed.any() or not np.isfinite(drawn.of("js")).all():
        return None, "no compressed run has a divergence to compare with the noise of rounding"
    if drawn.of("js")[rows[0]] <= 0:
        return None, "the dense model itself was run in float32, so there is no noise of rounding to compare with"
    return int(rows[0]), ""


def matched_runs(results: Results) -> pd.DataFrame:
    """Return one run a method, all of nearly equal perplexity: the perplexity that most methods come near.

    Only runs whose perplexity rose visibly (beyond `KEPT`) count, if there are any: undamaged models are all alike.
    Columns: those of `sample`, `ratio` of perplexity, mean `js`, and `p50`, `p90`, `p99` of JS over tokens, the last
    three as means over texts, with `_lo` and `_hi`.
    """
    drawn = sample(results)
    js = drawn.interval("js")
    runs = drawn.runs.assign(ratio=np.exp(drawn.of("perplexity")), js=drawn.of("js"), js_lo=js[0], js_hi=js[1])
    keys = [f"{text} tokens" for text in texts_of(results)]
    known = np.array([any(key in results.items[run_id] for key in keys) for run_id in runs["run_id"]], dtype=bool)
    runs = runs[drawn.compressed & np.isfinite(runs["js"]) & known]
    runs = runs[runs["ratio"] > KEPT] if (runs["ratio"] > KEPT).any() else runs
    best, width = [], np.inf
    for centre in runs["ratio"]:
        gap = np.log(runs["ratio"] / centre).abs()
        nearest = gap[gap <= np.log(MATCH)].groupby(runs["method"]).idxmin()
        chosen = sorted(nearest, key=lambda i: gap[i])[:CURVES]
        if (-len(chosen), gap[chosen].max()) < (-len(best), width):
            best, width = chosen, gap[chosen].max()
    matched = runs.loc[best]
    for percent in PERCENTILES:
        ends = [percentile(results, run_id, percent) for run_id in matched["run_id"]]
        matched = matched.assign(**{f"p{percent}{e}": [x[n] for x in ends] for n, e in enumerate(("", "_lo", "_hi"))})
    return matched


def curves(results: Results) -> pd.DataFrame:
    """Return JS over the share of tokens (%) that diverge at least so much, of `matched_runs` and the noise floor.

    A line per point of a curve, which is `bare`, and per percentile with its interval; `series` is the setting.
    """
    found = []
    for _, lines in by_method(matched_runs(results)):
        run = lines.iloc[0]
        facts = {"run_id": run["run_id"], "method": run["method"], "target": run["target"], "series": run["setting"]}
        points = zip(*token_curve(results, run["run_id"]), strict=True)
        found += [facts | {"x": 100 * share, "value": value, "bare": True} for share, value in points]
        for percent in PERCENTILES:
            ends = {name: run[f"p{percent}{end}"] for name, end in (("value", ""), ("lo", "_lo"), ("hi", "_hi"))}
            found.append(facts | {"x": 100 - percent, "bare": False} | ends)
    floor, _ = noise_floor(results)
    if found and floor is not None:
        run_id = sample(results).runs["run_id"].iloc[floor]
        facts = {"run_id": run_id, "method": FLOAT32, "series": FLOOR, "bare": True}
        points = zip(*token_curve(results, run_id), strict=True)
        found += [facts | {"x": 100 * share, "value": max(value, 1e-8)} for share, value in points]
    return pd.DataFrame(found)


def percentile(results: Results, run_id: str, percent: int) -> tuple[float, float, float]:
    """Return a percentile of JS over tokens, as the mean over texts, with its 95 % interval; texts are independent."""
    rows = shared(results).only(run_id=run_id, metric=f"js_divergence_p{percent}")
    rows = rows[rows["eval_set"].isin(texts_of(results))]
    if rows.empty:
        return (np.nan,) * 3
    value = rows["value"].mean()
    below, above = (np.sqrt(((rows["value"] - rows[end]) ** 2).sum()) / len(rows) for end in ("lo", "hi"))
    return value, value - below, value + above


def token_curve(results: Results, run_id: str) -> tuple[np.ndarray, np.ndarray]:
    """Return shares of tokens, falling, and the divergence that each reaches: quantiles, as means over texts."""
    items = results.items[run_id]
    entries = [items[f"{text} tokens"] for text in texts_of(results) if f"{text} tokens" in items]
    shares = 1 - np.array(entries[0]["quantile"], dtype=float)
    values = np.mean([entry["js_divergence"] for entry in entries], axis=0)
    shown = (shares < 1) & (shares > 0)
    return shares[shown], values[shown]


def run_lines(results: Results) -> list[list[str]]:
    """Return every run, the least divergent first, as text: divergence, perplexity and what became of the tasks."""
    drawn = sample(results)
    runs = drawn.runs.assign(js=drawn.of("js")).sort_values("js", kind="stable")
    shown = {"js": (1, nats), "kl": (1, nats), "top1": (-100, "{:.1f}".format)}
    shown |= {"perplexity": (1, lambda rise: times(np.exp(rise))), LOSS: (-1, points), FLIPS: (100, "{:.1f}".format)}
    ends = {name: np.stack([drawn.of(name), *drawn.interval(name)]) for name in shown}
    body = []
    for row, run in runs.iterrows():
        cells = [_cell(scale * ends[name][:, row], write) for name, (scale, write) in shown.items()]
        tail = _cell(np.array(percentile(results, run["run_id"], 99)), nats)
        body.append([run_label(run, runs), cells[0], tail, *cells[1:]])
    return body


def _cell(values: np.ndarray, write) -> str:
    """A value with its ends in rising order; "" where it is not known."""
    value, lo, hi = values[0] + 0.0, values[1:].min() + 0.0, values[1:].max() + 0.0
    return interval(value, lo, hi, write) if np.isfinite(value) else ""


def run_label(run: pd.Series, runs: pd.DataFrame) -> str:
    """Return a run's setting, calibration text, and number, length and draw of the windows where not the usual ones."""
    if run["kind"] == FLOOR:
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
