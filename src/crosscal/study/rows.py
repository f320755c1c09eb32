"""From what a run produced to tidy rows with intervals, and the per-item outcomes behind them."""

import math
from collections.abc import Callable, Iterator

import numpy as np

from crosscal.metrics.tasks import TaskResult
from crosscal.metrics.text_scores import TextScores
from crosscal.results.store import RunRecord
from crosscal.stats.intervals import area_under_curve, bootstrap_interval, exp_mean
from crosscal.study.session import Outcome
from crosscal.study.texts import TASK_PROMPTS
from crosscal.text import domain_of
from crosscal.types import Grid, Row, SparseGrid

# metric -> unit, whether higher is better
DIVERGENCES = {
    "js_divergence": ("nats per token", False),
    "kl_divergence": ("nats per token", False),
    "kl_divergence_reverse": ("nats per token", False),
    "top1_agreement": ("fraction of tokens", True),
}
JS_PERCENTILES = (50, 90, 99)
FEW_RESAMPLES = 100  # a percentile over every token of every resample is slow
QUANTILES = (*(round(0.05 * step, 2) for step in range(20)), 0.99, 0.999, 1.0)


def make_record(run_id: str, preset: str, outcome: Outcome, provenance: dict) -> RunRecord:
    """The run as the store keeps it: one row per metric and evaluation set, items for paired tests."""
    common = _common(run_id, preset, outcome, provenance)
    rows = [Row(**common, **cell) for cell in _cells(outcome)]
    layers = [_short(vars(layer)) for layer in outcome.compression.layers]
    return RunRecord(run_id, outcome.config.to_json(), provenance, rows, layers, _items(outcome))


def _common(run_id: str, preset: str, outcome: Outcome, provenance: dict) -> dict:
    """The columns that all rows of a run share."""
    config, compression = outcome.config, outcome.compression
    shares = dict(config.calibration)
    grid = config.target.grid if isinstance(config.target, SparseGrid) else config.target
    dense_bits = 32 if config.dtype == "float32" else 16
    return {
        "run_id": run_id,
        "preset": preset,
        "model": config.model,
        "method": config.method,
        "pattern": str(config.target),
        "sparsity": round(compression.sparsity, 6),
        "bits": grid.bits if isinstance(grid, Grid) else dense_bits,
        "group": str(grid.group) if isinstance(grid, Grid) else "",
        "storage_bits": round(outcome.storage_bits, 4),
        "schedule": config.schedule if shares else "",
        "calibration": "+".join(shares),
        "mix_weight": list(shares.values())[-1] if len(shares) > 1 else 1.0,
        "n_windows": config.n_windows if shares else 0,
        "window": config.window if shares else 0,
        "seed": config.seed,
        "seconds": round(compression.seconds, 2),
        "peak_bytes": compression.peak_bytes,
        "device": provenance["device"],
        "versions": provenance["versions"],
        "commit": provenance["commit"],
    }


def _cells(outcome: Outcome) -> Iterator[dict]:
    """The columns that differ between the rows of a run."""
    for name, scores in outcome.evaluation.texts.items():
        yield from _text_cells(name, scores)
    for name, result in outcome.evaluation.tasks.items():
        yield _task_cell(name, result)
    for name, result in outcome.evaluation.answers.items():
        for metric, value in result.values.items():
            place = {"domain": "instruction", "eval_set": f"{name} answers"}
            interval = bootstrap_interval(result.items[metric])
            yield _cell(place, metric, value, interval, result.n, "fraction", True)
    yield from _layer_cells(outcome)


def _layer_cells(outcome: Outcome) -> Iterator[dict]:
    """The output error of the layers, relative to their output, on the text they were measured on."""
    errors = [layer.relative_error for layer in outcome.compression.layers]
    if errors and None not in errors:
        place = {"domain": "calibration", "eval_set": "layers"}
        unit = "fraction of squared output, mean over layers"
        yield _cell(place, "layer_error", float(np.mean(errors)), bootstrap_interval(errors), len(errors), unit, False)


