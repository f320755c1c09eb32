"""Claims about a mix against its rivals: more general text, D-Pruner, quantization, and one mix for all domains."""

from collections.abc import Mapping, Sequence

import numpy as np

from crosscal.stats import holm
from crosscal_book.chapters.cross_both import GAINS, MARGIN, MARGIN_TEXT, RIVALS, because, count_text
from crosscal_book.chapters.cross_paired import Paired, judge, percent_text, pool, share
from crosscal_book.chapters.cross_runs import DOUBLED, GENERAL, HALF, MIX, PART_SHARES, TOGETHER, Mixes, Pair
from crosscal_book.style import style_of
from crosscal_book.verdicts import FAILS, OPEN, Verdict
from crosscal_book.words import listing, p_text

RIVAL = "dpruner"


def beats_doubling(mixes: Mixes) -> Verdict:
    """Is the domain's text worth more than as much more general text? Judged like `beats_dpruner`."""
    claim = "Cross-calibration beats doubling the general text"
    return _against(claim, mixes, doubled_runs(mixes), "no run on twice the general text is stored")


def beats_dpruner(mixes: Mixes, method: str = "sparsegpt", rival: str = RIVAL) -> Verdict:
    """Is SparseGPT on both texts better than D-Pruner on the same?

    Judged on the mean of domain and general log perplexity, over domains: holds when the gain is shown (one-sided
    p below `LEVEL`), does not hold when it is shown to be less than `MARGIN`, otherwise it cannot be told.
    """
    claim = f"{style_of(method).label} with cross-calibration beats {style_of(rival).label}"
    found = rival_runs(mixes, method, rival)
    verdict = _against(claim, mixes, found, f"no {style_of(rival).label} run is stored")
    if not found:
        return verdict
    own = [mixes.run(pair, HALF) for pair in found]
    costs = [cost_text(mixes, run_ids) for run_ids in (own, list(found.values()))]
    effect = f"{verdict.effect}; it takes {costs[0]} against {costs[1]}"
    return Verdict(claim, verdict.answer, effect, RIVALS, verdict.brief)


def smaller_for_quantization(mixes: Mixes) -> Verdict:
    """Does quantization gain less on the domain than pruning? Compared on the domains that both were run on.

    Holds when the difference of the gains is shown to be above 0, does not hold when it is shown to be below `MARGIN`.
    """
    claim = "Cross-calibration gains less in quantization than in pruning"
    pairs = mixes.pairs(((MIX, 0.0), (MIX, HALF)))
    groups = {kind: [p for p in pairs if p.kind == kind] for kind in ("pruning", "quantization")}
    common = set.intersection(*({p.source for p in group} for group in groups.values()))
    if not common:
        return Verdict(claim, OPEN, "no domain has mixes of both a pruned and a quantized model")
    gains, losses = {}, {}
    for kind, group in groups.items():
        by_source = [[p for p in group if p.source == source] for source in mixes.sources if source in common]
        dense = [[mixes.loss(mixes.run(p, 0.0), p.source, "domain") for p in some] for some in by_source]
        gain = [[mixes.gain(p, "domain", mixes.run(p, 0.0)) for p in some] for some in by_source]
        gains[kind], losses[kind] = pool([pool(some) for some in gain]), pool([pool(some) for some in dense])
    gap = gains["pruning"] - gains["quantization"]
    p_yes, p_no = gap.p_above(), gap.p_below(MARGIN)
    texts = []
    for kind, gain in gains.items():
        part = share(gain, losses[kind])
        back = f"{100 * part.value:.0f} % [{100 * part.lo:.0f}, {100 * part.hi:.0f}] of what was lost"
        texts.append(f"{percent_text(gain.estimate())} in {kind} ({back})")
    effect = (
        f"the domain's perplexity changes by {listing(texts)} against general text alone; pruning's change differs "
        f"from quantization's by {percent_text(gap.estimate())}, negative where pruning gains more "
        f"{because(p_yes, p_no)}"
    )
    parts = [f"{percent_text(gain.estimate())} in {kind}" for kind, gain in gains.items()]
    brief = f"domain perplexity {listing(parts)}, difference {percent_text(gap.estimate())}"
    return Verdict(claim, judge(p_yes, p_no), effect, GAINS, brief)


