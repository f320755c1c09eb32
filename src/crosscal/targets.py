"""Targets: what a model is compressed to, their written form, and what a weight of them takes.

A choice is a frozen type, checked once, where it is made. Standard library only.
"""

import math
import re
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation

from crosscal.errors import InputError, real_number, whole_number


def _set(frozen: object, **values: object) -> None:
    """Set checked values while a frozen dataclass is being made."""
    for name, value in values.items():
        object.__setattr__(frozen, name, value)


@dataclass(frozen=True)
class Unstructured:
    """Zero a fraction of the weights, anywhere; raises `InputError` unless 0 <= sparsity <= 1."""

    sparsity: float

    def __post_init__(self):
        _set(self, sparsity=real_number("sparsity", self.sparsity, 0, 1) + 0.0)  # -0.0 becomes 0.0

    def __str__(self) -> str:
        return _percent(self.sparsity)


@dataclass(frozen=True)
class NofM:
    """Keep `n` of every `m` consecutive inputs of a row; raises `InputError` unless 0 <= n <= m and m >= 1."""

    n: int
    m: int

    def __post_init__(self):
        _set(self, n=whole_number("n of a pattern", self.n), m=whole_number("m of a pattern", self.m, 1))
        if self.n > self.m:
            raise InputError(f"pattern is {self}; give kept:group with 0 <= kept <= group, such as 2:4")

    @property
    def sparsity(self) -> float:
        """Fraction of zeros."""
        return 1.0 - self.n / self.m

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"


Pattern = Unstructured | NofM


@dataclass(frozen=True)
class PerRow:
    """One scale (and zero point) for each output row of a weight."""

    def __str__(self) -> str:
        return "per row"


@dataclass(frozen=True)
class PerGroup:
    """One scale (and zero point) for each `size` consecutive inputs of a row; the last group may be shorter.

    Raises `InputError` unless size is a whole number of at least 1.
    """

    size: int

    def __post_init__(self):
        _set(self, size=whole_number("group size", self.size, 1))

    def __str__(self) -> str:
        return f"g{self.size}"


@dataclass(frozen=True)
class Grid:
    """A quantization grid: 2**bits levels, evenly spaced between the least and greatest weight of a group.

    Raises `InputError` unless bits is a whole number from 1 to 16, and for one bit on a symmetric grid, whose two
    levels round every weight to 0.

    >>> str(Grid(4, PerGroup(64))), str(Grid(3, symmetric=True))
    ('4 bits g64', '3 bits per row symmetric')
    """

    bits: int
    group: PerRow | PerGroup = field(default_factory=PerRow)
    symmetric: bool = False

    def __post_init__(self):
        _set(self, bits=whole_number("bits", self.bits, 1, 16), symmetric=bool(self.symmetric))
        if not isinstance(self.group, (PerRow, PerGroup)):
            raise InputError(f"the group of a grid is {self.group!r}; give PerRow() or PerGroup(128)")
        if self.symmetric and self.bits == 1:
            raise InputError("a symmetric grid of 1 bit rounds every weight to 0; use symmetric=False or more bits")

    def __str__(self) -> str:
        plural = "s" if self.bits > 1 else ""
        return f"{self.bits} bit{plural} {self.group}{' symmetric' if self.symmetric else ''}"


_FLOATS = {"mxfp4": 32, "nvfp4": 16}


class FloatGrid(Grid):
    """Four-bit floating point: the values of E2M1 (0, 1/2, 1, 3/2, 2, 3, 4, 6 and their negatives) times a scale.

    "mxfp4" has a power of two for 32 inputs, "nvfp4" an E4M3 number for 16 inputs times one float32 for the matrix.

    >>> str(FloatGrid("nvfp4")), storage_bits(FloatGrid("mxfp4")), storage_bits(FloatGrid("nvfp4"))
    ('nvfp4', 4.25, 4.5)
    """

    def __init__(self, name: str):
        if name not in _FLOATS:
            raise InputError(f"there is no grid '{name}'; give one of {', '.join(_FLOATS)}")
        super().__init__(4, PerGroup(_FLOATS[name]), symmetric=True)

    def __str__(self) -> str:
        return next(name for name, size in _FLOATS.items() if self.group == PerGroup(size))


@dataclass(frozen=True)
class SparseGrid:
    """Prune and quantize in one sweep: the weights that `pattern` keeps take values of `grid`, the others are zero."""

    pattern: Pattern
    grid: Grid

    def __str__(self) -> str:
        return f"{self.pattern} + {self.grid}"


@dataclass(frozen=True)
class LowRank:
    """Replace each weight by a product of two thin matrices that together hold `ratio` of its numbers.

    Raises `InputError` unless 0 < ratio <= 1.

    >>> LowRank(0.5).rank(576, 1536), str(LowRank(0.5))
    (209, 'low rank 50%')
    """

    ratio: float

    def __post_init__(self):
        _set(self, ratio=real_number("the low-rank ratio", self.ratio, 0, 1, above=True))

    def rank(self, d_out: int, d_in: int) -> int:
        """Return the largest rank whose factors, rank * (d_out + d_in) numbers, fit the ratio; at least 1."""
        return max(1, math.floor(self.ratio * d_out * d_in / (d_out + d_in) + 1e-6))

    def __str__(self) -> str:
        return f"low rank {_percent(self.ratio)}"


