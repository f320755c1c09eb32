"""Figures of the chapter's comparisons: both gains, the weight, the rivals, the draws."""

from crosscal.results.frame import Results
from crosscal.stats import Estimate
from crosscal_book.axes import panels, sentence_figure
from crosscal_book.chapters.cross_both import (
    DRAWN,
    GAINS,
    MARGIN,
    MARGIN_TEXT,
    RIVALS,
    WEIGHTS,
    both,
    drawn,
    pair_name,
)
from crosscal_book.chapters.cross_calibration import models_of
from crosscal_book.chapters.cross_claims import excess_over, regrets
from crosscal_book.chapters.cross_marks import Mark, draw_marks
from crosscal_book.chapters.cross_paired import over_draws, percent, percent_text, to_percent
from crosscal_book.chapters.cross_rivals import rivals_of
from crosscal_book.chapters.cross_runs import GENERAL, HALF, PART_SHARES, Mixes
from crosscal_book.style import Figure, finish, label_right, style_of
from crosscal_book.words import listing

CHANGE = "change of perplexity (%)"
PART_NAMES = {"domain": "domain text", GENERAL: "general texts", "mean": "mean of both"}
BAND = f"Shaded: less than {MARGIN_TEXT}. Bars: 95 % intervals, paired over windows."


def gains(results: Results, general: str = "c4") -> Figure:
    """What half the weight on the domain changes against each source alone, for each method, domain and model."""
    models = models_of(results, general)
    marks, shown = [], []
    for number, (model, found) in enumerate(models.items()):
        pairs = found.pairs()
        for kind in dict.fromkeys(pair.kind for pair in pairs):
            some = [pair for pair in pairs if pair.kind == kind]
            for pair in some:
                marks.append(Mark(pair_name(pair), pair.method, _estimates(found, [pair])))
            marks.append(Mark(f"{kind}, {model}" if number else kind, "dense", _estimates(found, some), True))
            shown.append((marks[-1].label, marks[-1].gains))
    if not marks:
        return sentence_figure(
            GAINS, "No method has runs on general text, on a domain's text and on both, so there is no gain to show."
        )
    canvas, grid = panels(1, 2, 6.6, 0.25 * len(marks) + 1.1)
    draw_marks(grid, marks, MARGIN)
    titles = ("domain text,\nagainst general text alone", "general texts,\nagainst the domain alone")
    for axes, title in zip(grid, titles, strict=True):
        axes.set_title(title, loc="left", fontsize=9.5)
        axes.set_xlabel(CHANGE)
    said = "; ".join(f"{k}: domain {percent_text(g[0])}, general {percent_text(g[1])}" for k, g in shown)
    caption = (
        f"What half the weight on the domain changes; left of 0 mixing is better. Means (diamonds): {said}. {BAND}"
    )
    alt = f"Rows of intervals of the change of perplexity from mixing, by method and domain. Means: {said}."
    return finish(canvas, GAINS, caption, alt)


def _estimates(mixes: Mixes, pairs) -> list[Estimate]:
    return [part.estimate() for part in both(mixes, pairs).parts]


def weights(results: Results, general: str = "c4") -> Figure:
    """The mean of domain and general loss over the weight of the domain, relative to weight `HALF`."""
    found = next(iter(models_of(results, general).values()))
    table = regrets(found)
    if table.empty:
        return sentence_figure(
            WEIGHTS, "No method has runs on general text, on a domain's text and on both, so no weight is best."
        )
    sources = list(dict.fromkeys(pair.source for pair in table["pair"]))
    canvas, grid = panels(1, len(sources), 3.2 * len(sources) + (0.2 if len(sources) > 1 else 1.2), 3.2, sharey=True)
    ends = {}
    for axes, source in zip(grid, sources, strict=True):
        ends |= _draw_weights(axes, found, [pair for pair in table["pair"] if pair.source == source])
        axes.set_title(source, loc="left")
        axes.set_xlabel("weight of the domain")
    grid[0].set_ylabel("change of perplexity from weight 0.5 (%),\nmean of domain and general text")
    label_right(grid[-1], ends)
    worst = table.loc[table["regret"].idxmax()]
    best = int((table["regret"] <= 0).sum())
    said = (
        f"weight 0.5 is the best of those tried for {best} of {len(table)} (method, domain) pairs, and at worst gives "
    )
    said += f"{percent(-worst['regret'])} perplexity ({pair_name(worst['pair'])}, against weight {worst['best']:g})"
    caption = f"The weight of the domain: {said}. Above 0 is worse than weight 0.5. {BAND}"
    return finish(canvas, WEIGHTS, caption, f"Lines of perplexity against the weight of the domain: {said}.")


