"""The grammar of chapters: rules over comparisons, what is said of them, and a toy chapter made of it."""

import io
from pathlib import Path

import pandas as pd
import pytest

from crosscal.results.quantities import ACCURACY, PERPLEXITY
from crosscal_book.chapter import Chapter, _corrected
from crosscal_book.claims import FAILS, HOLDS, OPEN, Claim, Rule, every, mean, most, some
from crosscal_book.drawing import Axis
from crosscal_book.marks import forest, lines, matrix, scatter
from tests.unit.crosscal_book import toy
from tests.unit.crosscal_book.chapters.made_up_grids import Made, study

RTN, GPTQ = (Made(method, "3 bits g128", loss) for method, loss in (("rtn", 0.5), ("gptq", 0.3)))
BETTER, WORSE, TIE, WIDE = (
    {"value": value, "lo": value - half, "hi": value + half, "p": p}
    for value, half, p in ((0.8, 0.05, 0.001), (1.2, 0.05, 0.001), (1.0, 0.002, 0.9), (0.95, 0.2, 0.5))
)


def of(rule, *lines, on=PERPLEXITY):
    (rows,) = _corrected([pd.DataFrame(lines)])
    return rule.answer(rule.judge(rows, on))


@pytest.mark.parametrize(
    ("rule", "lines", "expected"),
    [
        (every("better", 0.01), (BETTER, BETTER), HOLDS),
        (every("better", 0.01), (BETTER, WORSE), FAILS),
        (every("better", 0.01), (BETTER, TIE), FAILS),
        (every("better", 0.01), (BETTER, WIDE), OPEN),
        (every("no worse", 0.01), (BETTER, TIE), HOLDS),
        (every("no worse", 0.01), (BETTER, WORSE), FAILS),
        (every("equal", 0.01), (TIE, TIE), HOLDS),
        (every("equal", 0.01), (TIE, BETTER), FAILS),
        (every("equal", 0.01), (TIE, WIDE), OPEN),
        (some("worse", 0.01), (BETTER, WORSE), HOLDS),
        (some("worse", 0.01), (BETTER, TIE), FAILS),
        (some("worse", 0.01), (BETTER, WIDE), OPEN),
        (most("better", 0.01), (BETTER, WIDE), HOLDS),
        (most("better", 0.01), (BETTER, WIDE, WIDE), OPEN),
        (most("better", 0.01), (BETTER, BETTER, WORSE), FAILS),
        (mean("better", 0.01), (BETTER,), HOLDS),
    ],
)
def test_rules_over_ratios(rule, lines, expected):
    assert of(rule, *lines) == expected


def test_higher_is_better_for_accuracy():
    gain = {"value": 0.1, "lo": 0.05, "hi": 0.15, "p": 0.001}
    assert of(every("better"), gain, on=ACCURACY) == HOLDS
    assert of(some("worse"), gain, on=ACCURACY) == FAILS


def test_one_sided_tests_decide_where_given():
    lines = [{"value": 0.9, "lo": 0.5, "hi": 1.5, "p_yes": yes, "p_no": no} for yes, no in ((0.001, 1.0), (0.2, 0.8))]
    assert of(every("better"), *lines) == OPEN
    assert of(most("better"), *lines) == HOLDS
    assert of(every("better"), lines[0], {**lines[1], "p_no": 0.001}) == FAILS


def test_an_interval_decides_without_p_and_a_limit_replaces_no_difference():
    line = {"value": 1.5, "lo": 1.2, "hi": 1.8}
    assert of(every("better"), line) == FAILS
    assert of(every("better"), {**line, "limit": 2.0}) == HOLDS
    assert of(every("better"), {**line, "limit": 1.5}) == OPEN


def test_what_some_run_shows_is_said_of_the_clearest():
    lines = [{**BETTER, "name": "better"}, {**WORSE, "name": "worse"}, {**WIDE, "name": "wide"}]
    claim = Claim("x", "X", lambda page: pd.DataFrame(), some("worse"), says="{name} {estimate}")
    for rows, expected in ((lines, "worse 1.20×"), (lines[:1] + lines[2:], "wide 0.95×")):
        (verdict,) = claim.verdicts(_corrected([pd.DataFrame(rows)])[0], None)
        assert verdict.effect.startswith(expected)


def test_holm_runs_over_a_family():
    first, second = _corrected([pd.DataFrame([BETTER]), pd.DataFrame([WORSE, TIE])])
    assert first["p_holm"].iloc[0] == pytest.approx(3 * BETTER["p"])
    assert second["p_holm"].iloc[1] == pytest.approx(TIE["p"])


