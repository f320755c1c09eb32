"""Chapter 5's verdicts, on runs whose losses are made up and known."""

import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest

from crosscal.results.compare import paired
from crosscal.results.quantities import PERPLEXITY
from crosscal_book.chapters.quantization import CHAPTER, _expected_gain
from crosscal_book.claims import FAILS, HOLDS, OPEN
from tests.unit.crosscal_book.chapters.made_up_grids import Made, study

RTN, GPTQ, AWQ = (Made(method, "3 bits g128", loss) for method, loss in (("rtn", 0.5), ("gptq", 0.3), ("awq", 0.3)))
ACT_ORDER = (("act_order", True),)


def page_of(folder, runs, **options):
    return CHAPTER.page(study(folder, runs, **options), folder=folder)


def verdict_of(folder, runs, claim, **options):
    return page_of(folder, runs, **options).verdicts(claim)[0]


def layers(error: float, count: int = 30) -> list[dict]:
    spread = np.random.default_rng(1).standard_normal(count)
    return [{"name": f"{n}.q_proj", "relative_error": float(error * np.exp(0.2 * s))} for n, s in enumerate(spread)]


@pytest.mark.parametrize(
    ("gptq", "answer"),
    [
        (replace(GPTQ, loss=0.3), HOLDS),
        (replace(GPTQ, loss=0.7), FAILS),
        (replace(GPTQ, loss=0.5, noise=0.0001), FAILS),
        (replace(GPTQ, loss=0.45, noise=0.5), OPEN),
    ],
    ids=["better", "worse", "equal, known closely", "noise"],
)
def test_gptq_against_rounding(tmp_path, gptq, answer):
    verdict = verdict_of(tmp_path, [replace(RTN, noise=0.0), gptq], "gptq-beats-rounding")
    assert verdict.answer == answer
    assert "[" in verdict.effect
    assert verdict.evidence == "fig-quantization-pairs"


def test_one_grid_where_it_is_worse_refutes_it_for_all(tmp_path):
    rows = [replace(RTN, target="3 bits per row"), replace(GPTQ, target="3 bits per row", loss=0.9)]
    assert verdict_of(tmp_path, [RTN, GPTQ, *rows], "gptq-beats-rounding").answer == FAILS


def test_a_ratio_is_that_of_the_losses(tmp_path):
    results = study(tmp_path, [replace(RTN, noise=0.0), replace(GPTQ, noise=0.0)])
    found = paired(results, "run-02", "run-01", PERPLEXITY).estimate(test=True).map(np.exp)
    assert found.value == pytest.approx(np.exp(-0.2))
    assert found.lo == pytest.approx(found.hi)
    assert found.p < 0.001


@pytest.mark.parametrize(("losses", "answer"), [((0.001, 0.002), HOLDS), ((0.001, 0.05), FAILS), ((-0.03, 0.0), FAILS)])
def test_perplexity_at_eight_bits(tmp_path, losses, answer):
    runs = [Made("rtn", f"8 bits {g}", loss, 0.001) for g, loss in zip(("g128", "per row"), losses, strict=True)]
    verdict = verdict_of(tmp_path, runs, "eight-bits-keep-perplexity")
    assert verdict.answer == answer
    assert "[" in verdict.effect


@pytest.mark.parametrize(("js", "answer"), [(1.1e-5, HOLDS), (4e-5, FAILS), (2e-5, OPEN)])
def test_divergence_at_eight_bits_against_rounding_alone(tmp_path, js, answer):
    floor = Made("float32", "0%", 0.0, 0.0, js=1e-5)
    runs = [floor, Made("rtn", "8 bits g128", 0.0, js=js)]
    assert verdict_of(tmp_path, runs, "eight-bits-reach-the-floor").answer == answer


def test_without_a_floor_nothing_is_said_about_it(tmp_path):
    verdict = verdict_of(tmp_path, [Made("rtn", "8 bits g128", 0.0)], "eight-bits-reach-the-floor")
    assert verdict.answer == OPEN
    assert "float32" in verdict.effect


def test_sparse_and_quantized_meets_every_method_of_equal_storage(tmp_path):
    runs = [RTN, GPTQ, Made("sparsegpt", "50% + 4 bits g128", 0.2), Made("sparsegpt", "2:4 + 4 bits g128", 0.4)]
    runs.append(Made("sparsegpt", "50% + 3 bits g128", 0.1))
    good, bad = page_of(tmp_path, runs).verdicts("joint-beats-plain")
    assert (good.answer, bad.answer) == (HOLDS, FAILS)
    for verdict in (good, bad):
        assert "RTN 3 bits g128" in verdict.effect
        assert "GPTQ 3 bits g128" in verdict.effect
    assert verdict_of(tmp_path / "none", [RTN, GPTQ], "joint-beats-plain").answer == OPEN


def test_groups_are_compared_with_rows_of_equal_storage(tmp_path):
    """Losses per row fall from 0.8 to 0.2 with a bit; a groups' run on that very curve is no better."""
    rows = [Made("rtn", "3 bits per row", 0.8, 1e-4), Made("rtn", "4 bits per row", 0.2, 1e-4)]
    page = page_of(tmp_path / "a", [*rows, Made("rtn", "3 bits g128", 0.5, 1e-4)])
    (line,), results = page.rows("groups-beat-rows").to_dict("records"), page.results
    storage = [results.describe_run(f"run-0{n}")["storage_bits"] for n in (1, 2, 3)]
    share = (storage[2] - storage[0]) / (storage[1] - storage[0])
    on_the_curve = 0.8 * (0.2 / 0.8) ** share
    assert line["value"] == pytest.approx(np.exp(0.5 - on_the_curve), rel=1e-3)
    assert page.verdicts("groups-beat-rows")[0].answer == HOLDS
    same = [*rows, Made("rtn", "3 bits g128", on_the_curve, 1e-4)]
    assert verdict_of(tmp_path / "b", same, "groups-beat-rows").answer == FAILS
    assert verdict_of(tmp_path / "c", [rows[0], RTN], "groups-beat-rows").answer == OPEN


