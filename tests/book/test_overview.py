"""The table of methods holds every method, from what it says of itself."""

import re
from pathlib import Path

from crosscal.methods import Method
from crosscal.methods.registry import METHODS
from crosscal.types import Grid, NofM
from crosscal_book.pages.api import methods_table

PAGE = Path(__file__).resolve().parents[2] / "book" / "methods" / "overview.md"


def test_table_has_every_method_with_its_page_options_and_source():
    lines = {m[1]: m[0] for m in re.finditer(r"^\| \[`(\w+)`\]\((\w+\.md)\) \|.*$", methods_table(), re.MULTILINE)}
    references = (PAGE.parents[1] / "references.bib").read_text(encoding="utf-8")
    assert list(lines) == list(METHODS)
    for name, method in METHODS.items():
        assert all(f"`{option}`" in lines[name] for option in method.options)
        assert (PAGE.parent / f"{method.page}.md").exists()
        assert f"{{{method.source}," in references


def test_overview_shows_the_table_as_it_is():
    assert "```{include} ../_generated/methods.md\n" in PAGE.read_text(encoding="utf-8")
    assert (PAGE.parents[1] / "_generated" / "methods.md").read_text(encoding="utf-8") == methods_table()


def test_toy_method_is_in_the_table(monkeypatch):
    toy = Method("toy", 1, (NofM, Grid), print, label="Toy", source="nobody2026", options={"depth": 3})
    monkeypatch.setitem(METHODS, "toy", toy)
    assert "| `toy` | N:M, grid | nothing | `depth` (3) | {cite:t}`nobody2026` |" in methods_table()


def test_every_answer_of_the_front_page_has_an_interval():
    text = (PAGE.parents[1] / "_generated" / "answers.md").read_text(encoding="utf-8")
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| ") and "{cite:p}" in line]
    assert len(lines) >= 10
    assert all(re.search(r"\[[^\]]+, [^\]]+\]", effect) for _, _, effect, _ in lines)
