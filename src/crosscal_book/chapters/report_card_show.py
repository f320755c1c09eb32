"""Chapter 8: the card's figure and its two tables."""

from crosscal.plan.parameters import ReportCardSettings
from crosscal.results.compare import LEVEL
from crosscal.results.frame import Results
from crosscal.stats import Estimate, holm
from crosscal.types import parse_target
from crosscal_book.axes import panels, sentence_figure
from crosscal_book.chapters.report_card import (
    EVIDENCE,
    Saving,
    number_text,
    percent_text,
    recommend,
    savings,
)
from crosscal_book.chapters.report_card_measures import (
    LIMITS,
    Measure,
    losses,
    runs_by_weight,
    short,
    texts_of,
    weight_name,
)
from crosscal_book.style import CHANCE_COLOUR, Figure, finish, style_of
from crosscal_book.tables import Table
from crosscal_book.words import listing

PANELS = 4
PER_PANEL = {"ratio": "times dense", "divergence": "nats per token", "flips": "% of items", "change": "points"}
SCALE = {"ratio": 1.0, "divergence": 1.0, "flips": 100.0, "change": 100.0}


def card_figure(results: Results, settings: ReportCardSettings) -> Figure:
    """Up to four losses, one panel each, a line per setting; what counts as kept is shaded."""
    runs = runs_by_weight(results, settings)
    found = {weight: losses(results, settings, run_id) for weight, run_id in runs.items()}
    chosen = _panels(next(iter(found.values()), []))
    if not chosen:
        return _nothing(settings)
    rows = (len(chosen) + 1) // 2
    canvas, grid = panels(rows, 2, 6.6, (0.32 * len(runs) + 1.15) * rows, sharey=True)
    names = [weight_name(weight, settings) for weight in runs]
    for axes, name in zip(grid, chosen, strict=False):
        for number, measures in enumerate(found.values()):
            _draw(axes, -number, next(m for m in measures if m.name == name))
        kind = next(m.kind for m in next(iter(found.values())) if m.name == name)
        _shade(axes, kind)
        axes.set_title(name, loc="left", fontsize=9)
        axes.set_xlabel(PER_PANEL[kind], fontsize=9)
        axes.set_yticks([-number for number in range(len(names))], names)
        axes.set_ylim(-len(names) + 0.4, 0.6)
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.12)
    for axes in grid[len(chosen) :]:
        axes.set_visible(False)
    words = _words(results, settings, found, chosen)
    caption = (
        f"Report card of {settings.model}, {style_of(settings.method).label} to {parse_target(settings.target)}. "
        f"{words} Shaded: counts as kept. Dark line: the dense model. Bars: 95 % bootstrap intervals, paired with it."
    )
    return finish(canvas, EVIDENCE, caption, f"Losses of each calibration setting. {words}")


def card_table(results: Results, settings: ReportCardSettings) -> Table:
    """One line per loss, one column per setting: the loss with interval, and its word."""
    runs, choice = runs_by_weight(results, settings), recommend(results, settings)
    found = {weight: losses(results, settings, run_id) for weight, run_id in runs.items()}
    head = ["lost"]
    for weight in runs:
        head.append(weight_name(weight, settings) + (" ←" if weight == choice.weight and len(runs) > 1 else ""))
    body = []
    for position, first in enumerate(next(iter(found.values()), [])):
        cells = [f"{number_text(m.kind, m.estimate)}, **{m.word}**" for m in _at(found, position)]
        body.append([first.name, *cells])
    ratio, divergence, flips, change = (LIMITS[kind] for kind in ("ratio", "divergence", "flips", "change"))
    note = (
        "Against the dense model on the same windows and items, in brackets 95 % bootstrap intervals. *Kept*: the "
        f"interval stays within {ratio[0]:g} times the perplexity, {divergence[0]:.3f} nats of JS divergence, "
        f"{100 * flips[0]:.0f} % flipped answers or {100 * change[0]:.0f} points; *much loss*: it begins at "
        f"{ratio[1]:g} times, {divergence[1]:.3f} nats, {100 * flips[1]:.0f} % or {100 * change[1]:.0f} points; "
        "*some loss*: between the two; *unclear*: it holds both sides of what counts as kept."
        + (" ← marks the recommended setting." if len(runs) > 1 and choice.weight is not None else "")
    )
    return Table(head, body, note)


