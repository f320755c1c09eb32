"""Chapter 4: does calibrating on general and domain text at once keep both, at what weight and at what cost?"""

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pandas as pd

from crosscal.results.frame import DENSE
from crosscal.stats import LEVEL
from crosscal_book.chapter import Chapter, Page
from crosscal_book.claims import FAILS, HOLDS, OPEN, every, mean
from crosscal_book.drawing import Axis
from crosscal_book.marks import forest, lines
from crosscal_book.numbers import mixes as numbers
from crosscal_book.numbers.mixes import BOTH, DOMAIN, DPRUNER, GENERAL, HALF, MARGIN, TWICE, Mixes, beyond_sources
from crosscal_book.style import STYLES, MethodStyle
from crosscal_book.tables import Table
from crosscal_book.words import cell, listing, p_text, percent, run_name

GAINS, WEIGHTS, RIVALS = "fig-cross-gains", "fig-mix-weight", "fig-cross-rivals"
TASKS, DRAWS = "fig-cross-tasks", "fig-cross-draws"
NO_MIX = "no method has runs on general text, on a domain's text and on both"
MORE = float(np.expm1(MARGIN))
CHANGE = Axis("change of perplexity (%)", lines={"": 0.0}, band=(100 * float(np.expm1(-MARGIN)), 100 * MORE))
SHADED = "Shaded: less than 1 %. Bars: 95 % intervals, paired over windows."
LOOKS = STYLES | {"mean": MethodStyle("mean", "#333333", "D"), "draw": MethodStyle("one draw", "#7a8b99", ".")}
IN_PERCENT = {"write": lambda ratio: percent(ratio - 1)}
PAPER = {"paper": "williams2025"}

CHAPTER = Chapter(
    "cross_calibration",
    note="Changes are of perplexity, negative is better, with 95 % bootstrap intervals paired over windows (over draws "
    "in the last). Verdicts rest on one-sided t tests, which for few windows are stricter than these intervals; but "
    "for the last they are about one draw of the calibration windows.",
    prepare=lambda results, _: results,
)


@lru_cache(maxsize=4)
def _models(page: Page) -> dict[str, Mixes]:
    """The runs of each model, the study's own first; one of which only the dense run is stored waits."""
    parts = page.results.rows.groupby("model", sort=False)
    stored = {str(name): list(rows["run_id"]) for name, rows in parts if (rows["method"] != DENSE).any()}
    return {name: Mixes(page.results.only_runs(ids), page.settings.general) for name, ids in stored.items()}


def _main(page: Page) -> Mixes:
    return next(iter(_models(page).values()))


def _keeping(page: Page, models: slice, by: str) -> pd.DataFrame:
    frames = [mixes.keeping(by).assign(model=model) for model, mixes in list(_models(page).items())[models]]
    return pd.concat([pd.DataFrame(), *frames], ignore_index=True)


