"""Chapter 3: does it matter what text a compression is calibrated on, how much, and which draw of it?"""

import math
from dataclasses import replace
from functools import lru_cache

import pandas as pd

from crosscal.results.frame import model_names
from crosscal.results.quantities import ACCURACY, DIVERGENCE, PERPLEXITY
from crosscal.stats import LEVEL
from crosscal.types import Unstructured
from crosscal_book.chapter import Chapter, Page
from crosscal_book.claims import every, mean, most
from crosscal_book.drawing import Axis
from crosscal_book.marks import forest, lines, matrix
from crosscal_book.numbers.sources import MIN_TEXTS, RANDOM, SELF, SIZES, Sources, name_of
from crosscal_book.numbers.written import SCORES, Written
from crosscal_book.style import STYLES, MethodStyle, style_of
from crosscal_book.tables import Table
from crosscal_book.words import listing, percent, times

# Limits of "as well as" and of "saturated", in perplexity. Set before any run was seen: 2 % is a fifth of the 10 % at
# which this study calls perplexity kept (`words.KEPT`).
EQUAL = math.log(1.02)
# Verdicts on answers rest on F1 alone: exact match is rare for open instructions and ROUGE-1 measures almost the same.
# Chosen before any answer was seen, as was the gain below which task data is not called better: a point, as for tasks.
GAIN, DECIDES = 0.01, "f1"
FULL_COLOUR = 20.0  # change of perplexity at which the matrix has its full colour; beyond, only the numbers tell
SOURCES, EFFECTS, MATRIX, SIZE, ANSWERS = "fig-sources", "fig-effects", "fig-matrix", "fig-size", "fig-answers"
SPREAD = {"on": replace(PERPLEXITY, higher_is_better=True), "write": "{:.1f}".format}
CHANGE = {"on": PERPLEXITY, "write": lambda ratio: percent(ratio - 1)}
NAMES = {RANDOM: "random tokens", SELF: "self-written"}


@lru_cache(maxsize=8)
def _sources(page: Page) -> Sources:
    return Sources(page.results, page.settings.calibration)


@lru_cache(maxsize=8)
def _written(page: Page) -> Written | None:
    return Written.of(page.results, page.settings.calibration)


def _focus(page: Page) -> str:
    return str(Unstructured(page.settings.sparsity))


def _note(page: Page) -> str:
    runs = _sources(page)
    drawn = [f"{name_of(g)} ({n})" for g in runs.groups if (n := len(runs.draws(g, runs.general))) > 1]
    text = (
        f"On {model_names(page.results.rows)}, calibrated on {runs.size[0]} windows of {runs.size[1]} tokens unless "
        f"said otherwise; sources: {listing(runs.sources())}; perplexity is the geometric mean over "
        f"{listing(runs.sets(PERPLEXITY))}. "
    )
    if not drawn:
        return f"{text}Nothing was drawn twice, so the intervals hold the held-out windows' uncertainty only."
    return f"{text}Draws of {runs.general}: {listing(drawn)}. Where a method has one draw, the widest known stands in."


CHAPTER = Chapter("calibration", note=_note, prepare=lambda results, _: results)


def _rows(pick):
    """The rows of a claim from what `pick` yields of the sources."""
    return lambda page: pd.DataFrame(pick(_sources(page))).assign(general=page.settings.calibration)


CHAPTER.claim(
    "source-against-draw",
    "With most methods, the calibration source moves perplexity more than its draw does",
    _rows(Sources.source_rows),
    most("better"),
    evidence=EFFECTS,
    lead="SD due to the source over SD due to the draw",
    missing=lambda page: f"no method has {MIN_TEXTS} sources and two draws of {page.settings.calibration}",
    **SPREAD,
)
for other in ("wanda", "gptq"):
    CHAPTER.claim(
        f"depends-more-than-{other}",
        f"SparseGPT depends more on the calibration source than {style_of(other).label}",
        lambda page, other=other: pd.DataFrame(_sources(page).dependence_rows(("sparsegpt", _focus(page)), other)),
        every("better"),
        family="depends-more",
        evidence=SOURCES,
        lead="SD over sources",
        missing=f"SparseGPT and {style_of(other).label} share fewer than {MIN_TEXTS} texts",
        **SPREAD,
    )
