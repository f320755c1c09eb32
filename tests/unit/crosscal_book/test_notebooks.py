import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from crosscal.errors import InputError
from crosscal_book.pages import freshness, notebooks
from crosscal_book.pages.notebooks import _clean, _select, execute, executed_copy, main

BODY = """
import os, sys
from crosscal.errors import InputError
from crosscal_book.style import Figure
if sparsity > 1:
    raise InputError("sparsity is too large; give less")
sys.stderr.write("progress")
Figure("fig-a", f"<svg><!-- {os.getcwd()}/here --></svg>", "a caption", "words")
"""


@pytest.fixture
def notebook(tmp_path):
    cells = [new_code_cell("sparsity: float = 0.5  # how much", metadata={"tags": ["parameters"]}), new_code_cell(BODY)]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    path = tmp_path / "01_test.ipynb"
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    path.with_suffix(".md").write_text("source of record")
    return path


def test_two_runs_give_the_same_bytes_without_paths_timings_or_progress(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, second = tmp_path / "a" / "01.ipynb", tmp_path / "b" / "01.ipynb"
    execute(notebook, first, {"sparsity": 0.6})
    execute(notebook, second, {"sparsity": 0.6})
    assert first.read_bytes() == second.read_bytes()
    text = first.read_text()
    assert str(tmp_path) not in text
    assert '"papermill"' not in text
    assert "progress" not in [output.get("text") for cell in nbformat.read(first, 4).cells for output in cell.outputs]
    copy = nbformat.read(first, 4)
    injected = [cell for cell in copy.cells if "injected-parameters" in cell.metadata.get("tags", [])]
    assert "hide-input" in injected[0].metadata["tags"]
    assert copy.cells[-1].metadata["mystnb"]["image"] == {"alt": "words"}
    assert copy.cells[-1].metadata["mystnb"]["figure"] == {"caption": "a caption", "name": "fig-a"}
    assert copy.metadata["crosscal"]["parameters"] == {"sparsity": 0.6}


def test_an_unknown_parameter_stops_with_the_known_ones(notebook, tmp_path):
    with pytest.raises(InputError, match="no parameter 'sparsty'; did you mean 'sparsity'"):
        execute(notebook, tmp_path / "out.ipynb", {"sparsty": 0.6})
    assert not (tmp_path / "out.ipynb").exists()


def test_a_failed_run_says_why_and_leaves_the_earlier_file(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "out.ipynb"
    output.write_text("earlier")
    with pytest.raises(InputError, match=r"^01_test.ipynb: sparsity is too large; give less$"):
        execute(notebook, output, {"sparsity": 2.0})
    assert output.read_text() == "earlier"


@pytest.mark.parametrize("name", ["{project}", "{{x}}", "{sparsity}", "a{}b"])
def test_notebook_in_a_folder_with_braces(notebook, tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    notebook.rename(folder / notebook.name)
    assert executed_copy(folder / notebook.name, {"sparsity": 0.6}).cells


@pytest.mark.parametrize("elsewhere", [True, False])
def test_kernel_talks_from_a_long_temporary_folder(notebook, tmp_path, monkeypatch, elsewhere):
    place = tmp_path / ("x" * 100)
    place.mkdir()
    monkeypatch.setattr(notebooks.tempfile, "tempdir", str(place))
    if not elsewhere:  # and no shorter one can be written: TCP
        monkeypatch.setattr(notebooks, "SOCKET_FOLDER", 0)
    assert executed_copy(notebook, {}).cells


def test_parameter_that_is_text_stays_as_written(tmp_path):
    cells = [new_code_cell('model: str = "m"\nn: int = 1', metadata={"tags": ["parameters"]})]
    kernel = {"name": "python3", "language": "python", "display_name": "Python 3"}
    path = tmp_path / "01_test.ipynb"
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    for text in ("007", "1.10", "2024_01", "1e5", "None", "inf", "0,0.5"):
        assert notebooks._typed(path, {"model": text, "n": "2"}) == {"model": text, "n": 2}


def test_the_command_line_prints_one_sentence_and_fails(capsys):
    assert main(["zz"]) == 1
    assert "no notebook begins with 'zz'" in capsys.readouterr().err


def test_select_takes_beginnings(tmp_path):
    for name in ("01_a.ipynb", "02_b.ipynb", "draft.ipynb"):
        (tmp_path / name).touch()
    assert [p.name for p in _select(tmp_path, [])] == ["01_a.ipynb", "02_b.ipynb"]
    assert [p.name for p in _select(tmp_path, ["02"])] == ["02_b.ipynb"]


def test_cleaning_keeps_what_a_reader_sees():
    output = new_output("stream", name="stdout", text="seen")
    clean = _clean(new_notebook(cells=[new_code_cell("1", outputs=[output])]))
    assert clean.cells[0].outputs[0].text == "seen"
    assert clean.cells[0].id == "cell-00"


def test_an_edited_source_or_copy_is_stale(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    executed = tmp_path / "chapters" / "01_test.ipynb"
    assert "was not executed" in freshness._check_chapter(notebook, executed, tmp_path)[0]
    execute(notebook, executed, {"sparsity": 0.6})
    assert freshness._check_chapter(notebook, executed, tmp_path) == []
    notebook.with_suffix(".md").write_text("changed")
    assert "older than its notebook" in freshness._check_chapter(notebook, executed, tmp_path)[0]
