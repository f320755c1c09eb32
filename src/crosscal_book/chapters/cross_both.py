"""What a mix gains over its two sources at once, the margins below which a gain is called none, and shared words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from crosscal.results.compare import LEVEL
from crosscal_book.chapters.cross_paired import Paired, judge, percent_text, pool
from crosscal_book.chapters.cross_runs import GENERAL, Mixes, Pair
from crosscal_book.style import style_of
from crosscal_book.verdicts import FAILS, HOLDS
from crosscal_book.words import p_text

# Differences below one per cent of perplexity, or one point of accuracy, are called none: less than one would change a
# default for. Set before any of these runs was seen.
MARGIN = math.log(1.01)
TASK_MARGIN = 0.01
MARGIN_TEXT = f"{100 * math.expm1(MARGIN):.0f} %"
FEW_DRAWS = 3  # fewer draws say nothing about their spread
GAINS, WEIGHTS, RIVALS = "fig-cross-gains", "fig-mix-weight", "fig-cross-rivals"
TASKS, DRAWN = "fig-cross-tasks", "fig-cross-draws"
MISSING_MIX = "no method has runs on general text, on a domain's text and on both"


@dataclass(frozen=True, eq=False)
class Both:
    """What a mix gains on the domain's text over general text alone, and on general text over the domain alone."""

    domain: Paired
    general: Paired
    margin: float = MARGIN

    @property
    def parts(self) -> tuple[Paired, Paired]:
        """The domain's gain and the general texts'."""
        return self.domain, self.general

    @property
    def p_holds(self) -> float:
        """p of "one of the two is no gain" (intersection-union test)."""
        return max(part.p_above() for part in self.parts)

    @property
    def p_fails(self) -> float:
        """p of "both gains reach the margin" (Bonferroni over the two)."""
        return min(1.0, 2 * min(part.p_below(self.margin) for part in self.parts))


def both(mixes: Mixes, pairs: Sequence[Pair], seed: int | None = None) -> Both:
    """The mean gains of some (method, domain) pairs at weight `HALF`, window by window."""
    rivals = {"domain": 0.0, GENERAL: 1.0}
    found = [[mixes.gain(p, part, mixes.run(p, w, seed=seed), seed) for p in pairs] for part, w in rivals.items()]
    return Both(pool(found[0]), pool(found[1]))


def drawn(mixes: Mixes) -> tuple[list[Pair], list[int]]:
    """The pairs with the most draws of the mix and of both its sources, and those draws' seeds."""
    seeds = {pair: mixes.seeds(pair) for pair in mixes.pairs()}
    most = max((len(found) for found in seeds.values()), default=0)
    pairs = [pair for pair, found in seeds.items() if len(found) == most]
    return pairs, sorted(set.intersection(*(set(seeds[pair]) for pair in pairs))) if pairs else []


def pair_name(pair: Pair) -> str:
    """A pair for a sentence: `SparseGPT, pubmed`."""
    return f"{style_of(pair.method).label}, {pair.source}"


def gains_text(found: Both) -> str:
    """Both gains with their intervals, as changes of perplexity."""
    domain, general = (percent_text(part.estimate()) for part in found.parts)
    return (
        f"with half the weight on the domain its perplexity changes by {domain} against general text alone, that of "
        f"general texts by {general} against the domain alone"
    )


def gains_brief(found: Both) -> str:
    """Both gains with their intervals, for a table."""
    domain, general = (percent_text(part.estimate()) for part in found.parts)
    return f"domain perplexity {domain} against general text alone, general {general} against the domain alone"


def because(p_holds: float, p_fails: float, margin: str = MARGIN_TEXT) -> str:
    """The test that decided, in brackets; a claim of a gain fails when a gain of `margin` is excluded."""
    answer = judge(p_holds, p_fails)
    if answer == HOLDS:
        return f"(one-sided {p_text(p_holds)})"
    if answer == FAILS:
        return f"(a gain of {margin} is excluded, one-sided {p_text(p_fails)})"
    return f"(no gain is shown, one-sided {p_text(p_holds)}, nor is one of {margin} excluded, {p_text(p_fails)})"


def count_text(p_values: Sequence[float]) -> str:
    """How many (method, domain) pairs show the same on their own."""
    shown = sum(p < LEVEL for p in p_values)
    return f"shown by {shown} of {len(p_values)} (method, domain) pairs on their own"
