"""Write below every page where its numbers come from: preset, model, machine, commit, versions."""

from html import escape
from pathlib import Path


def add_footer(app, config):
    """The line that `crosscal_book.pages.generated` made from the rows, as the theme's extra footer."""
    stamp = Path(app.srcdir) / "_generated" / "stamp.txt"
    if stamp.exists():
        text = escape(stamp.read_text(encoding="utf-8").strip())
        config.html_theme_options["extra_footer"] = f'<p class="page-stamp">Numbers in this book: {text}</p>'


def setup(app):
    app.connect("config-inited", add_footer)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
