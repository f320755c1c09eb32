"""Every page at phone and desktop width, light and dark: nothing sticks out, nothing is pale, nothing is nameless.

One Chromium loads all pages, one after the other, in a frame of a page that measures them.
"""

import gzip
import html as markup
import json
import subprocess
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.book.test_browser import FLAGS

LARGEST, LARGEST_FRONT = 1_000_000, 300_000  # bytes
PATIENCE = "--virtual-time-budget=600000"


@pytest.fixture(scope="module")
def seen(html, pages, server, chromium, tmp_path_factory):
    """What the measuring page noted of every page, width and colour scheme."""
    address, _ = server
    names = [page.relative_to(html).as_posix() for page in pages]
    script = (Path(__file__).parent / "look.js").read_text(encoding="utf-8")
    text = f"<!doctype html><body><script>const PAGES = {json.dumps(names)};\n{script}</script>"
    (html / "look.html").write_text(text, encoding="utf-8")
    flags = [flag for flag in FLAGS if not flag.startswith("--virtual-time")]
    profile = tmp_path_factory.mktemp("profile")
    command = [chromium, *flags, PATIENCE, f"--user-data-dir={profile}", "--window-size=1400,1000"]
    try:
        done = subprocess.run([*command, f"{address}/look.html"], capture_output=True, text=True, timeout=500)
    finally:
        (html / "look.html").unlink()
    assert '<pre id="results">' in done.stdout, done.stderr[-2000:]
    found = json.loads(markup.unescape(done.stdout.split('<pre id="results">')[1].split("</pre>")[0]))
    assert len(found) == 4 * len(names)
    return found


def complaints(seen, key):
    """The pages at which something was noted."""
    return [(view["page"], view["width"], view["scheme"], view[key]) for view in seen if view[key]]


def test_no_page_is_wider_than_the_screen(seen):
    assert [(v["page"], v["width"], v["overflow"]) for v in seen if v["overflow"] > 1] == []


def test_text_has_enough_contrast_in_light_and_dark(seen):
    assert complaints(seen, "pale") == []


def test_everything_that_can_be_used_has_a_name(seen):
    assert complaints(seen, "nameless") == []


def test_what_scrolls_can_be_reached_by_keyboard(seen):
    assert complaints(seen, "unreachable") == []


def test_a_first_view_is_small(seen, html):
    """Everything a page loads, compressed as web servers send it."""

    @cache
    def sent(path):
        return len(gzip.compress((html / unquote(path).lstrip("/")).read_bytes()))

    views = [view for view in seen if (view["width"], view["scheme"]) == (1280, "light")]
    sizes = {view["page"]: sum(sent(path) for path in set(view["files"])) for view in views}
    assert {page: size for page, size in sizes.items() if size > LARGEST} == {}
    assert sizes["index.html"] < LARGEST_FRONT
    assert min(sizes.values()) > 50_000, "the theme's own files were counted"
