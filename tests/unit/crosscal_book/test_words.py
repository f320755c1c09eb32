import dataclasses

import numpy as np
import pytest

from crosscal.results.compare import TASK_METRICS
from crosscal.results.frame import Results
from crosscal_book.figures import accuracy_by_sparsity, task_small_multiples
from crosscal_book.tables import headline_table, perplexity_table, task_table
from crosscal_book.takeaways import hidden_loss, takeaway
from crosscal_book.tradeoff import loss_against_perplexity
from crosscal_book.verdicts import FAILS, HOLDS, OPEN, stamp


def _with(results: Results, nll_shift: float, flips: float) -> Results:
    """The made-up study with every compressed run's losses and outcomes set relative to the dense run's."""
    random = np.random.default_rng(5)
    dense = results.items[results.dense_id]
    items = {}
    for run_id in results.run_ids:
        items[run_id] = {}
        for name, entry in dense.items():
            entry = dict(entry)
            if run_id != results.dense_id and "nll" in entry:
                entry["nll"] = [value + nll_shift for value in entry["nll"]]
            if run_id != results.dense_id and "correct" in entry:
                hit = random.random(len(entry["correct"])) < flips
                entry["correct"] = [0 if flip else value for value, flip in zip(entry["correct"], hit, strict=True)]
            items[run_id][name] = entry
    return dataclasses.replace(results, items=items)


@pytest.mark.parametrize(
    ("nll_shift", "flips", "answer"),
    [(0.02, 0.3, HOLDS), (0.02, 0.0, FAILS), (0.5, 0.3, OPEN)],
    ids=["kept perplexity, lost accuracy", "kept both", "kept nothing"],
)
def test_the_verdict_follows_the_rows(results, nll_shift, flips, answer):
    verdict = hidden_loss(_with(results, nll_shift, flips))
    assert verdict.answer == answer
    assert f": **{answer}**. " in str(takeaway(_with(results, nll_shift, flips), "50%"))


def test_too_few_items_cannot_tell(results):
    few = _with(results, 0.02, 0.0)
    for run_id, entries in few.items.items():
        for name, entry in entries.items():
            if "correct" in entry:
                kept = {key: values[:6] for key, values in entry.items()}
                if run_id != few.dense_id and name == "sciq":
                    kept["correct"] = [1 - kept["correct"][0], *kept["correct"][1:]]
                entries[name] = kept
    assert hidden_loss(few).answer == OPEN


def test_without_a_usable_task_nothing_is_claimed(results):
    hopeless = dataclasses.replace(
        results, rows=results.rows.assign(lo=results.rows["lo"].where(~results.rows["metric"].isin(TASK_METRICS), 0.0))
    )
    assert hidden_loss(hopeless).answer == OPEN
    assert "above chance on no accuracy task" in str(takeaway(hopeless, "50%"))
    for figure in (loss_against_perplexity(hopeless), accuracy_by_sparsity(hopeless, "50%")):
        assert "nothing to compare" in figure.caption
    assert "0 of 0" in task_small_multiples(hopeless, "50%").caption
    for table in (headline_table(hopeless, "50%"), task_table(hopeless, "50%")):
        assert "|" in str(table)


def test_the_takeaway_names_what_is_left_out(results):
    assert "Left out, because the dense model is not above chance: openbookqa." in str(takeaway(results, "50%"))


def test_tables_have_equally_many_cells_in_every_line(results):
    for table in (headline_table(results, "50%"), task_table(results, "50%"), perplexity_table(results)):
        lines = [line for line in str(table).splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1
        assert all("[" in line for line in lines[2:])


def test_the_stamp_says_where_numbers_come_from(results):
    made = stamp(results)
    for word in ("quick", "made-up", "cpu", "0123456789", "torch 2.13.0"):
        assert word in str(made)
    assert made.run_ids == results.run_ids
