import json
import re
from hashlib import sha256
from html.parser import HTMLParser
from itertools import pairwise

import nbformat
import pytest
import yaml
from fontTools.ttLib import TTFont

from crosscal_book.pages.freshness import check_all, check_pair
from tests.book.conftest import build

LOADED = re.compile(r"<(?:script|img|iframe|audio|video|source|embed)[^>]*\ssrc=\"(https?:)?//[^\"]*\"", re.IGNORECASE)
LINKED = re.compile(r"<link[^>]*\shref=\"(?:https?:)?//[^\"]*\"[^>]*>", re.IGNORECASE)


class _Page(HTMLParser):
    """What the checks look at: images with the figure they stand in, links, ids, headings, visible words."""

    def __init__(self, text: str):
        super().__init__()
        self.images, self.links, self.ids, self.headings, self.captions = [], [], set(), [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids.add(values.get("id"))
        if tag == "img":
            self.images.append(values)
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        if tag == "figcaption":
            self.captions += 1
        if tag == "article":  # before it, the theme keeps a hidden title for printing
            self.headings.clear()
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))


def test_every_page_of_the_contents_is_built(root, html):
    toc = yaml.safe_load((root / "_toc.yml").read_text())
    files = [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]
    for file in files:
        assert (html / f"{file}.html").exists(), file


def test_nothing_is_loaded_from_another_host(html):
    for page in html.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not LOADED.findall(text), page
        stylesheets = [link for link in LINKED.findall(text) if "stylesheet" in link or "preload" in link]
        assert not stylesheets, page
    for sheet in html.rglob("*.css"):
        assert not re.search(r"url\(['\"]?https?:", sheet.read_text(encoding="utf-8")), sheet


def test_every_figure_has_alternative_text_and_caption(pages):
    figures = 0
    for page in pages:
        parsed = _Page(page.read_text(encoding="utf-8"))
        for image in parsed.images:
            assert len(image.get("alt", "")) > 30, (page, image.get("src"))
            assert not re.search(r"\.(svg|png)$", image["alt"])
        assert parsed.captions >= len(parsed.images), page
        figures += len(parsed.images)
    assert figures >= 5


def test_no_internal_link_is_broken(html, pages):
    parsed = {page: _Page(page.read_text(encoding="utf-8")) for page in html.rglob("*.html")}
    for page in pages:
        for link in parsed[page].links:
            target, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            file = (page.parent / target.split("?")[0]).resolve() if target else page
            assert file.exists(), (page, link)
            if anchor and file.suffix == ".html":
                assert anchor in parsed[file].ids, (page, link)


def test_headings_descend_one_step_at_a_time(pages):
    for page in pages:
        levels = _Page(page.read_text(encoding="utf-8")).headings
        assert levels.count(1) == 1, page
        assert all(after - before <= 1 for before, after in pairwise(levels)), (page, levels)


def test_no_markup_is_left_as_text(pages):
    for page in pages:
        text = re.sub(r"<(pre|script)\b.*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not re.search(r"```|:::|\{(?:admonition|cite|math|numref|prf:)", text), page


def test_every_page_says_where_its_numbers_come_from(pages):
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "Numbers in this book: Preset" in text, page


def test_notebooks_are_paired_and_without_outputs(root):
    notebooks = sorted((root / "notebooks").glob("*.ipynb"))
    assert notebooks
    assert [complaint for notebook in notebooks for complaint in check_pair(notebook)] == []


def test_committed_pages_are_fresh(root):
    assert check_all(root) == []


def test_executed_chapters_hold_no_machine_paths(root):
    for chapter in (root / "book" / "chapters").glob("*.ipynb"):
        text = json.dumps([cell.get("outputs", []) for cell in nbformat.read(chapter, 4).cells])
        assert not re.search(r"(?<![\w.])/(home|root|tmp|work|Users)/", text), chapter


def test_notebooks_are_thin(root):
    for notebook in (root / "notebooks").glob("*.ipynb"):
        for cell in nbformat.read(notebook, 4).cells:
            if cell.cell_type == "code":
                assert "def " not in cell.source
                longest = 20 if "parameters" in cell.metadata.get("tags", []) else 14
                assert len(cell.source.splitlines()) <= longest, (notebook.name, cell.source)


@pytest.mark.slow
def test_building_twice_gives_identical_files(root, html, tmp_path_factory):
    def digests(folder):
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest() for path in files}

    first, second = digests(html), digests(build(root, tmp_path_factory))
    assert len(first) > 100
    assert {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)} == set()


def test_the_icon_font_holds_what_the_pages_show_and_little_else(html):
    pytest.importorskip("brotli")
    path = html / "_static/vendor/fontawesome/webfonts/fa-solid-900.woff2"
    named = {
        "bars": 0xF0C9,
        "magnifying-glass": 0xF002,
        "circle-half-stroke": 0xF042,
        "download": 0xF019,
        "list": 0xF03A,
    }
    text = (html / "index.html").read_text(encoding="utf-8") + (html / "answers.html").read_text(encoding="utf-8")
    shown = {code for name, code in named.items() if f"fa-{name}" in text}
    assert len(shown) >= 3
    assert shown <= set(TTFont(path).getBestCmap())
    assert path.stat().st_size < 10_000


def test_the_bibliography_names_papers_as_the_text_does(root, html):
    page = (html / "bibliography.html").read_text(encoding="utf-8")
    assert all(name in page for name in ("Khanal and Capone, 2024", "Williams et al., 2025", "Raffel et al., 2020"))
    bib = (root / "book" / "references.bib").read_text(encoding="utf-8")
    assert page.count('class="citation"') == bib.count("\n@") + 1


def test_pages_without_contents_use_the_whole_width(html):
    assert "bd-sidebar-secondary" not in (html / "explore.html").read_text(encoding="utf-8")
    assert "bd-sidebar-secondary" in (html / "chapters/04_cross_calibration.html").read_text(encoding="utf-8")


def test_every_equation_is_cited_by_the_code_it_describes(root):
    pages = "".join(path.read_text(encoding="utf-8") for path in (root / "book" / "methods").glob("*.md"))
    code = "".join(path.read_text(encoding="utf-8") for path in (root / "src").rglob("*.py"))
    labels = set(re.findall(r":label: (eq-[a-z-]+)", pages))
    assert len(labels) >= 14
    assert labels == set(re.findall(r"Equation (eq-[a-z-]*[a-z])", code))
