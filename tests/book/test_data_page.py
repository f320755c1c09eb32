"""The data page's tables are those of the registries."""

import subprocess
import sys
from pathlib import Path

from crosscal.assets import ARCHIVES
from crosscal.metrics.tasks import TASKS
from crosscal.text import SOURCES
from crosscal_book.pages.data_page import _cited, sources_table, tasks_list

BOOK = Path(__file__).resolve().parents[2] / "book"


def test_the_committed_tables_are_fresh():
    """To refresh them: python -m crosscal_book.pages.generated"""
    assert (BOOK / "_generated" / "sources.md").read_text(encoding="utf-8") == sources_table()


def test_the_committed_tasks_are_fresh_and_all_there():
    """To refresh them: python -m crosscal_book.pages.generated"""
    text = tasks_list()
    assert (BOOK / "_generated" / "tasks.md").read_text(encoding="utf-8") == text
    assert all(f"**`{name}`**" in text and task.built in text for name, task in TASKS.items())
    assert "_generated/tasks.md" in (BOOK / "tasks.md").read_text(encoding="utf-8")


def test_every_archive_and_source_is_on_the_page_with_its_licence():
    page = sources_table()
    for entry in (*ARCHIVES.values(), *SOURCES.values()):
        assert f"`{entry.name}`" in page
        assert entry.licence in page
        assert _cited(entry.attribution) in page
    assert "_generated/sources.md" in (BOOK / "data.md").read_text(encoding="utf-8")


def test_the_tables_need_no_torch():
    code = "import sys, crosscal_book.pages.data_page as p; p.sources_table(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
