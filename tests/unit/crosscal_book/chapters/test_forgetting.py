"""Chapter 6 on made-up runs whose answers are known: rates of right answers and losses are set by hand."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from crosscal.results.frame import Results, read_results
from crosscal.results.quantities import ACCURACY
from crosscal.results.store import RunRecord, save_run
from crosscal.stats import Estimate
from crosscal.types import Row
from crosscal_book.chapters import forgetting
from crosscal_book.claims import FAILS, HOLDS, OPEN, mean
from crosscal_book.numbers.skills import READING, TYPOS, Skills

PAGES: dict[int, object] = {}


def page_of(results: Results):
    """The chapter on some results; one page each, because its numbers are cached by page."""
    return PAGES.setdefault(id(results), forgetting.CHAPTER.page(results))


def numbers(results: Results) -> Skills:
    return forgetting._skills(page_of(results))


def verdicts(results: Results):
    return page_of(results).verdicts()


DENSE = {  # task: rate of right answers; chance is 0.25, 0 (lambada) or 0.5 (language)
    "sciq": 0.65, "sciq_reading": 0.85, "lambada": 0.5, "agreement": 0.95, "sciq_typos": 0.6,
    "sciq_rephrased": 0.64, "fact_recall": 0.26,
}  # fmt: skip
CHANCE = {"lambada": 0.0, "agreement": 0.5, "fact_recall": 0.25}
MILD, HARD = ("sparsegpt", "30%", 12.2, 0.04), ("sparsegpt", "50%", 9.0, 0.4)


def study(folder, runs: dict, items: int = 240, windows: int = 8, tasks=tuple(DENSE)) -> Results:
    """Dense and `runs`: {(method, pattern, bits, loss): {task: fall of the rate}}; fact_recall is at chance."""
    draw = np.random.default_rng(3)
    base = {text: 2.7 + 0.2 * draw.standard_normal(windows) for text in ("pubmed", "news")}
    ability = draw.permutation((np.arange(items) + 0.5) / items)  # even, so that rates are met exactly
    ids = []
    for (method, pattern, bits, loss), falls in {("dense", "0%", 16.0, 0.0): {}, **runs}.items():
        run_id = f"{method}-{pattern}".replace("%", "").replace(" ", "-").replace(":", "of")
        common = (run_id, method, pattern, bits)
        rows, outcomes = [], {}
        for text, nll in base.items():
            losses = nll + loss * (1 + 0.1 * draw.standard_normal(windows))
            outcomes[text] = {"nll": losses.tolist()}
            rows.append(_row(common, "general", text, "perplexity", math.exp(losses.mean()), 0.0, 99.0, windows))
        for task in tasks:
            rate = DENSE[task] - falls.get(task, 0.0)
            n = items - 20 if task == "sciq_reading" else items  # some questions have no paragraph
            order = range(items)[::-1][:n] if task == "sciq_reading" else range(n)
            right = [int(ability[i] < rate) for i in order]
            margins = [float(4 * (rate - ability[i])) for i in order]
            outcomes[task] = {"id": [f"q{i}" for i in order], "correct": right, "margin": margins}
            value = float(np.mean(right))
            half = 1.96 * math.sqrt(value * (1 - value) / n)
            rows.append(_row(common, "general", task, "accuracy", value, value - half, value + half, n))
        chances = {"tasks": {task: {"chance": CHANCE.get(task, 0.25)} for task in tasks}}
        save_run(folder, RunRecord(run_id, {"method": method}, chances, rows, [], outcomes))
        ids.append(run_id)
    return read_results(folder, ids)


def _row(common, domain, eval_set, metric, value, lo, hi, n) -> Row:
    run_id, method, pattern, bits = common
    return Row(
        run_id, "quick", "made-up", method, pattern, 0.5, 16, "", bits, "sublayer", "c4", 1.0, 16, 512, 0, domain,
        eval_set, metric, value, lo, hi, n, "fraction of items", metric == "accuracy", 1.0, 1, "cpu",
        json.dumps({"torch": "2.13.0"}), "0123456789",
    )  # fmt: skip


KNOWLEDGE_LOST = {"sciq": 0.2, "sciq_typos": 0.34, "sciq_rephrased": 0.2, "sciq_reading": 0.02}
LOW = "low rank 56.25%"


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    """Knowledge is lost, reading is not; typos hurt more after compression; ASVD is best, low rank loses."""
    runs = {
        MILD: KNOWLEDGE_LOST,
        HARD: KNOWLEDGE_LOST,
        ("wanda", "50%", 9.0, 0.6): KNOWLEDGE_LOST,
        ("asvd", LOW, 8.99, 1.0): {task: 0.6 * (DENSE[task] - CHANCE.get(task, 0.25)) for task in DENSE},
        ("svd", LOW, 8.99, 3.5): {task: DENSE[task] - CHANCE.get(task, 0.25) for task in DENSE},
        ("fwsvd", LOW, 8.99, 3.0): {task: DENSE[task] - CHANCE.get(task, 0.25) for task in DENSE},
    }
    return study(tmp_path_factory.mktemp("forgetting"), runs)


def test_the_skills_are_the_registrys_without_variants_and_without_tasks_at_chance(results):
    assert numbers(results).members == {
        "knowledge": ["sciq"],
        "reading": ["sciq_reading", "lambada"],
        "language": ["agreement"],
    }
    assert numbers(results).pairs[READING] == [("sciq", "sciq_reading")]
    assert numbers(results).pairs[TYPOS] == [("sciq_typos", "sciq")]
    columns = numbers(results).columns([results.dense_id], ("sciq", "sciq_reading"), "correct")
    assert len(columns) == 220


def test_shares_of_skill_are_those_that_were_put_in(results):
    kept = numbers(results).kept.query("key == 'correct'").set_index(["run_id", "skill"])
    line = kept.loc[("sparsegpt-30", "knowledge")]
    assert line["value"] == pytest.approx(100 * 0.2 / 0.4, abs=2)
    assert line["lo"] < line["value"] < line["hi"]
    assert kept.loc[("sparsegpt-30", "language"), "value"] == 100
    assert kept.loc[(f"svd-{LOW}".replace("%", "").replace(" ", "-"), "reading"), "value"] == pytest.approx(0, abs=3)
    reading = kept.loc[("asvd-low-rank-56.25", "reading"), "value"]
    assert reading == pytest.approx(40, abs=3)  # both tasks keep two fifths
    shifts = numbers(results).kept.query("key == 'margin'").set_index(["run_id", "skill"])["value"]
    assert shifts[("sparsegpt-30", "knowledge")] < -0.5


def test_runs_stand_by_perplexity_and_ruined_ones_enter_no_contrast(results):
    assert list(numbers(results).runs["method"]) == [
        "sparsegpt",
        "sparsegpt",
        "wanda",
        "asvd",
        "fwsvd",
        "svd",
    ]
    assert list(numbers(results).runs["ruined"]) == [False] * 4 + [True] * 2
    contrasts = numbers(results).contrasts
    assert contrasts.loc[contrasts["series"] == "run", "name"].nunique() == 4
    assert "Left out of contrasts" in str(page_of(results).takeaways())


def test_a_contrast_is_paired_and_pooled(results):
    one = numbers(results).contrast(("sparsegpt-30",), (("sciq", "sciq_reading"),))
    both = numbers(results).contrast(("sparsegpt-30", "sparsegpt-50"), (("sciq", "sciq_reading"),))
    assert one["points"].value == pytest.approx(-0.18, abs=0.02)
    assert one["share"].value == pytest.approx(-0.5 + 0.02 / 0.6, abs=0.04)
    assert one["margin"].value == pytest.approx(4 * -0.18, abs=1e-6)  # the same for every question: no interval
    assert one["margin"].lo == pytest.approx(one["margin"].hi)
    assert both == one  # the same falls, on the same items: two runs tell no more than one


def test_questions_are_matched_by_id_whatever_their_order(results):
    dense = results.items[results.dense_id]
    alone, given = (dict(zip(dense[t]["id"], dense[t]["correct"], strict=True)) for t in ("sciq", "sciq_reading"))
    gap = numbers(results).dense_gap(READING)
    assert gap.value == pytest.approx(np.mean([alone[i] - right for i, right in given.items()]), abs=1e-12)
    assert gap.hi <= 0  # no question is right alone and wrong with its paragraph


def test_the_claims_hold_where_the_runs_say_so(results):
    answers = [verdict.answer for verdict in verdicts(results)]
    lost, pairs, typos, rephrasing, asvd, low_rank = answers
    assert (lost, pairs, typos) == (HOLDS, HOLDS, HOLDS)
    assert rephrasing == FAILS  # plain and rephrased questions fall by the same
    assert asvd == HOLDS
    assert low_rank == HOLDS
    for verdict in verdicts(results):
        assert "[" in verdict.effect
        assert verdict.evidence.startswith("fig-forgetting-")


def test_a_claim_about_two_rivals_needs_both(results):
    runs = results.rows.drop_duplicates("run_id")
    others = results.subset(runs.loc[runs["method"] != "fwsvd", "run_id"])
    assert verdicts(others)[4].answer == OPEN


def test_the_claims_fail_where_the_runs_say_the_opposite(tmp_path):
    runs = {
        MILD: {"sciq_reading": 0.3, "sciq_typos": -0.02},
        ("asvd", LOW, 8.99, 1.0): {"sciq_reading": 0.3, "lambada": 0.1},
        ("svd", LOW, 8.99, 0.5): {"sciq_reading": 0.3},
        HARD: {"sciq_reading": 0.5, "lambada": 0.4, "sciq": 0.3},
    }
    results = study(tmp_path, runs)
    lost, pairs, _, _, asvd, low_rank = [verdict.answer for verdict in verdicts(results)]
    assert lost == FAILS  # knowledge stays exactly as it was
    assert pairs == FAILS
    assert asvd == FAILS
    assert low_rank == FAILS


def test_without_its_runs_a_claim_cannot_be_told(tmp_path):
    results = study(tmp_path, {HARD: {}}, items=40, tasks=("agreement",))
    for verdict in verdicts(results):
        assert verdict.answer == OPEN
        assert verdict.effect
    for figure in _figures(results):
        assert figure.caption
    for table in _tables(results):
        assert "|" in str(table)


def test_without_a_mild_run_the_nearest_is_told_but_nothing_is_claimed(tmp_path):
    verdict = verdicts(study(tmp_path, {HARD: KNOWLEDGE_LOST}))[0]
    assert verdict.answer == OPEN
    assert "the nearest, SparseGPT 50% at 1.4" in verdict.effect
    assert "knowledge −20" in verdict.effect


def test_collapsed_runs_are_counted_in_the_table_only(results):
    assert "mean of runs, collapsed ones too" in str(page_of(results).table("contrasts"))


def test_few_noisy_items_cannot_tell(tmp_path):
    results = study(tmp_path, {MILD: {"sciq": 0.05, "sciq_typos": 0.1}}, items=40)
    answers = [verdict.answer for verdict in verdicts(results)]
    assert answers[0] == OPEN
    assert answers[2] == OPEN


def test_two_scales_that_contradict_each_other_tell_nothing():
    def sure(value):
        return Estimate(value, value - 0.02, value + 0.02, 100, 0.001)

    def told(share: float, moved: float, p_holm: float | None = None) -> str:
        estimate = sure(share)
        tested = forgetting._judged(estimate, sure(moved), estimate.p if p_holm is None else p_holm)
        row = pd.DataFrame([vars(estimate) | tested])
        rule = mean("worse", by=forgetting.SAME)
        return rule.answer(rule.judge(row, ACCURACY))

    assert told(-0.2, 0.1) == OPEN
    assert told(-0.2, -0.1) == HOLDS
    assert told(-0.2, -0.1, p_holm=0.2) == OPEN
    assert told(0.2, 0.1) == FAILS
    assert told(0.01, 0, p_holm=0.5) == FAILS


def test_equal_storage_pairs_the_best_by_perplexity(results):
    table = forgetting._matches(page_of(results)).query("family == 'storage'")
    best = table[table["best"]]
    assert list(best["method"]) == ["asvd"]
    assert list(best["name_of"]) == ["SparseGPT 50%"]  # 30 % takes a third more
    assert len(table) == 6


def test_figures_say_what_they_show_and_are_repeatable(results):
    for name in forgetting.CHAPTER.figures:
        first, second = (page_of(results).figure(name) for _ in range(2))
        assert (first.svg, first.csv) == (second.svg, second.csv)
        assert first.name.startswith("fig-forgetting-")
        assert any(character.isdigit() for character in first.caption)
        assert len(first.alt) > 40


def test_tables_have_equally_many_cells_and_intervals(results):
    for table in _tables(results):
        lines = [line for line in str(table).splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1
        assert all("[" in line for line in lines[2:])


def _figures(results):
    return [page_of(results).figure(name) for name in forgetting.CHAPTER.figures]


def _tables(results):
    return [page_of(results).table(name) for name in forgetting.CHAPTER.tables]
