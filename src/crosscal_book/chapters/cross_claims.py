"""Claims about a mix against its own sources, weights and draws, each with the rule by which it is judged."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from crosscal.results.compare import LEVEL
from crosscal.stats import holm
from crosscal_book.chapters.cross_both import (
    DRAWN,
    FEW_DRAWS,
    GAINS,
    MARGIN,
    MARGIN_TEXT,
    MISSING_MIX,
    TASK_MARGIN,
    TASKS,
    WEIGHTS,
    Both,
    because,
    both,
    count_text,
    drawn,
    gains_brief,
    gains_text,
    pair_name,
)
from crosscal_book.chapters.cross_paired import Paired, judge, over_draws, percent, percent_text, pool
from crosscal_book.chapters.cross_runs import GENERAL, HALF, Mixes, Pair, domain_texts
from crosscal_book.style import style_of
from crosscal_book.verdicts import FAILS, HOLDS, OPEN, Verdict
from crosscal_book.words import listing, p_text, points


def keeps_both(mixes: Mixes) -> list[Verdict]:
    """Is half the weight on the domain better there than general text alone, and better elsewhere than the domain's?

    For pruning and for quantization apart, over the mean of their methods and domains. Holds when both gains are shown
    (intersection-union t test, Holm over the two kinds, below `LEVEL`); does not hold when one of them is shown to
    be less than `MARGIN`; otherwise it cannot be told. Every (method, domain) pair is tested too, Holm over all pairs.
    """
    pairs = mixes.pairs()
    kinds = list(dict.fromkeys(pair.kind for pair in pairs))
    found = {kind: both(mixes, [p for p in pairs if p.kind == kind]) for kind in kinds}
    yes, no = (holm([getattr(found[k], name) for k in kinds]) for name in ("p_holds", "p_fails"))
    alone = dict(zip(pairs, holm([both(mixes, [p]).p_holds for p in pairs]), strict=True))
    verdicts = []
    for kind, p_yes, p_no in zip(kinds, yes, no, strict=True):
        own = [alone[pair] for pair in pairs if pair.kind == kind]
        claim = f"In {kind}, calibrating on both texts keeps the domain better than general text alone, and general "
        effect = f"{gains_text(found[kind])} {because(p_yes, p_no)}; {count_text(own)}, Holm over {len(pairs)}"
        claim, brief = f"{claim}text better than the domain's alone", gains_brief(found[kind])
        verdicts.append(Verdict(claim, judge(p_yes, p_no), effect, GAINS, brief))
    return verdicts or [Verdict("Calibrating on both texts keeps both the domain and general text", OPEN, MISSING_MIX)]


def tasks_follow(mixes: Mixes) -> Verdict:
    """The same on tasks: domain tasks against general text alone, general tasks against the domain's text alone.

    Judged like `keeps_both`, over all methods and domains together, with `TASK_MARGIN` and items for windows.
    """
    claim = "The same shows on tasks: calibrating on both texts keeps domain tasks and general tasks"
    gains = [found for pair in mixes.pairs() if (found := task_gains(mixes, pair))]
    if not gains:
        return Verdict(claim, OPEN, "no runs of a mix and both its sources with domain and general tasks above chance")
    found = Both(pool([domain for domain, _ in gains]), pool([general for _, general in gains]), TASK_MARGIN)
    texts = [f"{points(e.value)} points [{points(e.lo)}, {points(e.hi)}]" for e in map(Paired.estimate, found.parts)]
    effect = (
        f"mean accuracy changes by {texts[0]} on domain tasks against general text alone, by {texts[1]} on general "
    )
    effect += f"tasks against the domain alone, over {len(gains)} (method, domain) pairs"
    p_yes, p_no = found.p_holds, found.p_fails
    effect = f"{effect} {because(p_yes, p_no, 'one point')}"
    brief = f"{texts[0]} on domain tasks against general text alone, {texts[1]} on general tasks against the domain"
    return Verdict(claim, judge(p_yes, p_no), effect, TASKS, brief)


def task_gains(mixes: Mixes, pair: Pair) -> tuple[Paired, Paired] | None:
    """Accuracy that `HALF` gains on domain tasks over general text alone, and on general tasks over the domain alone.

    None unless the runs of a pair were asked the tasks of both.
    """
    sides = ((0.0, task_domain(mixes, pair)), (1.0, GENERAL))
    runs = [mixes.task_change(mixes.run(pair, w), domain) for weight, domain in sides for w in (HALF, weight)]
    return None if None in runs else (runs[0] - runs[1], runs[2] - runs[3])


def task_domain(mixes: Mixes, pair: Pair) -> str:
    """The domain of a pair's source, as tasks are labelled."""
    text = domain_texts(mixes.results, pair.source)[0]
    return mixes.results.only(eval_set=text, metric="perplexity")["domain"].iloc[0]


def regrets(mixes: Mixes) -> pd.DataFrame:
    """How much worse `HALF` is than the best other weight, in the mean of domain and general log perplexity.

    One line per pair: `best` other weight, `regret` (negative when `HALF` is best) with interval, `p_within` (no other
    weight is better by `MARGIN`; intersection-union) and `p_beyond` (some is; Holm over the weights).
    """
    lines = []
    for pair in mixes.pairs():
        others = [w for w in mixes.weights(pair) if w != HALF]
        excess = {w: excess_over(mixes, pair, w) for w in others}
        best = max(others, key=lambda w: excess[w].value)
        estimate = excess[best].estimate()
        line = {**pair._asdict(), "pair": pair, "best": best, "regret": estimate.value, "estimate": estimate}
        line["p_within"] = max(excess[w].p_below(MARGIN) for w in others)
        lines.append(line | {"p_beyond": float(holm([excess[w].p_above(MARGIN) for w in others]).min())})
    return pd.DataFrame(lines)


