"""Chapter 7: what each setting takes in time and memory, what the cheaper one loses, and what larger models take."""

import json
import math
from dataclasses import replace
from itertools import pairwise, product
from operator import itemgetter

import pandas as pd

from crosscal.results.compare import run_measures
from crosscal.results.quantities import ACCURACY, PERPLEXITY, times
from crosscal.stats import Estimate, bootstrap_mean, sign_test_p
from crosscal_book.chapter import Chapter, Page
from crosscal_book.claims import Comparison, compare, every, mean, run
from crosscal_book.drawing import Axis
from crosscal_book.marks import forest, lines
from crosscal_book.numbers.ranks import H100, MODELS, memory, read_trials, received, seconds
from crosscal_book.numbers.scaling import LLAMA_7B, LLAMA_70B, PARTS, Scaling, read_scaling
from crosscal_book.pages.speed import CLOCKS, speed_tables
from crosscal_book.style import style_of
from crosscal_book.tables import Table
from crosscal_book.words import cell, listing, points, run_name

DEFAULT = "sublayer"
SEES = {"block": "the compressed blocks before it", "parallel": "the dense model"}
MARGIN = 0.01  # an advantage of less than one per cent of perplexity is called none, as in chapter 5
# Single timings on a shared machine repeat to within a fifth or so; runs that differ by less count as equally long.
CLOSE = 1.2
SCHEDULES = "{first[label]} {first[target]}: {first[schedule]} to {second[schedule]}"
PAIRS, TEXTBOOK, SCALING = "fig-costs-pairs", "fig-costs-textbook", "fig-costs-scaling"
GPUS, N_SOURCES = (1, 8, 64), 2
TOKENS = 128 * 2048  # the custom of the pruning literature: 128 windows of 2,048 tokens
ABSENT = (
    "No scaling measurement is stored, so nothing is computed for larger models; `benchmarks/scaling.py --save NAME` "
    "makes one."
)

CHAPTER = Chapter(
    "costs",
    note="Perplexities are paired on the same windows, with one draw of the calibration text; p is Holm-corrected over "
    "the chapter's comparisons. Each compression was timed once, so that its seconds carry no interval.",
)


def _neighbours(page: Page):
    """Each method with the next faster one at its target."""
    for _, members in page.runs[page.runs["schedule"].isin([DEFAULT, ""])].groupby("target", sort=False):
        for fast, slow in pairwise(members.sort_values("seconds").to_dict("records")):
            if slow["seconds"] > CLOSE * fast["seconds"]:
                yield slow, fast


def _textbook_ratios(page: Page) -> pd.DataFrame:
    """Each stored pair of timings: the setting's `name`, and the `ratio` of the textbook's time to the package's."""
    lines = []
    for path in sorted(page.folder.with_name("benchmarks").glob("*.json")):
        stored = json.loads(path.read_text(encoding="utf-8"))
        processor = stored["device"].split(",")[0].replace("(R)", "").replace("(TM)", "")
        for row in (row for row in stored["rows"] if "options" in row):  # the divergence has another yardstick
            name = f"{row['name']}, {stored['model']}, {stored['dtype']}, {processor}"
            for ours, theirs in zip(row["ours"], row["textbook"], strict=False):
                lines.append({"name": name, "ratio": theirs[stored["clock"]] / ours[stored["clock"]]})
    return pd.DataFrame(lines, columns=["name", "ratio"])


def _against_textbook(page: Page) -> pd.DataFrame:
    """The geometric mean of the ratios, with its bootstrap interval over settings (over pairs with one setting).

    `p` is a sign test's over pairs, which were measured in turns on one machine.
    """
    ratios = _textbook_ratios(page)
    if ratios.empty:
        return pd.DataFrame()
    logs = ratios["ratio"].map(math.log)
    settings = logs.groupby(ratios["name"], sort=False).mean()
    estimate = bootstrap_mean([(settings if len(settings) > 1 else logs).to_numpy()]).map(math.exp)
    p = sign_test_p(int((logs > 0).sum()), int((logs < 0).sum()))
    ends = {"settings": len(settings), "pairs": len(ratios), "name": "textbook", "p": p}
    ends |= {"least": ratios["ratio"].min(), "most": ratios["ratio"].max()}
    return pd.DataFrame([vars(estimate) | ends])


