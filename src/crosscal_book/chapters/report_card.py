"""Chapter 8: the report card of one model, method and domain: what was lost, what calibration saved, what to use."""

import math
from dataclasses import dataclass

from crosscal.plan.parameters import ReportCardSettings
from crosscal.results.compare import LEVEL
from crosscal.results.frame import Results
from crosscal.stats import Estimate, holm
from crosscal.types import parse_target
from crosscal_book.chapters.report_card_measures import (
    KEPT_WORD,
    MUCH,
    SOME,
    Measure,
    Weight,
    balanced_ratio,
    losses,
    runs_by_weight,
    short,
    task_change,
    task_groups,
    text_ratio,
    texts_of,
    weight_name,
)
from crosscal_book.style import style_of
from crosscal_book.verdicts import FAILS, HOLDS, OPEN, Text, Verdict, takeaway_text
from crosscal_book.words import listing, p_text, points, times

SMALL = 0.01
"""A change of perplexity below one in a hundred is called none. Set before any run was seen."""
EVIDENCE = "fig-report-card"
DEFAULT_WEIGHT = 0.5


@dataclass(frozen=True)
class Choice:
    """The weight to use, those the data cannot tell from the best, and the sentence that says so."""

    weight: Weight
    tied: tuple[float, ...]
    sentence: str


@dataclass(frozen=True)
class Saving:
    """What one setting does compared with another: domain and general perplexity, mean accuracy; None where unknown."""

    weight: Weight
    reference: Weight
    domain: Estimate | None
    general: Estimate | None
    accuracy: dict[str, Estimate]


def recommend(results: Results, settings: ReportCardSettings) -> Choice:
    """Which weight of the domain text to use, among those asked for.

    The best has the least mean log-perplexity ratio to the dense model over domain text and general text, half each.
    A weight is tied with it when the 95 % interval of their paired difference includes 0, by windows. Among the best
    and its ties the one nearest to 1/2 is chosen, the default that needs no search; of two equally near ones, the one
    with the lower loss. The sentence says when the data cannot tell weights apart, and what was missing.
    """
    runs = runs_by_weight(results, settings)
    missing = [f"{weight:g}" for weight in settings.weights if weight not in runs] if None not in runs else []
    note = f" Not stored, so not compared: w = {listing(missing)}." if missing else ""
    if not runs:
        return Choice(None, (), "No run of this method and target is stored, so nothing can be recommended.")
    if None in runs:
        label = style_of(settings.method).label
        return Choice(None, (), f"{label} reads no calibration text, so there is no weight to choose.")
    if len(runs) == 1:
        (weight,) = runs
        sentence = f"Only {weight_name(weight, settings)} is here, so there is nothing to choose between.{note}"
        return Choice(weight, (), sentence)
    scores = {weight: balanced_ratio(results, settings, run_id, results.dense_id) for weight, run_id in runs.items()}
    if any(math.isnan(score.value) for score in scores.values()):
        return Choice(None, (), f"No held-out text is common to all runs, so no weight can be recommended.{note}")
    best = min(scores, key=lambda weight: scores[weight].value)
    gaps = {w: balanced_ratio(results, settings, runs[w], runs[best]) for w in runs if w != best}
    tied = tuple(weight for weight, gap in gaps.items() if gap.lo <= 1.0)
    chosen = min((best, *tied), key=lambda w: (round(abs(w - DEFAULT_WEIGHT), 9), scores[w].value))
    return Choice(chosen, tied, _why(settings, scores, gaps, best, tied, chosen) + note)


def savings(results: Results, settings: ReportCardSettings) -> list[Saving]:
    """Every other setting against general text alone, then the mix nearest to 1/2 against the domain text alone."""
    runs = runs_by_weight(results, settings)
    pairs = [(weight, 0.0) for weight in runs if weight not in (0.0, None)] if 0.0 in runs else []
    mix = nearest_mix(runs)
    if mix is not None and 1.0 in runs:
        pairs.append((mix, 1.0))
    return [_saving(results, settings, weight, reference) for weight, reference in pairs]


def nearest_mix(runs: dict[Weight, str]) -> float | None:
    """The weight strictly between 0 and 1 that is nearest to 1/2, if any.

    >>> nearest_mix({0.0: "a", 0.25: "b", 0.5: "c", 1.0: "d"}), nearest_mix({None: "a"})
    (0.5, None)
    """
    mixes = [weight for weight in runs if weight is not None and 0.0 < weight < 1.0]
    return min(mixes, key=lambda weight: abs(weight - DEFAULT_WEIGHT)) if mixes else None


