"""What the two pages to explore hold: every row once, and ratios that agree with the stored losses."""

import json
import math

import numpy as np
import pytest

from crosscal.results.frame import Results, read_results
from crosscal_book.pages.explore import _every_row, _run_facts, _trade_offs, explore_data
from tests.unit.conftest import write_study


@pytest.fixture
def study(tmp_path):
    """A made-up study of one model."""
    ids = write_study(tmp_path, items=4, windows=3)
    return read_results(tmp_path, ids)


def test_every_row_is_there_once_with_its_run(study):
    found = _every_row(study)
    assert len(found["rows"]) == len(study.rows)
    assert len(found["runs"]) == study.rows["run_id"].nunique()
    for number, name, metric, value, lo, hi, n in found["rows"]:
        run_id = found["runs"][number][-1]
        row = study.only(run_id=run_id, eval_set=found["sets"][name], metric=found["metrics"][metric]).iloc[0]
        assert (value, lo, hi) == pytest.approx((row["value"], row["lo"], row["hi"]), rel=1e-4)
        assert n == row["n"]


def test_points_are_ratios_to_the_dense_model(study):
    rows = study.rows.assign(domain=np.where(study.rows["eval_set"] == "pubmed", "biomedical", study.rows["domain"]))
    results = Results(rows, study.items, study.provenance)
    found = _trade_offs(results)
    assert len(found["points"]) == len(results.run_ids) - 1
    for point in found["points"]:
        for text, (ratio, lo, hi) in point["texts"].items():
            dense = results.items[results.dense_id][text]["nll"]
            match = [
                math.exp(np.mean(np.array(results.items[i][text]["nll"]) - np.array(dense)))
                for i in results.run_ids
                if text in results.items[i]
            ]
            assert any(ratio == pytest.approx(value, rel=1e-3) for value in match)
            assert lo <= ratio <= hi


def test_words_of_a_run():
    run = dict.fromkeys(("run_id", "model", "pattern", "schedule"), "x")
    run |= {"method": "wanda", "seed": 2, "n_windows": 16, "window": 512}
    mixed = _run_facts(run | {"calibration": "c4+pubmed", "mix_weight": 0.25}, {})
    assert mixed == ["x", "Wanda", "x", "c4 + pubmed (0.25 on the last)", "16 × 512", "2", "x"]
    assert _run_facts(run | {"calibration": "", "mix_weight": 0.0}, {})[3:5] == ["", ""]
    told = {"x": {"allocation": "owl", "options": [["act_order", True], ["block", 64]]}}
    assert _run_facts(run | {"calibration": "", "mix_weight": 0.0}, told)[2] == "x, OWL, act_order, block 64"


def test_the_data_cannot_end_its_element(study):
    rows = study.rows.assign(calibration="</script><b>")
    for text in explore_data(Results(rows, study.items, study.provenance)).values():
        inside = text.split(">", 1)[1].rsplit("</script>", 1)[0]
        assert "</" not in inside
        json.loads(inside)