def one_mix_for_all(mixes: Mixes) -> Verdict:
    """Does one mix of general text and all domains serve each domain as well as that domain's own mix?

    Over the mean of the methods: holds when on every domain the cost is shown to be below `MARGIN`, does not hold when
    on some domain it is shown to be above (Holm over domains).
    """
    claim = f"One mix of all sources serves each domain within {MARGIN_TEXT} of the domain's own mix"
    found = together_runs(mixes)
    if not found:
        return Verdict(claim, OPEN, "no run on general text and several domains at once is stored")
    by_source = {source: {p: r for p, r in found.items() if p.source == source} for source in mixes.sources}
    costs = {source: rival_gains(mixes, some) for source, some in by_source.items() if some}
    p_yes = max(cost["domain"].p_below(MARGIN) for cost in costs.values())
    p_no = holm([cost["domain"].p_above(MARGIN) for cost in costs.values()]).min()
    texts = [
        f"{percent_text(cost['domain'].negative().estimate())} on {source} and "
        f"{percent_text(cost[GENERAL].negative().estimate())} on general text"
        for source, cost in costs.items()
    ]
    methods = listing(dict.fromkeys(style_of(pair.method).label for pair in found))
    effect = f"against the mix of two, perplexity changes by {'; '.join(texts)}, mean of {methods} "
    decided = f"one-sided {p_text(p_no if judge(p_yes, p_no) == FAILS else p_yes)}"
    return Verdict(claim, judge(p_yes, p_no), f"{effect}({decided})", RIVALS)


def doubled_runs(mixes: Mixes) -> dict[Pair, str]:
    """The run on more windows of general text for each pair that has one."""
    pairs = mixes.pairs(((MIX, HALF), (DOUBLED, 0.0)))
    return {pair: mixes.run(pair, role=DOUBLED) for pair in pairs if pair.method != RIVAL}


def rival_runs(mixes: Mixes, method: str = "sparsegpt", rival: str = RIVAL) -> dict[Pair, str]:
    """Another method's run on the same texts, to the same target, for each pair of `method` that has one."""
    pairs = [pair for pair in mixes.pairs(((MIX, HALF),)) if pair.method == method]
    found = {pair: mixes.run(pair._replace(method=rival), HALF) for pair in pairs}
    return {pair: run for pair, run in found.items() if run}


def together_runs(mixes: Mixes) -> dict[Pair, str]:
    """The run on general text and all domains at once for each pair that has one."""
    return {pair: mixes.run(pair, role=TOGETHER) for pair in mixes.pairs(((MIX, HALF), (TOGETHER, 0.0)))}


def rivals_of(mixes: Mixes) -> dict[str, dict[Pair, dict[str, Paired]]]:
    """Every rival by name: what each pair's mix at `HALF` gains over it, by measure."""
    named = {
        "twice the general text": doubled_runs(mixes),
        style_of(RIVAL).label: rival_runs(mixes),
        "one mix of all sources": together_runs(mixes),
    }
    return {name: {p: rival_gains(mixes, {p: run}) for p, run in runs.items()} for name, runs in named.items()}


def rival_gains(mixes: Mixes, rivals: Mapping[Pair, str]) -> dict[str, Paired]:
    """What the mix at `HALF` gains over each pair's rival run, by measure, in the mean of these pairs."""
    return {part: pool([mixes.gain(pair, part, run) for pair, run in rivals.items()]) for part in PART_SHARES}


def cost_text(mixes: Mixes, run_ids: Sequence[str]) -> str:
    """Mean seconds and memory of some runs' compression.

    Peak memory is what compressing added to the process, as stored with the run.
    """
    rows = [mixes.results.describe_run(run_id) for run_id in run_ids]
    seconds, memory = (float(np.mean([row[name] for row in rows])) for name in ("seconds", "peak_bytes"))
    return f"{seconds:,.0f} s and {memory / 2**20:,.0f} MiB"


def _against(claim: str, mixes: Mixes, rivals: Mapping[Pair, str], missing: str) -> Verdict:
    if not rivals:
        return Verdict(claim, OPEN, missing)
    gains = rival_gains(mixes, rivals)
    domain, general, mean = (percent_text(gains[part].estimate()) for part in ("domain", GENERAL, "mean"))
    p_yes, p_no = gains["mean"].p_above(), gains["mean"].p_below(MARGIN)
    alone = holm([mixes.gain(pair, "mean", run).p_above() for pair, run in rivals.items()])
    effect = (
        f"perplexity changes by {mean} over domain and general texts alike {because(p_yes, p_no)}: {domain} on the "
        f"domain, {general} on general texts; {count_text(alone)}, Holm over {len(rivals)}"
    )
    brief = f"perplexity {mean}: {domain} on the domain, {general} on general texts"
    return Verdict(claim, judge(p_yes, p_no), effect, RIVALS, brief)