for schedule, sees in SEES.items():
    CHAPTER.claim(
        f"{schedule}-is-as-good",
        f"The schedule `{schedule}`, whose statistics see only {sees}, gives a model as good as `{DEFAULT}` "
        f"(perplexity at most {100 * MARGIN:.0f} % higher)",
        compare(run(schedule=schedule), run(schedule=DEFAULT), ("method", "target"), SCHEDULES),
        every("no worse", by=MARGIN),
        family="pairs",
        evidence=PAIRS,
    )
CHAPTER.claim(
    "time-buys-quality",
    "Methods that take longer give lower perplexity at the same target",
    Comparison(_neighbours, PERPLEXITY, "{first[target]}: {first[label]} to {second[label]}"),
    every("better", by=MARGIN),
    family="pairs",
    evidence=PAIRS,
    missing=f"no two methods at one target differ in time by more than {times(CLOSE)}",
)
CHAPTER.claim(
    "faster-than-textbook",
    "The package compresses faster than a textbook implementation of the same methods",
    _against_textbook,
    mean("better"),
    on=replace(PERPLEXITY, higher_is_better=True),
    evidence=TEXTBOOK,
    says="the textbook takes {estimate} as long, geometric mean over {settings} settings with {pairs} pairs of "
    "timings, between {least:.2f}× and {most:.2f}× ({p})",
    missing="no timing against the textbook is stored",
)


def _cost_runs(page: Page) -> pd.DataFrame:
    """Every compression by target and time, with its `name`, perplexity and accuracy."""
    runs = run_measures(page.results, PERPLEXITY, ACCURACY)
    runs = runs[(runs["seconds"] > 0) & (runs["method"] != "float32")].sort_values(["target", "seconds"])
    lines = runs.to_dict("records")
    return runs.assign(name=[run_name(n) + f" ({n['schedule']})" * (n["schedule"] not in ("", DEFAULT)) for n in lines])


@CHAPTER.figure("fig-costs-runs")
def _runs_figure(page: Page):
    runs = _cost_runs(page)
    if runs.empty or runs["perplexity"].isna().all():
        return "There are no compressions among these runs to show."
    values = {"seconds": runs["seconds"], "peak MiB": runs["peak_bytes"] / 2**20}
    values["perplexity ratio"] = runs["perplexity"]
    facts = runs[["run_id", "method", "target", "calibration", "weight", "schedule", "name"]]
    parts = [facts.assign(panel=panel, value=v, lo=v, hi=v) for panel, v in values.items()]
    frame = pd.concat(parts, ignore_index=True)
    ratio = frame["panel"] == "perplexity ratio"
    frame.loc[ratio, ["lo", "hi"]] = runs[["perplexity_lo", "perplexity_hi"]].to_numpy()
    axes = {"seconds": Axis("seconds", 10), "peak MiB": Axis("peak MiB", limits=(0, None))}
    axes["perplexity ratio"] = Axis("perplexity / dense perplexity", 10, suffix="×")
    drawing = forest(frame, axes, hollow=~frame["schedule"].isin(["", DEFAULT]), title="")
    lines = runs.to_dict("records")
    least, most = min(lines, key=itemgetter("seconds")), max(lines, key=itemgetter("seconds"))
    best = min((line for line in lines if line["perplexity"] > 0), key=itemgetter("perplexity"))
    said = (
        f"{least['name']} takes {least['seconds']:.0f} s and {most['name']} {most['seconds']:.0f} s; nearest to the "
        f"dense perplexity is {best['name']} with {cell(best, 'perplexity')}"
    )
    caption = (
        f"What each compression costs and gives: {said}. Seconds and memory are of single runs on "
        f"{listing(sorted(page.results.rows['device'].unique()))}; bars: 95 % bootstrap intervals over windows, paired "
        f"with the dense model. Open markers: other schedules than {DEFAULT}."
    )
    return drawing, caption, f"Three columns of points: seconds, memory and relative perplexity. {said}."


@CHAPTER.figure(PAIRS)
def _pairs(page: Page):
    rows = page.rows("pairs")
    if rows.empty:
        return "No two of these runs can be compared as the claims ask."
    worst = max(rows.to_dict("records"), key=itemgetter("value"))
    said = f"the highest ratio is {cell(worst)} for {worst['name']}"
    caption = (
        f"Cheaper schedules against the default one, and slower methods against faster ones: {said}. Filled: Holm-"
        f"corrected p < 0.05. Bars: 95 % bootstrap intervals over {rows['n'].max():.0f} windows, paired."
    )
    alt = f"Perplexity ratios with intervals, one line each: {said}."
    return page.forest("pairs"), caption, alt


