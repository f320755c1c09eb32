"""Keep of the theme's icon font the icons that the pages show: a dozen of two thousand, 150 kB less for every reader.

Icons are used by class in pages and scripts (`fa-bars`), and by character in style sheets (arrows, admonitions). Where
brotli is missing, which packs web fonts, the whole font stays.
"""

import logging
import re
from importlib.util import find_spec
from pathlib import Path

FONT = "_static/vendor/fontawesome/webfonts/fa-solid-900"
CLASS = re.compile(r"\bfa-[a-z0-9-]+")
RULE = re.compile(r'((?:\.fa-[a-z0-9-]+::?before,?)+)\{content:"\\([0-9a-f]{2,4})"\}')
ESCAPED = re.compile(r"\\([ef][0-9a-f]{3})")
LITERAL = re.compile("[\ue000-\uf8ff]")


def shown_characters(folder):
    """The code points of the icon font that these pages can show."""
    used = {name for kind in ("*.html", "*.js") for path in folder.rglob(kind) for name in CLASS.findall(_text(path))}
    found = set()
    for path in folder.rglob("*.css"):
        style = _text(path)
        for selectors, code in RULE.findall(style):
            if used & set(CLASS.findall(selectors)):
                found.add(int(code, 16))
        rest = RULE.sub("", style)
        found |= {int(code, 16) for code in ESCAPED.findall(rest)} | {ord(c) for c in LITERAL.findall(rest)}
    return found


def slim(app, error):
    """Replace the theme's font files by ones with these characters only."""
    if error or app.builder.name != "html" or not find_spec("brotli"):
        return
    from fontTools import subset

    logging.getLogger("fontTools").setLevel(logging.WARNING)  # it tells every step
    folder = Path(app.outdir)
    characters = shown_characters(folder)
    for flavor, suffix in (("woff2", ".woff2"), (None, ".ttf")):
        path = folder / (FONT + suffix)
        options = subset.Options(flavor=flavor, recalc_timestamp=False)
        font = subset.load_font(str(path), options)
        chosen = subset.Subsetter(options)
        chosen.populate(unicodes=characters)
        chosen.subset(font)
        subset.save_font(font, str(path), options)


def _text(path):
    return path.read_text(encoding="utf-8", errors="ignore")


def setup(app):
    """Sphinx's entry point."""
    app.connect("build-finished", slim, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
