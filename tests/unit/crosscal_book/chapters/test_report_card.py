"""Chapter 8 on made-up runs whose losses are set by hand, for every kind of setting a user may give."""

import dataclasses
import json
import math

import numpy as np
import pytest

from crosscal.plan.parameters import ReportCardSettings
from crosscal.results.frame import Results, read_results
from crosscal.results.store import RunRecord, load_run, save_run
from crosscal.types import Row
from crosscal_book.chapters.report_card import (
    CHAPTER,
    KEPT_WORD,
    MUCH,
    SOME,
    UNCLEAR,
    _balanced,
    _lines,
    _runs,
    _setting,
    _task_groups,
    _texts,
    _word,
    recommend,
)
from crosscal_book.claims import FAILS, HOLDS, OPEN

TEXTS = {"pubmed": "biomedical", "wikipedia": "general", "news": "general", "task_prompts": "tasks"}
TASKS = {"sciq": ("general", 0.25, 0.6), "bioasq": ("biomedical", 0.25, 0.8)}
SETTINGS = ReportCardSettings(model="made-up")


def study(folder, runs: dict, settings=SETTINGS, texts=TEXTS, tasks=TASKS, windows=8, noise=0.01) -> Results:
    """Dense and `runs`: {weight or None: (rise of the loss on the domain, elsewhere, fall of all rates)}."""
    draw = np.random.default_rng(11)
    base = {text: 2.7 + 0.2 * draw.standard_normal(windows) for text in texts}
    ability = draw.permutation((np.arange(200) + 0.5) / 200)
    ids = []
    for weight, (domain, general, fall) in {"dense": (0, 0, 0), **runs}.items():
        run_id, dense = f"run-{weight}", weight == "dense"
        common = (run_id, "dense" if dense else settings.method, "0%" if dense else settings.target)
        common += _calibration(weight, settings)
        rows, outcomes = [], {}
        for text, nll in base.items():
            rise = domain if text == settings.domain else general
            means = nll + rise * (1 + noise * draw.standard_normal(windows))
            outcomes[text] = {"nll": means.tolist()}
            rows.append(_row(common, texts[text], text, "perplexity", math.exp(means.mean()), 0.0, 99.0, windows))
            if not dense:
                outcomes[text]["js_divergence"] = [rise / 4] * windows
        for task, (kind, _, rate) in tasks.items():
            right = [int(a < rate - fall) for a in ability]
            outcomes[task] = {"id": list(range(200)), "correct": right, "margin": [0.0] * 200}
            value = float(np.mean(right))
            rows.append(_row(common, kind, task, "accuracy", value, value - 0.07, value + 0.07, 200))
        chances = {"tasks": {task: {"chance": chance} for task, (_, chance, _) in tasks.items()}}
        save_run(folder, RunRecord(run_id, {}, chances, rows, [], outcomes))
        ids.append(run_id)
    return read_results(folder, ids)


def _calibration(weight, settings) -> tuple[str, float]:
    if weight in ("dense", None):
        return "", 1.0
    if weight in (0.0, 1.0):
        return (settings.domain if weight else settings.general), 1.0
    return f"{settings.general}+{settings.domain}", weight


def _row(common, domain, eval_set, metric, value, lo, hi, n) -> Row:
    run_id, method, pattern, calibration, weight = common
    return Row(
        run_id, "quick", "made-up", method, pattern, 0.5, 16, "", 9.0, "sublayer", calibration, weight,
        16 if calibration else 0, 512, 0, domain, eval_set, metric, value, lo, hi, n, "fraction of items",
        metric == "accuracy", 1.0, 1, "cpu", json.dumps({"torch": "2.13.0"}), "0123456789",
    )  # fmt: skip


RUNS = {0.0: (0.5, 0.3, 0.1), 0.5: (0.35, 0.32, 0.1), 1.0: (0.33, 0.6, 0.15)}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Results:
    """The mix is nearly as good as each text alone on that text's own kind."""
    return study(tmp_path_factory.mktemp("card"), RUNS)


def test_runs_are_found_by_weight_and_texts_by_kind(results):
    assert _runs(CHAPTER.page(results, SETTINGS)) == {0.0: "run-0.0", 0.5: "run-0.5", 1.0: "run-1.0"}
    assert _texts(CHAPTER.page(results, SETTINGS)) == {"pubmed": ["pubmed"], "general text": ["wikipedia", "news"]}
    assert _task_groups(CHAPTER.page(results, SETTINGS)) == {
        "all tasks (2)": ["sciq", "bioasq"],
        "biomedical tasks (1)": ["bioasq"],
    }


def test_losses_are_those_that_were_put_in(results):
    losses = _lines(CHAPTER.page(results, SETTINGS)).query("lost")
    found = losses[losses["weight"] == 0.5].set_index("measure").to_dict("index")
    domain = found["perplexity, pubmed"]
    assert domain["value"] == pytest.approx(math.exp(0.35), rel=0.01)
    assert domain["word"] == SOME
    assert found["perplexity, general text"]["value"] == pytest.approx(math.exp(0.32), rel=0.01)
    assert found["JS divergence, pubmed"]["value"] == pytest.approx(0.35 / 4)
    assert found["answers flipped"]["value"] == pytest.approx(0.1, abs=0.01)
    assert found["accuracy, all tasks (2)"]["value"] == pytest.approx(-0.1, abs=0.01)


