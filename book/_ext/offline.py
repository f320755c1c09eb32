"""Serve MathJax from the book itself: no page asks another host for anything.

MathJax 3 comes inside the PyPI package sphinx-mathjax-offline (in requirements/book.txt). Only the files that a page
with equations loads are copied, and only the parts that are needed are loaded: TeX input, HTML output, the hidden
MathML that screen readers read. Left out are the right-click menu and its speech engine, most of the full bundle.
"""

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

from docutils.nodes import math, math_block
from sphinx.errors import ExtensionError

PACKAGE = "sphinx-mathjax-offline"
ICONS = re.compile(r'<script src="[^"]*scripts/fontawesome\.js[^"]*"></script>\n?')
NEEDED = (
    "startup.js",
    "core.js",
    "input/tex.js",
    "input/tex/extensions",
    "output/chtml.js",
    "output/chtml/fonts",
    "a11y/assistive-mml.js",
)


def configure(app, config):
    """Point Sphinx at the copy, and tell MathJax what to load from there."""
    config.mathjax_path = "mathjax/startup.js"
    loader = {"load": ["core", "input/tex", "output/chtml", "a11y/assistive-mml"]}
    config.mathjax3_config = {**(config.mathjax3_config or {}), "loader": loader}


def copy_files(app, error):
    """Copy the needed files into the pages' own static folder."""
    if error or app.builder.format != "html":
        return
    found = find_spec(PACKAGE)
    if found is None:
        raise ExtensionError(f"MathJax is missing; run: pip install -r requirements/book.txt (it holds {PACKAGE})")
    source = Path(found.origin).parent / "static" / "mathjax"
    target = Path(app.outdir) / "_static" / "mathjax"
    for name in NEEDED:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, dirs_exist_ok=True)
        else:
            shutil.copyfile(source / name, target / name)


def drop_second_icons(app, error):
    """Take the icons' script out of the pages: half a megabyte that draws once more what the theme's font draws."""
    if error or app.builder.format != "html":
        return
    for page in Path(app.outdir).rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        slim = ICONS.sub("", text)
        if slim != text:
            page.write_text(slim, encoding="utf-8")
    (Path(app.outdir) / "_static" / "scripts" / "fontawesome.js").unlink(missing_ok=True)


def leave_out(app, pagename, templatename, context, doctree):
    """Drop scripts that a page has no use for.

    Thebe (running cells on another host's servers) is loaded by the theme's extensions though it is off, twice over.
    MathJax is added by Sphinx to pages that merely list pages with equations.
    """
    unwanted = ["thebe"]
    if doctree is not None and not any(doctree.findall(lambda node: isinstance(node, (math, math_block)))):
        unwanted.append("mathjax")

    def wanted(file) -> bool:
        text = f"{file} {getattr(file, 'attributes', '')}".lower()
        return not any(word in text for word in unwanted)

    for key in ("script_files", "css_files"):
        context[key] = [file for file in context.get(key, []) if wanted(file)]


def setup(app):
    app.connect("config-inited", configure)
    app.connect("html-page-context", leave_out, priority=900)
    app.connect("build-finished", copy_files)
    app.connect("build-finished", drop_second_icons)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
