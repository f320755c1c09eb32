"""Which edit makes which executed chapter stale: a chapter is made from what it uses, and from nothing else."""

import shutil
from pathlib import Path

import pytest

from crosscal.paths import checkout
from crosscal.plan.chapters import CHAPTERS
from crosscal_book.pages import freshness
from crosscal_book.pages.freshness import _code_files, fingerprints

ROOT = checkout()
SETTINGS = {"preset": "full", "seed": 0}


@pytest.fixture
def source(tmp_path, monkeypatch) -> Path:
    """A copy of the book's code, to be edited."""
    for room in ("crosscal_book", "crosscal/results", "crosscal/stats"):
        shutil.copytree(freshness.SOURCES / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(freshness, "SOURCES", tmp_path)
    return tmp_path


def made(part: str = "code", **settings) -> dict[str, str]:
    """One fingerprint of every chapter."""
    notebooks = {name: ROOT / "notebooks" / f"{chapter.notebook}.ipynb" for name, chapter in CHAPTERS.items()}
    return {name: fingerprints(path, ROOT, [], SETTINGS | settings)[part] for name, path in notebooks.items()}


def stale(source: Path, file: str, old: str, new: str) -> set[str]:
    """The chapters that an edit makes stale."""
    before, path = made(), source / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    return {name for name, code in made().items() if code != before[name]}


@pytest.mark.parametrize("name", CHAPTERS)
def test_an_edit_of_a_chapter_makes_it_alone_stale(source, name):
    assert stale(source, f"crosscal_book/chapters/{name}.py", "CHAPTER =", "MORE = 1\nCHAPTER =") == {name}


@pytest.mark.parametrize("file", ["crosscal_book/marks.py", "crosscal_book/claims.py", "crosscal/stats/__init__.py"])
def test_an_edit_of_what_all_use_makes_all_stale(source, file):
    assert stale(source, file, "\nfrom ", "\nMORE = 1\nfrom ") == set(CHAPTERS)


def test_an_edit_of_a_page_without_notebook_makes_none_stale(source):
    assert stale(source, "crosscal_book/pages/explore.py", "GENERAL", "SPECIAL") == set()


def test_a_comment_or_docstring_makes_none_stale(source):
    added = "# A comment.\n\n\ndef _none():\n    pass\n"
    code = "\n\ndef _none():\n    pass\n"
    path = source / "crosscal_book" / "marks.py"
    path.write_text(path.read_text() + code)
    assert (
        stale(source, "crosscal_book/marks.py", code, added.replace("pass", '"""About."""\n\n    pass  # why')) == set()
    )


def test_the_code_of_a_chapter_is_its_own_and_what_it_imports():
    names = {path.stem for path in _code_files("crosscal_book.chapters.quantization")}
    assert {"quantization", "claims", "marks", "words", "compare", "estimates", "store"} <= names
    assert not {"costs", "scaling", "notebooks", "explore"} & names


def test_another_plan_makes_its_chapters_stale():
    before, now = made("plan"), made("plan", seed=1)
    assert all(before[name] != now[name] for name in CHAPTERS)
    longer = made("plan", calibration="news")
    changed = {name for name in CHAPTERS if longer[name] != before[name]}
    assert changed == {"perplexity", "calibration", "quantization"}