CHAPTER.claim(
    "own-domain-is-best",
    "For most methods and domains, the domain's own text calibrates best for it",
    _rows(Sources.own_domain_rows),
    most("better"),
    evidence=MATRIX,
    lead="perplexity after the own text, beside the best of the others'",
    missing="no held-out text of a special domain has a calibration source of the same name and another beside it",
    **CHANGE,
)
CHAPTER.claim(
    "self-written-is-as-good",
    f"Text that the model wrote calibrates as well as {{general}}, within {percent(math.expm1(EQUAL))[1:]} of "
    "perplexity, whatever the method",
    _rows(lambda runs: runs.self_rows(EQUAL)),
    every("no worse", by=math.expm1(EQUAL)),
    each="general",
    otherwise="Text that the model wrote calibrates as well as general text",
    evidence=SOURCES,
    lead="perplexity beside the general text's",
    missing=lambda page: f"no method was calibrated on both {SELF} and {page.settings.calibration}",
    **CHANGE,
)
CHAPTER.claim(
    "any-text-beats-random",
    "Any text calibrates better than random tokens, whatever the method",
    _rows(Sources.random_rows),
    every("better"),
    evidence=SOURCES,
    lead="perplexity beside random tokens'",
    missing="no method was calibrated on random tokens",
    **CHANGE,
)
CHAPTER.claim(
    "random-is-useless",
    "Random tokens are useless: no better than magnitude pruning, which needs no text",
    _rows(Sources.magnitude_rows),
    every("worse"),
    evidence=SOURCES,
    lead="perplexity after random tokens, beside magnitude pruning's",
    missing="no method was calibrated on random tokens at a target that magnitude pruning has as well",
    **CHANGE,
)
CHAPTER.claim(
    "windows-help-and-saturate",
    "More calibration windows help, and saturate, with every method",
    _rows(lambda runs: runs.window_rows(EQUAL)),
    every("better"),
    evidence=SIZE,
    says="perplexity changes: {plain}",
    missing="no method was calibrated on three numbers of windows of one length",
    **CHANGE,
)
CHAPTER.claim(
    "task-data-is-better",
    "Task data calibrates better than general data, on answers of {which} task, on average over methods",
    lambda page: written.rows(DECIDES) if (written := _written(page)) else pd.DataFrame(),
    mean("better", by=GAIN),
    each="which",
    otherwise="Task data calibrates better than general data, on answers of the same and of another task",
    on=ACCURACY,
    evidence=ANSWERS,
    paper="khanal2024",
    says="F1 on {n} {name} changes by {change} from {general} to {task}, {p}, over {pairs} pairs of models",
    brief="F1 {change}, {p}",
    missing=lambda page: f"no run wrote answers after calibration on task data and on {page.settings.calibration}",
)


def _looks(page: Page, frame: pd.DataFrame) -> dict:
    """Options of marks: a series per group with its method's look, open at other sparsities than the one looked at."""
    shown, groups = set(frame["series"]), {name_of(group): group for group in _sources(page).groups}
    looks = {name: replace(style_of(group[0]), label=name) for name, group in groups.items() if name in shown}
    return {"series": "series", "looks": looks, "key": True, "hollow": _is_open(page, frame)}


def _is_open(page: Page, frame: pd.DataFrame) -> pd.Series:
    return (frame["target"] != _focus(page)) & frame["target"].str.endswith("%")


@CHAPTER.figure(SOURCES)
def _sources_figure(page: Page):
    runs, frame = _sources(page), _sources(page).by_source()
    if frame.empty:
        return "No method was calibrated on two sources."
    frame["name"] = frame["calibration"].replace(NAMES)
    axes = {PERPLEXITY.name: Axis("perplexity / dense", 10, suffix="×"), DIVERGENCE.name: Axis("JS divergence (nats)")}
    axes[ACCURACY.name] = Axis("accuracy (points)", lines={"": 0.0})
    height = 0.16 + 0.11 * frame["series"].nunique()
    drawing = forest(frame, axes, size=(6.6, height), title="", **_looks(page, frame))
    closed = frame[(frame["panel"] == PERPLEXITY.name) & ~_is_open(page, frame)].groupby("series", sort=False)
    said = "; ".join(filter(None, (_extremes(str(name), part) for name, part in closed))) or "No method has two texts"
    caption = (
        f"Results after calibration on each source, all at {runs.size[0]} windows of {runs.size[1]} tokens: "
        f"perplexity and Jensen-Shannon divergence over {len(runs.sets(PERPLEXITY))} texts, change of mean accuracy "
        f"over {len(runs.sets(ACCURACY))} tasks. {said}. Bars: 95 % intervals over windows or items and over "
        f"calibration draws; {runs.general} is the mean of its draws. Open markers: other sparsities than "
        f"{_focus(page)}."
    )
    names = listing(list(_looks(page, frame)["looks"]))
    return drawing, caption, f"Points of perplexity, divergence and accuracy by calibration source for {names}. {said}"


