"""Texts by name: checked before anything is loaded, then drawn as token windows."""

import argparse
from typing import TYPE_CHECKING

from crosscal.cli.notes import note
from crosscal.cli.options import loading, names_in
from crosscal.errors import InputError

if TYPE_CHECKING:
    from crosscal.text import TextWindows

DEFAULT = "c4"
"""The calibration text of methods that read text, when none is named."""


def add_text_options(group) -> None:
    """Declare how JSON files of one's own, and hub sets, are read."""
    group.add_argument(
        "--field",
        metavar="NAME",
        help="the field of your JSON files that holds the text, a.b for nested ones (default: chosen, and said)",
    )
    group.add_argument(
        "--chat", action="store_true", help="read your JSON files as chats, written with the model's chat template"
    )


def with_fields(names: list[str], options: argparse.Namespace | None) -> list[str]:
    """Sources with the field that `--field` and `--chat` ask for in their names, where a source has fields."""
    from crosscal.text import with_field

    if options is None or not (options.field or options.chat):
        return names
    full = [with_field(name, options.field or "", options.chat) for name in names]
    if full == names:
        option = "--chat" if options.chat else "--field"
        raise InputError(f"{option} is for .jsonl and .json files and sets of the hub, and none is named; leave it out")
    return full


def read_shares(text: str, options: argparse.Namespace | None = None) -> dict[str, float]:
    """Sources and their weights: `c4=0.5,my_notes.jsonl=0.5`, or one source alone.

    Raises `InputError` for weights that do not sum to 1, and for unknown and repeated sources.
    """
    from crosscal.plan.parameters import parse_shares

    pairs = parse_shares(text)
    shares = dict(zip(with_fields([name for name, _ in pairs], options), (share for _, share in pairs), strict=True))
    if len(shares) < len(pairs):
        raise InputError(f"a source occurs twice in '{text}'; give each source once, with its whole weight")
    for source in shares:
        check_own(source, may_be_written=True)
    return shares


def read_texts(options: argparse.Namespace) -> list[str]:
    """Held-out texts by name; raises `InputError` for unknown ones."""
    names = names_in(options.texts)
    names = with_fields(names, options) if names else names
    for name in names:
        check_own(name, may_be_written=False)
    return names


def check_own(source: str, *, may_be_written: bool) -> str:
    """What a file of one's own holds, in a line; empty for other sources. Raises `InputError` for unknown names."""
    from crosscal.text import SELF, check_source

    if source == SELF and may_be_written:
        return ""
    if source == SELF:
        raise InputError("'self' is calibration text that the model writes; evaluate on a held-out text, such as news")
    report = check_source(source)
    return str(report) if report else ""


def note_reading(options: argparse.Namespace, windows: "TextWindows") -> None:
    """Say what was read of a file or a hub set."""
    from crosscal.text import SOURCES

    if windows.report is not None and windows.source not in SOURCES:
        note(options, f"read {windows.report}")


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
            note_reading(options, drawn[source])
    return drawn
