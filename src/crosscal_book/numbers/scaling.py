"""Chapter 7: rates from measured points, and from the rates what larger models would take: computed, not measured."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

SWEEP_BLOCK = 128  # columns that an error-feedback sweep finishes before it updates the others
DIAGONAL = ("wanda",)  # methods that read the sums' diagonals alone, and solve by choosing
PARTS = ("forward", "sums", "solve")


@dataclass(frozen=True)
class Shape:
    """A Llama-like model: widths, number of blocks, and the width of keys and values where it is another."""

    name: str
    hidden: int
    intermediate: int
    blocks: int
    keys: int = 0

    @property
    def weights(self) -> list[tuple[int, int]]:
        """[d_out, d_in] of the linear layers of one block."""
        d, m, k = self.hidden, self.intermediate, self.keys or self.hidden
        return [(d, d), (k, d), (k, d), (d, d), (m, d), (m, d), (d, m)]

    @property
    def inputs(self) -> list[int]:
        """Widths of the distinct inputs of one block: of attention, its output, the MLP, and its inner layer."""
        return [self.hidden, self.hidden, self.hidden, self.intermediate]

    @property
    def parameters(self) -> int:
        """Weights in the linear layers of one block."""
        return sum(d_out * d_in for d_out, d_in in self.weights)


# Touvron et al. 2023 (arXiv 2307.09288); the larger one shares its keys and values among heads.
LLAMA_7B = Shape("7B (Llama-2)", 4096, 11008, 32)
LLAMA_70B = Shape("70B (Llama-2)", 8192, 28672, 80, keys=1024)


def work(shape: Shape, part: str, method: str, tokens: int) -> float:
    """Operations of one part of compressing one block; constant factors are left to the rates.

    Forward passes: 2 * parameters * tokens. Sums: d^2 * tokens for each distinct input of width d, or d * tokens where
    the diagonal is enough. Solution: a factorization of d^3 for each distinct input and a sweep of
    d_out * d_in * (d_in + block) for each weight; or d_out * d_in where weights are only chosen.

    >>> tiny = Shape("tiny", 2, 3, 1)
    >>> tiny.parameters, work(tiny, "forward", "gptq", 10), work(tiny, "sums", "gptq", 10)
    (34, 680, 210)
    """
    cheap = method in DIAGONAL
    if part == "forward":
        return 2 * shape.parameters * tokens
    if part == "sums":
        return tokens * sum(d if cheap else d**2 for d in shape.inputs)
    if cheap:
        return shape.parameters
    return sum(d**3 for d in shape.inputs) + sum(o * i * (i + SWEEP_BLOCK) for o, i in shape.weights)


@dataclass(frozen=True)
class Rate:
    """Operations in a second: the middle, the least and the greatest of what was measured at one width."""

    middle: float
    low: float
    high: float


class Scaling:
    """One stored measurement: points by width, tokens, part and method, and the rates that follow."""

    def __init__(self, facts: Mapping):
        self.facts, self.clock = facts, facts["clock"]
        self.points = {(p["width"], p["tokens"], p["part"], p["method"]): p for p in facts["points"]}
        self.methods = [m for m in dict.fromkeys(p["method"] for p in facts["points"]) if m]

    def shape(self, width: int) -> Shape:
        """The shape that was measured at a width."""
        sizes = self.facts["shapes"][str(width)]
        return Shape(str(width), sizes["hidden"], sizes["intermediate"], sizes["blocks"])

    def seconds(self, width: int, tokens: int, part: str, method: str) -> float | None:
        """Seconds of one block; the sums are what the forward passes and the solution leave of the whole."""
        blocks = self.shape(width).blocks
        if part == "forward":
            return self._value(width, tokens, part, "", blocks)
        if part == "solve":
            found = (self._value(width, t, part, method, blocks) for t in self.tokens)
            return next((value for value in found if value is not None), None)
        if part == "whole":
            return self._value(width, tokens, part, method, blocks)
        values = [self.seconds(width, tokens, p, method) for p in ("whole", "forward", "solve")]
        return None if None in values else max(values[0] - values[1] - values[2], 0.0)

    def _value(self, width: int, tokens: int, part: str, method: str, blocks: int) -> float | None:
        point = self.points.get((width, tokens, part, method))
        return None if point is None else point[self.clock] / blocks

    @property
    def widths(self) -> list[int]:
        """The widths at which some method has all three parts."""
        asked = {key[0] for key in self.points}
        return sorted(w for w in asked if any(self._complete(w, t, m) for t in self.tokens for m in self.methods))

    @property
    def tokens(self) -> list[int]:
        """The numbers of tokens measured."""
        return sorted({key[1] for key in self.points})

    def _complete(self, width: int, tokens: int, method: str) -> bool:
        return self.seconds(width, tokens, "sums", method) is not None

    def rate(self, width: int, part: str, method: str) -> Rate | None:
        """The rate of a part at one width, over the numbers of tokens; infinite where it took no time at all."""
        rates = []
        for tokens in self.tokens:
            seconds = self.seconds(width, tokens, part, method)
            if seconds is None or not self._complete(width, tokens, method):
                continue
            done = work(self.shape(width), part, method, tokens)
            if part == "forward":
                done = 2 * tokens * self.points[width, tokens, part, ""]["parameters"] / self.shape(width).blocks
            rates.append(done / seconds if seconds > 0 else math.inf)
        return Rate(median(rates), min(rates), max(rates)) if rates else None

    def predict(
        self, shape: Shape, method: str, tokens: int, width: int
    ) -> dict[str, tuple[float, float, float]] | None:
        """Seconds of each part and the `total` for all blocks, with the rates of one width: middle, least, greatest."""
        rates = {part: self.rate(width, part, method) for part in PARTS}
        if None in rates.values():
            return None
        found = {}
        for part, rate in rates.items():
            done = shape.blocks * work(shape, part, method, tokens)
            found[part] = tuple(done / speed for speed in (rate.middle, rate.high, rate.low))
        found["total"] = tuple(sum(found[part][n] for part in PARTS) for n in range(3))
        return found

    def misses(self) -> list[float]:
        """Measured over predicted seconds of the whole at the greatest width, with the rates of the one below it."""
        if len(self.widths) < 2:
            return []
        below, top = self.widths[-2:]
        shape, factors = self.shape(top), []
        for method in self.methods:
            for tokens in self.tokens:
                measured, found = self.seconds(top, tokens, "whole", method), self.predict(shape, method, tokens, below)
                if measured and found:
                    factors.append(measured * shape.blocks / found["total"][0])
        return factors


def read_scaling(folder: Path) -> list[Scaling]:
    """The measurements stored in a folder that hold at least one complete point."""
    found = [Scaling(json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.json"))]
    return [scaling for scaling in found if scaling.widths]