def _extremes(name: str, part: pd.DataFrame) -> str:
    """The texts after which a group has its lowest and highest perplexity, and random tokens."""
    own = dict(zip(part["calibration"], part["value"], strict=True))
    texts = sorted((value, source) for source, value in own.items() if source != RANDOM)
    ends = [f"{times(value)} ({source})" for value, source in (texts[0], texts[-1])] if texts else []
    loose = f", and {times(own[RANDOM])} after random tokens" if RANDOM in own else ""
    return f"{name} has between {' and '.join(ends)} the dense perplexity after text{loose}" if len(texts) > 1 else ""


@CHAPTER.figure(MATRIX)
def _matrix(page: Page):
    runs, group = _sources(page), ("sparsegpt", _focus(page))
    sources = runs.sources(group)
    if len(sources) < 2 or runs.general not in sources:
        return f"{name_of(group)} was not calibrated on {runs.general} and another source."
    frame = runs.by_text(group).drop(columns="series")
    frame = frame.assign(name=frame["calibration"].replace(NAMES), panel=frame["text"].str.replace("_", " "))
    least = frame.loc[frame.groupby("text", sort=False)["beside"].idxmin()]
    best = dict(zip(least["text"], least["calibration"], strict=True))
    own = [text for text in best if text in sources]
    won = sum(best[text] == text for text in own)
    said = f"The own text gives the lowest perplexity on {won} of {len(own)} texts with an own source"
    caption = (
        f"{name_of(group)}: perplexity beside the dense model's by calibration source (rows) and held-out text "
        f"(columns); framed: the text's own source. {said}. Lowest in each column: "
        f"{'; '.join(f'{text}: {source}' for text, source in best.items())}. Colour: beside calibration on "
        f"{runs.general}. Below each value its 95 % interval over windows and calibration draws."
    )
    labels = ("calibration source", "perplexity on held-out text / dense perplexity")
    colours = {"shade": "beside", "limit": FULL_COLOUR, "colours": f"beside {runs.general} (%)"}
    drawing = matrix(frame, labels, _cell_of, framed=frame["calibration"] == frame["text"], **colours)
    return drawing, caption, f"Table of {len(sources)} sources by {len(best)} texts. {said}."


def _cell_of(line: pd.Series) -> str:
    return "{}\n{} to {}".format(times(line["value"]), *(times(line[end]).rstrip("×") for end in ("lo", "hi")))


@CHAPTER.figure(SIZE)
def _size(page: Page):
    runs, frames, said, axes = _sources(page), [], [], {}
    total = f"{math.prod(runs.size):,} tokens in all"
    for column, unit in (("n_windows", "windows"), ("window", "tokens in a window")):
        frame = runs.by_size(column)
        for name, part in frame.groupby("series", sort=False) if len(frame) else ():
            (first, fewest), *_, (last, most) = zip(part["run_id"], part["x"], strict=True)
            said.append(f"{name}: {runs.change_text([last], [first])} from {fewest} to {most} {unit}")
        for length in frame["window"].iloc[:1] if len(frame) else ():
            panel = total if column == "window" else f"windows of {length} tokens"
            axes[panel] = Axis(unit.replace("windows", "number of windows"), 2, ticks=sorted(frame["x"].unique()))
            frames.append(frame.assign(panel=panel))
    if not frames:
        return "No method was calibrated on several numbers or lengths of windows."
    frame, words = pd.concat(frames, ignore_index=True), "; ".join(said)
    shape = {"size": (6.6, 3.1), "columns": 2, "share": (False, True), "aside": 0.06, "ends": False}
    drawing = lines(frame, axes, Axis("perplexity / dense perplexity", 10, suffix="×"), **_looks(page, frame), **shape)
    caption = (
        f"Perplexity over {len(runs.sets(PERPLEXITY))} texts against the number of {runs.general} windows (left) and "
        f"against their length at equal tokens (right), log scales. {words}. Bars: 95 % intervals over held-out "
        "windows and over calibration draws, whose spread is taken to fall with the square root of the tokens."
    )
    return drawing, caption, f"Lines of perplexity against number and length of windows. {words}."


