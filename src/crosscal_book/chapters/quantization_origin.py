"""Chapter 5, a trap of the embedded model: its weights were on a 4-bit grid before anything was quantized here."""

from pathlib import Path

import numpy as np

from crosscal.results.frame import Results
from crosscal.results.store import load_run
from crosscal.stats.estimates import Estimate, bootstrap_mean
from crosscal_book.chapters.quantization_pairs import interval
from crosscal_book.chapters.quantization_runs import FOCUS_BITS, ROWS, plain_runs
from crosscal_book.verdicts import FAILS, HOLDS, OPEN, Verdict
from crosscal_book.words import times

# Embedded models whose weights come from a file of few bits: bits, and inputs in a block that shares a scale.
ORIGINS = {"smollm2-135m": (4, 32)}
# A squared error that is a quarter smaller than without the old grid is called visible: one bit more makes it about
# four times smaller, so a quarter is worth a sixth of a bit. Set before any run was seen.
VISIBLE = 1.25
ORIGIN_FIGURE = "fig-quantization-origin"


def expected_gain(bits: int, more: int) -> float:
    """How many times smaller squared rounding errors get from `bits` to `more` bits on weights that lie on no grid.

    A group's range is cut into 2^bits - 1 steps, and rounding errs by a twelfth of the squared step.

    >>> round(expected_gain(3, 4), 2)
    4.59
    """
    return ((2**more - 1) / (2**bits - 1)) ** 2


def layer_errors(folder: Path, run_id: str) -> dict[str, float]:
    """Each layer's squared output error relative to its output, by name; layers without one are left out."""
    layers = load_run(folder, run_id).layers
    return {layer["name"]: layer["relative_error"] for layer in layers if layer.get("relative_error")}


def origin_gain(results: Results, folder: Path, group: str) -> tuple[Estimate, float] | None:
    """RTN's gain from `FOCUS_BITS` to the file's bits in one kind of group, and the gain expected; None without runs.

    The geometric mean over layers of the ratio of their errors, with a bootstrap interval over layers.
    """
    model = results.describe_run(results.dense_id)["model"]
    runs = plain_runs(results)
    runs = runs[(runs["method"] == "rtn") & (runs["group"] == group)].set_index("bits")
    bits = ORIGINS[model][0] if model in ORIGINS else 0
    if FOCUS_BITS not in runs.index or bits not in runs.index:
        return None
    coarse, fine = (layer_errors(folder, runs.loc[b, "run_id"]) for b in (FOCUS_BITS, bits))
    logs = np.array([np.log(coarse[name] / fine[name]) for name in coarse if name in fine])
    return (bootstrap_mean([logs]).map(np.exp), expected_gain(FOCUS_BITS, bits)) if len(logs) else None


def origin_verdict(results: Results, folder: Path) -> list[Verdict]:
    """For an embedded model from a file of few bits: does that flatter its results at as many bits? Else nothing.

    RTN's layer errors at the file's bits are compared with those at `FOCUS_BITS`, in groups if these were run. Weights
    that lie on no grid would gain `expected_gain`. The claim holds when the gain is more than `VISIBLE` times that,
    with its whole interval, and does not hold when the interval ends below.
    """
    model = results.describe_run(results.dense_id)["model"]
    if model not in ORIGINS:
        return []
    bits, block = ORIGINS[model]
    claim = (
        f"That {model} comes from a {bits}-bit file (blocks of {block}) makes rounding it to {bits} bits again look "
        "better than it would be on other weights"
    )
    groups = sorted(plain_runs(results)["group"].unique(), key=lambda group: group == ROWS)
    found = {group: origin_gain(results, folder, group) for group in groups}
    found = {group: gain for group, gain in found.items() if gain is not None}
    if not found:
        return [Verdict(claim, OPEN, f"there are no RTN runs at both {FOCUS_BITS} and {bits} bits")]
    group, (gain, expected) = next(iter(found.items()))
    answer = HOLDS if gain.lo > VISIBLE * expected else FAILS if gain.hi < VISIBLE * expected else OPEN
    effect = (
        f"from {FOCUS_BITS} to {bits} bits ({group}) RTN's squared layer errors get "
        f"{interval(gain.value, gain.lo, gain.hi)} smaller, on weights without a grid {times(expected)}. "
        f"What the file's own {bits} bits cost is part of the dense model and cannot be seen here"
    )
    return [Verdict(claim, answer, effect, ORIGIN_FIGURE)]