def excess_over(mixes: Mixes, pair: Pair, weight: float) -> Paired:
    """The loss of `HALF` less that of another weight, in the mean of domain and general text."""
    runs = [mixes.run(pair, w) for w in (HALF, weight)]
    return mixes.loss(runs[0], pair.source, "mean") - mixes.loss(runs[1], pair.source, "mean")


def good_default(mixes: Mixes) -> Verdict:
    """Is a weight of `HALF` within `MARGIN` of the best weight, whatever the method and domain?

    Holds when for every pair no other weight is better by `MARGIN` (intersection-union, so without correction); does
    not hold when for some pair one is (Holm over pairs and weights); otherwise it cannot be told.
    """
    claim = f"Half the weight on the domain is a good default: within {MARGIN_TEXT} of the best weight everywhere"
    found = regrets(mixes)
    if found.empty:
        return Verdict(claim, OPEN, MISSING_MIX)
    p_yes, p_no = found["p_within"].max(), holm(found["p_beyond"]).min()
    worst = found.loc[found["regret"].idxmax()]
    within = int((found["p_within"] < LEVEL).sum())
    weights = [f"{w:g}" for w in sorted({w for pair in found["pair"] for w in mixes.weights(pair)})]
    costs = worst["estimate"].map(lambda value: -value)
    effect = (
        f"at worst it changes perplexity by {percent(costs.value)} [{percent(costs.lo)}, {percent(costs.hi)}] against "
        f"the best other weight ({pair_name(worst['pair'])}, weight {worst['best']:g}); within {MARGIN_TEXT} is shown "
        f"for {within} of {len(found)} (method, domain) pairs over weights {listing(weights)}, largest {p_text(p_yes)}"
    )
    return Verdict(claim, judge(p_yes, p_no), effect, WEIGHTS)


def holds_on(model: str, mixes: Mixes) -> Verdict:
    """Does another model keep both texts too? Judged like `keeps_both`, over all its methods and domains together."""
    claim = f"Cross-calibration keeps both texts on {model} too"
    pairs = mixes.pairs()
    if not pairs:
        return Verdict(claim, OPEN, MISSING_MIX)
    found, alone = both(mixes, pairs), holm([both(mixes, [pair]).p_holds for pair in pairs])
    effect = f"{gains_text(found)} {because(found.p_holds, found.p_fails)}; {count_text(alone)}, Holm over {len(pairs)}"
    return Verdict(claim, judge(found.p_holds, found.p_fails), effect, GAINS, gains_brief(found))


def over_all_draws(mixes: Mixes) -> Verdict:
    """Do the gains of `keeps_both` hold whatever windows are drawn for calibration?

    Judged on the mean over methods and domains by Student's interval over draws and by the windows' test: holds when
    for both gains the interval lies above 0 and the one-sided p is below `LEVEL`; does not hold when for one of them
    the interval lies below `MARGIN` and so do the windows (p below `LEVEL` / 2); otherwise it cannot be told.
    """
    claim = "On average over methods and domains, the gains hold whatever calibration windows are drawn"
    pairs, seeds = drawn(mixes)
    if len(seeds) < FEW_DRAWS:
        return Verdict(claim, OPEN, f"no method has {FEW_DRAWS} or more draws of its mix and of both its sources")
    found = [both(mixes, pairs, seed) for seed in seeds]
    parts, texts, holds, fails = [[b.domain for b in found], [b.general for b in found]], [], [], []
    for part in parts:
        estimate, mean = over_draws([one.value for one in part]), pool(part)
        deviation = 100 * float(np.std([one.value for one in part], ddof=1))
        texts.append(f"{percent_text(estimate)} (SD {deviation:.1f} %)")
        holds.append(estimate.lo > 0 and mean.p_above() < LEVEL)
        fails.append(estimate.hi < MARGIN and mean.p_below(MARGIN) < LEVEL / 2)
    methods = listing(dict.fromkeys(style_of(pair.method).label for pair in pairs))
    others = [pair_name(pair) for pair in pairs if not gains_over_draws(mixes, pair, seeds)]
    effect = (
        f"over {len(seeds)} draws of {methods}, half the weight on the domain changes the domain's perplexity by "
        f"{texts[0]} against general text alone and the general texts' by {texts[1]} against the domain alone; on "
        f"their own {len(pairs) - len(others)} of {len(pairs)} (method, domain) pairs show both gains"
        + (f", not {'; '.join(others)}" if others else "")
    )
    return Verdict(claim, HOLDS if all(holds) else FAILS if any(fails) else OPEN, effect, DRAWN)


def gains_over_draws(mixes: Mixes, pair: Pair, seeds: Sequence[int]) -> bool:
    """Whether Student's intervals over draws of both gains of one pair lie above 0."""
    found = [both(mixes, [pair], seed).parts for seed in seeds]
    return all(over_draws([part.value for part in parts]).lo > 0 for parts in zip(*found, strict=True))