def _text_cells(name: str, scores: TextScores) -> Iterator[dict]:
    place = {"domain": "tasks" if name == TASK_PROMPTS else domain_of(name), "eval_set": name}
    losses = scores.per_window("nll")
    interval = bootstrap_interval(losses, exp_mean)
    yield _cell(place, "perplexity", math.exp(float(np.mean(losses))), interval, len(losses), "per token", False)
    for metric, (unit, higher) in DIVERGENCES.items():
        if metric in scores.per_token:
            means = scores.per_window(metric)
            yield _cell(place, metric, float(np.mean(means)), bootstrap_interval(means), len(means), unit, higher)
    if "js_divergence" in scores.per_token:
        tokens = scores.per_token["js_divergence"].double().numpy()
        for percent in JS_PERCENTILES:
            interval = bootstrap_interval(tokens, _percentile(percent), resamples=FEW_RESAMPLES)
            value, metric = float(np.percentile(tokens, percent)), f"js_divergence_p{percent}"
            yield _cell(place, metric, value, interval, len(tokens), "nats per token", False)


def _percentile(percent: int) -> Callable[[np.ndarray], np.ndarray]:
    """The percentile over all tokens of the windows drawn."""
    return lambda drawn: np.percentile(drawn.reshape(len(drawn), -1), percent, axis=1)


def _task_cell(name: str, result: TaskResult) -> dict:
    place = {"domain": result.domain, "eval_set": name}
    statistic: Callable[[np.ndarray], np.ndarray] | None = None
    if result.metric == "auc":
        units = np.column_stack([result.items["score"], result.items["gold"]])
        statistic, unit = area_under_curve, "area under the ROC curve"
    else:
        units, unit = np.asarray(result.items["correct"], dtype=float), "fraction of items"
    interval = bootstrap_interval(units, statistic)
    return _cell(place, result.metric, result.value, interval, result.n, unit, True)


def _cell(
    place: dict, metric: str, value: float, interval: tuple[float, float], n: int, unit: str, higher: bool
) -> dict:
    low, high = interval
    return place | {
        "metric": metric,
        "value": float(f"{value:.6g}"),
        "lo": float(f"{low:.6g}"),
        "hi": float(f"{high:.6g}"),
        "n": n,
        "unit": unit,
        "higher_is_better": higher,
    }


def _short(layer: dict) -> dict:
    """A layer's report in four digits, what is absent left out: thousands of these go into git."""
    flat = {k: v for k, v in layer.items() if k not in ("losses", "facts")} | layer["facts"]
    flat |= {f"loss {source}": loss for source, loss in layer["losses"].items()}
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in flat.items() if v is not None}


def _items(outcome: Outcome) -> dict[str, dict[str, list]]:
    """Per-window means and token quantiles of texts, per-item outcomes of tasks and answers, by evaluation set."""
    texts = {
        name: {metric: [float(f"{v:.6g}") for v in scores.per_window(metric)] for metric in scores.per_token}
        for name, scores in outcome.evaluation.texts.items()
    }
    texts |= {
        f"{name} tokens": _quantiles(scores.per_token["js_divergence"].double().numpy())
        for name, scores in outcome.evaluation.texts.items()
        if "js_divergence" in scores.per_token
    }
    answers = {f"{name} answers": result.items for name, result in outcome.evaluation.answers.items()}
    return texts | {name: result.items for name, result in outcome.evaluation.tasks.items()} | answers


def _quantiles(tokens: np.ndarray) -> dict[str, list[float]]:
    """The distribution of the divergence over all tokens, in a few numbers."""
    values = np.quantile(tokens, QUANTILES)
    return {"quantile": list(QUANTILES), "js_divergence": [float(f"{value:.4g}") for value in values]}
