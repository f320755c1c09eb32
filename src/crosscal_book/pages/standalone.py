"""An executed report card as one HTML file that needs nothing else: no script, no font, no request to any host."""

import base64
import html
import re
from collections.abc import Mapping
from pathlib import Path

from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from nbformat import NotebookNode

from crosscal.errors import InputError
from crosscal.paths import checkout

NOTEBOOK = "08_your_model.ipynb"
LAST = "## Run it again"  # of the book: the page has a command line of its own
# A browser that reads this refuses every request, whatever a text or a figure may ask for.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
TABLE = '<div class="table" role="region" aria-label="table" tabindex="0">'  # scrolls by itself on a phone
PAGE, STYLE = (Path(__file__).with_suffix(end).read_text(encoding="utf-8") for end in (".html", ".css"))
_CITATION = re.compile(r"\s*\{cite:p\}`[^`]*`")
_PROLOGUE = re.compile(r"<\?xml.*?\?>\s*|<!DOCTYPE.*?>\s*|<metadata>.*?</metadata>\s*", re.DOTALL)


def card_notebook() -> Path:
    """Return the report card's notebook: the checkout's, else the copy inside the installed package.

    Raises `InputError` when neither is there.
    """
    root = checkout()
    path = root / "notebooks" / NOTEBOOK if root else Path(__file__).parent / NOTEBOOK
    if not path.exists():
        raise InputError(
            "this installation lacks the report card's notebook; install crosscal again, or run this in a git checkout"
        )
    return path


def standalone_page(notebook: NotebookNode, title: str, facts: Mapping[str, str], command: str) -> str:
    """Return the page: title, what was asked (`facts`), the notebook's sections and outputs, and its own `command`.

    The book's introduction and its last section are left out, and so is all code. Figures lie inside as data, each
    with its alternative text and caption; outputs that the book folds away are folded here.
    """
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table").use(dollarmath_plugin, allow_digits=False)
    markdown.add_render_rule("math_inline", _math)
    markdown.add_render_rule("table_open", lambda *_: f"{TABLE}<table>\n")
    markdown.add_render_rule("table_close", lambda *_: "</table></div>\n")
    body = "\n".join(_cells(notebook, markdown))
    asked = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in facts.items())
    given = {"title": html.escape(title), "asked": asked, "body": body, "command": html.escape(command)}
    return PAGE.format(policy=POLICY, style=STYLE, **given)


def _cells(notebook: NotebookNode, markdown: MarkdownIt):
    """The HTML of each cell that is shown."""
    begun = False
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            if LAST in cell.source:
                return
            if begun:
                yield markdown.render(_CITATION.sub("", cell.source))
        elif cell.cell_type == "raw":  # a figure's numbers
            yield cell.source
        elif cell.cell_type == "code":
            begun = True
            shown = "\n".join(_output(output, cell, markdown) for output in cell.outputs)
            folded = "hide-output" in cell.metadata.get("tags", []) and shown
            yield f"<details><summary>The card as text</summary>\n{shown}\n</details>" if folded else shown


def _output(output: NotebookNode, cell: NotebookNode, markdown: MarkdownIt) -> str:
    """One output in the best form that a page without scripts can show."""
    data = output.get("data", {})
    if "image/svg+xml" in data:
        return _figure(data["image/svg+xml"], cell.metadata.get("mystnb", {}))
    if "text/markdown" in data:
        return markdown.render(data["text/markdown"])
    text = data.get("text/plain", output.get("text", ""))
    return f"<pre>{html.escape(text)}</pre>" if text else ""


def _figure(svg: str, words: Mapping) -> str:
    """An image with its alternative text, and a caption."""
    figure, alt = words.get("figure", {}), words.get("image", {}).get("alt", "")
    source = base64.b64encode(_PROLOGUE.sub("", svg).encode()).decode()
    return (
        f'<figure id="{html.escape(figure.get("name", ""))}">'
        f'<img src="data:image/svg+xml;base64,{source}" alt="{html.escape(alt)}">'
        f"<figcaption>{html.escape(figure.get('caption', ''))}</figcaption></figure>"
    )


def _math(renderer, tokens, index, options, env) -> str:
    """Formulas here are single letters and their values."""
    return f"<i>{html.escape(tokens[index].content)}</i>"