@pytest.mark.parametrize(
    ("kind", "lo", "hi", "word"),
    [
        ("ratio", 1.01, 1.09, KEPT_WORD), ("ratio", 1.05, 1.2, UNCLEAR), ("ratio", 1.2, 2.5, SOME),
        ("ratio", 2.1, 2.5, MUCH), ("change", -0.02, 0.01, KEPT_WORD), ("change", -0.2, -0.12, MUCH),
        ("change", -0.08, -0.01, UNCLEAR), ("change", -0.08, -0.04, SOME), ("flips", 0.21, 0.3, MUCH),
    ],
)  # fmt: skip
def test_a_word_says_what_the_interval_says(kind, lo, hi, word):
    assert _word(kind, lo, hi) == word


def test_domain_and_general_text_count_half_each(results):
    ratio = _balanced(CHAPTER.page(results, SETTINGS), "run-0.0", results.dense_id)
    assert ratio.value == pytest.approx(math.exp(0.4), rel=0.01)  # (0.5 + 0.3) / 2, however many general texts


def test_the_least_loss_is_recommended_when_the_data_can_tell(results):
    choice = recommend(CHAPTER.page(results, SETTINGS))
    assert choice.weight == 0.5
    assert choice.tied == ()
    assert "beyond the intervals" in choice.sentence


def test_a_clear_best_beats_the_default(tmp_path):
    results = study(tmp_path, {0.0: (0.5, 0.3, 0), 0.5: (0.4, 0.3, 0), 1.0: (0.2, 0.3, 0)})
    assert recommend(CHAPTER.page(results, SETTINGS)).weight == 1.0


def test_ties_go_to_the_weight_nearest_to_one_half(tmp_path):
    runs = {0.0: (0.8, 0.8, 0), 0.25: (0.32, 0.30, 0), 0.5: (0.31, 0.31, 0), 0.75: (0.30, 0.315, 0)}
    settings = dataclasses.replace(SETTINGS, mix_weights="0,0.25,0.5,0.75")
    choice = recommend(CHAPTER.page(study(tmp_path, runs, settings, noise=0.5), settings))
    assert choice.weight == 0.5
    assert choice.tied
    assert "cannot tell" in choice.sentence


def test_the_claims_follow_the_runs(results, tmp_path):
    kept, saves, spares = CHAPTER.page(results, SETTINGS).verdicts()
    assert (kept.answer, saves.answer, spares.answer) == (FAILS, HOLDS, HOLDS)
    assert all("[" in verdict.effect for verdict in (kept, saves, spares))
    other = study(tmp_path, {0.0: (0.02, 0.02, 0), 0.5: (0.05, 0.05, 0), 1.0: (0.06, 0.05, 0)})
    kept, saves, spares = CHAPTER.page(other, SETTINGS).verdicts()
    assert (kept.answer, saves.answer) == (HOLDS, FAILS)
    assert spares.answer == FAILS


CASES = {
    "no tasks": (RUNS, dataclasses.replace(SETTINGS, tasks=""), TEXTS, {}),
    "one weight": ({0.5: RUNS[0.5]}, dataclasses.replace(SETTINGS, mix_weights="0.5"), TEXTS, TASKS),
    "no text read": ({None: RUNS[0.0]}, dataclasses.replace(SETTINGS, method="magnitude"), TEXTS, TASKS),
    "own file": (
        RUNS,
        dataclasses.replace(SETTINGS, domain="/x/notes.jsonl"),
        {**TEXTS, "/x/notes.jsonl": "own"},
        TASKS,
    ),
    "both own": (
        RUNS,
        dataclasses.replace(SETTINGS, general="a.txt", domain="b.txt"),
        {**TEXTS, "b.txt": "own"},
        TASKS,
    ),
    "general domain": (RUNS, dataclasses.replace(SETTINGS, domain="news"), TEXTS, TASKS),
    "domain not evaluated": (RUNS, dataclasses.replace(SETTINGS, domain="legal"), TEXTS, TASKS),
    "a missing run": ({0.0: RUNS[0.0], 0.5: RUNS[0.5]}, SETTINGS, TEXTS, TASKS),
    "only domain text": (RUNS, SETTINGS, {"pubmed": "biomedical"}, {}),
    "nothing in common": (RUNS, SETTINGS, {}, TASKS),
}