@CHAPTER.figure(TEXTBOOK)
def _textbook(page: Page):
    pairs = _textbook_ratios(page)
    if pairs.empty:
        return "No timing against the textbook implementation is stored."
    frame = pairs.groupby("name", sort=False)["ratio"].agg(value="median", lo="min", hi="max", n="size").reset_index()
    said = f"the textbook takes {frame['value'].min():.2f} to {frame['value'].max():.2f} times as long"
    caption = (
        f"The textbook implementation against the package, measured in turns: {said}. Points: medians; bars: from the "
        f"least to the greatest of {frame['n'].min()} to {frame['n'].max()} pairs."
    )
    axis = Axis("time of the textbook / time of the package", 10, suffix="×", lines={"": 1.0})
    return forest(frame, axis), caption, f"Ratios of times, one line for each setting: {said}."


@CHAPTER.table("runs")
def _runs_table(page: Page) -> Table:
    loads = {run_id: facts.get("load") for run_id, facts in page.results.provenance.items()}
    note = (
        "Seconds and peak memory above what the model itself takes, of one compression each, with every layer's loss "
        "measured on the way; methods that need no text have their losses measured on a little of it. Perplexity "
        "relative to the dense model; change of mean accuracy in points; in brackets 95 % bootstrap intervals. Load: "
        "how many processes wanted a processor in the minute before the run ended, its own threads counted; where it "
        "is much higher than these, the run shared its machine and took longer than it would have alone."
    )
    columns = {
        "": lambda line: line["name"].replace(" ", "\u00a0"),
        "seconds": "{seconds:.1f}",
        "load": lambda line: "" if (load := loads[line["run_id"]]) is None else f"{load:.1f}",
        "peak MiB": lambda line: f"{line['peak_bytes'] / 2**20:,.0f}",
        "tokens read": lambda line: f"{line['n_windows'] * line['window']:,}" if line["n_windows"] else "none",
        "perplexity": lambda line: cell(line, "perplexity"),
        "accuracy": lambda line: cell(line, "accuracy", points),
    }
    return Table.of(_cost_runs(page), columns, note)


@CHAPTER.table("speed")
def _speed(page: Page) -> str:
    folder = page.folder.with_name("benchmarks")
    return speed_tables(folder) or "*No timing against the textbook implementation is stored.*\n"


@CHAPTER.figure(SCALING)
def _scaling(page: Page):
    measured = _measured(page)
    if not measured:
        return ABSENT.replace("`", "").replace("; ", ";\n")
    scaling = max(measured, key=lambda s: len(s.facts["points"]))
    top = scaling.widths[-1]
    most = max(t for t in scaling.tokens if all(scaling.seconds(top, t, "whole", m) for m in scaling.methods))
    clock, by_width, by_tokens = CLOCKS[scaling.clock], f"{most:,} tokens", f"width {top:,}"
    places = {by_width: [(w, w, most) for w in scaling.widths], by_tokens: [(t, top, t) for t in scaling.tokens]}
    found = []
    for panel, m in product(places, ["", *scaling.methods]):
        for x, width, tokens in places[panel]:
            value = scaling.seconds(width, tokens, "whole" if m else "forward", m)
            found.append({"panel": panel, "method": m or "forward alone", "x": x, "value": value})
    frame = pd.DataFrame(found).dropna().assign(unit=f"{clock} for one block")
    axes = {by_width: Axis("width", 2, ticks=scaling.widths), by_tokens: Axis("tokens", 2, ticks=scaling.tokens)}
    drawing = lines(frame, axes, Axis(f"{clock} for one block", 10), size=(6.6, 3.4), columns=2, share=(False, True))
    ends = frame[frame["panel"] == by_width].groupby("method", sort=False)["value"].last()
    texts = [f"{style_of(m).label} {_seconds(ends[m])}" for m in scaling.methods]
    alone = f"forward passes alone {_seconds(ends['forward alone'])}"
    said = f"{clock} at width {top:,} and {most:,} tokens: {listing(texts)}; {alone}"
    caption = (
        f"Time of one block against width (at {most:,} tokens) and tokens (at width {top:,}), on "
        f"{scaling.facts['device']}; {said}. Random weights and tokens; medians of up to {scaling.repeats} runs."
    )
    return drawing, caption, f"Time of one block rises with width and with tokens. {said}."