KEEPS = {
    "evidence": GAINS,
    "says": "on average, half the weight on the domain changes its perplexity by {own} against general text alone, "
    "that of general texts by {rest} against the domain alone; {shown} of {count} (method, domain) pairs show both "
    "gains ({showing}), a gain of 1 % on both is excluded for {refuting} (one-sided p, Holm over {total})",
    "brief": "domain perplexity {own} against general text alone, general {rest} against the domain alone",
}
CHAPTER.claim(
    "keeps-both",
    "In {kind}, calibrating on both texts keeps, for every method and domain, the domain better than general text "
    "alone, and general text better than the domain's alone",
    lambda page: _keeping(page, slice(0, 1), "kind"),
    every("better", by=MORE),
    each="kind",
    otherwise="Calibrating on both texts keeps both the domain and general text",
    missing=NO_MIX,
    **KEEPS | PAPER,
)
CHAPTER.claim(
    "tasks-follow",
    "The same shows on tasks: on average, calibrating on both texts keeps domain tasks and general tasks",
    lambda page: _main(page).task_gains(),
    mean("better", by=numbers.TASK_MARGIN),
    evidence=TASKS,
    says="mean accuracy changes by {own} on domain tasks against general text alone, by {rest} on general tasks "
    "against the domain alone, over {pairs} (method, domain) pairs ({tested})",
    missing="no runs of a mix and both its sources with domain and general tasks above chance",
)
CHAPTER.claim(
    "half-is-a-good-default",
    "Half the weight on the domain is a good default: within 1 % of the best weight everywhere",
    lambda page: _main(page).regrets(),
    every("no worse", by=MORE),
    evidence=WEIGHTS,
    says="at worst it changes perplexity by {estimate} against the best other weight ({name}, weight {best:g}); within "
    "1 % is shown for {shown} of {count} (method, domain) pairs over weights {weights}",
    missing=NO_MIX,
    **IN_PERCENT,
)
CHAPTER.claim(
    "beats-doubling",
    "Cross-calibration beats doubling the general text, {side}",
    lambda page: _main(page).against(TWICE),
    mean("better", by=MORE),
    each="side",
    otherwise="Cross-calibration beats doubling the general text",
    evidence=RIVALS,
    says="perplexity changes by {estimate} ({tested}), mean of {pairs} (method, domain) pairs",
    brief="perplexity {estimate}",
    missing="no run on twice the general text is stored",
    **IN_PERCENT | PAPER,
)
CHAPTER.claim(
    "beats-dpruner",
    "SparseGPT with cross-calibration beats D-Pruner, on the domain and on general texts",
    lambda page: _main(page).against(DPRUNER),
    every("better", by=MORE),
    evidence=RIVALS,
    lead="perplexity changes",
    says="{default}, mean of {pairs} (method, domain) pairs; it takes {own} against {rival}",
    brief="{default}",
    missing="no D-Pruner run is stored",
    **IN_PERCENT | PAPER,
)
CHAPTER.claim(
    "less-in-quantization",
    "On average, cross-calibration gains less in quantization than in pruning",
    lambda page: _main(page).by_kind(),
    mean("better", by=MORE),
    evidence=GAINS,
    says="the domain's perplexity changes by {pruning} in pruning ({pruning_back}) and {quantization} in quantization "
    "({quantization_back}) against general text alone; pruning's change differs from quantization's by {estimate}, "
    "negative where pruning gains more ({tested})",
    brief="domain perplexity {pruning} in pruning and {quantization} in quantization, difference {estimate}",
    missing="no domain has mixes of both a pruned and a quantized model",
    **IN_PERCENT | PAPER,
)
CHAPTER.claim(
    "one-mix-for-all",
    "One mix of all sources serves each domain within 1 % of the domain's own mix, for every method",
    lambda page: _main(page).all_in_one(),
    every("no worse", by=MORE),
    evidence=RIVALS,
    lead="perplexity on the domain changes from its own mix",
    missing="no run on general text and several domains at once is stored",
    **IN_PERCENT,
)
CHAPTER.claim(
    "keeps-both-elsewhere",
    "Cross-calibration keeps both texts on {model} too, for every method and domain",
    lambda page: _keeping(page, slice(1, None), ""),
    every("better", by=MORE),
    each="model",
    otherwise="Cross-calibration keeps both texts on another architecture too",
    missing=lambda page: NO_MIX if len(_models(page)) > 1 else f"all runs are of one model, {', '.join(_models(page))}",
    **KEEPS,
)
CHAPTER.claim(
    "over-draws",
    "On average over methods and domains, the gains hold whatever calibration windows are drawn",
    lambda page: _main(page).over_draws(),
    mean("better", by=MORE),
    evidence=DRAWS,
    says="over {draws} draws of {methods}, half the weight on the domain changes the domain's perplexity by {own} "
    "against general text alone and the general texts' by {rest} against the domain alone; on their own {alone} of "
    "{pairs} (method, domain) pairs show both gains{others}",
    missing=f"no method has {numbers.FEW_DRAWS} or more draws of its mix and of both its sources",
)


@CHAPTER.figure(GAINS)
def _gains(page: Page):
    frames = []
    for model, mixes in _models(page).items():
        frame, other = mixes.by_sides(), "" if mixes is _main(page) else f", {model}"
        frames.append(frame.assign(model=model, name=frame["name"] + other) if len(frame) else frame)
    frame = pd.concat(frames, ignore_index=True)
    if frame.empty:
        return "No method has runs on general text, on a domain's text and on both, so there is no gain to show."
    means = frame[frame["series"] == "mean"]
    texts = means.apply(cell, axis=1, write=lambda value: percent(value / 100)).groupby(means["name"], sort=False)
    words = "; ".join(f"{name}: domain {two.iloc[0]}, general {two.iloc[1]}" for name, two in texts)
    drawing = forest(frame, CHANGE, size=(6.6, 0.25), series="series", looks=LOOKS, bold=list(means["name"]))
    what = "What half the weight on the domain changes; left of 0 mixing is better."
    alt = f"Rows of intervals of the change of perplexity from mixing, by method and domain. Means: {words}."
    return drawing, f"{what} Means (diamonds): {words}. {SHADED}", alt


