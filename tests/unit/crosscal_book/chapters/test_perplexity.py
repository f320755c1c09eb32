"""Chapter 1's comparisons at equal perplexity, its breaking points, and runs with uneven sparsity."""

import dataclasses

import numpy as np
import pytest

from crosscal.results.compare import accuracy_tasks
from crosscal.results.frame import Results
from crosscal_book.chapters.perplexity import (
    _first_below,
    allocation_table,
    at_equal_perplexity,
    breaking_points,
    breaking_table,
    equal_perplexity_pairs,
    equal_perplexity_table,
    first_to_break,
    same_tasks_at_equal_perplexity,
    uniform,
)
from crosscal_book.verdicts import FAILS, OPEN


def with_worse_tasks(results: Results, method: str) -> Results:
    """The same results, but one method answers every item wrong once it is pruned by 50 % or more."""
    items = {run_id: dict(sets) for run_id, sets in results.items.items()}
    for run_id in results.run_ids:
        run = results.describe_run(run_id)
        if run["method"] == method and run["sparsity"] >= 0.5:
            for task in accuracy_tasks(results)["eval_set"]:
                items[run_id][task] = items[run_id][task] | {"correct": [0] * len(items[run_id][task]["correct"])}
    return dataclasses.replace(results, items=items)


def test_equal_methods_are_not_told_apart(results):
    """The made-up tasks depend on the damage alone, as the perplexity does."""
    pairs = equal_perplexity_pairs(results)
    assert len(pairs) > 3
    assert (pairs["p_holm"] > 0.05).all()
    assert same_tasks_at_equal_perplexity(results).answer != FAILS


def test_a_method_with_worse_tasks_at_equal_perplexity_is_found(results):
    verdict = same_tasks_at_equal_perplexity(with_worse_tasks(results, "wanda"))
    assert verdict.answer == FAILS
    assert "Wanda" in verdict.effect
    assert "[" in verdict.effect


def test_nothing_is_said_of_one_method_alone(results):
    only = results.subset([i for i in results.run_ids if i.startswith("wanda")])
    assert same_tasks_at_equal_perplexity(only).answer == OPEN
    assert at_equal_perplexity(only)["method"].unique().tolist() == ["wanda"]


def test_changes_between_two_runs_are_interpolated(results):
    frame = at_equal_perplexity(results)
    for _, lines in frame.groupby("method"):
        changes = lines.sort_values("ratio")["change"].to_numpy()
        assert (np.diff(changes) <= 1e-9).all(), "more perplexity, fewer right answers, in the made-up study"
    assert (frame["lo"] <= frame["change"]).all()
    assert (frame["change"] <= frame["hi"]).all()


def test_the_first_fall_below_a_limit_is_where_the_line_crosses_it():
    curve = np.array([[0.0, 0.0], [-0.1, 0.0], [-0.3, -0.1]])
    assert _first_below(np.array([0.0, 0.5, 0.6]), curve, -0.2) == pytest.approx([0.55, 1.0])


def test_a_task_that_breaks_at_once_breaks_first(results):
    found = breaking_points(with_worse_tasks(results, "sparsegpt"))
    broken = found[found["method"] == "sparsegpt"]
    assert (broken["value"] <= 0.5).all()
    assert not broken["censored"].any()
    assert "beyond 70" in str(breaking_table(results))
    assert first_to_break(results).startswith("First to break are")


def test_uneven_sparsity_is_compared_with_its_twin_and_kept_out_of_the_rest(results):
    twin, other = "wanda-50", "wanda-60"
    configs = {twin: {"a": 1, "allocation": "uniform"}, other: {"a": 1, "allocation": "owl"}}
    uneven = dataclasses.replace(results, configs=configs)
    assert other not in uniform(uneven).run_ids
    table = allocation_table(uneven)
    assert len(table.body) == 1
    assert float(table.body[0][1].split("×")[0]) > 1, "the made-up run at 60 % is worse than the one at 50 %"


def test_tables_hold_intervals(results):
    text = str(equal_perplexity_table(results))
    assert "p " in text
    assert "[" in text
