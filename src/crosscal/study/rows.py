"""From measured pieces to a run: tidy rows with intervals, and the per-item outcomes behind them."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from crosscal.engine.reports import CompressionReport
from crosscal.metrics.evaluate import Evaluation
from crosscal.metrics.tasks import SCORING_VERSION, TASKS, task_version
from crosscal.plan.parameters import TASK_PROMPTS
from crosscal.results.quantities import QUANTITIES, Quantity, quantities_over, task_quantity
from crosscal.results.store import RunRecord
from crosscal.study.identity import run_key
from crosscal.text import domain_of
from crosscal.types import Grid, Row, RunConfig, SparseGrid

_QUANTILES = (*(round(0.05 * step, 2) for step in range(20)), 0.99, 0.999, 1.0)


def make_piece(
    key: str,
    config: RunConfig,
    piece: tuple[str, str],
    found: Evaluation | None,
    report: CompressionReport,
    bits: float,
    provenance: dict,
) -> RunRecord:
    """Return one piece of a run as the store keeps it: the evaluation of one text or task, or the compression.

    Beside it stands what compression did and took, which all rows of a run share; `bits` are those of a weight.
    """
    facts = {"sparsity": round(report.sparsity, 6), "storage_bits": round(bits, 4)}
    facts |= {"seconds": round(report.seconds, 2), "peak_bytes": report.peak_bytes}
    common = _common(key, "", config, facts, provenance)
    rows = [Row(**common, **cell) for cell in (_layer_cells(report) if found is None else _cells(found))]
    layers = [_short(vars(layer)) for layer in report.layers] if found is None else []
    items = {} if found is None else _items(found)
    return RunRecord(key, {"piece": list(piece)}, provenance | {"facts": facts}, rows, layers, items)


def assemble(
    config: RunConfig, identity: Mapping, preset: str, pieces: Mapping[tuple[str, str], RunRecord]
) -> RunRecord:
    """Return the run that its pieces make, under the names that the config gives to model and texts."""
    last = max(pieces.values(), key=lambda record: record.provenance["finished"])
    run_id = run_key(config.to_json(), identity)
    compression = pieces.get(("compression", ""), last)
    common = _common(run_id, preset, config, compression.provenance["facts"], last.provenance)
    own = {name: common[name] for name in common if name not in ("device", "versions", "commit")}
    rows, items = [], {}
    for (kind, name), record in pieces.items():
        measured_as = record.config["piece"][1]

        def named(eval_set: str, kind: str = kind, old: str = measured_as, new: str = name) -> str:
            return new + eval_set[len(old) :] if kind == "text" else eval_set

        rows += [replace(row, eval_set=named(row.eval_set), **own) for row in record.rows]
        items |= {named(eval_set): outcome for eval_set, outcome in record.items.items()}
    made = {name: value for name, value in last.provenance.items() if name != "facts"}
    made |= {"identity": dict(identity), "tasks": _task_facts(config)}
    return RunRecord(run_id, config.to_json(), made, rows, compression.layers, items)


def _task_facts(config: RunConfig) -> dict:
    """Version and chance level of each task; the harness's own tasks have no known chance."""
    chances = {name: {"chance": TASKS[name].chance} if name in TASKS else {} for name in config.tasks}
    return {name: {"version": task_version(name), "scoring": SCORING_VERSION} | chances[name] for name in config.tasks}


def _common(run_id: str, preset: str, config: RunConfig, facts: dict, provenance: dict) -> dict:
    """The columns that all rows of a run share."""
    shares = dict(config.calibration)
    grid = config.target.grid if isinstance(config.target, SparseGrid) else config.target
    dense_bits = 32 if config.dtype == "float32" else 16
    return facts | {
        "run_id": run_id,
        "preset": preset,
        "model": config.model,
        "method": config.method,
        "pattern": str(config.target),
        "bits": grid.bits if isinstance(grid, Grid) else dense_bits,
        "group": str(grid.group) if isinstance(grid, Grid) else "",
        "schedule": config.schedule if shares else "",
        "calibration": "+".join(shares),
        "mix_weight": list(shares.values())[-1] if len(shares) > 1 else 1.0,
        "n_windows": config.n_windows if shares else 0,
        "window": config.window if shares else 0,
        "seed": config.seed,
        **{name: provenance[name] for name in ("device", "versions", "commit")},
    }


def _cells(found: Evaluation) -> Iterator[dict]:
    """The columns that differ between the rows of a run."""
    for name, scores in found.texts.items():
        place = {"domain": "tasks" if name == TASK_PROMPTS else domain_of(name), "eval_set": name}
        windows = {metric: scores.per_window(metric) for metric in scores.per_token}
        for quantity in quantities_over("windows", "tokens"):
            if set(quantity.items) <= set(windows):
                yield _cell(place, quantity, scores.per_token if quantity.over == "tokens" else windows)
    for name, result in found.tasks.items():
        place = {"domain": result.domain, "eval_set": name}
        yield _cell(place, task_quantity(result.metric), result.items)
    for name, result in found.answers.items():
        for quantity in quantities_over("answers"):
            yield _cell({"domain": "instruction", "eval_set": f"{name} answers"}, quantity, result.items)


def _layer_cells(report: CompressionReport) -> Iterator[dict]:
    errors = [math.nan if layer.relative_error is None else layer.relative_error for layer in report.layers]
    if errors and all(map(math.isfinite, errors)):
        place = {"domain": "calibration", "eval_set": "layers"}
        yield _cell(place, QUANTITIES["layer_error"], {"relative_error": errors})


def _cell(place: dict, quantity: Quantity, items: Mapping[str, ArrayLike]) -> dict:
    estimate = quantity.estimate(items)
    numbers = {name: float(f"{getattr(estimate, name):.6g}") for name in ("value", "lo", "hi")}
    of = {"unit": quantity.unit, "higher_is_better": quantity.higher_is_better}
    return place | {"metric": quantity.name, **numbers, "n": estimate.n, **of}


def _short(layer: dict) -> dict:
    """A layer's report in four digits, what is absent or no number left out: thousands of these go into git."""
    flat = {k: v for k, v in layer.items() if k not in ("losses", "facts")} | layer["facts"]
    flat |= {f"loss {source}": loss for source, loss in layer["losses"].items()}
    short = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in flat.items() if v is not None}
    return {k: v for k, v in short.items() if not isinstance(v, float) or math.isfinite(v)}


def _items(found: Evaluation) -> dict[str, dict[str, list]]:
    """Per-window means and token quantiles of texts, per-item outcomes of tasks and answers, by evaluation set."""
    texts = {
        name: {metric: [float(f"{v:.6g}") for v in scores.per_window(metric)] for metric in scores.per_token}
        for name, scores in found.texts.items()
    }
    for name, scores in found.texts.items():
        if "js_divergence" in scores.per_token:  # the distribution over all tokens, in a few numbers
            values = np.quantile(scores.per_token["js_divergence"].double().numpy(), _QUANTILES)
            divergences = [float(f"{value:.4g}") for value in values]
            texts[f"{name} tokens"] = {"quantile": list(_QUANTILES), "js_divergence": divergences}
    answers = {f"{name} answers": result.items for name, result in found.answers.items()}
    return texts | {name: result.items for name, result in found.tasks.items()} | answers
