"""A made-up study: the shape of real results, so that tables, figures and pages can be tried without a model."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from crosscal.results.frame import Results, read_results
from crosscal.results.store import RunRecord, save_run
from crosscal.types import Row, parse_pattern

PATTERNS = ("30%", "40%", "50%", "60%", "70%", "4:8", "2:4")
TEXTS = {"pubmed": "biomedical", "legal": "legal", "wikipedia": "general", "news": "general"}
TASKS = {  # name: (domain, metric, chance, dense score)
    "common_knowledge": ("general", "accuracy", 0.21, 0.73),
    "sciq": ("general", "accuracy", 0.25, 0.57),
    "arc_easy": ("general", "accuracy", 0.25, 0.54),
    "piqa": ("general", "accuracy_per_char", 0.50, 0.65),
    "openbookqa": ("general", "accuracy_per_char", 0.25, 0.27),
    "pubmedqa_yes_no": ("biomedical", "auc", 0.50, 0.66),
    "abstract_question": ("biomedical", "accuracy_per_char", 0.25, 0.85),
    "case_summary": ("legal", "accuracy_per_char", 0.25, 0.82),
    "question_clause": ("legal", "accuracy", 0.50, 0.92),
}
HARM = {"magnitude": 2.2, "wanda": 1.0, "sparsegpt": 0.7}


def write_study(folder: Path, preset: str = "quick", items: int = 100, windows: int = 12) -> list[str]:
    """Dense and three pruning methods at seven patterns; made up from one seeded draw per window and item."""
    random = np.random.default_rng(0)
    texts = {t: 2.7 + 0.3 * random.random() + 0.2 * random.standard_normal(windows) for t in TEXTS}
    ability = {t: random.random(items) for t in TASKS}
    gold = {t: np.arange(items) % 2 for t in TASKS}
    run_ids = []
    for method, pattern in [("dense", "0%")] + [(m, p) for m in HARM for p in PATTERNS]:
        sparsity = parse_pattern(pattern).sparsity
        damage = 0.0 if method == "dense" else HARM[method] * (2.2 * sparsity) ** 4 * (1.3 if ":" in pattern else 1)
        run_id = f"{method}-{pattern.replace('%', '').replace(':', 'of')}"
        rows, outcomes = [], {}
        for text, domain in TEXTS.items():
            nll = texts[text] + damage * (0.35 + 0.03 * random.standard_normal(windows))
            outcomes[text] = {"nll": [round(float(v), 5) for v in nll]}
            value, se = math.exp(nll.mean()), nll.std() / math.sqrt(windows)
            row = (domain, text, "perplexity", value, value * math.exp(-2 * se), value * math.exp(2 * se), windows)
            rows.append(_row(run_id, preset, method, pattern, sparsity, row, False))
            if method != "dense":
                js = min(0.69, 0.08 * damage)
                row = (domain, text, "js_divergence", js, 0.9 * js, min(0.69, 1.1 * js), windows)
                rows.append(_row(run_id, preset, method, pattern, sparsity, row, False))
        for task, (domain, metric, chance, dense) in TASKS.items():
            rate = chance + (dense - chance) * math.exp(-0.35 * damage)
            if metric == "auc":
                score = (2 * rate - 1) * 1.2 * gold[task] + np.array(ability[task])
                outcomes[task] = {
                    "id": list(range(items)),
                    "score": score.round(4).tolist(),
                    "gold": gold[task].tolist(),
                }
                value = rate
            else:
                correct = (ability[task] < rate).astype(int)
                outcomes[task] = {"id": list(range(items)), "correct": correct.tolist()}
                value = float(correct.mean())
            half = 1.96 * math.sqrt(value * (1 - value) / items)
            row = (domain, task, metric, value, value - half, value + half, items)
            rows.append(_row(run_id, preset, method, pattern, sparsity, row, True))
        chances = {name: {"chance": chance} for name, (_, _, chance, _) in TASKS.items()}
        provenance = {"tasks": chances, "created": "2026-01-01T00:00:00Z", "machine": "a test"}
        save_run(folder, RunRecord(run_id, {"method": method}, provenance, rows, [], outcomes))
        run_ids.append(run_id)
    return run_ids


def _row(run_id, preset, method, pattern, sparsity, values, higher) -> Row:
    domain, eval_set, metric, value, lo, hi, n = values
    unit = {"perplexity": "perplexity", "js_divergence": "nats per token"}.get(metric, "fraction")
    calibrated = method in ("wanda", "sparsegpt")
    return Row(
        run_id, preset, "made-up", method, pattern, sparsity, 16, "", 16.0, "sublayer", "c4" if calibrated else "", 0.0,
        16 if calibrated else 0, 512, 0, domain, eval_set, metric, value, lo, hi, n, unit, higher, 1.0, 1_000_000,
        "cpu", json.dumps({"torch": "2.13.0"}), "0123456789",
    )  # fmt: skip


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A results folder with the made-up study."""
    folder = tmp_path_factory.mktemp("results") / "quick"
    write_study(folder)
    return folder


@pytest.fixture(scope="session")
def results(folder) -> Results:
    """The made-up study, read back."""
    return read_results(folder)
