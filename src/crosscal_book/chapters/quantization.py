"""Chapter 5, what it answers: the verdicts on quantization, each from comparisons on the same windows."""

import math
from pathlib import Path

import numpy as np

from crosscal.results.frame import Results
from crosscal.stats.estimates import bootstrap_mean
from crosscal_book.chapters.quantization_origin import origin_verdict
from crosscal_book.chapters.quantization_pairs import (
    comparisons,
    corrected,
    interval,
    judge,
    judge_equal,
    pair_text,
    shared_texts,
    window_means,
)
from crosscal_book.chapters.quantization_runs import (
    EQUAL_STORAGE,
    FOCUS_BITS,
    all_pairs,
    floor_id,
    grid_runs,
    plain_runs,
)
from crosscal_book.style import style_of
from crosscal_book.verdicts import FAILS, HOLDS, OPEN, Text, Verdict, takeaway_text
from crosscal_book.words import run_name

EIGHT = 8
# Perplexity within half a per cent is called unchanged: published 8-bit results are given to the second decimal of a
# perplexity near 5, which is about as fine.
SAME = 0.005
# Twice the divergence that rounding alone causes is called the floor: two independent roundings of one size add up to
# it.
FLOOR_TIMES = 2.0
PAIRS_FIGURE = "fig-quantization-pairs"
STORAGE_FIGURE = "fig-quantization-storage"


def verdicts(results: Results, folder: Path) -> list[Verdict]:
    """The chapter's answers; `results` narrowed to what all runs share, `folder` where the runs are stored."""
    return [
        beats_rounding(results, "gptq"),
        beats_rounding(results, "awq"),
        eight_bits_keep_perplexity(results),
        eight_bits_reach_the_floor(results),
        *joint_verdicts(results),
        groups_beat_rows(results),
        act_order_helps(results),
        *origin_verdict(results, folder),
    ]


def takeaway(results: Results, folder: Path) -> Text:
    """The opening of the chapter."""
    limits = (
        "All runs read one draw of the calibration text: intervals (95 %, bootstrap over windows) do not hold the "
        "variation between draws. p is Holm-corrected over all comparisons of one figure."
    )
    return takeaway_text(verdicts(results, folder), limits)


def beats_rounding(results: Results, method: str) -> Verdict:
    """Does a calibrated method beat RTN at `FOCUS_BITS`, per row and in groups alike? The rule is `judge`'s."""
    label = style_of(method).label
    claim = f"{label} beats rounding to nearest (RTN) at {FOCUS_BITS} bits"
    return _from_pairs(claim, results, method, f"no {FOCUS_BITS}-bit runs of both {label} and RTN on one grid")


def groups_beat_rows(results: Results) -> Verdict:
    """Are groups of inputs worth their scales? The rule is `judge`'s, over methods at `FOCUS_BITS`."""
    claim = f"At {FOCUS_BITS} bits, scales for groups of inputs gain more than what storing them costs"
    why = f"no method has runs in groups and per row at {FOCUS_BITS} bits, and per row at more"
    return _from_pairs(claim, results, "groups", why)


def act_order_helps(results: Results) -> Verdict:
    """Does GPTQ gain from taking columns by falling diag(G)? The rule is `judge`'s, over the grids where both ran."""
    claim = "Act-order (GPTQ takes the inputs with the most energy first) gives lower perplexity"
    return _from_pairs(claim, results, "order", "no two GPTQ runs differ in nothing but act-order")


def joint_verdicts(results: Results) -> list[Verdict]:
    """For each sparse and quantized target: does it beat every plain quantization of equal storage (rule: `judge`)?"""
    pairs = all_pairs(results)
    pairs, runs = pairs[pairs["kind"] == "joint"], grid_runs(results).set_index("run_id")
    if pairs.empty:
        why = f"no sparse and quantized run has a quantized one within {100 * EQUAL_STORAGE:.0f} % of its storage"
        return [Verdict("Sparse and quantized beats plain quantization at equal storage", OPEN, why, "")]
    found = []
    for run_id, part in pairs.groupby("first", sort=False):
        run = runs.loc[run_id]
        claim = f"{run['pattern']} beats plain quantization of the same storage ({run['storage']:.2f} bits a weight)"
        found.append(Verdict(claim, judge(part), f"perplexity ratios: {pair_text(part)}", PAIRS_FIGURE))
    return found


