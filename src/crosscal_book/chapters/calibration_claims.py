"""Chapter 3, the claims: each a verdict with its number, interval and rule.

Every verdict is about differences between runs that are paired on the same windows or items; their intervals hold the
windows' and the calibration draw's uncertainty (`calibration_data`). A claim that speaks of several methods or texts is
tested on each, Holm-corrected: it holds when at least half of the tests establish it and none contradicts it, it does
not hold when one contradicts it, and otherwise it cannot be told.
"""

import math
from collections.abc import Sequence

import numpy as np

from crosscal.results.compare import LEVEL, PROMPTS
from crosscal.results.frame import Results
from crosscal.stats import holm
from crosscal_book.chapters.calibration_data import (
    PERPLEXITY,
    RANDOM,
    SELF,
    Evidence,
    Group,
    estimate,
    gap,
    gather,
    interval,
    name_of,
    p_not_above,
    p_not_below,
    percent,
)
from crosscal_book.chapters.calibration_spread import (
    MIN_TEXTS,
    by_size,
    source_to_draw,
    spread_ratio,
)
from crosscal_book.verdicts import FAILS, HOLDS, OPEN, Verdict

# Limits of "as well as" and of "saturated", in perplexity. Set before any run was seen: 2 % is a fifth of the 10 % at
# which this study calls perplexity kept (`words.KEPT`).
EQUAL = math.log(1.02)
SATURATED = math.log(1.02)
STRONG, OTHERS = "sparsegpt", ("wanda", "gptq")  # the methods of "depends more", in the claim's order

Test = tuple[str, float, float, float]
"""What was compared, as text with its interval; the p-values of "the claim is false" and of "it is true"; and by how
many standard errors it supports the claim."""


def _test(text: str, draws: np.ndarray, limit: float = 0.0, *, above: bool = False) -> Test:
    """Is a value below `limit`, or `above` it?"""
    support = (draws[0] - limit) / max(float(np.std(draws[1:])), 1e-12) * (1 if above else -1)
    down, up = p_not_below(draws, limit), p_not_above(draws, limit)
    return (text, up, down, support) if above else (text, down, up, support)


def decide(tests: Sequence[Test]) -> tuple[str, int, int]:
    """The answer of a claim with several tests, how many establish it and how many contradict it (Holm, each way).

    >>> decide([("", 0.001, 0.999, 3.0), ("", 0.2, 0.8, 0.8)]), decide([("", 0.9, 0.001, -3.0)])[0]
    (('holds', 1, 0), 'does not hold')
    """
    yes = int((holm([test[1] for test in tests]) < LEVEL).sum())
    no = int((holm([test[2] for test in tests]) < LEVEL).sum())
    return (FAILS if no else HOLDS if 2 * yes >= len(tests) else OPEN), yes, no


def _verdict(claim: str, tests: Sequence[Test], evidence: str, missing: str, shown: int = 4) -> Verdict:
    """The verdict of `decide`; with more than `shown` tests only the clearest on either side are written out."""
    if not tests:
        return Verdict(claim, OPEN, missing, evidence)
    answer, yes, no = decide(tests)
    text = "; ".join(test[0] for test in tests)
    if len(tests) > shown:
        ranked = sorted(tests, key=lambda test: test[3])
        text = f"clearest {ranked[-1][0]}; least clear {ranked[0][0]}"
    count = f" ({yes} of {len(tests)} comparisons establish it, {no} contradict it, Holm-corrected p < {LEVEL})"
    return Verdict(claim, answer, text + (count if len(tests) > 1 else ""), evidence)


def source_against_draw(results: Results, general: str = "c4") -> Verdict:
    """Does the calibration source move results more than its draw does (Williams & Aletras 2024, arXiv 2311.09755)?

    Per method and pattern: SD of log perplexity due to the source over SD due to the draw, by analysis of variance with
    random effects (`source_to_draw`), tested against 1 on either side; combined by `decide`.
    """
    evidence, tests = gather(results, general), []
    for group in evidence.groups:
        ratio = source_to_draw(evidence, group, PERPLEXITY)
        if ratio is not None:
            text = f"{interval(ratio, '{:.1f}'.format)} times as much for {name_of(group)}"
            tests.append(_test(text, ratio, 1.0, above=True))
    missing = f"no method has {MIN_TEXTS} sources and two draws of {general}"
    verdict = _verdict("The calibration source moves perplexity more than its draw does", tests, "fig-effects", missing)
    return _prefixed(verdict, "the SD due to the source is ") if tests else verdict


