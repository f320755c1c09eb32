"""Made-up runs for the chapters on quantization and cost: every run's loss, tasks, seconds and memory are chosen."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from crosscal.results.frame import Results, read_results
from crosscal.results.store import RunRecord, save_run
from crosscal.types import Grid, Row, SparseGrid, parse_target, storage_bits

TEXTS = {"pubmed": "biomedical", "legal": "legal", "news": "general"}
TASKS = {"sciq": 0.25, "arc_easy": 0.25}
WINDOWS, ITEMS = 8, 60
SHAPE = (512, 512)


@dataclass(frozen=True)
class Made:
    """A run to make up: `loss` nats per token above the dense model's, give or take `noise` in every window."""

    method: str
    target: str
    loss: float
    noise: float = 0.01
    js: float | None = None
    options: tuple | None = None
    schedule: str = "sublayer"
    wrong: float = 0.0
    seconds: float = 1.0
    peak: int = 100 * 2**20
    layers: list = field(default_factory=list)


def study(folder: Path, runs: Sequence[Made], model: str = "made-up") -> Results:
    """The dense run and these, stored and read back."""
    random = np.random.default_rng(0)
    texts = {text: 2.8 + 0.2 * random.standard_normal(WINDOWS) for text in TEXTS}
    correct = {task: (np.arange(ITEMS) % 10 < 7).astype(int) for task in TASKS}
    ids = []
    for number, made in enumerate([Made("dense", "0%", 0.0, 0.0), *runs]):
        run_id = f"run-{number:02d}"
        rows, items, common = [], {}, _common(run_id, made, model)
        for text, domain in TEXTS.items():
            noise = made.noise * random.standard_normal(WINDOWS)
            losses = texts[text] + made.loss + noise
            items[text] = {"nll": losses.tolist()}
            rows.append(_row(common, domain, text, "perplexity", math.exp(losses.mean()), WINDOWS))
            if made.method != "dense":
                level = max(made.loss / 10, 1e-6) if made.js is None else made.js
                items[text]["js_divergence"] = (level * np.exp(0.02 * random.standard_normal(WINDOWS))).tolist()
                rows.append(_row(common, domain, text, "js_divergence", level, WINDOWS))
        for task in TASKS:
            after = np.where(random.random(ITEMS) < made.wrong, 0, correct[task])
            items[task] = {"id": list(range(ITEMS)), "correct": after.tolist(), "margin": [0.0] * ITEMS}
            rows.append(_row(common, "general", task, "accuracy", float(after.mean()), ITEMS))
        if made.layers:
            error = float(np.mean([layer["relative_error"] for layer in made.layers]))
            rows.append(_row(common, "calibration", "layers", "layer_error", error, len(made.layers)))
        config = {"model": model, "method": made.method, "target": made.target, "seed": 0, "schedule": made.schedule}
        given_order = (("act_order", False),) if made.method == "gptq" else ()
        config |= {"options": [list(pair) for pair in (given_order if made.options is None else made.options)]}
        provenance = {"tasks": {task: {"chance": chance} for task, chance in TASKS.items()}}
        save_run(folder, RunRecord(run_id, config, provenance, rows, made.layers, items))
        ids.append(run_id)
    return read_results(folder, ids)


def _common(run_id: str, made: Made, model: str) -> dict:
    target = parse_target(made.target)
    grid = target.grid if isinstance(target, SparseGrid) else target
    on_grid, calibrated = isinstance(grid, Grid), made.method in ("wanda", "sparsegpt", "gptq", "awq")
    return {
        "run_id": run_id,
        "preset": "quick",
        "model": model,
        "method": made.method,
        "pattern": made.target,
        "sparsity": 0.0,
        "bits": grid.bits if on_grid else 16,
        "group": str(grid.group) if on_grid else "",
        "storage_bits": storage_bits(target, 16, SHAPE),
        "schedule": made.schedule if calibrated else "",
        "calibration": "c4" if calibrated else "",
        "mix_weight": 1.0,
        "n_windows": 16 if calibrated else 0,
        "window": 512 if calibrated else 0,
        "seed": 0,
        "seconds": made.seconds,
        "peak_bytes": made.peak,
        "device": "a machine",
        "versions": "{}",
        "commit": "0123",
    }


def _row(common: dict, domain: str, eval_set: str, metric: str, value: float, n: int) -> Row:
    higher = metric == "accuracy"
    return Row(
        **common,
        domain=domain,
        eval_set=eval_set,
        metric=metric,
        value=value,
        lo=0.9 * value,
        hi=1.1 * value,
        n=n,
        unit="fraction of items" if higher else "",
        higher_is_better=higher,
    )
