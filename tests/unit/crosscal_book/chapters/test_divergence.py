import dataclasses
import json
import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from scipy.stats import spearmanr

from crosscal.results.frame import Results, read_results
from crosscal.results.store import RunRecord, save_run
from crosscal.types import Row
from crosscal_book.chapters import divergence
from crosscal_book.claims import FAILS, HOLDS, OPEN
from crosscal_book.numbers import correlation, tokens
from crosscal_book.numbers.correlation import (
    FLIPS,
    HARSH,
    LOSS,
    MILD,
    PRUNING,
    QUANTIZATION,
    VARIABLES,
    _centred,
    _scopes,
    _spearman,
    associate,
    sample,
    texts_of,
    where,
)

TEXTS = {"pubmed": "biomedical", "news": "general", "task_prompts": "tasks"}
TASKS = {"easy": ("general", 0.25, 0.85), "hard": ("general", 0.25, 0.75), "hopeless": ("legal", 0.5, 0.5)}
SETTINGS = [
    *[(m, p) for m in ("magnitude", "wanda", "sparsegpt") for p in ("10%", "20%", "30%", "40%", "50%", "60%", "2:4")],
    *[(m, f"{b} bits g128") for m in ("rtn", "gptq", "awq") for b in (2, 3, 4, 8)],
]
HARM = [0.05, 0.1, 0.25, 0.6, 1.2, 2.6, 1.8] * 3 + [3.0, 1.0, 0.3, 0.03] * 3
FIGURES = divergence.CHAPTER.figures
PAGES: dict[int, object] = {}


def page_of(results: Results):
    """The chapter on some results; one page each, because its numbers are cached by page."""
    return PAGES.setdefault(id(results), divergence.CHAPTER.page(results))


def verdicts(results: Results):
    return page_of(results).verdicts()


def common(results: Results) -> Results:
    return page_of(results).results


