"""How much results vary over draws of the calibration text, over its sources, and between methods."""

import math

import numpy as np
import pandas as pd

from crosscal.stats import DRAWS
from crosscal_book.chapters.calibration_data import (
    Evidence,
    Group,
    Measure,
    draw_noise,
    gap,
    level,
    measures_of,
    student,
)
from crosscal_book.style import style_of

MIN_TEXTS = 4  # a spread over fewer texts says little about texts
SPREADS = ["measure", "group", "what", "kind", "draws", "n"]


def _deviations(evidence: Evidence, run_ids: list[str], measure: Measure) -> np.ndarray:
    """SD over some runs, then over the bootstrap draws of them: [1 + draws]."""
    return np.std([level(evidence, i, measure) for i in run_ids], axis=0, ddof=1)


def sd_over(evidence: Evidence, run_ids: list[str], measure: Measure) -> np.ndarray:
    """SD over some runs, [1 + draws], whose draws carry the windows' or items' and the few runs' uncertainty.

    The second is the chi-squared law of a variance of as many normal values.
    """
    freedom = len(run_ids) - 1
    few = np.random.default_rng(12).chisquare(freedom, DRAWS) / freedom
    return _deviations(evidence, run_ids, measure) / np.sqrt(np.concatenate([[1.0], few]))


def text_runs(evidence: Evidence, group: Group) -> dict[str, str]:
    """The first draw of each source that is text."""
    return {source: evidence.base(group, source) for source in evidence.sources(group, text_only=True)}


def source_to_draw(evidence: Evidence, group: Group, measure: Measure) -> np.ndarray | None:
    """SD due to the source over SD due to the draw, [1 + draws]; None with fewer than `MIN_TEXTS` texts or 2 draws.

    Sources vary by both, V = source^2 + draw^2, so the ratio squared is V / draw^2 - 1. The random effects analysis of
    variance: V over the draws' variance, over the truth, follows F with (texts - 1, draws - 1) degrees of freedom.
    """
    texts, repeats = list(text_runs(evidence, group).values()), evidence.draws(group, evidence.general)
    if len(texts) < MIN_TEXTS or len(repeats) < 2:
        return None
    over, under = _deviations(evidence, texts, measure), _deviations(evidence, repeats, measure)
    if under[0] == 0:
        return None
    law = np.concatenate([[1.0], np.random.default_rng(13).f(len(texts) - 1, len(repeats) - 1, DRAWS)])
    return np.sqrt(np.maximum((over / np.maximum(under, 1e-12)) ** 2 / law - 1, 0))


def spread_ratio(evidence: Evidence, first: Group, second: Group, measure: Measure) -> tuple[np.ndarray, int] | None:
    """SD over texts of one method over that of another on the same texts, [1 + draws], and how many texts.

    The pivot of Pitman and Morgan (1939) for variances of paired values, over bootstrap draws of the windows.
    None with fewer than `MIN_TEXTS` shared texts.
    """
    one, other = text_runs(evidence, first), text_runs(evidence, second)
    shared = [source for source in one if source in other]
    if len(shared) < MIN_TEXTS:
        return None
    a = np.array([level(evidence, one[s], measure) for s in shared])
    b = np.array([level(evidence, other[s], measure) for s in shared])
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    va, vb, both = (a * a).sum(axis=0), (b * b).sum(axis=0), (a * b).sum(axis=0)
    apart = np.maximum(1 - both**2 / np.maximum(va * vb, 1e-30), 0)
    c = 2 * student(len(shared) - 2) * np.sqrt(apart / (len(shared) - 2))
    return np.sqrt(va / np.maximum(vb, 1e-30)) * 2 / (c + np.sqrt(c * c + 4)), len(shared)