@CHAPTER.figure(EFFECTS)
def _effects(page: Page):
    runs, frame, axes = _sources(page), _sources(page).effects(), {}
    if frame.empty:
        return "Nothing was drawn twice and no two methods share a run."
    for quantity, (_, _, unit) in SIZES.items():
        own, log = frame[frame["panel"] == quantity.name], 0 if quantity is ACCURACY else 10
        if len(own):
            limits = (own.loc[own["value"] > 0, "value"].min() / 3 if log else 0.0, own["hi"].max() * 1.5)
            axes[quantity.name] = Axis(f"{quantity.label} ({unit})", log, limits=limits)
    drawing = forest(frame, axes, size=(6.6, 0.52), title="", **_looks(page, frame))
    text = "; ".join(filter(None, map(runs.draw_and_source, runs.groups)))
    caption = (
        "What moves a result, without sign (log scales but for accuracy). Perplexity: "
        f"{text or 'no method has draws and sources'}. Bars: 95 % intervals over windows or items; those of SDs hold "
        "that they are known from few runs, those of the other rows the draw of the calibration text, but for the "
        "range. Bars that reach the left edge include 0."
    )
    names, shown = listing(list(frame["name"].unique())), listing([quantity.label for quantity in runs.quantities])
    return drawing, caption, f"Points of effect sizes: {names}, for {shown}. {text}".rstrip()


@CHAPTER.figure(ANSWERS)
def _answers(page: Page):
    written = _written(page)
    if written is None:
        return f"No run wrote answers after calibration on task data and on {page.settings.calibration}."
    frame = written.differences()
    axis = Axis(f"{written.task} less {written.general} calibration (points)", lines={"": 0.0})
    looks = {"series": "series", "looks": STYLES | {"mean": MethodStyle("mean", "#333333", "D")}}
    drawing = forest(frame, axis, size=(6.6, 0.24), hollow=_is_open(page, frame), bold=["mean of all"], **looks)
    said, sets = written.means_text(), listing([written.label(name) for name in written.sets])
    caption = (
        f"Written answers, {written.task} less {written.general} calibration, on {sets}, {frame['n'].iloc[0]} items. "
        f"Mean over all models: {said}. Bars: 95 % intervals over items, paired; each source was drawn once."
    )
    return drawing, caption, f"Points of score differences of written answers. Means: {said}."


@CHAPTER.table("sources")
def _source_table(page: Page) -> Table:
    runs = _sources(page)
    note = (
        "Perplexity / dense perplexity (bold: the text's own source) and its mean over all but the tasks' prompts; "
        "Jensen-Shannon divergence in nats; change of mean accuracy in points over the "
        f"{len(runs.sets(ACCURACY))} tasks that all runs share. In brackets: 95 % intervals over windows or items "
        "and over calibration draws."
    )
    head = ["", "calibration", *[text.replace("_", " ") for text in runs.every_text], "mean", "JS", "accuracy"]
    return Table(head, runs.source_lines(), note, 2)


@CHAPTER.table("spreads")
def _spread_table(page: Page) -> Table:
    note = (
        "Sizes without sign. SDs and ranges are over runs; the SD over sources holds the draw's as well, which the "
        "ratio takes out. In brackets: 95 % intervals; an interval of a difference that includes 0 has a negative end."
    )
    head = ["", "what varies", "perplexity (%)", "JS divergence (nats)", "accuracy (points)"]
    return Table(head, _sources(page).spread_lines(), note, 2)


@CHAPTER.table("sizes")
def _size_table(page: Page) -> Table:
    runs, body = _sources(page), _sources(page).size_lines()
    note = (
        f"Windows × tokens in each, of {runs.general}. Beside the usual: perplexity beside {runs.size[0]} × "
        f"{runs.size[1]}. In brackets: 95 % intervals over windows or items and over calibration draws."
    )
    note = note if body else f"No method was calibrated on several numbers or lengths of windows of {runs.general}."
    head = ["", "windows", "perplexity / dense", "beside the usual", "JS (nats)", "accuracy (points)"]
    return Table(head, body, note, 2)


@CHAPTER.table("answers")
def _answer_table(page: Page) -> Table:
    written = _written(page)
    note = (
        "Scores in %, differences in points, paired over items. In brackets: 95 % bootstrap intervals over items. "
        f"\\* marks Holm-corrected p < {LEVEL} (sign flips) over all differences of this table."
    )
    missing = f"No run wrote answers after calibration on task data and on {page.settings.calibration}."
    head = ["answers", "model", "calibration", *SCORES.values()]
    return Table(head, written.table() if written else [], note if written else missing, 3)
