"""Chapter 7, what it answers: cheaper schedules, what time buys, and the textbook's time."""

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from crosscal.results.compare import LEVEL
from crosscal.results.frame import Results
from crosscal.stats.estimates import bootstrap_mean, sign_test_p
from crosscal_book.chapters.quantization_pairs import (
    MARGIN,
    comparisons,
    corrected,
    interval,
    judge,
    judge_equal,
    pair_text,
    run_table,
)
from crosscal_book.style import style_of
from crosscal_book.verdicts import FAILS, HOLDS, OPEN, Text, Verdict, takeaway_text
from crosscal_book.words import p_text, times

DEFAULT = "sublayer"
CHEAPER = ("block", "parallel")
# Single timings on a shared machine repeat to within a fifth or so; runs that differ by less count as equally long.
CLOSE = 1.2
PAIRS_FIGURE, TEXTBOOK_FIGURE = "fig-costs-pairs", "fig-costs-textbook"


def verdicts(results: Results, benchmarks: Path) -> list[Verdict]:
    """The chapter's answers; `results` narrowed to what all runs share, `benchmarks` the folder of stored timings."""
    return [*(schedule_verdict(results, name) for name in CHEAPER), time_buys_quality(results), faster(benchmarks)]


def takeaway(results: Results, benchmarks: Path) -> Text:
    """The opening of the chapter."""
    limits = (
        "Perplexities are paired on the same windows, with one draw of the calibration text; p is Holm-corrected over "
        "the chapter's comparisons. Each compression was timed once, so that its seconds carry no interval."
    )
    return takeaway_text(verdicts(results, benchmarks), limits)


def cost_pairs(results: Results) -> pd.DataFrame:
    """Every comparison of perplexities of the chapter: a schedule against the default, a slower method to a faster."""
    return corrected(comparisons(results, [*_schedules(results), *_methods(results)]))


def schedule_verdict(results: Results, schedule: str) -> Verdict:
    """Is a cheaper schedule as good as the default one, for every method it ran with? The rule is `judge_equal`'s."""
    sees = {"block": "the compressed blocks before it", "parallel": "the dense model"}.get(schedule, "less")
    claim = (
        f"The schedule `{schedule}`, whose statistics see only {sees}, gives a model as good as `{DEFAULT}` "
        f"(perplexity at most {100 * MARGIN:.0f} % higher)"
    )
    pairs = cost_pairs(results)
    pairs = pairs[pairs["kind"] == schedule]
    if pairs.empty:
        return Verdict(claim, OPEN, f"no method ran in both schedules, `{schedule}` and `{DEFAULT}`")
    return Verdict(claim, judge_equal(pairs, MARGIN), f"perplexity ratios: {pair_text(pairs)}", PAIRS_FIGURE)


def time_buys_quality(results: Results) -> Verdict:
    """Is the method that takes longer the better one, at every target? `judge`'s rule, for neighbours in time."""
    claim = "Methods that take longer give lower perplexity at the same target"
    pairs = cost_pairs(results)
    pairs = pairs[pairs["kind"] == "method"]
    if pairs.empty:
        return Verdict(claim, OPEN, f"no two methods at one target differ in time by more than {times(CLOSE)}")
    return Verdict(claim, judge(pairs), f"perplexity ratios: {pair_text(pairs)}", PAIRS_FIGURE)


def faster(benchmarks: Path) -> Verdict:
    """Is the package faster than the textbook, over all stored pairs of timings?

    Pairs were measured in turns on one machine. The claim holds when the geometric mean of their ratios is above 1
    with its whole bootstrap interval (over settings; over pairs where there is one setting) and a sign test over pairs
    gives p below 5 %; the reverse refutes it.
    """
    claim = "The package compresses faster than a textbook implementation of the same methods"
    rows = textbook_ratios(benchmarks)
    ratios = np.concatenate([row["ratios"] for row in rows]) if rows else np.array([])
    if not len(ratios):
        return Verdict(claim, OPEN, "no timing against the textbook is stored")
    settings = np.array([np.log(row["ratios"]).mean() for row in rows])
    units = settings if len(settings) > 1 else np.log(ratios)
    found = bootstrap_mean([units]).map(math.exp)
    p = sign_test_p(int((ratios > 1).sum()), int((ratios < 1).sum()))
    answer = HOLDS if p < LEVEL and found.lo > 1 else FAILS if p < LEVEL and found.hi < 1 else OPEN
    text = interval(found.value, found.lo, found.hi)
    effect = (
        f"the textbook takes {text} as long, geometric mean over {len(rows)} settings with {len(ratios)} pairs of "
        f"timings, between {times(ratios.min())} and {times(ratios.max())} ({p_text(p)})"
    )
    return Verdict(claim, answer, effect, TEXTBOOK_FIGURE)


def textbook_ratios(folder: Path) -> list[dict]:
    """Each stored setting that was timed against the textbook: its `name` and the `ratios`, textbook to package."""
    rows = []
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        for row in found["rows"]:
            pairs = list(zip(row["ours"], row["textbook"], strict=False))
            if pairs and "options" in row:  # the divergence's row has none: its yardstick is no textbook
                ratios = np.array([theirs[found["clock"]] / ours[found["clock"]] for ours, theirs in pairs])
                name = f"{row['name']}, {found['model']}, {found['dtype']}, {_processor(found['device'])}"
                rows.append({"name": name, "ratios": ratios})
    return rows


def _processor(device: str) -> str:
    """A device's name without the marks of its maker.

    >>> _processor("Intel(R) Xeon(R) Processor, 2 threads, bf16 units")
    'Intel Xeon Processor'
    """
    return device.split(",")[0].replace("(R)", "").replace("(TM)", "")


def _schedules(results: Results):
    runs = run_table(results)
    for run in runs[runs["schedule"].isin(CHEAPER)].to_dict("records"):
        alike = (runs["method"] == run["method"]) & (runs["pattern"] == run["pattern"])
        twin = runs[alike & (runs["schedule"] == DEFAULT)]
        if len(twin):
            name = f"{style_of(run['method']).label} {run['pattern']}: {run['schedule']} to {DEFAULT}"
            yield run["schedule"], run["run_id"], twin["run_id"].iloc[0], name


def _methods(results: Results):
    runs = run_table(results)
    for _, members in runs[runs["schedule"].isin([DEFAULT, ""])].groupby("pattern", sort=False):
        ordered = members.sort_values("seconds").to_dict("records")
        for fast, slow in pairwise(ordered):
            if slow["seconds"] > CLOSE * fast["seconds"]:
                names = f"{style_of(slow['method']).label} to {style_of(fast['method']).label}"
                yield "method", slow["run_id"], fast["run_id"], f"{slow['pattern']}: {names}"
