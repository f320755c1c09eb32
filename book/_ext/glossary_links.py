"""Link each term of the glossary where a page uses it first.

Terms that are also everyday words are left alone: a link at "run it again" would help nobody.
"""

import re
from pathlib import Path

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.transforms import SphinxTransform

GLOSSARY = "glossary"
EVERYDAY = {"run", "item", "grid", "window", "schedule", "preset"}
CLOSED = (nodes.reference, nodes.title, nodes.literal, nodes.literal_block, nodes.caption, nodes.raw, nodes.math)
CLOSED += (nodes.table, nodes.rubric, nodes.term, pending_xref)


def terms(folder: Path) -> list[str]:
    """The terms of the glossary, longest first, so that "task perplexity" would win over "perplexity"."""
    text = (folder / f"{GLOSSARY}.md").read_text(encoding="utf-8")
    block = text.split(":::{glossary}")[1].split(":::")[0]
    found = [line.strip() for line in block.splitlines() if line.strip() and not line.startswith(" ")]
    return sorted((term for term in found if term not in EVERYDAY), key=len, reverse=True)


class LinkFirstUse(SphinxTransform):
    """Replace the first mention of each term by a reference to it."""

    default_priority = 800

    def apply(self, **_):
        if self.env.docname == GLOSSARY:
            return
        left = terms(Path(self.app.srcdir))
        for text in list(self.document.findall(nodes.Text)):
            if left and isinstance(text.parent, (nodes.paragraph, nodes.emphasis, nodes.strong)) and _open(text):
                self._link(text, left)

    def _link(self, text, left):
        """Link what this piece of text mentions first, and go on behind it."""
        words = text.astext()
        matches = [(re.search(rf"\b{re.escape(term)}s?\b", words, re.IGNORECASE), term) for term in left]
        matches = [(found, term) for found, term in matches if found]
        if not matches:
            return
        found, term = min(matches, key=lambda match: (match[0].start(), -len(match[1])))
        left.remove(term)
        about = {"refdomain": "std", "reftype": "term", "reftarget": term, "refdoc": self.env.docname}
        target = pending_xref("", nodes.inline("", found[0]), refwarn=True, refexplicit=True, **about)
        after = nodes.Text(words[found.end() :])
        text.parent.replace(text, [nodes.Text(words[: found.start()]), target, after])
        self._link(after, left)


def _open(text):
    """Whether a link may stand here."""
    node = text.parent
    while node is not None:
        if isinstance(node, CLOSED):
            return False
        node = node.parent
    return True


def setup(app):
    """Sphinx's entry point."""
    app.add_transform(LinkFirstUse)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
