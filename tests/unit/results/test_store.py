"""The results store: whole or not at all, and back again without loss."""

import subprocess
import sys

import pytest

from crosscal.errors import InputError
from crosscal.results.store import RunRecord, has_run, load_run, load_runs, save_run
from crosscal.types import ROW_FIELDS, Row

TEXT = {"str": "x", "float": 0.1, "int": 3, "bool": True}


def record(run_id="abc"):
    values = {name: TEXT[Row.__annotations__[name].__name__] for name in ROW_FIELDS}
    items = {"sciq": {"id": [0, 1], "correct": [1, 0]}}
    return RunRecord(run_id, {"model": "m"}, {"device": "cpu"}, [Row(**values)] * 2, [{"name": "0.q"}], items)


def test_a_run_comes_back_as_it_was(tmp_path):
    save_run(tmp_path, record())
    assert has_run(tmp_path, "abc")
    assert load_run(tmp_path, "abc", with_items=True) == record()
    assert load_run(tmp_path, "abc").items == {}


def test_runs_are_listed_by_id_and_temporary_files_are_not_runs(tmp_path):
    save_run(tmp_path, record("b"))
    save_run(tmp_path, record("a"))
    (tmp_path / ".c.json.1.tmp").write_text("half")
    assert [run.run_id for run in load_runs(tmp_path)] == ["a", "b"]


@pytest.mark.parametrize(("content", "sentence"), [("{", "is damaged"), ('{"run_id": "abc"}', "lacks 'rows'")])
def test_a_damaged_file_is_named(tmp_path, content, sentence):
    (tmp_path / "abc.json").write_text(content)
    with pytest.raises(InputError, match=sentence):
        load_run(tmp_path, "abc")


@pytest.mark.parametrize("name", ["abc.json", "items/abc.json"])
@pytest.mark.parametrize("content", [None, "", "{", "null", "[]", "{}", '{"items": [1]}', '{"run_id": "abc"}'])
def test_run_copied_in_part_is_made_again(tmp_path, name, content):
    """It counts as not stored, and reading it says what to delete: no dead end, no traceback."""
    save_run(tmp_path, record())
    path = tmp_path / name
    path.unlink() if content is None else path.write_text(content)
    assert not has_run(tmp_path, "abc")
    with pytest.raises(InputError, match=r"delete (it|.*abc\.json)|no run at"):
        load_run(tmp_path, "abc", with_items=True)
    if name == "items/abc.json":
        assert load_run(tmp_path, "abc").run_id == "abc"
    save_run(tmp_path, record())
    assert has_run(tmp_path, "abc")


def test_files_of_another_kind_are_no_runs(tmp_path):
    save_run(tmp_path, record())
    (tmp_path / "half.json").write_text('{"dense": null, "texts": {}}')
    assert [run.run_id for run in load_runs(tmp_path, with_items=True)] == ["abc"]


def test_a_missing_run_is_named(tmp_path):
    with pytest.raises(InputError, match="no run at"):
        load_run(tmp_path, "abc")


def test_results_are_read_without_torch():
    rooms = "crosscal.results.store, crosscal.plan.chapters, crosscal.study.grid, crosscal.text"
    code = f"import sys; sys.modules['torch'] = None; import {rooms}"
    subprocess.run([sys.executable, "-c", code], check=True)