def _draw_weights(axes, mixes: Mixes, pairs) -> dict[str, float]:
    """One line per method; where each ends."""
    axes.axhline(0, color="#333333", linewidth=1)
    axes.axhspan(to_percent(MARGIN), to_percent(-MARGIN), color="#d9c36a", alpha=0.3, linewidth=0)
    ends = {}
    for number, pair in enumerate(pairs):
        style, aside = style_of(pair.method), 0.014 * (number - (len(pairs) - 1) / 2)
        steps = mixes.weights(pair)
        found = [excess_over(mixes, pair, w).estimate() for w in steps]
        values, lows, highs = ([to_percent(getattr(e, name)) for e in found] for name in ("value", "hi", "lo"))
        arms = [[max(a - b, 0.0) for a, b in zip(*two, strict=True)] for two in ((values, lows), (highs, values))]
        axes.errorbar(
            [w + aside for w in steps],
            values,
            yerr=arms,
            color=style.colour,
            marker=style.marker,
            elinewidth=1,
            capsize=2,
        )
        ends[pair.method] = values[-1]
    axes.set_xticks(mixes.weights(pairs[0]))
    return ends


def rivals(results: Results, general: str = "c4") -> Figure:
    """What half the weight on the domain changes against twice the general text, D-Pruner and one mix for all."""
    found = next(iter(models_of(results, general).values()))
    shown = {name: gains for name, gains in rivals_of(found).items() if gains}
    if not shown:
        return sentence_figure(
            RIVALS, "No run on twice the general text, of D-Pruner or on all sources at once is stored."
        )
    heights = [len(gains) + 1.0 for gains in shown.values()]
    canvas, grid = panels(
        len(shown), 3, 6.6, 0.27 * sum(heights) + 0.7, sharex="row", gridspec_kw={"height_ratios": heights}
    )
    for row, (name, by_pair) in enumerate(shown.items()):
        part = grid[3 * row : 3 * row + 3]
        marks = [
            Mark(pair_name(pair), pair.method, [gains[p].estimate() for p in PART_SHARES])
            for pair, gains in by_pair.items()
        ]
        draw_marks(part, marks, MARGIN)
        part[0].set_title(f"against {name}", loc="left", fontsize=9.5)
    for axes, title in zip(grid[-3:], PART_NAMES.values(), strict=True):
        axes.set_xlabel(title)
    canvas.supxlabel(CHANGE, fontsize=10)
    better = {name: sum(gains["mean"].value > 0 for gains in by_pair.values()) for name, by_pair in shown.items()}
    said = listing([f"{better[name]} of {len(by_pair)} against {name}" for name, by_pair in shown.items()])
    caption = (
        "What half the weight on the domain changes against each rival; left of 0 the mix of two is better. In the "
        f"mean of domain and general text it is better in {said}. {BAND}"
    )
    alt = f"Rows of intervals of the change of perplexity against rivals. The mix of two is better in {said}."
    return finish(canvas, RIVALS, caption, alt)


def draws(results: Results, general: str = "c4") -> Figure:
    """Loss at weights 0, 1/2 and 1 in each draw of the calibration windows, with the mean's interval over draws."""
    found = next(iter(models_of(results, general).values()))
    pairs, seeds = drawn(found)
    if len(seeds) < 2:
        return sentence_figure(DRAWN, "No method has a second draw of its mix and of both its sources.")
    parts = ("domain", GENERAL)
    canvas, grid = panels(len(pairs), 2, 6.6, 2.5 * len(pairs) + 0.3, sharex=True)
    spreads = []
    for row, pair in enumerate(pairs):
        for axes, part in zip(grid[2 * row : 2 * row + 2], parts, strict=True):
            values = draws_of(found, pair, part, seeds)
            style = style_of(pair.method)
            for line in zip(*values.values(), strict=True):
                axes.plot(list(values), line, color=style.colour, alpha=0.35, linewidth=0.9, marker=".", markersize=4)
            means = [over_draws(column) for column in values.values()]
            arms = [[e.value - e.lo for e in means], [e.hi - e.value for e in means]]
            middle = [e.value for e in means]
            axes.errorbar(
                [w + 0.05 for w in values], middle, yerr=arms, color="#333333", marker=style.marker, linestyle="none",
                capsize=3,
            )  # fmt: skip
            axes.set_title(f"{pair_name(pair)}: {PART_NAMES[part]}", loc="left", fontsize=9.5)
            axes.set_xticks([0.0, HALF, 1.0])
            spreads += [e.hi - e.lo for e in means]
    canvas.supxlabel("weight of the domain", fontsize=10)
    canvas.supylabel("log perplexity ratio to dense", fontsize=10)
    gain = [both(found, pairs, seed) for seed in seeds]
    texts = [percent_text(over_draws([getattr(b, part).value for b in gain])) for part in ("domain", "general")]
    said = (
        f"over {len(seeds)} draws, weight 0.5 changes the domain's perplexity by {texts[0]} against weight 0 and the "
    )
    said += f"general texts' by {texts[1]} against weight 1"
    caption = (
        f"Each draw of the calibration windows (thin lines): {said}. Dark: mean with its 95 % interval over draws."
    )
    return finish(canvas, DRAWN, caption, f"Losses at three weights for every draw: {said}.")


def draws_of(mixes: Mixes, pair, part: str, seeds) -> dict[float, list[float]]:
    """Loss of a pair on one measure by weight, one value per draw."""
    runs = {w: [mixes.run(pair, w, seed=seed) for seed in seeds] for w in (0.0, HALF, 1.0)}
    return {w: [mixes.loss(run, pair.source, part).value for run in ids] for w, ids in runs.items()}
