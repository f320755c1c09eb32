"""Chapter 9's verdicts, on runs whose losses are made up and known."""

from dataclasses import replace

import pytest

from crosscal_book.chapters.loss_aware import CHAPTER
from crosscal_book.claims import FAILS, HOLDS, OPEN
from tests.unit.crosscal_book.chapters.made_up_grids import Made, study

PLAIN = Made("sparsegpt", "50%", 0.7)
WHOLE = Made("fisher", "50%", 0.4, options=(("refine", "lsq"), ("anchor", 0.25)))
GPTQ, ANCHORED = (Made("gptq", "3 bits g128", loss, options=o) for loss, o in ((0.7, ()), (0.4, (("anchor", 0.25),))))


def answers(folder, *runs) -> dict[str, str]:
    page = CHAPTER.page(study(folder, runs), folder=folder)
    return {name: page.verdicts(name)[0].answer for name in CHAPTER.claims}


@pytest.mark.parametrize(
    ("loss", "noise", "answer"),
    [(0.4, 0.01, HOLDS), (0.6, 0.01, FAILS), (0.8, 0.01, FAILS), (0.47, 0.3, OPEN)],
    ids=["a quarter lower", "a tenth lower", "higher", "noise"],
)
def test_a_gain_is_held_against_its_margin_on_every_text(tmp_path, loss, noise, answer):
    found = answers(tmp_path, PLAIN, replace(WHOLE, loss=loss, noise=noise))
    assert found["lower-at-50"] == answer
    assert found["lower-at-60"] == found["lower-at-3"] == OPEN


def test_gptq_meets_its_anchored_twin(tmp_path):
    given_order = replace(GPTQ, loss=2.0, options=(("act_order", False),))
    assert answers(tmp_path, GPTQ, ANCHORED, given_order)["lower-at-3"] == HOLDS
    assert answers(tmp_path, given_order, ANCHORED)["lower-at-3"] == OPEN  # of another order of columns


def test_each_part_is_taken_from_the_whole(tmp_path):
    runs = [replace(WHOLE, loss=0.5, options=WHOLE.options[1:]), replace(WHOLE, loss=0.5, options=WHOLE.options[:1])]
    without_mask = Made("sparsegpt", "50%", 0.5, options=WHOLE.options)
    assert answers(tmp_path / "a", WHOLE, *runs, without_mask)["parts-add-up"] == HOLDS
    assert answers(tmp_path / "b", WHOLE, *runs, replace(without_mask, loss=0.3))["parts-add-up"] == FAILS


def test_rivals_and_anchors(tmp_path):
    whole, wanda = replace(WHOLE, target="60%"), Made("wanda", "60%", 0.9)
    found = answers(tmp_path, whole, wanda, replace(wanda, loss=0.7, options=(("anchor", 0.25),)),
                    Made("alps", "60%", 0.5), replace(wanda, loss=0.3, options=(("refine", "swaps"),)))  # fmt: skip
    assert (found["anchor-helps"], found["beats-rivals"]) == (HOLDS, FAILS)


def test_every_figure_and_the_table_are_shown(tmp_path):
    page = CHAPTER.page(study(tmp_path, [PLAIN, WHOLE, GPTQ, ANCHORED]), folder=tmp_path)
    assert all(page.figure(name).csv for name in CHAPTER.figures)
    assert "Fisher + SparseGPT 50% + least squares anchored" in str(page.table("runs"))
    none = CHAPTER.page(study(tmp_path / "none", []), folder=tmp_path / "none")
    assert all(v.answer == OPEN for v in none.verdicts())
    assert not any(len(none.figure(name).frame) for name in CHAPTER.figures)
