"""Chapter 1's comparisons at equal perplexity, its breaking points, and runs with uneven sparsity."""

import dataclasses

import numpy as np
import pytest

from crosscal.results.compare import TASK_METRICS, accuracy_tasks
from crosscal.results.frame import Results
from crosscal_book.chapters.perplexity import CHAPTER, RATIOS, _at, _breaking_points, _curves, _first_below
from crosscal_book.claims import FAILS, HOLDS, OPEN


def verdict(results: Results, name: str = "same-tasks-at-equal-perplexity"):
    return CHAPTER.page(results).verdicts(name)[0]


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
    pairs = CHAPTER.page(results).rows("same-tasks-at-equal-perplexity")
    assert len(pairs) > 3
    assert (pairs["p_holm"] > 0.05).all()
    assert verdict(results).answer != FAILS


def test_a_method_with_worse_tasks_at_equal_perplexity_is_found(results):
    worse = verdict(with_worse_tasks(results, "wanda"))
    assert worse.answer == FAILS
    assert "Wanda" in worse.effect
    assert "[" in worse.effect


def test_nothing_is_said_of_one_method_alone(results):
    only = results.subset([i for i in results.run_ids if i.startswith("wanda")])
    assert verdict(only).answer == OPEN
    assert CHAPTER.page(only).table("equal-perplexity").head == ["perplexity", "Wanda"]


def test_changes_between_two_runs_are_interpolated(results):
    for curve in _curves(CHAPTER.page(results)).values():
        changes = [draws[0] for ratio in RATIOS if (draws := _at(curve, ratio)) is not None]
        assert (np.diff(changes) <= 1e-9).all(), "more perplexity, fewer right answers, in the made-up study"


def test_the_first_fall_below_a_limit_is_where_the_line_crosses_it():
    curve = np.array([[0.0, 0.0], [-0.1, 0.0], [-0.3, -0.1]])
    assert _first_below(np.array([0.0, 0.5, 0.6]), curve, -0.2) == pytest.approx([0.55, 1.0])


def test_a_task_that_breaks_at_once_breaks_first(results):
    points = _breaking_points(CHAPTER.page(with_worse_tasks(results, "sparsegpt")))
    broken = points[points["method"] == "sparsegpt"]
    assert (broken["value"] <= 0.5).all()
    assert not broken["censored"].any()
    assert "beyond 70" in str(CHAPTER.page(results).table("breaking"))
    assert "First to break are" in str(CHAPTER.page(results).takeaways())


def test_uneven_sparsity_is_compared_with_its_twin_and_kept_out_of_the_rest(results):
    twin, other = "wanda-50", "wanda-60"
    configs = {twin: {"a": 1, "allocation": "uniform"}, other: {"a": 1, "allocation": "owl"}}
    uneven = dataclasses.replace(results, configs=configs)
    assert other not in CHAPTER.page(uneven).results.run_ids
    table = CHAPTER.page(uneven).table("allocation")
    assert len(table.body) == 1
    assert float(table.body[0][1].split("×")[0]) > 1, "the made-up run at 60 % is worse than the one at 50 %"


def test_tables_hold_intervals(results):
    text = str(CHAPTER.page(results).table("equal-perplexity"))
    assert "p " in text
    assert "[" in text


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
    changed = _with(results, nll_shift, flips)
    assert verdict(changed, "hidden-loss").answer == answer
    assert f": **{answer}**. " in str(CHAPTER.page(changed).takeaways())


def test_too_few_items_cannot_tell(results):
    few = _with(results, 0.02, 0.0)
    for run_id, entries in few.items.items():
        for name, entry in entries.items():
            if "correct" in entry:
                kept = {key: values[:6] for key, values in entry.items()}
                if run_id != few.dense_id and name == "sciq":
                    kept["correct"] = [1 - kept["correct"][0], *kept["correct"][1:]]
                entries[name] = kept
    assert verdict(few, "hidden-loss").answer == OPEN


def test_without_a_usable_task_nothing_is_claimed(results):
    hopeless = dataclasses.replace(
        results, rows=results.rows.assign(lo=results.rows["lo"].where(~results.rows["metric"].isin(TASK_METRICS), 0.0))
    )
    page = CHAPTER.page(hopeless)
    assert verdict(hopeless, "hidden-loss").answer == OPEN
    assert "above chance on no accuracy task" in str(page.takeaways())
    for name in ("fig-loss-perplexity", "fig-accuracy"):
        assert "nothing to compare" in page.figure(name).caption
    assert "0 of 0" in page.figure("fig-tasks").caption
    for name in ("headline", "tasks"):
        assert "|" in str(page.table(name))


def test_the_takeaway_names_what_is_left_out(results):
    words = "Left out, because the dense model is not above chance: openbookqa."
    assert words in str(CHAPTER.page(results).takeaways())


def test_tables_have_equally_many_cells_in_every_line(results):
    for table in map(CHAPTER.page(results).table, ("headline", "tasks", "perplexity")):
        lines = [line for line in str(table).splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1
        assert all("[" in line for line in lines[2:])


@pytest.mark.parametrize("name", CHAPTER.figures)
def test_a_figure_is_valid_repeatable_and_says_what_it_shows(results, name):
    first, second = (CHAPTER.page(results).figure(name) for _ in range(2))
    assert (first.svg, first.csv) == (second.svg, second.csv)
    assert any(character.isdigit() for character in first.caption)
    assert len(first.alt) > 40
    assert set(first.frame["run_id"]) <= set(results.run_ids)
