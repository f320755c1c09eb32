"""The standalone page: everything inside it, nothing asked of any host."""

import base64
import re
from html.parser import HTMLParser

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from crosscal.errors import InputError
from crosscal_book.pages import standalone
from crosscal_book.pages.standalone import card_notebook, standalone_page

SVG = '<?xml version="1.0"?>\n<!DOCTYPE svg PUBLIC "x" "http://www.w3.org/x.dtd">\n<svg xmlns="http://www.w3.org/2000/svg"/>'
WORDS = {"figure": {"caption": "a <caption>", "name": "fig-a"}, "image": {"alt": 'what "it" shows'}}


def shown(**data):
    return [new_output("execute_result", data=data, execution_count=1)]


@pytest.fixture
def notebook():
    table = "| a | b |\n| :-- | --: |\n| one | 1.5 |\n\n<script src='https://evil.example/x.js'></script>\n"
    cells = [
        new_markdown_cell("# The book's introduction"),
        new_code_cell("settings = 1"),
        new_markdown_cell("## What was lost\n\nAs $w = 0$ {cite:p}`williams2025` says."),
        new_code_cell(
            "figure()", outputs=shown(**{"image/svg+xml": SVG, "text/plain": "x"}), metadata={"mystnb": WORDS}
        ),
        new_code_cell("table()", outputs=shown(**{"text/markdown": table})),
        new_code_cell("card()", outputs=shown(**{"text/markdown": "the card"}), metadata={"tags": ["hide-output"]}),
        new_code_cell("print()", outputs=[new_output("stream", name="stdout", text="a < b")]),
        new_markdown_cell("Only the book.\n\n## Run it again\n\n`make book`"),
    ]
    return new_notebook(cells=cells)


@pytest.fixture
def page(notebook):
    return standalone_page(notebook, "Card <of> a model", {"Your text": "a&b.jsonl"}, "crosscal report --target '50%'")


class Reader(HTMLParser):
    """Every tag with its attributes, and tags that were left open or closed twice."""

    VOID = ("meta", "img", "br", "hr", "link")

    def __init__(self, page):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def named(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]


def test_the_page_is_whole_and_asks_no_host_for_anything(page):
    reader = Reader(page)
    assert not reader.open
    assert not reader.named("script")
    assert not reader.named("link")
    assert not reader.named("iframe")
    assert all(attrs["src"].startswith("data:") for attrs in reader.named("img"))
    assert not re.search(r"url\(|@import", page)
    policy = next(attrs for attrs in reader.named("meta") if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none'")


def test_figures_keep_alternative_text_and_caption(page):
    (image,) = Reader(page).named("img")
    assert image["alt"] == 'what "it" shows'
    svg = base64.b64decode(image["src"].split(",", 1)[1]).decode()
    assert svg == '<svg xmlns="http://www.w3.org/2000/svg"/>'
    assert "<figcaption>a &lt;caption&gt;</figcaption>" in page
    assert '<figure id="fig-a">' in page


def test_the_books_own_words_and_all_code_are_left_out(page):
    for absent in ("introduction", "Only the book", "make book", "settings = 1", "figure()", "cite:p", "williams2025"):
        assert absent not in page
    assert "As <i>w = 0</i> says." in page
    assert "<h2>What was lost</h2>" in page


def test_tables_scroll_and_the_card_is_folded(page):
    assert re.search(
        r'<div class="table"[^>]*><table>.*<td style="text-align:right">1.5</td>.*</table></div>', page, re.S
    )
    assert re.search(r"<details><summary>The card as text</summary>\s*<p>the card</p>\s*</details>", page)
    assert "<pre>a &lt; b</pre>" in page


def test_names_and_the_command_are_text_not_markup(page):
    assert "<title>Card &lt;of&gt; a model</title>" in page
    assert "<dd>a&amp;b.jsonl</dd>" in page
    assert "crosscal report --target &#x27;50%&#x27;" in page


def test_the_style_knows_phones_dark_pages_and_paper(page):
    assert "width=device-width" in page
    for rule in ("prefers-color-scheme: dark", "@media print", "max-width: 100%", "overflow-x: auto"):
        assert rule in page


def test_the_notebook_is_found_in_the_checkout_and_in_the_package(monkeypatch, tmp_path):
    in_checkout = card_notebook()
    monkeypatch.setattr(standalone, "checkout", lambda: None)
    assert nbformat.read(card_notebook(), 4) == nbformat.read(in_checkout, 4)
    monkeypatch.setattr(standalone, "NOTEBOOK", "none.ipynb")
    with pytest.raises(InputError, match="lacks the report card's notebook; install crosscal again"):
        card_notebook()