def test_an_unknown_direction_is_refused():
    with pytest.raises(ValueError, match="better"):
        Rule("every", "nicer")


def numbers(figure) -> pd.DataFrame:
    """A figure's numbers as a reader gets them."""
    return pd.read_csv(io.StringIO(figure.csv), comment="#", keep_default_na=False, na_values=["nan"])


@pytest.mark.parametrize(("gptq", "verdict"), [(GPTQ, HOLDS), (Made("gptq", "3 bits g128", 0.7), FAILS), (None, OPEN)])
def test_a_toy_chapter(tmp_path, gptq, verdict):
    page = toy.CHAPTER.page(study(tmp_path, [RTN, *([gptq] if gptq else [])]), folder=tmp_path)
    (found,) = page.verdicts()
    assert (found.answer, found.paper, found.evidence) == (verdict, "frantar2023gptq", "fig-toy")
    assert f"GPTQ beats rounding to nearest on every grid: **{verdict}**. " in str(page.takeaways())
    assert ("[" in found.effect) == ("[" in found.brief) == (verdict != OPEN)
    assert verdict != OPEN or found.effect == (
        "there are no two runs of equal target, one with method GPTQ and one with method RTN"
    )
    figure = page.figure("fig-toy")
    assert figure == page.figure("fig-toy")
    assert 'role="img"' in figure.svg
    assert figure.csv.startswith("# run_id: stored run\n")
    assert "# value: perplexity / dense perplexity\n" in figure.csv
    assert list(numbers(figure)["run_id"]) == [run_id for run_id in page.results.run_ids if run_id != "run-00"]
    assert str(page.table("runs")).count("[") == len(page.runs)
    assert page.stamp(9).run_ids == page.results.run_ids


def test_a_toy_chapter_is_short():
    assert len(Path(toy.__file__).read_text().splitlines()) <= 60


def test_nothing_to_draw_is_said(tmp_path):
    page = toy.CHAPTER.page(study(tmp_path, []), folder=tmp_path)
    assert page.figure("fig-toy").caption == "There is no compressed run."
    assert page.figure("fig-toy").csv == ""


def test_two_claims_of_one_name_are_refused():
    chapter = Chapter("x")
    for _ in range(1):
        chapter.claim("a", "A", lambda page: pd.DataFrame(), every("better"))
    with pytest.raises(ValueError, match="two claims"):
        chapter.claim("a", "A", lambda page: pd.DataFrame(), every("better"))


FRAME = pd.DataFrame(
    {
        "run_id": ["a", "b", "c", "d"],
        "method": ["wanda", "wanda", "gptq", "gptq"],
        "panel": ["one", "two", "one", "two"],
        "name": ["first", "first", "second", "second"],
        "target": ["50%", "2:4", "50%", "2:4"],
        "x": [1.0, 2.0, 1.0, 2.0],
        "value": [1.5, 2.5, 3.5, 4.5],
        "lo": [1.0, 2.0, 3.0, 4.0],
        "hi": [2.0, 3.0, 4.0, 5.0],
    }
)
X, Y = Axis("x"), Axis("value", 10, suffix="×", lines={"dense": 1.0}, band=(1.0, 1.1))
HOLLOW = FRAME["method"] == "gptq"
DRAWN = {
    "forest": lambda frame: forest(frame, Y, hollow=HOLLOW, key=True, bold=["first"]),
    "forest of facets": lambda frame: forest(frame.assign(facet=frame["method"]), Y),
    "lines": lambda frame: lines(frame, X, Y, columns=2, labels=frame["run_id"], hollow=HOLLOW, aside=0.1),
    "lines over targets": lambda frame: lines(frame, X, {"one": Y, "two": Y}, across="target"),
    "scatter": lambda frame: scatter(frame.assign(x_lo=frame["x"] - 0.5, x_hi=frame["x"] + 0.5), X, Y),
    "matrix": lambda frame: matrix(
        frame,
        ("row", "column"),
        lambda line: f"{line['value']}",
        shade="x",
        limit=2,
        colours="x",
        framed=frame["x"] == 1,
    ),
}


@pytest.mark.parametrize("draw", DRAWN.values(), ids=DRAWN)
def test_a_mark_draws_its_frame_and_nothing_else(draw):
    drawing = draw(FRAME)
    figure = drawing.finish("fig-x", "a caption", "an alternative text")
    assert figure == draw(FRAME).finish("fig-x", "a caption", "an alternative text")
    given = drawing.frame.reset_index(drop=True)
    pd.testing.assert_frame_equal(numbers(figure)[list(given)], given, check_dtype=False)
    assert figure.frame is drawing.frame
