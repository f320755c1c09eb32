"""Texts by name: checked before anything is loaded, then drawn as token windows."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from crosscal.cli.notes import note
from crosscal.cli.options import loading, names_in
from crosscal.errors import InputError

if TYPE_CHECKING:
    from crosscal.text import TextWindows

DEFAULT = "c4"
"""The calibration text of methods that read text, when none is named."""


def read_shares(text: str) -> dict[str, float]:
    """Sources and their weights: `c4=0.5,my_notes.jsonl=0.5`, or one source alone.

    Raises `InputError` for weights that do not sum to 1, and for unknown and repeated sources.
    """
    from crosscal.plan.parameters import parse_shares

    pairs = parse_shares(text)
    shares = dict(pairs)
    if len(shares) < len(pairs):
        raise InputError(f"a source occurs twice in '{text}'; give each source once, with its whole weight")
    for source in shares:
        check_source(source, may_be_written=True)
    return shares


def read_texts(text: str) -> list[str]:
    """Held-out texts by name; raises `InputError` for unknown ones."""
    names = names_in(text)
    for name in names:
        check_source(name, may_be_written=False)
    return names


def check_source(source: str, *, may_be_written: bool) -> None:
    """Raises `InputError` for an unknown name and a missing file; whether a hub set exists is seen when it is read."""
    from crosscal.text.files import is_path, read_file
    from crosscal.text.registry import SELF, SOURCES, source_named

    if source == SELF and may_be_written:
        return
    if source == SELF:
        raise InputError("'self' is calibration text that the model writes; evaluate on a held-out text, such as news")
    if source.startswith("hub:"):
        return
    if source in SOURCES or not is_path(source):
        source_named(source)
    else:
        read_file(Path(source).expanduser())


def draw_calibration(options: argparse.Namespace, shares: dict[str, float]) -> "dict[str, TextWindows]":
    """The calibration windows of each source; `self` loads the model, lets it write, and drops it again."""
    from crosscal.models.loading import load_model, load_tokenizer
    from crosscal.text import SELF, load_text, write_text

    sizes = {"n_windows": options.windows, "length": options.length, "seed": options.seed}
    drawn = {}
    tokenizer = load_tokenizer(options.model, **loading(options)) if set(shares) != {SELF} else None
    for source in shares:
        if source == SELF:
            note(options, f"{options.model} writes {options.windows} windows of text; it is held in memory for that")
            model = load_model(options.model, device=options.device, dtype=options.dtype, **loading(options))
            drawn[source] = write_text(model, **sizes, progress=not options.quiet)
            del model
        else:
            drawn[source] = load_text(source, tokenizer, **sizes)
    return drawn