@CHAPTER.table("rates")
def _rates(page: Page) -> str:
    return _each_measurement(page, _rate_table)


@CHAPTER.table("larger-models")
def _larger_models(page: Page) -> str:
    return _each_measurement(page, _larger_table)


@CHAPTER.table("many-gpus")
def _many_gpus(page: Page) -> Table | str:
    trials = read_trials(page.folder.with_name("benchmarks") / "ranks")
    if not trials:
        return "*No trial of several ranks is stored; `benchmarks/ranks.py --save NAME` measures one.*\n"
    fits = sorted(fit for trial in trials for (n, _), fit in trial.misfits().items() if n > 1)
    misses = sorted(miss for scaling in _measured(page) for miss in scaling.misses())
    bar = max(max(fit, 1 / fit) for fit in [*fits, *misses])
    body = []
    for model, n in product(MODELS, GPUS):
        times = [seconds(model, n, TOKENS, N_SOURCES, H100, schedule) for schedule in ("sublayer", "block")]
        cells = [Estimate(time, time / bar, time * bar, 0).text(_duration) for time in times]
        sent = model.blocks * max(received(model, n, N_SOURCES)) if n > 1 else 0
        body.append(
            [model.name, str(n), *cells, *(f"{x / 1e9:,.0f}" for x in (sent, memory(model, n, TOKENS, N_SOURCES)))]
        )
    across = f", and of one width by another {misses[0]:.2f} to {misses[-1]:.2f} times" if misses else ""
    note = (
        f"**Computed, not measured**: SparseGPT with {TOKENS:,} tokens of {N_SOURCES} sources. The rates are assumed, "
        "as no GPU was at hand: 40 % of an H100's peak in bfloat16, 30 % of that in float32, 40 GB/s into each rank. "
        "Reading and writing the model come on top, and an H100 holds 80 GB. In brackets the time divided and times "
        f"{bar:.1f}, the greatest misfit of the formulas where they were tried on a CPU: the busiest of 2 and 4 ranks "
        f"took {fits[0]:.2f} to {fits[-1]:.2f} times the CPU seconds computed from one rank's{across}."
    )
    head = ["model", "GPUs", "time, `sublayer`", "time, `block`", "GB received by the busiest", "GB of memory on each"]
    return Table(head, body, note, 1)


def _measured(page: Page) -> list[Scaling]:
    return read_scaling(page.folder.with_name("benchmarks") / "scaling")


def _each_measurement(page: Page, table) -> str:
    titles = [(s, f"**{s.facts['dtype']}, {s.facts['device']}; {s.facts['versions']}; commit {s.facts['commit']}.**")
              for s in _measured(page)]  # fmt: skip
    return "\n".join(f"{title}\n\n{table(scaling)}" for scaling, title in titles) or f"*{ABSENT}*\n"


def _larger_table(scaling: Scaling) -> Table:
    width, body = scaling.widths[-1], []
    for shape in (LLAMA_7B, LLAMA_70B):
        for method in scaling.methods:
            parts = scaling.predict(shape, method, TOKENS, width)
            if parts is not None:
                cells = [_duration(parts[part].value) for part in PARTS]
                body.append([shape.name, style_of(method).label, *cells, parts["total"].text(_duration)])
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


def _rate_table(scaling: Scaling) -> Table:
    body = []
    for part in PARTS:
        for method in scaling.methods[:1] if part == "forward" else scaling.methods:
            name = part if part == "forward" else f"{part}, {style_of(method).label}"
            body.append([name, *[_rate(scaling.rate(width, part, method)) for width in scaling.widths]])
    counts = listing([f"{tokens:,}" for tokens in scaling.tokens])
    note = (
        f"10⁹ operations, as the formulas count them, in one of the {CLOCKS[scaling.clock]}; the median and range over "
        f"{counts} tokens."
    )
    return Table(["part", *[f"width {width:,}" for width in scaling.widths]], body, note)


def _rate(rate: Estimate | None) -> str:
    if rate is None or math.isinf(rate.value):
        return "too short to measure" if rate else ""
    return rate.text(lambda r: "∞" if math.isinf(r) else f"{r / 1e9:.3g}")


def _duration(seconds: float) -> str:
    """Return seconds as people say them.

    >>> _duration(42.0), _duration(600.0), _duration(9000.0)
    ('42 s', '10 min', '2.5 h')
    """
    if seconds < 5400:
        return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 360_000 else f"{seconds / 3600:,.0f} h"


def _seconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"
