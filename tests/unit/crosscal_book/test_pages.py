import hashlib
import re

import pytest

from crosscal.errors import InputError
from crosscal.paths import checkout
from crosscal_book.chapters import perplexity
from crosscal_book.pages.generated import BEGIN, END, _answers, _manifest, _merged, _runs_table, _stage, _with_part

OUTSIDE = re.compile(r"[ <]((?:\.\./)+(?:[\w-]+/)*(?:src/[\w/.]+|CITATION\.cff))")


def test_the_manifest_is_what_sha256sum_checks(folder):
    lines = dict(reversed(line.split("  ")) for line in _manifest(folder).splitlines())
    assert lines["dense-0.json"] == hashlib.sha256((folder / "dense-0.json").read_bytes()).hexdigest()
    assert "items/dense-0.json" in lines


def test_only_the_marked_part_of_the_readme_changes():
    assert _with_part(f"before {BEGIN} old {END} after", f"{BEGIN} new {END}") == f"before {BEGIN} new {END} after"
    with pytest.raises(InputError, match="lacks its markers"):
        _with_part("nothing", "new")


def test_the_front_page_answers_with_a_verdict_and_an_interval(results):
    text, every = (str(table) for table in _answers([perplexity.CHAPTER.page(results)]))
    assert "**" in text
    assert "[" in text
    assert "chapter 1" in text
    assert "khanal2024" in text
    assert "At equal perplexity" in every
    assert "At equal perplexity" not in text, "a claim of no paper"


def test_every_run_has_its_line(results):
    assert len(_runs_table(results).body) == len(results.run_ids)


def test_runs_of_several_chapters_are_merged_once(results):
    again = _merged([results, results])
    assert len(again.rows) == len(results.rows)
    assert again.items.keys() == results.items.keys()


def test_staging_copies_sources_and_real_settings_but_no_chapters(tmp_path):
    _stage(checkout(), tmp_path / "book")
    assert (tmp_path / "book" / "index.md").exists()
    assert not (tmp_path / "book" / "chapters").exists()
    assert not (tmp_path / "book" / "_config.yml").is_symlink()
    _stage(checkout(), tmp_path / "book")  # again, over what is there


def test_what_a_staged_page_includes_from_outside_the_book_is_still_there(tmp_path):
    folder = tmp_path / "far" / "away" / "book"
    _stage(checkout(), folder)
    paths = []
    for page in folder.rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        paths += [
            (page, path)
            for path in re.findall(r"[ <]((?:\.\./)+(?:[\w-]+/)*src/[\w/.]+|(?:\.\./)\S*CITATION\.cff)", text)
        ]
    assert len(paths) >= 12
    for page, path in paths:
        assert (page.parent / path).resolve().is_file(), (page, path)