def by_size(evidence: Evidence, group: Group) -> pd.DataFrame:
    """The runs on the first draw of the general text in the window length that most numbers of windows share.

    Columns as `Evidence.runs`, sorted by the number of windows; empty with fewer than three numbers.
    """
    runs = evidence.pick(group, calibration=evidence.general, seed=evidence.seed)
    if runs.empty:
        return runs
    runs = runs[runs["window"] == runs.groupby("window")["n_windows"].nunique().idxmax()].sort_values("n_windows")
    return runs if len(runs) > 2 else runs.iloc[:0]


def by_length(evidence: Evidence, group: Group) -> pd.DataFrame:
    """The runs on the first draw of the general text with as many tokens as usual, sorted by the window's length."""
    runs = evidence.pick(group, calibration=evidence.general, seed=evidence.seed)
    runs = runs[runs["n_windows"] * runs["window"] == math.prod(evidence.size)].sort_values("window")
    return runs if len(runs) > 1 else runs.iloc[:0]


def method_gap(evidence: Evidence, first: Group, second: Group, measure: Measure) -> np.ndarray | None:
    """One method's value less another's, the mean over draws that both have: [1 + draws]. None without such a draw."""
    runs = [evidence.pick(g, calibration=evidence.general).set_index(["n_windows", "window"]) for g in (first, second)]
    runs = [r[r.index == evidence.size].set_index("seed")["run_id"] for r in runs]
    seeds = [seed for seed in runs[0].index if seed in runs[1].index]
    if not seeds:
        return None
    each = np.array([level(evidence, runs[0][s], measure) - level(evidence, runs[1][s], measure) for s in seeds])
    change = each.mean(axis=0)
    if len(seeds) > 1:
        return change + each[:, 0].std(ddof=1) / math.sqrt(len(seeds)) * student(len(seeds) - 1)
    noises = [draw_noise(evidence, g, measure) for g in (first, second)]
    known = [noise for noise in noises if noise]
    return change + sum(noise.sd * student(noise.freedom) for noise in known) if known else change


def spreads(evidence: Evidence) -> pd.DataFrame:
    """Everything that moves a result, as sizes without sign, for each measure and group: columns `SPREADS`.

    `kind` is "draw", "source" (SDs), "range" (over texts), "size" (fewest to most windows) or "method" (to each
    other method at the same pattern); `what` says it in words, `draws` is [1 + draws], `n` counts runs.
    """
    lines = []
    for measure in measures_of(evidence):
        for group in evidence.groups:
            for what, kind, draws, n in _spreads_of(evidence, group, measure):
                lines.append((measure, group, what, kind, draws, n))
    return pd.DataFrame(lines, columns=SPREADS)


def _spreads_of(evidence: Evidence, group: Group, measure: Measure):
    repeats, texts = evidence.draws(group, evidence.general), list(text_runs(evidence, group).values())
    if len(repeats) > 1:
        yield f"draw of {evidence.general} (SD)", "draw", sd_over(evidence, repeats, measure), len(repeats)
    if len(texts) >= MIN_TEXTS:
        yield "source of text (SD)", "source", sd_over(evidence, texts, measure), len(texts)
        every = np.array([level(evidence, i, measure) for i in texts])
        yield "source of text (range)", "range", every.max(axis=0) - every.min(axis=0), len(texts)
    sizes = by_size(evidence, group)
    if len(sizes):
        few, many = sizes.iloc[0], sizes.iloc[-1]
        change = gap(evidence, [few["run_id"]], [many["run_id"]], measure)
        yield f"{few['n_windows']} instead of {many['n_windows']} windows", "size", _unsigned(change), len(sizes)
    for other in evidence.groups:
        later = other[1] == group[1] and evidence.groups.index(other) > evidence.groups.index(group)
        change = method_gap(evidence, group, other, measure) if later else None
        if change is not None:
            pair = f"{style_of(group[0]).label} or {style_of(other[0]).label}"
            yield pair, "method", _unsigned(change), len(repeats)


def _unsigned(draws: np.ndarray) -> np.ndarray:
    """The size of a difference: turned so that its value is positive, its draws kept on both sides of 0."""
    return draws if draws[0] >= 0 else -draws