def verdicts(results: Results, settings: ReportCardSettings) -> list[Verdict]:
    """Is the model kept at the recommended setting; does a mix save domain text, and spare general text?"""
    return [kept(results, settings), *mix_claims(results, settings)]


def kept(results: Results, settings: ReportCardSettings) -> Verdict:
    """Does compression keep the model at the recommended setting?

    Holds when perplexity on domain and on general text and accuracy over all tasks are each `kept` by the limits of
    `report_card_measures.LIMITS`; does not hold when one of them is certainly lost; otherwise it cannot be told.
    """
    label, target = style_of(settings.method).label, parse_target(settings.target)
    claim, runs = f"{label} to {target} keeps the model", runs_by_weight(results, settings)
    if not runs:
        return Verdict(claim, OPEN, "no run of this method and target is stored", EVIDENCE)
    choice = recommend(results, settings).weight
    run_id = runs[choice] if choice in runs else next(iter(runs.values()))
    name = weight_name(next(weight for weight in runs if runs[weight] == run_id), settings)
    found = [m for m in losses(results, settings, run_id) if m.kind == "ratio" or "all tasks" in m.name]
    if not found:
        return Verdict(claim, OPEN, "no text and no task is common to all runs", EVIDENCE)
    words = {measure.word for measure in found}
    answer = HOLDS if words == {KEPT_WORD} else FAILS if words & {SOME, MUCH} else OPEN
    return Verdict(claim, answer, f"with {name}, {listing([measure_text(m) for m in found])}", EVIDENCE)


def mix_claims(results: Results, settings: ReportCardSettings) -> list[Verdict]:
    """Two claims on the mix nearest to 1/2, both by sign flips of paired windows, corrected by Holm's method.

    It saves perplexity on domain text against general text alone; it spares general text against domain text alone.
    Each holds when perplexity is significantly lower; it does not hold when it is significantly higher, or when the
    interval excludes a saving of `SMALL`; otherwise, and without its runs, it cannot be told. The test's least p is
    2^(1 - windows): four windows, as in the quick preset, cannot show a saving, and the effect says so.
    """
    runs, texts = runs_by_weight(results, settings), texts_of(results, settings)
    domain, general = short(settings.domain), short(settings.general)
    claims = [
        (f"Mixing {domain} into {general} saves perplexity on {domain}", 0.0, texts.domain),
        (f"The mix costs general text less than {domain} alone", 1.0, texts.general),
    ]
    mix = nearest_mix(runs)
    found = [
        text_ratio(results, runs[mix], runs[reference], names)
        if mix is not None and reference in runs and names
        else None
        for _, reference, names in claims
    ]
    known = [one for one in found if one is not None]
    corrected = iter(holm([one.p for one in known]) if known else [])
    return [
        _mix_verdict(settings, claim, reference, mix, one, next(corrected) if one is not None else None)
        for (claim, reference, _), one in zip(claims, found, strict=True)
    ]


def takeaway(results: Results, settings: ReportCardSettings) -> Text:
    """The opening of the card: its claims and the setting to use."""
    return takeaway_text(verdicts(results, settings), f"**Which setting.** {recommend(results, settings).sentence}")


def card(results: Results, settings: ReportCardSettings) -> Text:
    """The whole card as text that reads well as it is: what was lost, what calibration saved, which setting to use."""
    runs, choice = runs_by_weight(results, settings), recommend(results, settings)
    title = f"**Report card: {settings.model}, {style_of(settings.method).label} to {parse_target(settings.target)}**"
    sources = (
        f"General text {short(settings.general)}, domain text {short(settings.domain)}.{_held_out(results, settings)}"
    )
    parts = [title, f"{sources} {_sizes(results, settings)}"]
    for weight, run_id in runs.items():
        mark = ", recommended" if weight == choice.weight and len(runs) > 1 else ""
        lines = [f"- {measure_text(m)}" for m in losses(results, settings, run_id)]
        parts.append("\n".join([f"**What was lost, {weight_name(weight, settings)}{mark}**\n", *lines]))
    saved = [f"- {_saving_text(settings, saving)}" for saving in savings(results, settings)]
    if saved:
        parts.append("\n".join(["**What calibration saved**\n", *saved]))
    parts.append(f"**Which setting to use**\n\n{choice.sentence}")
    return Text("\n\n".join(parts) + "\n")


def measure_text(measure: Measure) -> str:
    """One loss with interval and word: `perplexity, pubmed 1.31× [1.28×, 1.35×] (some loss)`."""
    return f"{measure.name} {number_text(measure.kind, measure.estimate)} ({measure.word})"