def eight_bits_keep_perplexity(results: Results) -> Verdict:
    """Is perplexity unchanged at 8 bits?

    Holds when the whole interval of every 8-bit run lies within `SAME` of the dense model's perplexity; refuted by one
    run that is farther away with Holm-corrected p below 5 %.
    """
    claim = f"At {EIGHT} bits perplexity stays within {100 * SAME:g} % of the dense model's, whatever the method"
    runs = plain_runs(results)
    runs = runs[runs["bits"] == EIGHT]
    named = [("dense", r["run_id"], results.dense_id, run_name(r)) for r in runs.to_dict("records")]
    pairs = corrected(comparisons(results, named))
    if pairs.empty:
        return Verdict(claim, OPEN, f"there is no run at {EIGHT} bits")
    answer = judge_equal(pairs, SAME)
    lowest = pairs["lo"].min()
    if answer == HOLDS and lowest < 1 - SAME:
        answer = OPEN
    worst = pairs.loc[(pairs["ratio"] - 1).abs().idxmax()]
    text = interval(worst["ratio"], worst["lo"], worst["hi"], lambda r: f"{r:.4f}×")
    effect = f"the farthest of {len(pairs)} runs, {worst['name']}, has {text} the dense perplexity"
    return Verdict(claim, answer, effect, STORAGE_FIGURE)


def eight_bits_reach_the_floor(results: Results) -> Verdict:
    """Is the divergence at 8 bits no more than rounding alone causes (the dense weights computed with in float32)?

    The ratio of the divergences is the geometric mean over windows, and `FLOOR_TIMES` the limit: the claim holds when
    every interval ends below it, and is refuted by one that begins above it.
    """
    claim = f"At {EIGHT} bits the next-token distributions are as near to the dense model's as rounding lets them be"
    runs, floor = plain_runs(results), floor_id(results)
    runs = runs[runs["bits"] == EIGHT]
    if runs.empty or floor is None or not shared_texts(results):
        why = f"there is no run at {EIGHT} bits" if runs.empty else "the dense model was not run in float32 here"
        return Verdict(claim, OPEN, why)
    least = window_means(results, floor, "js_divergence")
    found = []
    for run in runs.to_dict("records"):
        windows = window_means(results, run["run_id"], "js_divergence")
        if min(values.min() for values in [*least, *windows]) <= 0:
            return Verdict(claim, OPEN, "in some window nothing diverges at all, so that there is no ratio to a floor")
        logs = [np.log(one / other) for one, other in zip(windows, least, strict=True)]
        found.append((bootstrap_mean(logs).map(math.exp), run_name(run)))
    worst, name = max(found, key=lambda pair: pair[0].value)
    answer = OPEN
    if all(ratio.hi < FLOOR_TIMES for ratio, _ in found):
        answer = HOLDS
    elif any(ratio.lo > FLOOR_TIMES for ratio, _ in found):
        answer = FAILS
    text = interval(worst.value, worst.lo, worst.hi)
    effect = f"the farthest of {len(found)} runs, {name}, diverges {text} as much as the same weights in float32"
    return Verdict(claim, answer, effect, STORAGE_FIGURE)


def _from_pairs(claim: str, results: Results, kind: str, nothing: str) -> Verdict:
    pairs = all_pairs(results)
    pairs = pairs[pairs["kind"] == kind]
    if pairs.empty:
        return Verdict(claim, OPEN, nothing)
    return Verdict(claim, judge(pairs), f"perplexity ratios: {pair_text(pairs)}", PAIRS_FIGURE)
