"""What a compressed model lost, written into the model card of its folder."""

from pathlib import Path

from crosscal.cli.config import REPORT
from crosscal.errors import InputError

CARD = "README.md"
BEGIN, END = "<!-- crosscal evaluate: begin -->", "<!-- crosscal evaluate: end -->"


def check_card(model: str) -> Path:
    """The card of a folder that crosscal made; raises `InputError` for any other."""
    folder = Path(model).expanduser()
    if not (folder / REPORT).exists():
        raise InputError(f"{model} was not made by crosscal, so --card leaves its README.md alone; leave --card out")
    return folder / CARD


def write_card(model: str, found: dict) -> None:
    """Put the tables into the card, in the place of those of an earlier evaluation; the rest stays as it is."""
    from crosscal.files import write_atomically

    path = check_card(model)
    write_atomically(path, with_section(path.read_text(encoding="utf-8") if path.exists() else "", section(found)))


def section(found: dict) -> str:
    """The section of an evaluation, marked so that the next one finds it."""
    from crosscal.cli.rows import note_of, task_table, text_table_of
    from crosscal.cli.tables import markdown_table

    note = note_of(found) + (f" Compared with {found['dense']}." if found["dense"] else "")
    tables = [markdown_table(*table) for table in (text_table_of(found), task_table(found)) if table[1]]
    return "\n\n".join([BEGIN, "## What it lost", *tables, note, END])


def with_section(card: str, text: str) -> str:
    r"""A card with the section in place of an earlier one, or at its end.

    >>> with_section("# Model\n", f"{BEGIN}new{END}") == f"# Model\n\n{BEGIN}new{END}\n"
    True
    """
    before, found, rest = card.partition(BEGIN)
    if found:
        return before + text + rest.partition(END)[2]
    return f"{card.rstrip()}\n\n{text}\n" if card.strip() else f"{text}\n"