@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_setting_has_a_card(tmp_path, case):
    runs, settings, texts, tasks = CASES[case]
    results = study(tmp_path, runs, settings, texts, tasks)
    page = CHAPTER.page(results, settings)
    text = str(page.table("card"))
    assert "Which setting to use" in text
    assert "/x/" not in text
    assert "nan" not in text + str(page.takeaways())
    figure = page.figure("fig-report-card")
    assert figure.caption
    assert "nan" not in figure.caption
    for table in (page.table("losses"), page.table("savings")):
        lines = [line for line in str(table).splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1


def test_special_cases_say_what_they_are(tmp_path):
    def sentence(case):
        runs, settings, texts, tasks = CASES[case]
        return recommend(CHAPTER.page(study(tmp_path / case, runs, settings, texts, tasks), settings)).sentence

    assert "reads no calibration text" in sentence("no text read")
    assert "nothing to choose between" in sentence("one weight")
    assert "Not stored, so not compared: w = 1" in sentence("a missing run")
    assert "no weight can be recommended" in sentence("nothing in common")


def test_a_domain_among_general_texts_is_no_general_text(tmp_path):
    runs, settings, texts, tasks = CASES["general domain"]
    page = CHAPTER.page(study(tmp_path, runs, settings, texts, tasks), settings)
    assert _texts(page) == {"news": ["news"], "general text": ["wikipedia"]}


def test_task_prompts_are_no_text_of_their_own(tmp_path):
    texts = {"pubmed": "biomedical", "legal": "legal", "task_prompts": "tasks"}
    assert _texts(CHAPTER.page(study(tmp_path, RUNS, texts=texts), SETTINGS))["general text"] == ["legal"]


def test_other_runs_of_a_folder_are_left_alone(results):
    other = dataclasses.replace(SETTINGS, target="60%")
    page = CHAPTER.page(results, other)
    assert _runs(page) == {}
    assert "No run" in str(page.table("card"))
    assert page.verdicts()[0].answer == OPEN
    assert "nothing to show" in page.figure("fig-report-card").caption
    assert _setting(None, SETTINGS) == "no text"


def test_the_figure_is_repeatable_and_says_what_it_shows(results):
    first, second = (CHAPTER.page(results, SETTINGS).figure("fig-report-card") for _ in range(2))
    assert (first.svg, first.csv) == (second.svg, second.csv)
    assert first.name == "fig-report-card"
    assert SOME in first.caption
    assert len(first.alt) > 40


def test_the_card_marks_the_recommended_setting_and_words(results):
    text = str(CHAPTER.page(results, SETTINGS).table("card"))
    assert "What was lost, w = 0.5, recommended" in text
    assert "What calibration saved" in text
    assert "general text: wikipedia and news" in text
    table = str(CHAPTER.page(results, SETTINGS).table("losses"))
    assert "w = 0.5 ←" in table
    assert f"**{SOME}**" in table


def test_a_handful_of_windows_cannot_tell_and_says_so(tmp_path):
    few = study(tmp_path, RUNS, texts={"pubmed": "biomedical", "news": "general"}, windows=4)
    _, saves, _ = CHAPTER.page(few, SETTINGS).verdicts()
    assert saves.answer == OPEN
    assert "4 windows are too few" in saves.effect


NAMES = ("notes.jsonl", "discharge_letters_2019_2024.jsonl", "a|b.jsonl", "cost $100_to_$200.jsonl", "[a]*b*.txt")


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_file_fits_the_card(tmp_path, name):
    settings = dataclasses.replace(SETTINGS, domain=name)
    page = CHAPTER.page(study(tmp_path, RUNS, settings, {**TEXTS, name: "own"}), settings)
    for table in (page.table("losses"), page.table("savings")):
        lines = [line.replace("\\|", "") for line in str(table).splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1
    drawing = CHAPTER.figures["fig-report-card"](page)[0]
    drawing.canvas.draw_without_rendering()
    titles = [a._left_title.get_window_extent() for a in drawing.canvas.axes if a.get_visible()]
    assert not any(one.overlaps(other) for n, one in enumerate(titles) for other in titles[:n])


def test_experts_are_shown_for_a_model_that_has_them(tmp_path):
    study(tmp_path, {0.0: (0.2, 0.1, 0.0), 0.5: (0.1, 0.1, 0.0)})
    page = CHAPTER.page(read_results(tmp_path, ["run-dense", "run-0.0", "run-0.5"]), SETTINGS, tmp_path)
    assert "has no experts" in page.figure("fig-report-experts").caption
    record = load_run(tmp_path, "run-0.5", with_items=True)
    tokens = [{"c4": 6, "pubmed": 1}, {"c4": 2}, {"c4": 4, "pubmed": 7}]
    record.layers.extend(
        {"name": f"{block}.mlp.experts.{n}.{part}", "tokens": seen, "fallback": "experts of the layer" * (n == 1)}
        for block in (0, 1)
        for n, seen in enumerate(tokens)
        for part in ("gate_up_proj", "down_proj")
    )
    record.layers.append({"name": "0.mlp.gate", "tokens": {"c4": 12, "pubmed": 8}, "fallback": ""})
    save_run(tmp_path, record)
    page = CHAPTER.page(read_results(tmp_path, ["run-dense", "run-0.0", "run-0.5"]), SETTINGS, tmp_path)
    figure = page.figure("fig-report-experts")
    assert "pubmed never reaches 2 of 6, and expert 2 of block 0 gets 2.6 times an even share" in figure.caption
    assert "2 saw too few tokens" in figure.caption
    lines = figure.csv.splitlines()
    assert len([line for line in lines if "run-0.5" in line]) == 12
