"""Names that chapters not yet built on `crosscal_book.chapter` use; they go with the last of them."""

from collections.abc import Sequence

from crosscal_book.chapter import Stamp as Stamp
from crosscal_book.chapter import Text, stamp
from crosscal_book.claims import FAILS, HOLDS, OPEN, Verdict

__all__ = ["FAILS", "HOLDS", "OPEN", "Text", "Verdict", "stamp", "takeaway_text"]


def takeaway_text(verdicts: Sequence[Verdict], *more: str) -> Text:
    """Return the opening of a chapter: one line per claim, its verdict and effect, linked to its evidence."""
    lines = [
        f"- {verdict.claim}: **{verdict.answer}**. {verdict.effect[0].upper()}{verdict.effect[1:]}"
        + (f" ([evidence](#{verdict.evidence}))." if verdict.evidence else ".")
        for verdict in verdicts
    ]
    return Text("\n\n".join(["**Takeaways**", "\n".join(lines), *(part for part in more if part)]) + "\n")
