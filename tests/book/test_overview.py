"""The overview page names every method, and no other."""

import re
from pathlib import Path

from crosscal.methods.registry import METHODS

PAGE = Path(__file__).resolve().parents[2] / "book" / "methods" / "overview.md"


def test_every_method_is_on_the_page_with_its_options():
    text = PAGE.read_text(encoding="utf-8")
    lines = {m[1]: m[0] for m in re.finditer(r"^\| \[`(\w+)`\]\(\w+\.md\) \|.*$", text, re.MULTILINE)}
    assert set(lines) == set(METHODS)
    for name, method in METHODS.items():
        assert all(f"`{option}`" in lines[name] for option in method.options)


def test_every_answer_of_the_front_page_has_an_interval():
    text = (PAGE.parents[1] / "_generated" / "answers.md").read_text(encoding="utf-8")
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| ") and "{cite:p}" in line]
    assert len(lines) >= 10
    assert all(re.search(r"\[[^\]]+, [^\]]+\]", effect) for _, _, effect, _ in lines)
