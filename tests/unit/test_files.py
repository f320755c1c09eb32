"""One guarded write: whole or not at all, by several machines at once, and never a traceback."""

import errno
import json
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from crosscal import files
from crosscal.errors import InputError, real_number, whole_number
from crosscal.files import hash_files, write_atomically


def test_write_keeps_the_earlier_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomically(path, "earlier")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(InputError, match=r"No space left on device.*free some space"):
        write_atomically(path, "later")
    assert path.read_text() == "earlier"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("place", ["a file/b.json", "a file/deeper/b.json", "a folder"])
def test_write_to_an_impossible_place_is_a_sentence(tmp_path, place):
    (tmp_path / "a file").write_text("")
    (tmp_path / "a folder").mkdir()
    with pytest.raises(InputError, match=r"cannot write .* choose another folder"):
        write_atomically(tmp_path / place, "{}")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a file", "a folder"]


def test_write_of_half_a_surrogate_pair_is_a_sentence(tmp_path):
    with pytest.raises(InputError, match="half of a surrogate pair"):
        write_atomically(tmp_path / "a.txt", "half \ud83d")
    assert not list(tmp_path.iterdir())


def test_write_where_the_system_refuses_clean_up(tmp_path, monkeypatch):
    """On a read-only file system, removing the temporary file fails as writing it did."""

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(files, "open", refuse, raising=False)
    monkeypatch.setattr(files.Path, "unlink", refuse)
    with pytest.raises(InputError, match="Read-only file system"):
        write_atomically(tmp_path / "a.json", "{}")


def test_write_takes_the_longest_name_of_the_system(tmp_path):
    path = tmp_path / ("a" * 250 + ".json")
    assert write_atomically(path, "{}")
    assert path.read_text() == "{}"


def test_optional_file_costs_a_line_not_the_work(tmp_path, capsys):
    (tmp_path / "cache").write_text("a file")
    assert not write_atomically(tmp_path / "cache" / "a.json", "{}", optional=True)
    assert capsys.readouterr().err.startswith("not kept: cannot write")


def test_two_containers_write_one_file(tmp_path):
    """Threads, as processes of two containers, have the same process id."""
    path, barrier = tmp_path / "run.json", threading.Barrier(2)
    text = json.dumps([0.5] * 5000)

    def store(_):
        for _ in range(30):
            barrier.wait()
            write_atomically(path, text)
            barrier.wait()
            assert path.read_text() == text

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(store, range(2)))
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]


def test_hash_of_files_knows_names_and_bytes(tmp_path):
    paths = {"a": tmp_path / "x", "b": tmp_path / "y"}
    seen = set()
    for first, second in (("x", "y"), ("y", "x"), ("xy", "")):
        for path, text in zip(paths.values(), (first, second), strict=True):
            path.write_text(text)
        seen.add(hash_files(paths))
    assert len(seen) == 3
    assert hash_files(dict(reversed(paths.items()))) in seen
    assert hash_files({"c": paths["a"], "b": paths["b"]}) not in seen


@pytest.mark.parametrize("value", [-1, True, 1.0, "1", 10**20, None])
def test_whole_number_refuses_the_rest(value):
    with pytest.raises(InputError, match=r"seed is .*; give a whole number"):
        whole_number("seed", value)
    assert whole_number("seed", 7) == 7


def test_numbers_of_numpy_become_plain_ones():
    for value in (np.int64(7), np.uint8(7)):
        assert type(whole_number("seed", value)) is int
    for value in (np.float32(0.5), np.float64(0.5), np.int64(1), 1):
        assert type(real_number("sparsity", value, 0, 1)) is float
    with pytest.raises(InputError, match="seed is"):
        whole_number("seed", np.True_)


@pytest.mark.parametrize("value", [-0.1, 1.1, True, np.True_, "0.5", None, math.nan, math.inf])
def test_real_number_refuses_the_rest(value):
    with pytest.raises(InputError, match=r"sparsity is .*; give a number from 0 to 1"):
        real_number("sparsity", value, 0, 1)
    with pytest.raises(InputError, match=r"damp is 0; give a number above 0$"):
        real_number("damp", 0, above=True)
