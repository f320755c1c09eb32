"""From options to a request: the target, the method's options, and the texts; all checked before anything is loaded."""

import argparse
import json
import math
from decimal import Decimal, InvalidOperation

from crosscal.cli.files import _note
from crosscal.errors import InputError
from crosscal.machine import Estimate, estimate
from crosscal.models import find_config, load_model, load_tokenizer
from crosscal.plan.parameters import parse_shares
from crosscal.text import SELF, SOURCES, check_source, load_text, write_text
from crosscal.text.documents import _with_field
from crosscal.text.windows import TextWindows
from crosscal.types import (
    Grid,
    LowRank,
    NofM,
    Pattern,
    PerGroup,
    PerRow,
    SparseGrid,
    Target,
    Unstructured,
    Width,
    parse_pattern,
    parse_target,
)


def _read_target(options: argparse.Namespace) -> Target | None:
    """Return the target that the options describe, None without any; raises `InputError` for contradictions."""
    if options.sparsity is not None and options.pattern is not None:
        raise InputError("--sparsity and --pattern both choose the weights to set to zero; give one of them")
    if options.bits is None and (options.group is not None or options.symmetric):
        raise InputError("--group and --symmetric need --bits; give for example --bits 4")
    pattern: Pattern | None = None
    if options.sparsity is not None:
        pattern = Unstructured(_fraction("--sparsity", options.sparsity))
    elif options.pattern is not None:
        pattern = parse_pattern(options.pattern)
        if not isinstance(pattern, NofM):
            raise InputError(f"--pattern is '{options.pattern}'; give kept:group, such as 2:4, or use --sparsity")
    group = PerRow() if options.group is None else PerGroup(options.group)
    grid = None if options.bits is None else Grid(options.bits, group, symmetric=options.symmetric)
    if options.target is not None:
        if pattern or grid or options.rank is not None or options.width is not None:
            raise InputError("--target is the whole target; leave out its other options")
        return parse_target(options.target)
    for name, kind in (("rank", LowRank), ("width", Width)):
        if (share := getattr(options, name)) is not None:
            if pattern or grid or (options.rank is not None and options.width is not None):
                raise InputError(f"--{name} goes with no other target, such as --sparsity or --bits; give it alone")
            return kind(_fraction(f"--{name}", share))
    return SparseGrid(pattern, grid) if pattern and grid else pattern or grid


def _fraction(option: str, text: str) -> float:
    """A fraction, or a percentage."""
    try:
        return float(Decimal(text[:-1]).scaleb(-2)) if text.endswith("%") else float(text)
    except (ValueError, InvalidOperation):
        raise InputError(f"{option} is '{text}'; give a fraction such as 0.5, or a percentage such as 50%") from None


def _estimated(options: argparse.Namespace, target: Target, n_sources: int, owl: bool = False) -> Estimate:
    """Time and memory of a compression on this machine, which is timed for about a second."""
    return estimate(
        find_config(options.model, **_permissions(options)),
        options.method,
        target,
        n_windows=options.windows,
        length=options.length,
        n_sources=n_sources,
        device=options.device,
        dtype=options.dtype,
        schedule=options.schedule,
        owl=owl,
        refine=options.refine or "",
        anchor=options.anchor,
        trust_remote_code=options.trust_remote_code,
    )


def _method_options(pairs: list[str] | None) -> dict[str, bool | int | float]:
    """Return `key=value` pairs as values: numbers, true and false.

    >>> _method_options(["act_order=true", "block=64"])
    {'act_order': True, 'block': 64}
    """
    values = {}
    for pair in pairs or []:
        key, _, text = pair.partition("=")
        try:
            value = json.loads(text.strip().lower())
        except ValueError:  # digits beyond Python's limit too
            value = None
        if not isinstance(value, (bool, int, float)) or not -math.inf < value < math.inf:
            raise InputError(f"--option {pair} is unclear; write key=value with a number, true or false")
        values[key.strip()] = value
    return values


def _read_shares(text: str, options: argparse.Namespace) -> dict[str, float]:
    """Return the weight of each source in `c4=0.5,my_notes.jsonl=0.5`, or of one source alone.

    Raises `InputError` for weights that do not sum to 1, and for unknown and repeated sources.
    """
    pairs = parse_shares(text)
    names = _with_fields([name for name, _ in pairs], options)
    if len(set(names)) < len(names):
        raise InputError(f"a source occurs twice in '{text}'; give each source once, with its whole weight")
    for name in names:
        _check_text(name, calibration=True)
    return dict(zip(names, (share for _, share in pairs), strict=True))


def _read_texts(options: argparse.Namespace) -> list[str]:
    """Return the held-out texts of `--texts` by name; raises `InputError` for unknown ones."""
    names = _names_in(options.texts)
    names = _with_fields(names, options) if names else names
    for name in names:
        _check_text(name)
    return names


def _with_fields(names: list[str], options: argparse.Namespace) -> list[str]:
    """Sources with the field that `--field` and `--chat` ask for in their names, where a source has fields."""
    if not (options.field or options.chat):
        return names
    full = [_with_field(name, options.field or "", options.chat) for name in names]
    if full == names:
        option = "--chat" if options.chat else "--field"
        raise InputError(f"{option} is for .jsonl and .json files and sets of the hub, and none is named; leave it out")
    return full


def _check_text(source: str, *, calibration: bool = False) -> str:
    """Return a line on a file's contents, empty for other sources; raises `InputError` for unknown names."""
    if source == SELF and not calibration:
        raise InputError("'self' is calibration text that the model writes; evaluate on a held-out text, such as news")
    return "" if source == SELF else str(check_source(source) or "")


def _draw_calibration(options: argparse.Namespace, shares: dict[str, float]) -> dict[str, TextWindows]:
    """Draw the calibration windows of each source; for `self` the model is loaded and unloaded again."""
    sizes = {"n_windows": options.windows, "length": options.length, "seed": options.seed}
    drawn = {}
    tokenizer = load_tokenizer(options.model, **_permissions(options)) if set(shares) != {SELF} else None
    for source in shares:
        if source == SELF:
            _note(options, f"{options.model} is loaded into memory and writes {options.windows} windows of text")
            model = load_model(options.model, device=options.device, dtype=options.dtype, **_permissions(options))
            drawn[source] = write_text(model, **sizes, progress=not options.quiet)
            del model
        else:
            drawn[source] = load_text(source, tokenizer, **sizes)
            if drawn[source].report is not None and source not in SOURCES:
                _note(options, f"read {drawn[source].report}")
    return drawn


def _permissions(options: argparse.Namespace) -> dict[str, bool]:
    """The permissions that the loading functions take."""
    return {"accept_terms": options.accept_terms, "trust_remote_code": options.trust_remote_code}


def _names_in(text: str) -> list[str]:
    """The parts of a list with commas, each once.

    >>> _names_in("sciq, arc_easy,sciq")
    ['sciq', 'arc_easy']
    """
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