@CHAPTER.figure(WEIGHTS)
def _weights(page: Page):
    mixes, rows = _main(page), page.rows("half-is-a-good-default")
    if rows.empty:
        return "No method has runs on general text, on a domain's text and on both, so no weight is best."
    worst, best = rows.sort_values("value", kind="stable").iloc[-1], int((rows["value"] <= 1).sum())
    said = (
        f"weight 0.5 is the best of those tried for {best} of {len(rows)} (method, domain) pairs, and at worst gives "
        f"{percent(worst['value'] - 1)} perplexity ({worst['name']}, against weight {worst['best']:g})"
    )
    y = replace(CHANGE, label="change of perplexity from weight 0.5 (%),\nmean of domain and general text")
    x, columns = Axis("weight of the domain", ticks=(0, 0.25, 0.5, 0.75, 1)), len(mixes.sources)
    shape = {"size": (3.2 * columns + (0.2 if columns > 1 else 1.2), 3.2), "columns": columns, "share": (True, True)}
    drawing = lines(mixes.by_weight(), x, y, across="weight", aside=0.014, **shape)
    caption = f"The weight of the domain: {said}. Above 0 is worse than weight 0.5. {SHADED}"
    return drawing, caption, f"Lines of perplexity against the weight of the domain: {said}."


@CHAPTER.figure(RIVALS)
def _rivals(page: Page):
    frame = _main(page).by_rival()
    if frame.empty:
        return "No run on twice the general text, of D-Pruner or on all sources at once is stored."
    better = (frame["value"] < 0)[frame["panel"] == BOTH].groupby(frame["facet"], sort=False)
    said = listing([f"{part.sum()} of {len(part)} {name}" for name, part in better])
    caption = (
        "What half the weight on the domain changes against each rival; left of 0 the mix of two is better. In the "
        f"mean of domain and general text it is better in {said}. {SHADED}"
    )
    alt = f"Rows of intervals of the change of perplexity against rivals. The mix of two is better in {said}."
    return forest(frame, CHANGE), caption, alt


@CHAPTER.figure("fig-frontier")
def _frontier(page: Page, model: str | None = None):
    model = model or next(iter(_models(page)))
    frame = _models(page)[model].paths() if model in _models(page) else pd.DataFrame()
    if frame.empty:
        return f"No runs of {model} at two weights of a domain are stored, so there is no frontier."
    whole = [path for _, path in frame.groupby("name", sort=False) if {0.0, HALF, 1.0} <= set(path["weight"])]
    count = f"In {sum(map(beyond_sources, whole))} of {len(whole)} (method, domain) pairs the mix at weight 0.5 lies"
    caption = (
        f"General against domain loss of {model}, labelled by the domain's weight; lower left is better. {count} "
        "nearer to the lower left than the straight line between its two sources. Bars: 95 % intervals, paired over "
        "windows, of the difference from weight 0.5; at 0.5, of its loss against dense."
    )
    names = listing(list(frame["name"].unique()))
    alt = f"Small panels of general loss against domain loss for {names}. {count} below the line between its sources."
    return _paths(frame, *(Axis(f"{part}: log perplexity ratio to dense") for part in (DOMAIN, GENERAL))), caption, alt


@CHAPTER.figure("fig-frontier-second")
def _second_frontier(page: Page):
    return _frontier(page, second) if (second := page.settings.second_model) else "No second model was asked for."


@CHAPTER.figure(TASKS)
def _tasks(page: Page):
    frame = _main(page).paths(on_tasks=True)
    if frame.empty:
        return "No mixes were asked both domain and general tasks on which the dense model is above chance."
    said = "{:.0f} to {:.0f} points".format(*(frame["x_hi"] - frame["x_lo"]).agg(["min", "max"]))
    caption = (
        "Accuracy change against the dense model on general and domain tasks, labelled by the domain's weight; upper "
        f"right is better. The intervals on domain tasks are {said} wide. Bars: 95 % intervals, paired over items, of "
        "the difference from weight 0.5; at 0.5, from dense."
    )
    names = listing(list(frame["name"].unique()))
    alt = f"Small panels of general against domain accuracy change for {names}; intervals of {said}."
    return _paths(frame, *(Axis(f"{kind} tasks: change (points)") for kind in ("domain", "general"))), caption, alt


def _paths(frame: pd.DataFrame, x: Axis, y: Axis):
    """A panel per (method, domain), points labelled by the weight of the domain, that of 1/2 open."""
    size = (6.6, 2.3) if frame["panel"].nunique() > 1 else (4.6, 2.9)
    look = {"line": frame["name"], "hollow": frame["weight"] == HALF, "labels": frame["weight"].map("{:g}".format)}
    drawing = lines(frame, x, y, path=True, ends=False, size=size, share=("row", "row"), **look)
    of = "end of the 95 % interval of the difference from weight 0.5 (at 0.5: from dense), laid around the point"
    return drawing.meaning(lo=of, hi=of, x_lo=of, x_hi=of)


