"""Chapter 7: rates from measured points, and from the rates what larger models would take: computed, not measured."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import NamedTuple

from crosscal.stats import Estimate

SWEEP_BLOCK = 128  # columns that an error-feedback sweep finishes before it updates the others
DIAGONAL = ("wanda",)  # methods that read the sums' diagonals alone, and solve by choosing
PARTS = ("forward", "sums", "solve")


class Shape(NamedTuple):
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


def _work(shape: Shape, part: str, method: str, tokens: int) -> float:
    """Operations of one part of compressing one block; constant factors are left to the rates.

    Forward passes: 2 * parameters * tokens. Sums: d^2 * tokens for each distinct input of width d, or d * tokens where
    the diagonal is enough. Solution: a factorization of d^3 for each distinct input and a sweep of
    d_out * d_in * (d_in + block) for each weight; or d_out * d_in where weights are only chosen.

    >>> tiny = Shape("tiny", 2, 3, 1)
    >>> tiny.parameters, _work(tiny, "forward", "gptq", 10), _work(tiny, "sums", "gptq", 10)
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


class Scaling:
    """One stored measurement, and the rates that follow; `widths` are those at which some method has all three parts.

    Estimates are the middle, the least and the greatest of what was measured at several numbers of tokens.
    """

    def __init__(self, facts: Mapping):
        self.facts, self.clock = facts, facts["clock"]
        points = sorted(facts["points"], key=lambda point: point["tokens"])
        self.repeats = max((point["repeats"] for point in points), default=0)
        self.methods = [m for m in dict.fromkeys(point["method"] for point in facts["points"]) if m]
        self.tokens: list[int] = sorted({point["tokens"] for point in points})
        self._seconds: dict[tuple, float] = {}
        self._parameters = {(p["width"], p["tokens"]): p["parameters"] for p in points if p["part"] == "forward"}
        for point in points:
            tokens = 0 if point["part"] == "solve" else point["tokens"]  # the solution is measured once
            key = (point["width"], tokens, point["part"], point["method"])
            self._seconds.setdefault(key, point[self.clock] / self.shape(point["width"]).blocks)
        widths = sorted({point["width"] for point in points})
        self.widths = [w for w in widths if any(self.rate(w, "sums", method) for method in self.methods)]

    def shape(self, width: int) -> Shape:
        """Return the shape that was measured at a width."""
        sizes = self.facts["shapes"][str(width)]
        return Shape(str(width), sizes["hidden"], sizes["intermediate"], sizes["blocks"])

    def seconds(self, width: int, tokens: int, part: str, method: str) -> float | None:
        """Return seconds of one block; the sums are what the forward passes and the solution leave of the whole."""
        if part == "sums":
            parts = [self.seconds(width, tokens, one, method) for one in ("whole", "forward", "solve")]
            known = [seconds for seconds in parts if seconds is not None]
            return max(known[0] - known[1] - known[2], 0.0) if len(known) == 3 else None
        key = (width, 0 if part == "solve" else tokens, part, "" if part == "forward" else method)
        return self._seconds.get(key)

    def rate(self, width: int, part: str, method: str) -> Estimate | None:
        """Return the operations in a second of a part at one width; infinite where it took no time at all."""
        rates = []
        for tokens in self.tokens:
            seconds = self.seconds(width, tokens, part, method)
            if seconds is None or self.seconds(width, tokens, "sums", method) is None:
                continue
            done = _work(self.shape(width), part, method, tokens)
            if part == "forward":
                done = 2 * tokens * self._parameters[width, tokens] / self.shape(width).blocks
            rates.append(done / seconds if seconds > 0 else math.inf)
        return Estimate(median(rates), min(rates), max(rates), len(rates)) if rates else None

    def predict(self, shape: Shape, method: str, tokens: int, width: int) -> dict[str, Estimate] | None:
        """Return seconds of each part and the `total` for all blocks, with the rates of one width."""
        found = {}
        for part in PARTS:
            rate, done = self.rate(width, part, method), shape.blocks * _work(shape, part, method, tokens)
            if rate is None:
                return None
            found[part] = Estimate(done / rate.value, done / rate.hi, done / rate.lo, rate.n)
        value, lo, hi = (sum(getattr(found[part], end) for part in PARTS) for end in ("value", "lo", "hi"))
        return found | {"total": Estimate(value, lo, hi, found["sums"].n)}

    def misses(self) -> list[float]:
        """Return measured over predicted seconds of the whole at the greatest width, with rates of the one below it."""
        factors = []
        for below, top in [self.widths[-2:]] if len(self.widths) > 1 else ():
            for method, tokens in ((method, tokens) for method in self.methods for tokens in self.tokens):
                measured = self.seconds(top, tokens, "whole", method)
                found = self.predict(self.shape(top), method, tokens, below)
                if measured and found:
                    factors.append(measured * self.shape(top).blocks / found["total"].value)
        return factors


def read_scaling(folder: Path) -> list[Scaling]:
    """Return the measurements stored in a folder that hold at least one complete point."""
    found = [Scaling(json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.json"))]
    return [scaling for scaling in found if scaling.widths]