@pytest.fixture(scope="module", autouse=True)
def few_draws():
    """A fifth of the draws: enough for wide intervals, and quick."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(correlation, "DRAWS", 400)
        yield


def make(folder, js=0.0, perplexity=0.0, settings=SETTINGS, copies=1, floor=1e-5, seed=3, layers=True) -> Results:
    """Runs whose tasks fall with a hidden harm that JS and perplexity show with so much noise, in powers of e."""
    random = np.random.default_rng(seed)
    base = {text: 3.0 + 0.2 * random.standard_normal(8) for text in TEXTS}
    ability = {task: random.random(100) for task in TASKS}
    made = [("dense", "0%", 0.0, 0)] + ([] if floor is None else [("float32", "0%", 0.0, 0)])
    harms = [harm * math.exp(0.2 * random.standard_normal()) for harm in HARM]
    pairs = [(s, h) for s, h in zip(SETTINGS, harms, strict=True) if s in settings]
    made += [(*s, h, seed) for s, h in pairs for seed in range(copies)]
    for number, (method, pattern, harm, draw) in enumerate(made):
        shown = {name: harm * math.exp(n * random.standard_normal()) for name, n in (("js", js), ("ppl", perplexity))}
        divergences = (floor or 0.0) if method == "float32" else 0.6 * (1 - math.exp(-0.4 * shown["js"]))
        rows, items = [], {}
        for text, domain in TEXTS.items():
            items[text] = {"nll": list(base[text] + shown["ppl"] * (1 + 0.02 * random.standard_normal(8)))}
            cells = [(domain, text, "perplexity", math.exp(np.mean(items[text]["nll"])), 8)]
            if method != "dense":
                per_window = divergences * (1 + 0.03 * random.standard_normal(8))
                items[text] |= {name: list(f * per_window) for name, f in FACTORS.items()}
                items[text]["top1_agreement"] = list(1 - per_window)
                levels = [0.05, 0.5, 0.9, 0.99, 0.999, 1.0]
                curve = [min(0.69, divergences * f) for f in (0.01, 0.6, 2.2, 4, 6, 7)]
                items[f"{text} tokens"] = {"quantile": levels, "js_divergence": curve}
                cells += [(domain, text, f"js_divergence_p{p}", curve[n], 8) for n, p in ((1, 50), (2, 90), (3, 99))]
            rows += [_row(number, method, pattern, draw, cell) for cell in cells]
        for task, (domain, chance, score) in TASKS.items():
            rate = chance + (score - chance) * math.exp(-0.9 * harm)
            correct = (ability[task] < rate).astype(int)
            items[task] = {"id": list(range(100)), "correct": correct.tolist()}
            rows.append(_row(number, method, pattern, draw, (domain, task, "accuracy", correct.mean(), 100)))
        if method not in ("dense", "float32") and (layers or method != "rtn"):
            rows.append(_row(number, method, pattern, draw, ("calibration", "layers", "layer_error", harm, 30)))
        facts = {"tasks": {task: {"chance": chance} for task, (_, chance, _) in TASKS.items()}}
        save_run(folder, RunRecord(f"run{number:03}", {"method": method}, facts, rows, [], items))
    return read_results(folder)


FACTORS = {"js_divergence": 1.0, "kl_divergence": 5.0, "kl_divergence_reverse": 7.0}


def _row(number, method, pattern, draw, cell) -> Row:
    domain, eval_set, metric, value, n = cell
    source = "c4" if method in ("wanda", "sparsegpt", "gptq", "awq") else ""
    spread = 0.1 * value + 1e-7
    return Row(
        f"run{number:03}", "quick", "made-up", method, pattern, 0.0, 16, "", 16.0, "", source, 1.0, 16, 512, draw,
        domain, eval_set, metric, float(value), value - spread, value + spread, n, "unit", False, 1.0, 1, "cpu",
        json.dumps({"torch": "2.13.0"}), "0123456789",
    )  # fmt: skip


@pytest.fixture(scope="module")
def good_js(tmp_path_factory):
    return make(tmp_path_factory.mktemp("a") / "quick", perplexity=1.2)


@pytest.fixture(scope="module")
def good_perplexity(tmp_path_factory):
    return make(tmp_path_factory.mktemp("b") / "quick", js=1.2)


@pytest.fixture(scope="module")
def both_noisy(tmp_path_factory):
    return make(tmp_path_factory.mktemp("c") / "quick", js=0.9, perplexity=0.9, seed=8)


@pytest.fixture(scope="module")
def too_few(tmp_path_factory):
    return make(tmp_path_factory.mktemp("d") / "quick", settings=SETTINGS[:4], floor=None)


def test_where_js_follows_the_harm_it_tells_more(good_js):
    answers = {verdict.claim: verdict for verdict in verdicts(good_js)}
    for noun in ("accuracy is lost", "answers change", "which model loses more"):
        (found,) = [verdict for claim, verdict in answers.items() if noun in claim]
        assert found.answer == HOLDS, found
        assert "[" in found.effect
        assert "p <" in found.effect or "p =" in found.effect
    assert (where(common(good_js)).query("scope == 'all runs'")["lo"] > 0).all()


def test_where_perplexity_follows_the_harm_the_claim_fails(good_perplexity):
    assert [verdict.answer for verdict in verdicts(good_perplexity)[:2]] == [FAILS, FAILS]
    assert where(common(good_perplexity))["hi"].min() < 0
    assert "Perplexity is ahead" in page_of(good_perplexity).figure("fig-loss-divergence").caption


def test_groups_are_won_only_after_correction(good_js, good_perplexity, monkeypatch):
    few = 2 * 2 / 401 * len(where(common(good_js)))  # the least corrected p that so few draws can give
    monkeypatch.setattr(correlation, "LEVEL", 1.01 * few)
    for results, word, winner in ((good_js, "ahead of", "JS"), (good_perplexity, "behind", "perplexity")):
        page = page_of(results)
        frame = where(page.results)
        assert (frame["p_holm"] >= frame["p"]).all()
        assert f"JS is {word} perplexity in 0" not in divergence._where_sentence(page.results)
        assert page.table("where").body[0][4] == winner
        with monkeypatch.context() as patch:
            patch.setattr(correlation, "LEVEL", 1e-9)
            assert f"JS is {word} perplexity in 0" in divergence._where_sentence(page.results)
            assert page.table("where").body[0][4] == "cannot be told"


def test_where_both_are_as_noisy_it_cannot_be_told(both_noisy):
    verdict = verdicts(both_noisy)[0]
    assert verdict.answer == OPEN, verdict
    assert "Neither is clearly ahead" in page_of(both_noisy).figure("fig-correlations").caption


def test_equal_numbers_differ_by_exactly_nothing(good_js):
    gain = {name: associate(common(good_js)).estimates["gain", name, LOSS] for name in ("js", "kl")}
    assert gain["js"] == gain["kl"]
    assert associate(common(good_js)).estimates["rho", "layers", LOSS].value > 0.95


def test_too_few_settings_claim_nothing(too_few):
    assert [verdict.answer for verdict in verdicts(too_few)] == [OPEN] * 5
    assert "no 6 compressed settings" in verdicts(too_few)[0].effect
    assert "not run in float32" in verdicts(too_few)[4].effect
    page = page_of(too_few)
    for name in FIGURES:
        ElementTree.fromstring(page.figure(name).svg)
    assert "cannot be told" in str(page.takeaways())
    assert [len(page.table(name).body) for name in ("correlations", "where", "runs")] == [0, 0, 4]


def test_hopeless_tasks_are_left_out_and_named(good_js):
    assert "not above chance: hopeless" in str(page_of(good_js).takeaways())
    loss = sample(common(good_js)).runs[LOSS]
    changes = []
    for run_id in sample(common(good_js)).runs["run_id"]:
        scores = [np.mean(good_js.items[i][t]["correct"]) for i in (good_js.dense_id, run_id) for t in ("easy", "hard")]
        changes.append((scores[0] + scores[1] - scores[2] - scores[3]) / 2)
    np.testing.assert_allclose(loss, changes, atol=1e-12)


def test_without_a_usable_task_nothing_is_claimed(good_js):
    rows = good_js.rows.assign(lo=good_js.rows["lo"].where(good_js.rows["metric"] != "accuracy", 0.0))
    hopeless = dataclasses.replace(good_js, rows=rows)
    assert [verdict.answer for verdict in verdicts(hopeless)][:4] == [OPEN] * 4
    assert verdicts(hopeless)[4].answer == HOLDS
    assert "nothing to compare" in page_of(hopeless).figure("fig-loss-divergence").caption
    assert "no correlation is given" in page_of(hopeless).figure("fig-correlations").caption


def test_flips_count_both_ways(good_js):
    run_id = good_js.run_ids[-1]
    items = {i: dict(entries) for i, entries in good_js.items.items()}
    for task in ("easy", "hard"):
        before = good_js.items[good_js.dense_id][task]["correct"]
        right, wrong = before.index(1), before.index(0)
        after = list(before)
        after[right], after[wrong] = 0, 1
        items[run_id][task] = {"id": list(range(100)), "correct": after}
    found = sample(dataclasses.replace(common(good_js), items=items))
    assert found.runs[LOSS].iloc[-1] == pytest.approx(0)
    assert found.runs[FLIPS].iloc[-1] == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("floor", "answer", "words"),
    [
        (1e-5, HOLDS, "rounding alone changes 0.0 %"),
        (0.3, FAILS, "the mildest"),
        (0.0, OPEN, "itself was run in float32"),
        (None, OPEN, "not run in float32"),
    ],
)
def test_the_noise_floor_is_compared_with_every_run(tmp_path, floor, answer, words):
    results = make(tmp_path / "quick", floor=floor)
    verdict = verdicts(results)[4]
    assert verdict.answer == answer
    assert words in verdict.effect
    figure = page_of(results).figure("fig-token-divergence")
    assert ("No noise floor" in figure.caption) == (not floor)


def test_the_noise_floor_counts_as_no_run(good_js):
    found = sample(common(good_js))
    assert found.runs["compressed"].sum() == len(SETTINGS) == associate(common(good_js)).n
    masks = _scopes(found.runs)
    assert not any(mask[~found.runs["compressed"]].any() for mask in masks.values())
    assert masks[PRUNING].sum() + masks[QUANTIZATION].sum() == masks[MILD].sum() + masks[HARSH].sum() == len(SETTINGS)


def test_copies_of_a_setting_do_not_make_intervals_shorter(tmp_path, good_js):
    copied = make(tmp_path / "quick", perplexity=1.2, copies=4)
    for results in (good_js, copied):
        assert associate(common(results)).settings == len(SETTINGS)
    one, four = (associate(common(r)).estimates["rho", "js", LOSS] for r in (good_js, copied))
    assert four.hi - four.lo > 0.6 * (one.hi - one.lo)
    runs = sample(common(copied)).runs
    assert "draw 3" in tokens.run_label(runs.query("calibration == 'c4' and seed == 3").iloc[0], runs)


def test_a_number_that_some_runs_lack_is_judged_on_the_others(tmp_path):
    results = common(make(tmp_path / "quick", layers=False))
    found = sample(results)
    has = found.runs["compressed"] & np.isfinite(found.runs["layers"])
    assert has.sum() == len(SETTINGS) - 4
    values = {name: np.round(found.runs[name][has], 10) for name in ("layers", "perplexity", LOSS)}  # equal losses tie
    expected = [spearmanr(values[name], values[LOSS]).statistic for name in ("layers", "perplexity")]
    estimates = associate(results).estimates
    assert estimates["rho", "layers", LOSS].value == pytest.approx(expected[0])
    assert estimates["gain", "layers", LOSS].value == pytest.approx(expected[0] - expected[1])


def test_divergences_are_means_over_running_text_or_prompts_and_perplexity_its_ratio(good_js):
    found, results = sample(common(good_js)), common(good_js)
    run_id = found.runs["run_id"].iloc[-1]
    for name, texts in (("js", ["pubmed", "news"]), ("js_prompts", ["task_prompts"])):
        mean = np.mean([results.items[run_id][text]["js_divergence"] for text in texts])
        assert found.runs[name].iloc[-1] == pytest.approx(mean)
    dense = results.items[results.dense_id]
    rise = np.mean([np.mean(results.items[run_id][t]["nll"]) - np.mean(dense[t]["nll"]) for t in texts_of(results)])
    assert found.runs["perplexity"].iloc[-1] == pytest.approx(rise)
    assert np.all(np.diff(found.values[VARIABLES.index("layers"), 1]) == 0)


def test_rank_correlations_are_spearmans_with_ties():
    values = np.random.default_rng(0).integers(0, 6, (4, 30)).astype(float)
    np.testing.assert_allclose(_spearman(values), spearmanr(values.T).statistic, atol=1e-12)


def test_partial_correlations_are_those_of_the_residuals_of_ranks(both_noisy):
    found = sample(common(both_noisy))
    table = np.stack([found.runs[name][found.runs["compressed"]] for name in ("js", LOSS, "perplexity")])
    ranks = np.array([[(row < x).sum() + ((row == x).sum() + 1) / 2 for x in row] for row in np.round(table, 10)])
    js, loss = (row - np.polyval(np.polyfit(ranks[2], row, 1), ranks[2]) for row in ranks[:2])
    expected = np.corrcoef(js, loss)[0, 1]
    assert associate(common(both_noisy)).estimates["partial", "js", LOSS].value == pytest.approx(expected)


def test_a_moved_interval_holds_its_estimate_and_stays_a_correlation():
    draws = np.random.default_rng(0).uniform(0.2, 0.9, 1000)
    moved = _centred(0.97, draws, 9, fisher=True)
    assert -1 < moved.lo < 0.97 < moved.hi < 1
    assert _centred(0.0, draws, 9, fisher=False).p > 0.9


def test_matched_runs_have_equal_perplexity_and_different_methods(good_js, monkeypatch):
    runs = tokens.matched(common(good_js))
    assert len(runs) >= 2
    assert runs["method"].is_unique
    assert runs["ratio"].max() / runs["ratio"].min() <= 1.05**2
    assert runs["ratio"].min() > 1.1
    for kept in (3.0, float("inf")):
        monkeypatch.setattr(tokens, "KEPT", kept)
        others = tokens.matched(good_js.common())
        assert others["ratio"].min() > 3.0 if kept == 3.0 else len(others) >= len(runs)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_valid_repeatable_and_says_what_it_shows(good_js, name):
    first, second = (page_of(good_js).figure(name) for _ in range(2))
    assert (first.svg, first.csv) == (second.svg, second.csv)
    root = ElementTree.fromstring(first.svg)
    assert root.find("{http://www.w3.org/2000/svg}title").text == first.alt
    assert any(character.isdigit() for character in first.caption)
    assert len(first.alt) > 40


def test_tables_have_equally_many_cells_and_an_interval_in_every_line(good_js):
    tables = {name: page_of(good_js).table(name) for name in ("correlations", "where", "runs")}
    for table, length in zip(tables.values(), (24, 8, 34), strict=True):
        lines = [line for line in str(table).splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1
        assert all("[" in line for line in lines[2:])
        assert len(lines) - 2 == length, len(lines)
    body = tables["runs"].body
    assert body[0][0] == "dense model in float32 (noise floor)"
    for cell in [cell for line in body for cell in line[1:]]:
        plain = re.sub(r"(?<=\d),(?=\d)", "", cell).replace("−", "-")
        value, low, high = (float(x) for x in re.findall(r"[+-]?[\d.]+(?:e-\d+)?", plain))
        assert low <= value <= high, cell


def test_the_takeaway_has_every_verdict_with_its_figure(good_js):
    text = str(page_of(good_js).takeaways())
    for verdict in verdicts(good_js):
        assert f"{verdict.claim}: **{verdict.answer}**" in text
    for name in ("fig-correlations", "fig-loss-divergence", "fig-token-divergence"):
        assert f"(#{name})" in text
    assert divergence._best_sentence(common(good_js)).count("against perplexity") == 2


def test_prompts_are_judged_on_the_runs_that_read_them(good_js):
    """Runs that were asked fewer tasks read no prompts; they must not make the claim untestable."""
    without = good_js.run_ids[3:6]
    rows = good_js.rows
    kept = rows[~(rows["run_id"].isin(without) & (rows["eval_set"] == "task_prompts"))].reset_index(drop=True)
    fewer = Results(kept, good_js.items, good_js.provenance, good_js.configs)
    found = verdicts(fewer)[3]
    n = len(sample(common(good_js)).runs) - len(without)
    assert "on the prompts" in found.effect
    assert len(divergence._prompted(page_of(fewer)).run_ids) == n + 1
    assert divergence._prompted(page_of(good_js)) is common(good_js)