@CHAPTER.figure(DRAWS)
def _draws(page: Page):
    frame, (pairs, seeds) = _main(page).losses_by_draw(), _main(page).drawn()
    if len(seeds) < 2:
        return "No method has a second draw of its mix and of both its sources."
    own, rest = (estimate.text(percent) for estimate in _main(page).means_over(pairs, seeds))
    said = (
        f"over {len(seeds)} draws, weight 0.5 changes the domain's perplexity by {own} against weight 0 and the "
        f"general texts' by {rest} against weight 1"
    )
    axes = Axis("weight of the domain", ticks=(0, HALF, 1)), Axis("log perplexity ratio to dense")
    look = {"series": "series", "looks": LOOKS, "line": frame["seed"].map("{:g}".format, na_action="ignore").fillna("")}
    shape = {"size": (6.6, 2.5), "title": "{facet}: {panel}", "aside": 0.05, "ends": False}
    ends = {"lo": "lower end of the mean's 95 % interval over draws", "hi": "upper end of it"}
    drawing = lines(frame, *axes, across="weight", **look, **shape).meaning(**ends)
    caption = f"Each draw of the calibration windows (thin lines): {said}. Dark: mean with its 95 % interval over draws"
    return drawing, f"{caption}.", f"Losses at three weights for every draw: {said}."


@CHAPTER.table("pairs")
def _pairs_table(page: Page) -> Table:
    note = (
        "Change of perplexity with half the weight on the domain: of the domain's text against calibrating on general "
        "text alone, of general texts against calibrating on the domain alone; 95 % bootstrap intervals paired over "
        "windows. p: of the claim that both are gains (the larger p of two one-sided t tests), Holm-corrected "
        "over a model's pairs; the claim does not hold where a gain of 1 % is excluded for one of them."
    )
    columns = {
        "model": "{model}",
        "method": run_name,
        "domain": "{domain}",
        DOMAIN: lambda line: cell(line, write=IN_PERCENT["write"]),
        GENERAL: lambda line: cell(line, "general", IN_PERCENT["write"]),
        "p": lambda line: p_text(line["p_yes_holm"]),
        "keeps both": lambda n: HOLDS if n["p_yes_holm"] < LEVEL else FAILS if n["p_no_holm"] < LEVEL else OPEN,
    }
    return Table.of(page.rows("keeps-both*"), columns, note, 3)


@CHAPTER.table("weights")
def _weights_table(page: Page) -> Table:
    note = (
        "Change of perplexity, in the mean of domain and general text, of weight 0.5 from the best of the other "
        "weights tried; negative: 0.5 is the best. The best is chosen on the windows that are compared, so a cost is "
        "rather too high. Within 1 %: no other weight is better by as much (one-sided t tests)."
    )
    columns = {
        "method": run_name,
        "domain": "{domain}",
        "best other": "{best:g}",
        "0.5 against it": lambda line: cell(line, write=IN_PERCENT["write"]),
        "within 1 %": lambda n: "yes" if n["p_yes"] < LEVEL else "no" if n["p_no"] < LEVEL else OPEN,
    }
    return Table.of(page.rows("half-is-a-good-default"), columns, note, 2)


@CHAPTER.table("draws")
def _draws_table(page: Page) -> Table:
    note = (
        f"Perplexity relative to the dense model in {len(_main(page).drawn()[1])} draws of the calibration windows, "
        "on the same held-out windows: geometric mean with Student's 95 % interval over draws, and standard deviation "
        "over draws."
    )
    return Table(["method", "domain", "weight", DOMAIN, "SD", GENERAL, "SD"], _main(page).drawn_text(), note, 3)


@CHAPTER.table("costs")
def _cost_table(page: Page) -> Table:
    note = (
        "Tokens of calibration text; compression's seconds and peak memory beyond the loaded model, least to most over "
        "the runs with these texts (weights and draws). Timed as the runs came, once each."
    )
    body = [[model, *line] for model, mixes in _models(page).items() for line in mixes.costs()]
    return Table(["model", "method", "texts", "tokens", "runs", "seconds", "MiB"], body, note, 3)


@CHAPTER.table("runs")
def _runs_table(page: Page) -> Table:
    body = [[model, *line] for model, mixes in _models(page).items() for line in mixes.every_run()]
    note = (
        "Perplexity (general: geometric mean over texts) with 95 % bootstrap intervals over windows; change of mean "
        "accuracy from dense in points, over tasks on which the dense model is above chance, with intervals paired "
        "over items; empty where a run was not asked all of these tasks."
    )
    head = ["model", "domain", "method", "weight of the domain", "draw", "domain perplexity", "general perplexity"]
    return Table([*head, "domain tasks", "general tasks"], body, note, 4)