def _prefixed(verdict: Verdict, words: str) -> Verdict:
    return Verdict(verdict.claim, verdict.answer, words + verdict.effect, verdict.evidence)


def method_dependence(results: Results, general: str = "c4", focus: str = "50%") -> Verdict:
    """Does SparseGPT depend more on the calibration source than Wanda or GPTQ (Williams & Aletras 2024)?

    SD of log perplexity over the same texts, SparseGPT's over the other's, by the Pitman-Morgan test for paired
    variances; with the others at the same pattern, or with GPTQ at its own; combined by `decide`.
    """
    evidence, tests, first = gather(results, general), [], (STRONG, focus)
    for other in (g for g in evidence.groups if g[0] in OTHERS and (g[1] == focus or "bit" in g[1])):
        found = spread_ratio(evidence, first, other, PERPLEXITY)
        if found:
            ratio, texts = found
            text = f"{interval(ratio, '{:.1f}'.format)} times that of {name_of(other)} (over {texts} texts)"
            tests.append(_test(text, ratio, 1.0, above=True))
    names = f"{name_of(first)} and another method"
    verdict = _verdict(
        "SparseGPT depends more on the calibration source than Wanda or GPTQ",
        tests,
        "fig-sources",
        f"{names} share fewer than {MIN_TEXTS} texts",
    )
    return _prefixed(verdict, f"over sources, the SD of {name_of(first)} is ") if tests else verdict


def own_text(results: Results, general: str = "c4") -> Verdict:
    """Does text that the model wrote calibrate as well as the general text (Ji et al. 2024, arXiv 2410.17711)?

    Perplexity over all texts after `SELF`, relative to the general text, per method and pattern. It holds when the
    interval of each ends below `EQUAL`, does not hold when one is above `EQUAL` (Holm), and else cannot be told.
    """
    claim = f"Text that the model wrote calibrates as well as {general}, within {percent(EQUAL)[1:]} of perplexity"
    evidence, tests, below = gather(results, general), [], []
    for group in evidence.groups:
        own, others = evidence.draws(group, SELF), evidence.draws(group, general)
        if own and others:
            change = gap(evidence, own, others, PERPLEXITY)
            text = f"{interval(change, percent)} for {name_of(group)}"
            tests.append(_test(text, change, EQUAL))
            below.append(estimate(change).hi < EQUAL)
    if not tests:
        return Verdict(claim, OPEN, f"no method was calibrated on both {SELF} and {general}", "fig-sources")
    worse = (holm([test[2] for test in tests]) < LEVEL).any()
    answer = FAILS if worse else HOLDS if all(below) else OPEN
    effect = f"perplexity beside {general}'s changes by " + "; ".join(test[0] for test in tests)
    return Verdict(claim, answer, effect, "fig-sources")


def windows(results: Results, general: str = "c4") -> Verdict:
    """Do more windows help, and saturate?

    At the window length with most numbers of windows, per method and pattern: perplexity with the most windows is
    below that with the fewest (`decide`), and the last step changes it by less than `SATURATED`. The claim holds when
    both do, the second with the intervals of all within the limit; it does not hold when more windows harm, or when
    one last step gains more than the limit (Holm); else it cannot be told.
    """
    claim = "More calibration windows help, and saturate"
    evidence, helps, grows, steady = gather(results, general), [], [], []
    steps = ""
    for group in evidence.groups:
        runs = by_size(evidence, group)
        if runs.empty:
            continue
        ids, counts = list(runs["run_id"]), list(runs["n_windows"])
        whole = gap(evidence, ids[-1:], ids[:1], PERPLEXITY)
        last = gap(evidence, ids[-1:], ids[-2:-1], PERPLEXITY)
        text = f"{interval(whole, percent)} and {interval(last, percent)} for {name_of(group)}"
        helps.append(_test(text, whole))
        grows.append(p_not_below(last, -SATURATED))
        steady.append(abs(estimate(last).lo) < SATURATED and abs(estimate(last).hi) < SATURATED)
        steps = (
            f"from {counts[0]} to {counts[-1]} windows, and in the last step from {counts[-2]}, perplexity changes by "
        )
    if not helps:
        return Verdict(claim, OPEN, "no method was calibrated on three numbers of windows of one length", "fig-size")
    helpful = decide(helps)[0]
    growing = (holm(grows) < LEVEL).any()
    answer = FAILS if helpful == FAILS or growing else HOLDS if helpful == HOLDS and all(steady) else OPEN
    return Verdict(claim, answer, steps + "; ".join(test[0] for test in helps), "fig-size")