def savings_table(results: Results, settings: ReportCardSettings) -> Table:
    """What calibration saved: every other setting against general text alone, and the mix against the domain alone."""
    found, texts = savings(results, settings), texts_of(results, settings)
    sides = [(f"perplexity, {short(settings.domain)}", "domain")] if texts.domain else []
    sides += [("perplexity, general", "general")] if texts.general else []
    groups = list(found[0].accuracy) if found else []
    cells = [[*[getattr(s, side) for _, side in sides], *[s.accuracy[group] for group in groups]] for s in found]
    corrected = [holm([estimate.p for estimate in column]) for column in zip(*cells, strict=True)]
    body = []
    for number, (saving, line) in enumerate(zip(found, cells, strict=True)):
        texts_of_line = [percent_text(e) for e in line[: len(sides)]]
        texts_of_line += [number_text("change", e) for e in line[len(sides) :]]
        stars = [r"\*" if column[number] < LEVEL else "" for column in corrected]
        body.append([_pair(settings, saving), *[t + star for t, star in zip(texts_of_line, stars, strict=True)]])
    note = (
        "Negative perplexity and positive accuracy are savings. In brackets: 95 % bootstrap intervals, paired by "
        f"window or item. \\* sign-flip p < {LEVEL}, Holm-corrected over each column. One draw of calibration text: "
        "what another draw would give is not in the intervals."
    )
    if not found:
        note = "Nothing to compare: this needs general text alone, or a mix and domain text alone."
    return Table(["setting", *[name for name, _ in sides], *[f"accuracy, {g}" for g in groups]], body, note)


def _panels(measures: list[Measure]) -> list[str]:
    """Perplexity first, then accuracy and divergence, then what is left, as many as fit."""
    order = {"ratio": 0, "change": 1, "divergence": 2, "flips": 3}
    ranked = sorted(measures, key=lambda m: order[m.kind])
    picked = ranked[: sum(m.kind == "ratio" for m in measures)]
    for kind in ("divergence", "change"):  # one of each before a second of any
        picked += [m for m in ranked if m.kind == kind][:1]
    picked += [m for m in ranked if m not in picked]
    return [m.name for m in picked[:PANELS]]


def _draw(axes, height: float, measure: Measure) -> None:
    scale, estimate = SCALE[measure.kind], measure.estimate
    value, lo, hi = (scale * part for part in (estimate.value, estimate.lo, estimate.hi))
    axes.errorbar([value], [height], xerr=[[value - lo], [hi - value]], color="#0067A5", marker="o", capsize=2)
    axes.annotate(measure.word, (value, height), (0, 6), textcoords="offset points", ha="center", fontsize=8)


def _shade(axes, kind: str) -> None:
    """The dense model's place, and what counts as kept beside it."""
    limit, scale = LIMITS[kind][0], SCALE[kind]
    start = 1.0 if kind == "ratio" else 0.0
    end = -limit * scale if kind == "change" else limit * scale
    axes.axvspan(min(start, end), max(start, end), color="#d9c36a", alpha=0.4, linewidth=0, zorder=0)
    axes.axvline(start, color=CHANCE_COLOUR, linewidth=1.2, zorder=1)


def _words(results: Results, settings: ReportCardSettings, found: dict, chosen: list[str]) -> str:
    """The losses of the recommended setting, or of the only one."""
    choice = recommend(results, settings).weight
    weight = choice if choice in found else next(iter(found))
    name = "the recommended setting" if weight == choice and len(found) > 1 else "the setting"
    parts = [f"{m.name} {_value(m.kind, m.estimate)} ({m.word})" for m in found[weight] if m.name in chosen]
    return f"At {name}, {weight_name(weight, settings)}: {listing(parts)}."


def _value(kind: str, estimate: Estimate) -> str:
    return number_text(kind, estimate).split(" [")[0]


def _at(found: dict, position: int) -> list[Measure]:
    return [measures[position] for measures in found.values()]


def _pair(settings: ReportCardSettings, saving: Saving) -> str:
    return f"{weight_name(saving.weight, settings)} against {weight_name(saving.reference, settings)}"


def _nothing(settings: ReportCardSettings) -> Figure:
    label = style_of(settings.method).label
    words = f"No run of {label} to {parse_target(settings.target)} is stored, so there is nothing to show."
    return sentence_figure(EVIDENCE, words)