def number_text(kind: str, estimate: Estimate) -> str:
    """A loss with its interval in the units of its kind."""
    writers = {"ratio": times, "divergence": lambda v: f"{v:.3f}", "flips": lambda v: f"{100 * v:.1f} %"}
    write = writers.get(kind, lambda v: f"{points(v)} points")
    tail = {"divergence": " nats"}.get(kind, "")
    lo, hi = (points(v) if kind == "change" else write(v) for v in (estimate.lo, estimate.hi))
    return f"{write(estimate.value)}{tail} [{lo}, {hi}]"


def percent_text(ratio: Estimate) -> str:
    """A ratio as a change in percent, with interval: `−3.2 % [−4.0, −2.5]`."""
    value, lo, hi = (points(part - 1) for part in (ratio.value, ratio.lo, ratio.hi))
    return f"{value} % [{lo}, {hi}]"


def _why(settings: ReportCardSettings, scores: dict, gaps: dict, best: float, tied: tuple, chosen: float) -> str:
    mean = scores[chosen]
    text = (
        f"Use {weight_name(chosen, settings)}: over {short(settings.domain)} and general text, half each, it has "
        f"{times(mean.value)} [{times(mean.lo)}, {times(mean.hi)}] the dense perplexity"
    )
    others = [weight for weight in scores if weight not in (best, *tied)]
    if tied:
        names = listing([f"{weight:g}" for weight in sorted((best, *tied))])
        widest = gaps[max(tied, key=lambda weight: gaps[weight].hi)]
        text += (
            f". The data cannot tell w = {names} apart (the widest difference from the least loss, at w = {best:g}, is "
            f"{percent_text(widest)}), so the one nearest to 1/2 is taken"
        )
    else:
        text += ", the least of all weights asked for, beyond the intervals of the paired differences"
    if others:
        worse = [f"w = {weight:g} by {percent_text(gaps[weight])}" for weight in others]
        text += f". Worse than w = {best:g}: {listing(worse)}"
    return text + "."


def _mix_verdict(
    settings: ReportCardSettings,
    claim: str,
    reference: float,
    mix: float | None,
    found: Estimate | None,
    p: float | None,
) -> Verdict:
    if found is None:
        need = f"a mix and {weight_name(reference, settings)}"
        return Verdict(claim, OPEN, f"it needs runs of {need}, evaluated on that text", EVIDENCE)
    answer = FAILS if found.lo > 1 - SMALL else OPEN
    if p < LEVEL:
        answer = HOLDS if found.value < 1 else FAILS
    against = f"{weight_name(mix, settings)} against {weight_name(reference, settings)}"
    few = f"; {found.n} windows are too few to tell by this test" if 2.0 ** (1 - found.n) >= LEVEL else ""
    return Verdict(claim, answer, f"perplexity with {against}: {percent_text(found)}, {p_text(p)}{few}", EVIDENCE)


def _saving(results: Results, settings: ReportCardSettings, weight: float, reference: float) -> Saving:
    runs, texts = runs_by_weight(results, settings), texts_of(results, settings)
    first, second = runs[weight], runs[reference]
    ratios = [text_ratio(results, first, second, names) if names else None for names in (texts.domain, texts.general)]
    groups = task_groups(results, settings)
    changes = {group: task_change(results, first, second, names) for group, names in groups.items()}
    return Saving(weight, reference, *ratios, changes)


def _saving_text(settings: ReportCardSettings, saving: Saving) -> str:
    parts = []
    for name, ratio in ((short(settings.domain), saving.domain), ("general text", saving.general)):
        if ratio is not None:
            parts.append(f"perplexity on {name} {percent_text(ratio)}")
    for group, change in saving.accuracy.items():
        parts.append(f"accuracy, {group}, {number_text('change', change)}")
    pair = f"{weight_name(saving.weight, settings)} against {weight_name(saving.reference, settings)}"
    return f"{pair}: {listing(parts) or 'nothing was evaluated on both'}"


def _held_out(results: Results, settings: ReportCardSettings) -> str:
    """Which texts stand for general text, and whether the domain's own was evaluated."""
    texts = texts_of(results, settings)
    general = f" Held-out general text: {listing([short(name) for name in texts.general])}." if texts.general else ""
    return general + ("" if texts.domain else " The domain's held-out text was not evaluated.")


def _sizes(results: Results, settings: ReportCardSettings) -> str:
    runs = runs_by_weight(results, settings)
    if not runs:
        return "No run is stored."
    run = results.describe_run(next(iter(runs.values())))
    made = f"{run['n_windows']} windows of {run['window']} tokens from each text, one draw" if run["n_windows"] else ""
    return f"A weight takes {run['storage_bits']:.2f} bits{'; calibrated on ' * bool(made)}{made}."
