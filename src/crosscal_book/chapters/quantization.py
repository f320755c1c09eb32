"""Chapter 5: what is lost at 8, 4, 3 and 2 bits, what calibration saves, and what a bit is best spent on."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd

from crosscal.results.compare import accuracy_tasks, changes, paired, run_measures, shared_texts
from crosscal.results.quantities import ACCURACY, DIVERGENCE, PERPLEXITY, Quantity
from crosscal.results.store import load_run
from crosscal.stats import LEVEL, Estimate, bootstrap_mean, bootstrap_means
from crosscal_book.chapter import Chapter, Page
from crosscal_book.claims import Comparison, compare, every, run
from crosscal_book.drawing import Axis
from crosscal_book.marks import lines
from crosscal_book.style import by_method, style_of
from crosscal_book.tables import Table
from crosscal_book.words import cell, listing, points, run_name, times

# Fewest bits at which the methods' authors report models that still work, and the bits that every verdict looks at:
# at 2 bits a small model is broken whatever is done, and 4 bits are what the embedded model's weights come from.
FOCUS = 3
# An advantage of less than one per cent of perplexity is called none. Chosen before runs were seen: what is published
# for GPTQ against RTN at 3 bits, groups of 128 (LLaMA-2-7B, 6.32 to 6.43 against 6.66) is more than three times that.
MARGIN = 0.01
EQUAL_STORAGE = 0.01  # storage that differs by at most one per cent is called equal: 0.03 of 3 bits
# Perplexity within half a per cent is called unchanged: published 8-bit results are given to the second decimal of a
# perplexity near 5, which is about as fine.
SAME = 0.005
# Twice the divergence that rounding alone causes is called the floor: two independent roundings of one size add up.
FLOOR_TIMES = 2.0
ORIGINS = {"smollm2-135m": 4}  # bits of the file that the weights of an embedded model come from
# A squared error that is a quarter smaller than without the old grid is called visible: one bit more makes it about
# four times smaller, so a quarter is worth a sixth of a bit. Set before any run was seen.
VISIBLE = 1.25
LEAST = 1e-4  # nats; a smaller loss is noise, and interpolation needs a logarithm
HIGHEST = 1000.0  # relative perplexity at which the axis is cut
ROWS, ORDER, GIVEN = "per row", "act_order=True", "act_order=False"
KIND = "quantization"
PLAIN = run(kind=KIND, options=("", GIVEN))  # only quantized, columns in the given order
PAIRS, STORAGE, ORIGIN = "fig-quantization-pairs", "fig-quantization-storage", "fig-quantization-origin"
TO = "{first[target]}: {first[label]} to {second[label]}"
SETTING = ("method", "target", "calibration", "weight", "n_windows", "window", "seed", "schedule")
IN_PAIRS = {"family": "pairs", "evidence": PAIRS}

CHAPTER = Chapter(
    "quantization",
    note="All runs read one draw of the calibration text: intervals (95 %, bootstrap over windows) do not hold the "
    "variation between draws. p is Holm-corrected over all comparisons of one figure.",
)


def _nearby(page: Page):
    """Each sparse and quantized run with every plain one of equal storage."""
    plain = page.select(**PLAIN)
    for line in page.select(kind="pruning and quantization").to_dict("records"):
        near = (plain["storage_bits"] - line["storage_bits"]).abs() <= EQUAL_STORAGE * line["storage_bits"]
        yield from ((line, other) for other in plain[near].to_dict("records"))


def _groups(page: Page) -> pd.DataFrame:
    """At `FOCUS` bits, perplexity with groups over perplexity with rows that take the same storage.

    Between two numbers of bits the logarithm of the rows' loss is taken linear in storage: rounding errors fall by a
    constant factor with each bit. A straight line would pass above and flatter the groups. `p` is the bootstrap's.
    """
    plain, found = page.select(**PLAIN).sort_values("storage_bits", kind="stable"), []
    for line in page.select(**PLAIN, bits=FOCUS).to_dict("records"):
        rows = plain[(plain["method"] == line["method"]) & (plain["group"] == ROWS)]
        below, above = rows[rows["bits"] == FOCUS], rows[rows["storage_bits"] > line["storage_bits"]]
        if line["group"] == ROWS or below.empty or above.empty or below["storage_bits"].iloc[0] > line["storage_bits"]:
            continue
        three = (line, *(rows.loc[part.index[0]].to_dict() for part in (below, above)))
        place, low, high = (one["storage_bits"] for one in three)
        both = [two for one in three if (two := paired(page.results, one["run_id"], None, PERPLEXITY))]
        if not both:
            continue
        own, *ends = (bootstrap_means(one.groups()) for one in both)
        logs, share = [np.log(np.maximum(end, LEAST)) for end in ends], (place - low) / (high - low)
        gap = Estimate.of_draws(own - np.exp((1 - share) * logs[0] + share * logs[1]), both[0].n, test=True)
        name = f"{style_of(line['method']).label} {FOCUS} bits: {line['group']} to rows of equal storage"
        found.append({**line, "other": three[1]["run_id"], "name": name, **vars(gap.map(math.exp))})
    return pd.DataFrame(found)


def _floor(page: Page) -> str | None:
    """The run of the dense weights in float32, where there is one: what rounding alone does to the numbers."""
    return next(iter(page.select(method="float32")["run_id"]), None)


def _over_floor(page: Page) -> pd.DataFrame:
    """The divergence of every plain 8-bit run over that of rounding alone, geometric mean over windows."""
    floor, found = _floor(page), []
    least = paired(page.results, floor, None, DIVERGENCE) if floor else None
    for line in page.select(**PLAIN, bits=8).to_dict("records"):
        own = paired(page.results, line["run_id"], None, DIVERGENCE) if least else None
        if least is None or own is None or min(values.min() for values in (*least.groups(), *own.groups())) <= 0:
            return pd.DataFrame()
        ratio = bootstrap_mean([np.log(a / b) for a, b in zip(own.groups(), least.groups(), strict=True)])
        facts = {"other": floor, "name": run_name(line), "limit": FLOOR_TIMES}
        found.append(line | facts | vars(ratio.map(math.exp)))
    return pd.DataFrame(found).drop(columns="p", errors="ignore")


def _expected_gain(bits: int, more: int) -> float:
    """Return how many times smaller squared rounding errors get from `bits` to `more` bits on weights off any grid.

    A group's range is cut into 2^bits - 1 steps, and rounding errs by a twelfth of the squared step.

    >>> round(_expected_gain(3, 4), 2)
    4.59
    """
    return ((2**more - 1) / (2**bits - 1)) ** 2


def _origin_gain(page: Page) -> pd.DataFrame:
    """How many times smaller RTN's squared layer errors get from `FOCUS` to the file's bits, in groups if there.

    The geometric mean over layers, with a bootstrap interval over layers; the limit is `VISIBLE` times the gain that
    weights on no grid would have.
    """
    bits = ORIGINS[_model(page)]
    for _, runs in sorted(page.select(**PLAIN, method="rtn").groupby("group"), key=lambda part: part[0] == ROWS):
        by_bits = {line["bits"]: line for line in runs.to_dict("records")}
        if {FOCUS, bits} <= set(by_bits):
            layers = [load_run(page.folder, by_bits[b]["run_id"]).layers for b in (FOCUS, bits)]
            coarse, fine = ({la["name"]: e for la in one if (e := la.get("relative_error"))} for one in layers)
            logs = np.array([np.log(coarse[name] / fine[name]) for name in coarse if name in fine])
            expected, line = _expected_gain(FOCUS, bits), by_bits[bits]
            line |= {"expected": expected, "limit": VISIBLE * expected, "name": line["group"]}
            line |= vars(bootstrap_mean([logs]).map(math.exp)) if len(logs) else {}
            return pd.DataFrame([line] if len(logs) else []).drop(columns="p", errors="ignore")
    return pd.DataFrame()


def _model(page: Page) -> str:
    return page.results.describe_run(page.results.dense_id)["model"]


for method, label in (("gptq", "GPTQ"), ("awq", "AWQ")):
    CHAPTER.claim(
        f"{method}-beats-rounding",
        f"{label} beats rounding to nearest (RTN) at {FOCUS} bits",
        compare(run(**PLAIN, method=method, bits=FOCUS), run(method="rtn"), ("target",), TO),
        every("better", by=MARGIN),
        **IN_PAIRS,
    )
CHAPTER.claim(
    "eight-bits-keep-perplexity",
    f"At 8 bits perplexity stays within {100 * SAME:g} % of the dense model's, whatever the method",
    compare(run(**PLAIN, bits=8), None),
    every("equal", by=SAME),
    write=lambda ratio: f"{ratio:.4f}×",
    evidence=STORAGE,
    says="the farthest of {count} runs, {name}, has {estimate} the dense perplexity",
    missing="there is no run at 8 bits",
)
CHAPTER.claim(
    "eight-bits-reach-the-floor",
    "At 8 bits the next-token distributions are as near to the dense model's as rounding lets them be",
    _over_floor,
    every("better"),
    on=PERPLEXITY,
    evidence=STORAGE,
    says="the farthest of {count} runs, {name}, diverges {estimate} as much as the same weights in float32",
    missing=lambda page: (
        "there is no run at 8 bits"
        if page.select(**PLAIN, bits=8).empty
        else "in some window nothing diverges at all, so that there is no ratio to a floor"
        if _floor(page)
        else "the dense model was not run in float32 here"
    ),
)
CHAPTER.claim(
    "joint-beats-plain",
    "{target} beats plain quantization of the same storage ({first[storage_bits]:.2f} bits a weight)",
    Comparison(_nearby, PERPLEXITY, "{first[target]} to {second[label]} {second[target]}"),
    every("better", by=MARGIN),
    each="target",
    otherwise="Sparse and quantized beats plain quantization at equal storage",
    missing=f"no sparse and quantized run has a quantized one within {100 * EQUAL_STORAGE:.0f} % of its storage",
    **IN_PAIRS,
)
CHAPTER.claim(
    "groups-beat-rows",
    f"At {FOCUS} bits, scales for groups of inputs gain more than what storing them costs",
    _groups,
    every("better", by=MARGIN),
    on=PERPLEXITY,
    missing=f"no method has runs in groups and per row at {FOCUS} bits, and per row at more",
    **IN_PAIRS,
)
CHAPTER.claim(
    "act-order-helps",
    "Act-order (GPTQ takes the inputs with the most energy first) gives lower perplexity",
    compare(run(options=ORDER), run(options=GIVEN), SETTING, "{first[target]}: act-order to given order"),
    every("better", by=MARGIN),
    **IN_PAIRS,
)
CHAPTER.claim(
    "file-flatters",
    "That {model} comes from a 4-bit file (blocks of 32) makes rounding it to 4 bits again look better than it would "
    "be on other weights",
    _origin_gain,
    every("better"),
    on=replace(PERPLEXITY, higher_is_better=True),
    evidence=ORIGIN,
    each="model",
    says=f"from {FOCUS} to 4 bits ({{name}}) RTN's squared layer errors get {{estimate}} smaller, on weights without a "
    "grid {expected:.2f}×. What the file's own 4 bits cost is part of the dense model and cannot be seen here",
    missing=f"there are no RTN runs at both {FOCUS} and 4 bits",
    otherwise="That the model comes from a 4-bit file makes rounding it to 4 bits again look better",
    when=lambda page: _model(page) in ORIGINS,
)

CURVE = ["run_id", "method", "target", "options", "calibration", "weight", "group", "kind", "panel", "x"]
CURVE += ["value", "lo", "hi", "n"]
BITS = Axis("bits per weight, masks and scales counted (fewer to the right)", 2, (2, 2.5, 3, 4, 6, 8), reverse=True)


def _curves(page: Page, *quantities) -> pd.DataFrame:
    """Every run on a grid over its storage, a panel per quantity."""
    frame = pd.concat([changes(page.results, q).assign(panel=q.name) for q in quantities], ignore_index=True)
    return frame[frame["group"] != ""].assign(x=frame["storage_bits"]).reset_index(drop=True)[CURVE]


def _draw(frame: pd.DataFrame, x: Axis, y, **options):
    """A line per method and kind of group, open per row; sparse and reordered runs by themselves, named once."""
    order = frame["options"] == ORDER
    alone = order | (frame["kind"] != KIND)
    line = (frame["method"] + " " + frame["group"]).mask(alone, "")
    labels = frame["target"].mask(order, "act-order").where(alone & (frame["panel"] != DIVERGENCE.name), "")
    return lines(frame, x, y, line=line, hollow=frame["group"] == ROWS, labels=labels, title="", **options)


def _at_focus(page: Page, quantity: Quantity) -> str:
    """What the plain runs at `FOCUS` bits have of a quantity, in words."""
    frame, unit = changes(page.results, quantity), " points" if quantity is ACCURACY else ""
    frame = frame[frame["run_id"].isin(page.select(**PLAIN, bits=FOCUS)["run_id"])].sort_values("storage_bits")
    every = [line for _, part in by_method(frame) for line in part.to_dict("records")]
    return listing([f"{run_name(line)} {cell(line, write=quantity.write, unit=unit)}" for line in every]) or "no run"


@CHAPTER.figure(STORAGE)
def _storage(page: Page):
    frame = _curves(page, PERPLEXITY, DIVERGENCE)
    if frame.empty:
        return "There are no quantized runs among these to show."
    frame = frame[frame["lo"] > 0]  # a divergence of nothing has no place on a logarithmic axis
    ratio, diverged = frame[frame["panel"] == PERPLEXITY.name], changes(page.results, DIVERGENCE).set_index("run_id")
    rounding = {"rounding alone": float(diverged["value"][floor])} if (floor := _floor(page)) else {}
    limits = (0.9, min(1.5 * ratio["hi"].max(), HIGHEST))
    y = {PERPLEXITY.name: Axis(PERPLEXITY.compared, 10, suffix="×", limits=limits, lines={"dense": 1.0})}
    y[DIVERGENCE.name] = Axis(DIVERGENCE.compared, 10, lines=rounding)
    said, cut = _at_focus(page, PERPLEXITY), int((ratio["value"] > HIGHEST).sum())
    joint = "; green triangles: pruned and quantized by SparseGPT" * bool((frame["kind"] != KIND).any())
    caption = (
        f"Loss against storage on {len(shared_texts(page.results))} held-out texts. At {FOCUS} bits: {said}. "
        f"Filled markers and solid lines: groups of inputs; open and dashed: per row{joint}. Bars: 95 % bootstrap "
        f"intervals over {ratio['n'].max():.0f} windows, paired with the dense model."
        + (f" Cut at {HIGHEST:,.0f}×, exceeded by {cut} of {len(ratio)} runs." if cut else "")
    )
    alt = f"Relative perplexity and JS divergence rise as bits per weight fall. At {FOCUS} bits: {said}."
    return _draw(frame, BITS, y), caption, alt


@CHAPTER.figure("fig-quantization-tasks")
def _tasks(page: Page):
    frame, asked = _curves(page, ACCURACY), accuracy_tasks(page.results)
    if frame.empty:
        return "No quantized run has a task on which the dense model is above chance."
    frame[["value", "lo", "hi"]] *= 100
    said = _at_focus(page, ACCURACY)
    caption = (
        f"Mean accuracy over {len(asked)} tasks against storage. At {FOCUS} bits: {said}. Markers "
        "as in the figure of losses; bars: 95 % bootstrap intervals over items, paired with the dense model."
    )
    guessing = 100 * (asked["chance"].mean() - asked["value"].mean())
    y = Axis(ACCURACY.compared, lines={"dense": 0.0, "guessing": guessing})
    alt = f"Change of mean accuracy against bits per weight. At {FOCUS} bits: {said}."
    return _draw(frame, BITS, y, size=(6.4, 3.5)), caption, alt


@CHAPTER.figure(PAIRS)
def _pairs(page: Page):
    rows = page.rows("pairs")
    if rows.empty:
        return "No two of these runs can be compared as the claims ask."
    sure = rows["p_holm"] < LEVEL
    better, worse = int((sure & (rows["value"] < 1)).sum()), int((sure & (rows["value"] > 1)).sum())
    said = f"in {better} of {len(rows)} comparisons the first is significantly better, in {worse} significantly worse"
    caption = (
        f"The comparisons behind the verdicts: {said} (Holm-corrected p < {LEVEL} over all of them). Bars: 95 % "
        f"bootstrap intervals over {rows['n'].max():.0f} windows, paired. Rows at equal storage lie between two bits."
    )
    return page.forest("pairs"), caption, f"Perplexity ratios with intervals, one line each: {said}."


@CHAPTER.figure(ORIGIN)
def _origin(page: Page):
    errors = page.results.only(metric="layer_error")[["run_id", "value", "lo", "hi", "n"]]
    frame = page.select(**PLAIN).merge(errors, on="run_id").assign(panel="", options="")
    bits = sorted(int(b) for b in frame["bits"].unique())
    if len(bits) < 2:
        return "There are no runs at two numbers of bits to compare layer errors of."
    frame = frame.assign(x=frame["bits"])[CURVE]
    rtn = frame[frame["method"] == "rtn"].sort_values(["group", "x"])
    named = listing([f"{cell(line, write='{:.2g}'.format)} at {line['target']}" for line in rtn.to_dict("records")])
    start = rtn[rtn["x"] == FOCUS].sort_values("group", key=lambda group: group == ROWS)
    if len(start):
        off = pd.DataFrame({"x": bits, "value": [start["value"].iloc[0] / _expected_gain(FOCUS, b) for b in bits]})
        frame = pd.concat([frame, off.assign(method="no grid", group="", kind=KIND, target="", options="", panel="")])
    caption = (
        f"Mean output error of layers against bits. RTN: {named}. No grid: RTN's error at {FOCUS} bits, scaled as "
        "rounding of weights that lie on no grid scales it. Markers as in the figure of losses; bars: 95 % bootstrap "
        "intervals over layers."
    )
    axes = Axis("bits (fewer to the right)", 2, ticks=bits, reverse=True), Axis("relative squared error of layers", 10)
    return _draw(frame, *axes, size=(6.4, 3.4)), caption, f"Layer errors fall with bits. RTN: {named}."


@CHAPTER.table("runs")
def _runs(page: Page) -> Table:
    runs = run_measures(page.results, PERPLEXITY, DIVERGENCE, ACCURACY).sort_values("storage_bits", kind="stable")
    runs = pd.concat([runs.iloc[:0], *(part for _, part in by_method(runs[runs["group"] != ""]))])
    note = (
        "Bits per weight of the compressed layers, masks, scales and zero points counted. Perplexity relative to the "
        "dense model, geometric mean over texts; Jensen-Shannon divergence from it in nats per token; change of mean "
        "accuracy in points. In brackets: 95 % bootstrap intervals, paired with the dense model."
    )
    columns = {
        "": lambda line: run_name(line).replace(" ", "\u00a0"),
        "bits": "{storage_bits:.2f}",
        "perplexity": lambda line: cell(line, "perplexity", lambda r: f"{r:.3f}×" if r < 2 else times(r)),
        "JS divergence": lambda line: cell(line, "js_divergence", "{:.2g}".format),
        "accuracy": lambda line: cell(line, "accuracy", points),
    }
    return Table.of(runs, columns, note)
