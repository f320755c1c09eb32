"""The numbers of a figure are those that were drawn."""

import csv
import io
from urllib.parse import unquote

import nbformat
from matplotlib.figure import Figure as Canvas

from crosscal_book.drawn import drawn_data
from crosscal_book.pages.notebooks import scrub
from crosscal_book.style import STYLES, Figure, finish


def rows(canvas, names=None):
    """The lines of a figure's CSV as dictionaries."""
    return list(csv.DictReader(io.StringIO(drawn_data(canvas, names or {}))))


def test_points_come_with_both_of_their_intervals_and_their_series():
    canvas = Canvas()
    axes = canvas.subplots()
    axes.errorbar([1, 2], [3, 4], xerr=[[0.5, 0.25], [1, 1]], yerr=0.5, label="mine")
    first, second = rows(canvas)
    assert first == {
        "panel": "",
        "series": "mine",
        "value": "",
        "x": "1",
        "x from": "0.5",
        "x to": "2",
        "y": "3",
        "y from": "2.5",
        "y to": "3.5",
    }
    assert (second["x from"], second["y to"]) == ("1.75", "4.5")


def test_a_colour_names_the_method_and_levels_are_no_data():
    canvas = Canvas()
    axes = canvas.subplots()
    axes.plot([0, 1], [5, 6], color=STYLES["wanda"].colour)
    axes.axhline(0.5)
    axes.axvline(2)
    found = rows(canvas, {STYLES["wanda"].colour.lower(): "Wanda"})
    assert [(row["series"], row["x"], row["y"]) for row in found] == [("Wanda", "0", "5"), ("Wanda", "1", "6")]


def test_panels_and_named_positions_are_told():
    canvas = Canvas()
    left, right = canvas.subplots(1, 2)
    left.set_title("general\ntext")
    left.plot([0.1], [1], marker="o")
    left.set_xticks([0, 1], ["c4", "pubmed"])
    right.imshow([[1.0, 2.0]])
    found = rows(canvas)
    assert [(row["panel"], row["x"]) for row in found[:1]] == [("general text", "c4")]
    assert [(row["panel"], row["x"], row["y"], row["value"]) for row in found[1:]] == [
        ("2", "0", "0", "1"),
        ("2", "1", "0", "2"),
    ]


def test_the_numbers_stand_below_the_figure_with_the_command(tmp_path):
    canvas = Canvas()
    canvas.subplots().plot([1], [2], label="a, b")
    figure = finish(canvas, "fig-x", "caption", "alt")
    data, metadata = figure._repr_mimebundle_()
    output = nbformat.v4.new_output("display_data", data, metadata=metadata)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=[output])])
    shown, below = scrub(notebook, "papermill a.ipynb b.ipynb").cells
    assert "crosscal" not in shown.outputs[0].metadata
    assert (below.cell_type, below.metadata["format"]) == ("raw", "text/html")
    html = below.source
    assert "papermill a.ipynb b.ipynb" in html
    assert unquote(html.split("charset=utf-8,")[1].split('"')[0]) == figure.csv
    assert '"a, b",1' in figure.csv


def test_a_figure_without_numbers_has_no_line_below():
    data, metadata = Figure("fig-x", "<svg/>", "c", "a")._repr_mimebundle_()
    output = nbformat.v4.new_output("display_data", data, metadata=metadata)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("x", outputs=[output])])
    assert len(scrub(notebook).cells) == 1
