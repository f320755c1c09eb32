"""What was measured of every run of chapter 2: the numbers that could foretell task loss, and the loss itself."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from crosscal.results.compare import PROMPTS, accuracy_tasks, differences
from crosscal.results.frame import DENSE, Results
from crosscal_book.style import style_of

FLOAT32 = "float32"  # the dense model in other arithmetic: no compression, but the noise floor of all comparisons
DRAWS = 2000
PRUNING, QUANTIZATION, FLOOR = "pruning", "quantization", "noise floor"
LOSS, FLIPS = "loss", "flips"
OUTCOMES = {LOSS: "task loss", FLIPS: "answer flips"}
RUN = ["run_id", "method", "pattern", "storage_bits", "calibration", "mix_weight", "n_windows", "window", "seed"]


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
        """The estimates of one variable: [runs]."""
        return self.values[VARIABLES.index(variable), :, 0]

    def interval(self, variable: str) -> tuple[np.ndarray, np.ndarray]:
        """The lower and the upper ends of the runs' 95 % intervals, over windows or items: [runs] each."""
        lo, hi = np.percentile(self.values[VARIABLES.index(variable), :, 1:], [2.5, 97.5], axis=1)
        return lo, hi

    @property
    def compressed(self) -> np.ndarray:
        """Which runs are compressed, the noise floor being none: [runs]."""
        return (self.runs["kind"] != FLOOR).to_numpy()


@lru_cache(maxsize=8)
def shared(results: Results) -> Results:
    """The same runs with only what all of them were evaluated on; the same object for the same results."""
    return results.common()


@lru_cache(maxsize=8)
def reading_prompts(results: Results) -> Results:
    """The runs that read the tasks' prompts; the same object where all did, and for the same results."""
    ids = set(results.only(metric="perplexity", domain=PROMPTS)["run_id"]) - {results.dense_id}
    return results if len(ids) + 1 == len(results.run_ids) else results.subset(sorted(ids))


def kind_of(pattern: str) -> str:
    """What a target does to the weights.

    >>> kind_of("2:4"), kind_of("3 bits g128"), kind_of("50% + 4 bits g128"), kind_of("low rank 80%")
    ('pruning', 'quantization', 'pruning and quantization', 'low rank')
    """
    if "+" in pattern:
        return "pruning and quantization"
    return "low rank" if pattern.startswith("low rank") else QUANTIZATION if "bit" in pattern else PRUNING


@lru_cache(maxsize=8)
def sample(results: Results) -> Sample:
    """All variables of all runs but the dense one, from what every run was evaluated on.

    Task loss is the fall of mean accuracy and answer flips the share of items whose correctness differs from the dense
    model's, either way: both over the usable tasks that all runs share, tasks weighing the same.
    """
    results = shared(results)
    runs = results.rows.drop_duplicates("run_id")
    runs = runs.loc[runs["method"] != DENSE, RUN].reset_index(drop=True)
    uneven = [results.configs.get(i, {}).get("allocation", "uniform") != "uniform" for i in runs["run_id"]]
    runs["kind"] = runs["pattern"].map(kind_of).where(runs["method"] != FLOAT32, FLOOR)
    runs["setting"] = [
        f"{style_of(m).label} {p}{' (OWL)' if u else ''}"
        for m, p, u in zip(runs["method"], runs["pattern"], uneven, strict=True)
    ]
    return Sample(runs, np.stack([_drawn(results, list(runs["run_id"]), variable) for variable in VARIABLES]))


def texts_of(results: Results, prompts: bool = False) -> list[str]:
    """The held-out texts that all runs share, or the text that is made of the tasks' prompts."""
    rows = shared(results).only(run_id=results.dense_id, metric="perplexity")
    return list(rows.loc[(rows["domain"] == PROMPTS) == prompts, "eval_set"])


def paired_values(results: Results, run_id: str, text: str, measure: str) -> np.ndarray:
    """One value per window: a divergence from the dense model, or how much the loss rose above it."""
    values = np.array(results.items[run_id][text][measure], dtype=float)
    return values - np.array(results.items[results.dense_id][text]["nll"]) if measure == "nll" else values


def flips(results: Results, run_id: str, task: str) -> np.ndarray:
    """1 for every item that is right in one of the two models only."""
    return np.abs(differences(results, run_id, task))


def _drawn(results: Results, run_ids: list[str], variable: str) -> np.ndarray:
    """One variable: [runs, 1 + draws]."""
    if variable == "layers":
        rows = results.only(metric="layer_error").set_index("run_id")["value"]
        return np.repeat(rows.reindex(run_ids).to_numpy(dtype=float)[:, None], 1 + DRAWS, axis=1)
    if variable in OUTCOMES:
        sign, unit = (-1.0, differences) if variable == LOSS else (1.0, flips)
        tasks = accuracy_tasks(results)["eval_set"]
        blocks = {task: sign * np.array([unit(results, i, task) for i in run_ids]) for task in tasks}
    else:
        asked = PREDICTORS[variable]
        blocks = {
            text: asked.sign * np.array([paired_values(results, i, text, asked.measure) for i in run_ids])
            for text in texts_of(results, asked.prompts)
            if all(asked.measure in results.items[i][text] for i in run_ids)
        }
    if not run_ids or not blocks:
        return np.full((len(run_ids), 1 + DRAWS), np.nan)
    return np.mean([block @ _counts(block.shape[1], name, DRAWS) for name, block in blocks.items()], axis=0)


@lru_cache(maxsize=32)
def _counts(size: int, name: str, draws: int) -> np.ndarray:
    """The share of each window or item of a set in the data and in each resample: [size, 1 + draws]."""
    drawn = np.random.default_rng((1, *name.encode())).multinomial(size, np.full(size, 1 / size), size=draws)
    return np.concatenate([np.ones((1, size)), drawn]).T / size


def noise_floor(results: Results) -> tuple[int | None, str]:
    """The line of `sample` that holds the dense model in float32, or why there is none to compare with."""
    found = sample(results)
    rows = np.flatnonzero((found.runs["kind"] == FLOOR).to_numpy())
    if not len(rows):
        return None, "the dense model was not run in float32, so the noise of rounding is not known"
    if not found.compressed.any() or not np.isfinite(found.of("js")).all():
        return None, "no compressed run has a divergence to compare with the noise of rounding"
    if found.of("js")[rows[0]] <= 0:
        return None, "the dense model itself was run in float32, so there is no noise of rounding to compare with"
    return int(rows[0]), ""


def coefficient(value: float, digits: int = 2) -> str:
    """A correlation, or with three digits a difference of two, with its sign.

    >>> coefficient(-0.043), coefficient(0.0151, 3)
    ('−0.04', '+0.015')
    """
    return f"{value:+.{digits}f}".replace("-", "−")


def nats(value: float) -> str:
    """A divergence, to two or three digits.

    >>> nats(0.1602), nats(0.009)
    ('0.160', '0.0090')
    """
    return f"{value:.3f}" if value >= 0.01 else f"{value:#.2g}"