@dataclass(frozen=True)
class Width:
    """Keep a share of the channels of every feed-forward layer, so that the model that is left is smaller.

    All layers keep the same number: a multiple of 256, of 32 below 2,048 channels, and of 8 below 256. Raises
    `InputError` unless 0 < share <= 1.

    >>> str(Width(0.8)), Width(0.8).channels(1536), Width(0.8).channels(11008)
    ('width 80%', 1216, 8704)
    """

    share: float

    def __post_init__(self):
        _set(self, share=real_number("the width", self.share, 0, 1, above=True))

    def channels(self, of: int) -> int:
        """Return how many of so many channels stay."""
        step = 256 if of >= 2048 else 32 if of >= 256 else 8
        return min(of, max(step, step * round(self.share * of / step)))

    def __str__(self) -> str:
        return f"width {_percent(self.share)}"


Target = Unstructured | NofM | Grid | SparseGrid | LowRank | Width

_GRID = re.compile(r"(mxfp4|nvfp4)|(\d+) ?(?:bits?|b)(?: (?:per row|g ?(\d+)))?( symmetric)?")
_SHARE = re.compile(r"(low rank|width) (\d+(?:\.\d+)?%?)")


def parse_pattern(text: str) -> Pattern:
    """Parse a sparsity pattern: a fraction, a percentage or kept:group; raises `InputError` for anything else.

    >>> parse_pattern("0.5"), parse_pattern("50%"), parse_pattern("2:4")
    (Unstructured(sparsity=0.5), Unstructured(sparsity=0.5), NofM(n=2, m=4))
    """
    kept, colon, group = str(text).strip().partition(":")
    try:
        return NofM(int(kept), int(group)) if colon else Unstructured(_fraction(kept))
    except InputError:
        raise
    except (ValueError, InvalidOperation):
        raise InputError(
            f"pattern is '{text}'; give a fraction (0.5), a percentage (50%) or kept:group (2:4)"
        ) from None


def parse_target(text: str) -> Target:
    """Parse a target as `str` writes it: parse_target(str(target)) == target.

    Raises `InputError` for a text that names no sparsity, pattern, grid, pattern with grid, rank or width.

    >>> parse_target("50%"), parse_target("2:4"), parse_target("low rank 50%")
    (Unstructured(sparsity=0.5), NofM(n=2, m=4), LowRank(ratio=0.5))
    >>> str(parse_target("3 bits g128")), str(parse_target("2:4 + 4b g64 symmetric"))
    ('3 bits g128', '2:4 + 4 bits g64 symmetric')
    """
    text = " ".join(str(text).split())
    pattern, plus, grid = (part.strip() for part in text.partition("+"))
    if plus and _GRID.fullmatch(grid):
        return SparseGrid(parse_pattern(pattern), _parse_grid(grid))
    if share := _SHARE.fullmatch(text):
        return (Width if share[1] == "width" else LowRank)(_fraction(share[2]))
    if _GRID.fullmatch(text):
        return _parse_grid(text)
    if not re.fullmatch(r"-?[\d.]+%?|[\d:]+", text):
        raise InputError(
            f"target '{text}' is unclear; write a sparsity (50%), a pattern (2:4), a grid (4 bits g128, mxfp4, nvfp4), "
            "both (2:4 + 4 bits g128), a rank (low rank 50%) or a width (width 80%)"
        )
    return parse_pattern(text)


def _parse_grid(text: str) -> Grid:
    name, bits, size, symmetric = _GRID.fullmatch(text).groups()  # type: ignore[union-attr]
    group = PerGroup(int(size)) if size else PerRow()
    return FloatGrid(name) if name else Grid(int(bits), group, symmetric=bool(symmetric))


def _percent(fraction: float) -> str:
    """Write a fraction in per cent with all of its digits: the shortest decimal that is this float, shifted."""
    return f"{Decimal(repr(fraction)).scaleb(2).normalize():f}%"


def _fraction(text: str) -> float:
    return float(Decimal(text[:-1]).scaleb(-2)) if text.endswith("%") else float(text)


def storage_bits(target: Target, dense_bits: int = 16, shape: tuple[int, int] | None = None) -> float:
    """Return the bits that one weight takes when stored: values, masks, scales and zero points.

    A mask costs one bit a weight, or, for n of m, n log2(m) bits a group, as in GPUs' sparse formats. A group of a grid
    brings a 16-bit scale (8-bit, of `FloatGrid`) and, unless symmetric, a zero point of as many bits as a weight; rows
    need the `shape` (d_out, d_in) of a weight, without which their scales count nothing. Of a width it is the share of
    the weights of feed-forward layers.

    >>> storage_bits(Unstructured(0.5)), storage_bits(NofM(2, 4)), storage_bits(Grid(4, PerGroup(128)))
    (9.0, 9.0, 4.15625)
    >>> round(storage_bits(SparseGrid(Unstructured(0.5), Grid(4, PerGroup(128)))), 3)
    3.156
    """
    if isinstance(target, LowRank):
        share = target.ratio if shape is None else target.rank(*shape) * sum(shape) / math.prod(shape)
        return dense_bits * share
    if isinstance(target, Width):
        return dense_bits * (target.share if shape is None else target.channels(shape[1]) / shape[1])
    if isinstance(target, Grid):
        return target.bits + _scale_bits(target, shape)
    joint = isinstance(target, SparseGrid)
    pattern, values = (target.pattern, target.grid.bits) if joint else (target, dense_bits)
    mask = pattern.n / pattern.m * math.log2(pattern.m) if isinstance(pattern, NofM) else 1.0
    bits = (1 - pattern.sparsity) * values + (mask if 0 < pattern.sparsity < 1 else 0.0)
    return bits + _scale_bits(target.grid, shape) if joint else bits


def _scale_bits(grid: Grid, shape: tuple[int, int] | None) -> float:
    each = 8 if isinstance(grid, FloatGrid) else 16 + (0 if grid.symmetric else grid.bits)
    if isinstance(grid.group, PerGroup):
        return each / grid.group.size if shape is None else each * math.ceil(shape[1] / grid.group.size) / shape[1]
    return 0.0 if shape is None else each / shape[1]
