"""What to compress to, from the options that say so."""

import argparse
from typing import TYPE_CHECKING

from crosscal.errors import InputError

if TYPE_CHECKING:
    from crosscal.methods.registry import Method
    from crosscal.types import Grid, Pattern, Target

FLAGS = {
    "Unstructured": "--sparsity 0.5",
    "NofM": "--pattern 2:4",
    "Grid": "--bits 4",
    "SparseGrid": "--pattern 2:4 --bits 4",
    "LowRank": "--rank 0.5",
}
"""How each kind of target is asked for."""


def add_target_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what to compress to."""
    group = parser.add_argument_group("what to compress to (--sparsity or --pattern together with --bits do both)")
    group.add_argument("--sparsity", metavar="SHARE", help="share of the weights to zero: 0.5 or 50%%")
    group.add_argument("--pattern", metavar="N:M", help="keep N of every M consecutive weights: 2:4, 4:8")
    group.add_argument("--bits", type=int, help="bits of a quantized weight, 1 to 16")
    group.add_argument("--group", type=int, help="inputs that share a scale, such as 128 (default: a whole row)")
    group.add_argument("--symmetric", action="store_true", help="a grid without zero points")
    group.add_argument("--rank", metavar="SHARE", help="share of the numbers that two thin matrices keep: 0.5 or 50%%")
    group.add_argument("--target", metavar="TEXT", help='all of that in words instead: "2:4 + 4 bits g128"')


def read_target(options: argparse.Namespace) -> "Target":
    """The target that the options describe; raises `InputError` when they say nothing, or contradict each other."""
    from crosscal.types import LowRank, SparseGrid, parse_target

    pattern, grid, rank = _pattern(options), _grid(options), options.rank
    if options.target is not None:
        if pattern or grid or rank is not None:
            raise InputError("--target says everything by itself; leave the other options of the target out")
        return parse_target(options.target)
    if rank is not None:
        if pattern or grid:
            raise InputError("--rank goes neither with --sparsity nor --pattern nor --bits; give it alone")
        return LowRank(_share("--rank", rank))
    if pattern is None and grid is None:
        raise InputError("say what to compress to: --sparsity 0.5, --pattern 2:4, --bits 4 or --rank 0.5")
    return SparseGrid(pattern, grid) if pattern and grid else pattern or grid


def check_method(method: "Method", target: "Target", options: dict[str, object], allocation: str) -> None:
    """Raises `InputError` for a target, option or allocation that the method cannot do, in the command line's words."""
    from crosscal.methods.registry import check_request
    from crosscal.types import SparseGrid, Unstructured

    if not isinstance(target, method.targets):
        ways = " or ".join(FLAGS[kind.__name__] for kind in method.targets)
        raise InputError(f"{method.name} does not compress to {target}; give {ways}")
    check_request(method, target, options, [])
    pattern = target.pattern if isinstance(target, SparseGrid) else target
    if allocation == "owl" and not isinstance(pattern, Unstructured):
        raise InputError(
            f"--allocation owl gives blocks different sparsities, which {target} cannot have; --sparsity can"
        )


def read_method_options(given: list[str]) -> dict[str, object]:
    """`key=value` pairs as values: numbers, true and false.

    >>> read_method_options(["act_order=true", "block=64"])
    {'act_order': True, 'block': 64}
    """
    found: dict[str, object] = {}
    for pair in given:
        key, separator, text = pair.partition("=")
        value = _value(text.strip())
        if not separator or value is None:
            raise InputError(f"--option {pair} is unclear; write key=value with a number, true or false")
        found[key.strip()] = value
    return found


def _value(text: str) -> bool | int | float | None:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def _pattern(options: argparse.Namespace) -> "Pattern | None":
    from crosscal.types import NofM, Unstructured, parse_pattern

    if options.sparsity is not None and options.pattern is not None:
        raise InputError("--sparsity and --pattern both say which weights to zero; give one of them")
    if options.pattern is not None:
        found = parse_pattern(options.pattern)
        if not isinstance(found, NofM):
            raise InputError(f"--pattern is '{options.pattern}'; give kept:group, such as 2:4, or use --sparsity")
        return found
    return None if options.sparsity is None else Unstructured(_share("--sparsity", options.sparsity))


def _grid(options: argparse.Namespace) -> "Grid | None":
    from crosscal.types import Grid, PerGroup, PerRow

    if options.bits is None:
        if options.group is not None or options.symmetric:
            raise InputError("--group and --symmetric describe a grid; give its --bits too, such as --bits 4")
        return None
    group = PerRow() if options.group is None else PerGroup(options.group)
    return Grid(options.bits, group, symmetric=options.symmetric)


def _share(option: str, text: str) -> float:
    """A fraction, or a percentage."""
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise InputError(f"{option} is '{text}'; give a fraction such as 0.5, or a percentage such as 50%") from None
