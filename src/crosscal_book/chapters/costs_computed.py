"""Chapter 7's tables and figure of scaling: measured rates, and what they say of models too large to run here."""

import math
from collections.abc import Sequence

from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from crosscal_book.axes import panels, sentence_figure
from crosscal_book.chapters.costs_scaling import LLAMA_7B, LLAMA_70B, PARTS, Rate, Scaling
from crosscal_book.pages.speed import CLOCKS
from crosscal_book.style import Figure, finish, label_right, style_of
from crosscal_book.tables import Table
from crosscal_book.verdicts import Text
from crosscal_book.words import listing

TOKENS = 128 * 2048  # the custom of the pruning literature: 128 windows of 2,048 tokens
NAME = "fig-costs-scaling"
ABSENT = (
    "No scaling measurement is stored, so nothing is computed for larger models; `benchmarks/scaling.py --save NAME` "
    "makes one."
)


def larger_models(measured: Sequence[Scaling]) -> Text:
    """Computed times of models too large to be run here, from each stored measurement."""
    if not measured:
        return Text(f"*{ABSENT}*\n")
    return Text("\n".join(f"{_title(scaling)}\n\n{_larger(scaling)}" for scaling in measured))


def rate_tables(measured: Sequence[Scaling]) -> Text:
    """The measured rates at each width, and whether they have levelled off."""
    if not measured:
        return Text(f"*{ABSENT}*\n")
    return Text("\n".join(f"{_title(scaling)}\n\n{_rates(scaling)}" for scaling in measured))


def _title(scaling: Scaling) -> str:
    facts = scaling.facts
    return f"**{facts['dtype']}, {facts['device']}; {facts['versions']}; commit {facts['commit']}.**"


def _larger(scaling: Scaling) -> Table:
    width, body = scaling.widths[-1], []
    for shape in (LLAMA_7B, LLAMA_70B):
        for method in scaling.methods:
            found = scaling.predict(shape, method, TOKENS, width)
            if found is not None:
                low, high = (duration(value) for value in found["total"][1:])
                cells = [duration(found[part][0]) for part in (*PARTS, "total")]
                body.append([shape.name, style_of(method).label, *cells[:-1], f"{cells[-1]} [{low}, {high}]"])
    misses = sorted(scaling.misses())
    check = (
        f"Tried on what was measured: with the rates of width {scaling.widths[-2]:,}, width {width:,} takes "
        f"{misses[0]:.2f} to {misses[-1]:.2f} times what is computed"
        if misses
        else "There is but one width, so that the formula could not be tried"
    )
    note = (
        f"**Computed, not measured**: time for {TOKENS:,} tokens of calibration text, in {CLOCKS[scaling.clock]} put "
        f"together, from the rates at width {width:,}. In brackets what the fastest and the slowest of these give, no "
        f"interval of a sample. {check}."
    )
    return Table(["model", "method", "forward", "sums", "solution", "total"], body, note, 2)


def _rates(scaling: Scaling) -> Table:
    body = []
    for part in PARTS:
        for method in scaling.methods[:1] if part == "forward" else scaling.methods:
            rates = [scaling.rate(width, part, method) for width in scaling.widths]
            name = part if part == "forward" else f"{part}, {style_of(method).label}"
            body.append([name, *[_rate(rate) for rate in rates]])
    counts = listing([f"{tokens:,}" for tokens in scaling.tokens])
    note = (
        f"10⁹ operations, as the formulas count them, in one of the {CLOCKS[scaling.clock]}; the median and range over "
        f"{counts} tokens."
    )
    return Table(["part", *[f"width {width:,}" for width in scaling.widths]], body, note)


def _rate(rate: Rate | None) -> str:
    if rate is None:
        return ""
    if math.isinf(rate.middle):
        return "too short to measure"
    return f"{_digits(rate.middle)} [{_digits(rate.low)}, {_digits(rate.high)}]"


def _digits(rate: float) -> str:
    return "∞" if math.isinf(rate) else f"{rate / 1e9:.3g}"


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(42.0), duration(600.0), duration(9000.0)
    ('42 s', '10 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 360_000 else f"{seconds / 3600:,.0f} h"


def scaling_figure(measured: Sequence[Scaling]) -> Figure:
    """Time of one block against width and against tokens, by method, beside the forward passes alone."""
    if not measured:
        return sentence_figure(NAME, ABSENT.replace("`", "").replace("; ", ";\n"))
    scaling = max(measured, key=lambda s: len(s.points))
    top, most = scaling.widths[-1], max(t for t in scaling.tokens if _whole(scaling, scaling.widths[-1], t))
    canvas, grid = panels(1, 2, 6.6, 3.4, sharey=True)
    for axes, values, title in zip(
        grid, (scaling.widths, scaling.tokens), (f"{most:,} tokens", f"width {top:,}"), strict=True
    ):
        by_width, ends = axes is grid[0], {}
        for method in ["", *scaling.methods]:
            part, style = ("whole", style_of(method)) if method else ("forward", None)
            pairs = [(v, scaling.seconds(*((v, most) if by_width else (top, v)), part, method)) for v in values]
            pairs = [(x, y) for x, y in pairs if y]
            colour, marker = (style.colour, style.marker) if style else ("#555555", "")
            axes.plot(*zip(*pairs, strict=True), color=colour, marker=marker, linestyle="-" if style else ":")
            ends[method] = pairs[-1][1]
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(values, [f"{value:,}" for value in values], fontsize=8)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_title(title, loc="left")
        axes.set_xlabel("width" if by_width else "tokens")
    forward = ends.pop("")
    label_right(grid[1], ends)
    place = {"textcoords": "offset points", "fontsize": 8, "color": "#555555", "ha": "right", "va": "top"}
    grid[1].annotate("forward alone", (values[-1], forward), xytext=(0, -16), **place)
    grid[0].set_ylabel(f"{CLOCKS[scaling.clock]} for one block")
    found = listing([f"{style_of(m).label} {_seconds(scaling.seconds(top, most, 'whole', m))}" for m in ends])
    alone = f"forward passes alone {_seconds(forward)}"
    found = f"{CLOCKS[scaling.clock]} at width {top:,} and {most:,} tokens: {found}; {alone}"
    repeats = max(point["repeats"] for point in scaling.points.values())
    caption = (
        f"Time of one block against width (at {most:,} tokens) and tokens (at width {top:,}), on "
        f"{scaling.facts['device']}; {found} (dotted). Random weights and tokens; medians of up to {repeats} runs."
    )
    return finish(canvas, NAME, caption, f"Time of one block rises with width and with tokens. {found}.")


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _whole(scaling: Scaling, width: int, tokens: int) -> bool:
    return all(scaling.seconds(width, tokens, "whole", method) for method in scaling.methods)