def any_text_beats_random(results: Results, general: str = "c4") -> Verdict:
    """Does every text calibrate better than random tokens? Perplexity of each text's runs relative to random's."""
    evidence, tests = gather(results, general), []
    for group in evidence.groups:
        chance = evidence.draws(group, RANDOM)
        for source in evidence.sources(group, text_only=True) if chance else ():
            change = gap(evidence, evidence.draws(group, source), chance, PERPLEXITY)
            text = f"{source} {interval(change, percent)} for {name_of(group)}"
            tests.append(_test(text, change))
    verdict = _verdict("Any text calibrates better than random tokens", tests, "fig-sources", _no_random())
    return _prefixed(verdict, "perplexity beside random tokens': ") if tests else verdict


def _no_random() -> str:
    return "no method was calibrated on random tokens"


def random_is_useless(results: Results, general: str = "c4") -> Verdict:
    """Are random tokens useless: no better than magnitude pruning, which uses no text, at the same pattern?

    Perplexity after random tokens relative to magnitude pruning's. The claim is contradicted where it is lower.
    """
    claim = "Random tokens are useless: no better than magnitude pruning, which needs no text"
    evidence, tests = gather(results, general), []
    for group in evidence.groups:
        plain, chance = list(evidence.pick(("magnitude", group[1]))["run_id"]), evidence.draws(group, RANDOM)
        if plain and chance:
            change = gap(evidence, chance, plain[:1], PERPLEXITY)
            text = f"{interval(change, percent)} for {name_of(group)}"
            tests.append(_test(text, change, above=True))
    missing = f"{_no_random()} at a pattern that magnitude pruning has as well"
    verdict = _verdict(claim, tests, "fig-sources", missing)
    return _prefixed(verdict, "perplexity after random tokens, beside magnitude pruning's: ") if tests else verdict


def own_texts(evidence: Evidence) -> list[str]:
    """Held-out texts that have a calibration source of the same name."""
    return [text for text in evidence.sets(PERPLEXITY) if text in evidence.sources()]


def domain_text(results: Results, general: str = "c4") -> Verdict:
    """Does the domain's own text calibrate best for it?

    For each held-out text of a special domain with a calibration source of the same name, and each method and pattern:
    its perplexity after its own source relative to that after each other. Established where the own source beats
    every other (the largest p), contradicted where one other beats it; combined by `decide`.
    """
    evidence, tests = gather(results, general), []
    rows = evidence.results.rows
    special = set(rows.loc[~rows["domain"].isin(["general", PROMPTS]), "eval_set"])
    for text in (t for t in own_texts(evidence) if t in special):
        for group in evidence.groups:
            others = [s for s in evidence.sources(group) if s != text]
            if evidence.draws(group, text) and others:
                tests.append(_own_against(evidence, group, text, others))
    missing = "no held-out text of a special domain has a calibration source of the same name and another beside it"
    verdict = _verdict("A domain's own text calibrates best for it", tests, "fig-matrix", missing)
    return _prefixed(verdict, "perplexity after the own text, beside the best of the others': ") if tests else verdict


def _own_against(evidence: Evidence, group: Group, text: str, others: Sequence[str]) -> Test:
    own = evidence.draws(group, text)
    gaps = {s: gap(evidence, own, evidence.draws(group, s), PERPLEXITY, (text,)) for s in others}
    rival = max(gaps, key=lambda source: gaps[source][0])
    words = f"{text} {interval(gaps[rival], percent)} (against {rival}) for {name_of(group)}"
    worse = holm([p_not_above(change) for change in gaps.values()]).min()
    best = max(p_not_below(change) for change in gaps.values())
    return words, best, float(worse), _test(words, gaps[rival])[3]
