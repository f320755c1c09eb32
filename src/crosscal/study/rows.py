"""From what a run produced to tidy rows with intervals, and the per-item outcomes behind them."""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import ArrayLike

from crosscal.results.quantities import QUANTITIES, Quantity, quantities_over, task_quantity
from crosscal.results.store import RunRecord
from crosscal.study.session import Outcome
from crosscal.study.texts import TASK_PROMPTS
from crosscal.text import domain_of
from crosscal.types import Grid, Row, SparseGrid

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
        place = {"domain": "tasks" if name == TASK_PROMPTS else domain_of(name), "eval_set": name}
        windows = {metric: scores.per_window(metric) for metric in scores.per_token}
        for quantity in quantities_over("windows", "tokens"):
            if set(quantity.items) <= set(windows):
                yield _cell(place, quantity, scores.per_token if quantity.over == "tokens" else windows)
    for name, result in outcome.evaluation.tasks.items():
        place = {"domain": result.domain, "eval_set": name}
        yield _cell(place, task_quantity(result.metric), result.items)
    for name, result in outcome.evaluation.answers.items():
        for quantity in quantities_over("answers"):
            yield _cell({"domain": "instruction", "eval_set": f"{name} answers"}, quantity, result.items)
    errors = [layer.relative_error for layer in outcome.compression.layers]
    if errors and None not in errors:
        place = {"domain": "calibration", "eval_set": "layers"}
        yield _cell(place, QUANTITIES["layer_error"], {"relative_error": errors})


def _cell(place: dict, quantity: Quantity, items: Mapping[str, ArrayLike]) -> dict:
    estimate = quantity.estimate(items)
    return place | {
        "metric": quantity.name,
        "value": float(f"{estimate.value:.6g}"),
        "lo": float(f"{estimate.lo:.6g}"),
        "hi": float(f"{estimate.hi:.6g}"),
        "n": estimate.n,
        "unit": quantity.unit,
        "higher_is_better": quantity.higher_is_better,
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
