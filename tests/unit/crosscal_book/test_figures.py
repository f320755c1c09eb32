import xml.etree.ElementTree as ElementTree

import pytest

from crosscal_book.figures import accuracy_by_sparsity, perplexity_by_sparsity, task_small_multiples
from crosscal_book.style import STYLES, Figure
from crosscal_book.tradeoff import loss_against_perplexity

FIGURES = {
    "perplexity": lambda results: perplexity_by_sparsity(results, "50%"),
    "accuracy": lambda results: accuracy_by_sparsity(results, "50%"),
    "tasks": lambda results: task_small_multiples(results, "50%"),
    "trade-off": loss_against_perplexity,
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_a_figure_is_valid_repeatable_and_says_what_it_shows(results, draw):
    first, second = draw(results), draw(results)
    assert first == second
    root = ElementTree.fromstring(first.svg)
    assert root.get("role") == "img"
    assert root.find("{http://www.w3.org/2000/svg}title").text == first.alt
    assert "<dc:date>" not in first.svg
    assert any(character.isdigit() for character in first.caption)
    assert len(first.alt) > 40


def test_colours_tell_methods_apart_in_grey_or_by_marker_and_are_readable_on_white():
    assert len({style.marker for style in STYLES.values()}) == len(STYLES)
    assert len({style.colour for style in STYLES.values()}) == len(STYLES)
    for style in STYLES.values():
        assert 1.05 / (_luminance(style.colour) + 0.05) >= 4.5, style.label


def test_a_notebook_gets_the_picture_and_its_words():
    data, words = Figure("fig-x", "<svg/>", "a caption", "what it shows", "x,y\n")._repr_mimebundle_()
    assert data["image/svg+xml"] == "<svg/>"
    assert words["crosscal"] == {"name": "fig-x", "caption": "a caption", "alt": "what it shows", "csv": "x,y\n"}


def _luminance(colour: str) -> float:
    """Relative luminance of a colour (WCAG 2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
