"""Styles, and what a notebook gets of a figure."""

from urllib.parse import unquote

import nbformat

from crosscal_book.pages.notebooks import _clean
from crosscal_book.style import STYLES, Figure


def test_colours_tell_methods_apart_in_grey_or_by_marker_and_are_readable_on_white():
    assert len({style.marker for style in STYLES.values()}) == len(STYLES)
    assert len({style.colour for style in STYLES.values()}) == len(STYLES)
    for style in STYLES.values():
        assert 1.05 / (_luminance(style.colour) + 0.05) >= 4.5, style.label


def test_a_notebook_gets_the_picture_and_its_words():
    data, words = Figure("fig-x", "<svg/>", "a caption", "what it shows", "x,y\n")._repr_mimebundle_()
    assert data["image/svg+xml"] == "<svg/>"
    assert words["crosscal"] == {"name": "fig-x", "caption": "a caption", "alt": "what it shows", "csv": "x,y\n"}


def _executed(figure: Figure):
    """A notebook of one cell that shows a figure."""
    data, metadata = figure._repr_mimebundle_()
    output = nbformat.v4.new_output("display_data", data, metadata=metadata)
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=[output])])


def test_numbers_stand_below_the_figure_with_the_command():
    figure = Figure("fig-x", "<svg/>", "c", "a", 'name,value\n"a, b",1\n')
    shown, below = _clean(_executed(figure), "papermill a.ipynb b.ipynb").cells
    assert "crosscal" not in shown.outputs[0].metadata
    assert (below.cell_type, below.metadata["format"]) == ("raw", "text/html")
    assert "papermill a.ipynb b.ipynb" in below.source
    assert unquote(below.source.split("charset=utf-8,")[1].split('"')[0]) == figure.csv


def test_a_figure_without_numbers_has_no_line_below():
    assert len(_clean(_executed(Figure("fig-x", "<svg/>", "c", "a"))).cells) == 1


def _luminance(colour: str) -> float:
    """Relative luminance of a colour (WCAG 2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