def test_act_order_meets_its_twin_and_no_other_run(tmp_path):
    better = replace(GPTQ, loss=0.2, options=ACT_ORDER)
    page = page_of(tmp_path / "a", [GPTQ, replace(GPTQ, target="2 bits g128", loss=2.0), better])
    assert page.rows("act-order-helps")[["run_id", "other"]].to_numpy().tolist() == [["run-03", "run-01"]]
    assert page.verdicts("act-order-helps")[0].answer == HOLDS
    assert verdict_of(tmp_path / "b", [GPTQ, replace(better, loss=0.6)], "act-order-helps").answer == FAILS
    assert verdict_of(tmp_path / "c", [RTN, better], "act-order-helps").answer == OPEN


def test_holm_runs_over_all_comparisons(tmp_path):
    pairs = page_of(tmp_path, [RTN, GPTQ, AWQ]).rows("pairs")
    assert len(pairs) == 2
    assert pairs["p_holm"].tolist() == pytest.approx([2 * pairs["p"].iloc[0]] * 2)


@pytest.mark.parametrize(("gain", "answer"), [(1.0, FAILS), (1.6, HOLDS), (1.25, OPEN)])
def test_the_old_grid_shows_where_rounding_gains_too_much(tmp_path, gain, answer):
    fine = layers(0.2 / (gain * _expected_gain(3, 4)))
    for number, layer in enumerate(fine):
        layer["relative_error"] *= (0.8, 1.25)[number % 2]
    runs = [replace(RTN, layers=layers(0.2)), Made("rtn", "4 bits g128", 0.1, layers=fine)]
    page = page_of(tmp_path, runs, model="smollm2-135m")
    (verdict,), (line,) = page.verdicts("file-flatters"), page.rows("file-flatters").to_dict("records")
    assert verdict.answer == answer
    assert line["value"] == pytest.approx(gain * line["expected"], rel=0.02)


def test_other_models_have_no_verdict_about_a_file(tmp_path):
    assert page_of(tmp_path, [RTN]).verdicts("file-flatters") == []


def test_rounding_of_weights_on_no_grid_gains_what_is_expected():
    """The formula against rounding itself: groups of 128 on a min-max grid of whole zero points."""
    weights = np.random.default_rng(0).standard_normal((4000, 128))
    errors = {bits: np.square(weights - _rounded(weights, bits)).mean() for bits in (3, 4)}
    assert errors[3] / errors[4] == pytest.approx(_expected_gain(3, 4), rel=0.06)
    blocks = _rounded(weights.reshape(-1, 32), 4)  # such weights gain endlessly on the same blocks
    assert np.square(blocks - _rounded(blocks, 4)).mean() < 1e-6


def _rounded(weights: np.ndarray, bits: int) -> np.ndarray:
    low, high = np.minimum(weights.min(1), 0)[:, None], np.maximum(weights.max(1), 0)[:, None]
    step = (high - low) / (2**bits - 1)
    zero = np.round(-low / step)
    return step * (np.clip(np.round(weights / step) + zero, 0, 2**bits - 1) - zero)


def _everything() -> list[Made]:
    runs = [Made("float32", "0%", 0.0, 1e-5, js=1e-6)]
    for bits, loss in ((8, 0.001), (4, 0.05), (3, 0.4), (2, 8.0)):
        for group in ("g128", "per row"):
            for method, worse in (("rtn", 1.4), ("gptq", 1.0), ("awq", 1.1)):
                error = layers(0.3 * 4.6 ** (3 - bits))
                runs.append(Made(method, f"{bits} bits {group}", loss * worse, 0.05 * loss, wrong=0.1, layers=error))
    runs += [Made("sparsegpt", f"{p} + 4 bits g128", 0.5, wrong=0.2) for p in ("50%", "2:4")]
    return [*runs, replace(GPTQ, options=ACT_ORDER)]


@pytest.mark.parametrize(
    "runs",
    [
        _everything(),
        [RTN, GPTQ, AWQ],
        [GPTQ],
        [Made("magnitude", "50%", 0.5)],
        [Made("rtn", "8 bits g128", 0.0, js=0.0)],
    ],
    ids=["all", "quick", "one", "none on a grid", "8 bits alone"],
)
def test_the_page_stands_whatever_runs_there_are(tmp_path, runs):
    page = page_of(tmp_path, runs, model="smollm2-135m")
    text = str(page.takeaways())
    for verdict in page.verdicts():
        assert verdict.effect in text or verdict.effect[1:] in text
        assert verdict.answer == OPEN or "[" in verdict.effect
    for name in CHAPTER.figures:
        figure = page.figure(name)
        assert figure == page.figure(name)
        assert ElementTree.fromstring(figure.svg).get("role") == "img"
        assert len(figure.alt) > 40
    lines = [line for line in str(page.table("runs")).splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert all(line.count("[") >= 3 for line in lines[2:])


def test_runs_without_common_texts_are_not_compared(tmp_path):
    results = study(tmp_path, [RTN, GPTQ])
    rows = results.rows[(results.rows["run_id"] != "run-02") | (results.rows["metric"] != "perplexity")]
    page = CHAPTER.page(replace(results, rows=rows), folder=tmp_path)
    assert page.rows("pairs").empty
    assert page.verdicts("gptq-beats-rounding")[0].answer == OPEN
