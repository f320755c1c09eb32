import json
from pathlib import Path

import numpy as np
import pytest

from crosscal.results.quantities import QUANTITIES, quantities_over, task_quantity
from crosscal.results.store import load_runs

STORED = Path(__file__).parents[3] / "results" / "full"


def test_quantities_are_those_of_the_stored_rows():
    stored = set()
    for path in STORED.glob("*.json"):
        stored |= {(r["metric"], r["unit"], r["higher_is_better"]) for r in json.loads(path.read_text())["rows"]}
    assert stored <= {(q.name, q.unit, q.higher_is_better) for q in QUANTITIES.values()}


def test_quantities_give_stored_rows_again():
    checked = set()
    for record in load_runs(STORED, with_items=True)[:40]:
        for row in record.rows:
            quantity = QUANTITIES[row.metric]
            items = record.items.get(row.eval_set, {})
            if quantity.over != "tokens" and set(quantity.items) <= set(items):  # of tokens, quantiles are kept
                estimate = quantity.estimate(items)
                assert [estimate.value, estimate.lo, estimate.hi] == pytest.approx(
                    [row.value, row.lo, row.hi], rel=1e-4
                )
                assert estimate.n == row.n
                checked.add(row.metric)
    assert checked >= {"perplexity", "js_divergence", "top1_agreement", "accuracy", "accuracy_per_char"}


def test_auc_is_of_scores_and_golds():
    estimate = QUANTITIES["auc"].estimate({"score": [0.9, 0.1, 0.1], "gold": [1, 0, 1]})
    assert estimate.value == 0.75
    assert estimate.n == 3


def test_percentiles_are_over_tokens():
    tokens = np.arange(20.0).reshape(2, 10)
    estimate = QUANTITIES["js_divergence_p50"].estimate({"js_divergence": tokens})
    assert estimate.value == 9.5
    assert estimate.n == 2


def test_quantities_over_name_every_kind_once():
    kinds = ("windows", "tokens", "task", "answers", "layers")
    assert sorted(q.name for kind in kinds for q in quantities_over(kind)) == sorted(QUANTITIES)


def test_task_quantity_of_a_harness_metric_is_a_mean():
    assert task_quantity("f1").estimate({"correct": [0.0, 0.5]}).value == 0.25
