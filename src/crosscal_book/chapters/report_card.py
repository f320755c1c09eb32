"""Chapter 8: the report card of one model, method and domain: what was lost, what calibration saved, what to use.

Words stand beside the numbers so that nobody needs colour to read the card: `kept`, `some loss`, `much loss`, and
`unclear` where the interval holds both sides of a limit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from crosscal.plan.parameters import ReportCardSettings
from crosscal.results.compare import PROMPTS, accuracy_tasks, paired
from crosscal.results.frame import Results
from crosscal.results.quantities import ACCURACY, DIVERGENCE, PERPLEXITY
from crosscal.stats import LEVEL, Estimate, Paired, bootstrap_mean, holm
from crosscal.text import domain_of
from crosscal.types import parse_target
from crosscal_book.chapter import Chapter, Page
from crosscal_book.claims import every
from crosscal_book.drawing import Axis
from crosscal_book.marks import forest
from crosscal_book.style import style_of
from crosscal_book.tables import Table
from crosscal_book.words import KEPT, listing, p_text, points, times

# kind of measure -> (at most this is kept, from this on it is much). A convention, set before any run was seen:
# perplexity as in the study's other chapters, and doubled; JS divergence is to first order a quarter of KL, which is
# the expected rise of the log-perplexity on text of the dense model's own; of a task's items a change of 3 in 100 is
# about what can be seen in a few hundred, and 10 in 100 is what a user notices.
LIMITS = {
    "ratio": (KEPT, 2.0),
    "change": (0.03, 0.10),
    "divergence": (math.log(KEPT) / 4, math.log(2.0) / 4),
    "flips": (0.05, 0.20),
}
UNITS = {"ratio": "times dense", "divergence": "nats per token", "flips": "% of items", "change": "points"}
KEPT_WORD, SOME, MUCH, UNCLEAR = "kept", "some loss", "much loss", "unclear"
SMALL = 0.01  # a change of perplexity below one in a hundred is called none; set before any run was seen
DEFAULT_WEIGHT, PANELS, LONGEST = 0.5, 4, 18  # weight of the domain; panels of the figure; letters of a file's name
FIGURE, GENERAL = "fig-report-card", "general text"
Weight = float | None
"""The weight of the domain text, or None for a method that reads no text."""

# ------------------------------------------------------------------------------------------ runs and texts


@lru_cache(maxsize=8)
def _runs_by_weight(results: Results, settings: ReportCardSettings) -> dict[Weight, str]:
    """The run of each weight that was asked for and is stored, by weight; data-free methods have one, under None."""
    runs = results.runs
    wanted = {"method": settings.method, "target": str(parse_target(settings.target))}
    wanted |= {"seed": settings.seed, "model": settings.model}
    for column, value in wanted.items():
        runs = runs[runs[column] == value]
    by_weight: dict[Weight, str] = {}
    for run in runs.to_dict("records"):
        by_weight.setdefault(_weight(run, settings), run["run_id"])
    if None in by_weight:
        return {None: by_weight[None]}
    return {weight: by_weight[weight] for weight in sorted(set(settings.weights)) if weight in by_weight}


def _weight(run: dict, settings: ReportCardSettings) -> Weight:
    mixed = round(float(run["weight"]), 6)
    known = {"": None, settings.general: 0.0, settings.domain: 1.0, f"{settings.general}+{settings.domain}": mixed}
    weight = known.get(run["calibration"], -1.0)  # -1: some other text, which no one asked for here
    asked = [w for w in settings.weights if weight is not None and math.isclose(w, weight, abs_tol=1e-6)]
    return asked[0] if asked else weight


CHAPTER = Chapter(
    "report_card",
    note=lambda page: f"**Which setting.** {recommend(page).sentence}",
    prepare=lambda results, settings: results.subset(list(_runs_by_weight(results, settings).values())).common(),
)


def _runs(page: Page) -> dict[Weight, str]:
    return _runs_by_weight(page.every, page.settings)


def short(source: str) -> str:
    """Return a text source for people: a file by its name alone.

    >>> short("/home/me/notes.jsonl"), short("pubmed"), short("hub:FiscalNote/billsum")
    ('notes.jsonl', 'pubmed', 'hub:FiscalNote/billsum')
    """
    return source if source.startswith("hub:") else source.replace("\\", "/").rsplit("/", 1)[-1]


def _named(source: str) -> str:
    r"""A text source as Markdown that is read as it stands, cut in the middle where it is long.

    >>> _named("a|b $1.jsonl"), _named("discharge_letters_2019_2024.jsonl")
    ('a\\|b \\$1.jsonl', 'discharg…24.jsonl')
    """
    name = _cut(short(source))
    return "".join(f"\\{letter}" if letter in "\\|$*`<[]" else letter for letter in name)


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST // 2 - 1]}…{name[-(LONGEST // 2 - 1) :]}"


@lru_cache(maxsize=8)
def _texts(page: Page) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The domain's held-out text, and the texts of the general source's kind, else all general ones, else the others.

    Whether the domain is one of the preset's texts or not, it is never part of the general side; nor are task prompts.
    """
    rows = page.results.only(run_id=page.results.dense_id, metric=PERPLEXITY.name)
    rows = rows[rows["domain"] != PROMPTS]
    others = rows[rows["eval_set"] != page.settings.domain]
    domain = tuple(rows.loc[rows["eval_set"] == page.settings.domain, "eval_set"])
    for kind in (domain_of(page.settings.general), "general"):
        if kind != "own" and (others["domain"] == kind).any():
            return domain, tuple(others.loc[others["domain"] == kind, "eval_set"])
    return domain, tuple(others["eval_set"])


@lru_cache(maxsize=8)
def _task_groups(page: Page) -> dict[str, tuple[str, ...]]:
    """The usable accuracy tasks: all, and the domain's own where there are some besides others."""
    table, kind = accuracy_tasks(page.results), domain_of(page.settings.domain)
    own = tuple(table.loc[table["domain"] == kind, "eval_set"])
    groups = {"all tasks": tuple(table["eval_set"])} if len(table) else {}
    return groups | ({f"{kind} tasks": own} if 0 < len(own) < len(table) else {})


def _weight_name(weight: Weight, settings: ReportCardSettings) -> str:
    """A setting for people.

    >>> _weight_name(1.0, ReportCardSettings()), _weight_name(0.5, ReportCardSettings())
    ('w = 1 (pubmed alone)', 'w = 0.5')
    """
    if weight is None:
        return "no text"
    alone = {0.0: f" ({_named(settings.general)} alone)", 1.0: f" ({_named(settings.domain)} alone)"}
    return f"w = {weight:g}{alone.get(weight, '')}"


# ------------------------------------------------------------------------------------------ losses


@dataclass(frozen=True)
class Measure:
    """One loss of one run: `kind` names its limits, `estimate` is the loss itself (a change is negative when lost)."""

    name: str
    kind: str
    estimate: Estimate

    @property
    def word(self) -> str:
        """What the interval says, by `LIMITS`."""
        least, great = LIMITS[self.kind]
        lo, hi = self.estimate.lo, self.estimate.hi
        if self.kind == "change":
            lo, hi = -hi, -lo
        if hi <= least:
            return KEPT_WORD
        return UNCLEAR if lo <= least else MUCH if lo >= great else SOME

    @property
    def number(self) -> str:
        """The loss with its interval in the units of its kind."""
        return _number(self.kind, self.estimate)

    def __str__(self) -> str:
        return f"{self.name} {self.number} ({self.word})"


def _number(kind: str, estimate: Estimate) -> str:
    writers = {"ratio": times, "divergence": lambda v: f"{v:.3f}", "flips": lambda v: f"{100 * v:.1f} %"}
    tail = {"divergence": " nats", "change": " points"}.get(kind, "")
    return estimate.text(writers.get(kind, points)).replace(" [", f"{tail} [", 1)


def _percent(ratio: Estimate) -> str:
    """A ratio as a change in per cent, with interval: `−3.2 % [−4.0, −2.5]`."""
    return ratio.map(lambda value: value - 1).text(points).replace(" [", " % [", 1)


@lru_cache(maxsize=64)
def _text_ratio(page: Page, run_id: str, other: str, texts: Sequence[str]) -> Estimate:
    """Perplexity over that of another run, geometric mean over texts, paired by window; p of the sign flips."""
    return paired(page.results, run_id, other, PERPLEXITY, texts).estimate(test=True).map(math.exp)


def _task_change(page: Page, run_id: str, other: str, tasks: Sequence[str]) -> Estimate:
    """Mean accuracy less that of another run, paired by item; p of the sign flips."""
    return paired(page.results, run_id, other, ACCURACY, tasks).estimate(test=True)


def _balanced(page: Page, run_id: str, other: str) -> Estimate:
    """exp of the mean log-perplexity difference over domain and general text, half each, paired by window.

    With only one of the two sides it is that side's; without any it is NaN.
    """
    sides = [names for names in _texts(page) if names]
    if not sides:
        return Estimate(math.nan, math.nan, math.nan, 0)
    parts = [paired(page.results, run_id, other, PERPLEXITY, names) for names in sides]
    weights = {name: 1 / (len(sides) * len(names)) for names in sides for name in names}
    values = {name: gaps for part in parts for name, gaps in part.values.items()}
    return Paired(values, weights).estimate(test=True).map(math.exp)


@lru_cache(maxsize=32)
def _losses(page: Page, run_id: str) -> list[Measure]:
    """What a run lost against the dense model: perplexity, divergence, flipped answers, accuracy, as far as known."""
    dense, items = page.results.dense_id, page.results.items
    sides = dict(zip((_named(page.settings.domain), GENERAL), _texts(page), strict=True))
    sides = {side: names for side, names in sides.items() if names}
    measures = [Measure(f"perplexity, {s}", "ratio", _text_ratio(page, run_id, dense, n)) for s, n in sides.items()]
    for side, names in sides.items():
        if all(DIVERGENCE.items[0] in items[run_id][name] for name in names):
            found = paired(page.results, run_id, None, DIVERGENCE, names).estimate()
            measures.append(Measure(f"JS divergence, {side}", "divergence", found))
    groups = _task_groups(page)
    if groups:
        moved = paired(page.results, run_id, dense, ACCURACY, groups["all tasks"]).groups()
        measures.append(Measure("answers flipped", "flips", bootstrap_mean([np.abs(gaps) for gaps in moved])))
    for group, names in groups.items():
        change = _task_change(page, run_id, dense, names)
        measures.append(Measure(f"accuracy, {group} ({len(names)})", "change", change))
    return measures


# ------------------------------------------------------------------------------------------ which setting to use


@dataclass(frozen=True)
class Choice:
    """The weight to use, those the data cannot tell from the best, and the sentence that says so."""

    weight: Weight
    tied: tuple[float, ...]
    sentence: str


def recommend(page: Page) -> Choice:
    """Return which weight of the domain text to use, among those asked for.

    The best has the least mean log-perplexity ratio to the dense model over domain text and general text, half each.
    A weight is tied with it when the 95 % interval of their paired difference includes 0, by windows. Among the best
    and its ties the one nearest to 1/2 is chosen, the default that needs no search; of two equally near ones, the one
    with the lower loss. The sentence says when the data cannot tell weights apart, and what was missing.
    """
    settings, runs = page.settings, _runs(page)
    missing = [f"{weight:g}" for weight in settings.weights if weight not in runs] if None not in runs else []
    note = f" Not stored, so not compared: w = {listing(missing)}." if missing else ""
    if not runs:
        return Choice(None, (), "No run of this method and target is stored, so nothing can be recommended.")
    if None in runs:
        label = style_of(settings.method).label
        return Choice(None, (), f"{label} reads no calibration text, so there is no weight to choose.")
    if len(runs) == 1:
        (weight,) = runs
        only = f"Only {_weight_name(weight, settings)} is here, so there is nothing to choose between.{note}"
        return Choice(weight, (), only)
    scores = {weight: _balanced(page, run_id, page.results.dense_id) for weight, run_id in runs.items()}
    if any(math.isnan(score.value) for score in scores.values()):
        return Choice(None, (), f"No held-out text is common to all runs, so no weight can be recommended.{note}")
    best = min(scores, key=lambda weight: scores[weight].value)
    gaps = {w: _balanced(page, runs[w], runs[best]) for w in runs if w != best}
    tied = tuple(weight for weight, gap in gaps.items() if gap.lo <= 1.0)
    chosen = min((best, *tied), key=lambda w: (round(abs(w - DEFAULT_WEIGHT), 9), scores[w].value))
    return Choice(chosen, tied, _why(settings, scores, gaps, best, tied, chosen) + note)


def _why(settings: ReportCardSettings, scores: dict, gaps: dict, best: float, tied: tuple, chosen: float) -> str:
    ratio = scores[chosen].text(times)
    text = (
        f"Use {_weight_name(chosen, settings)}: over {_named(settings.domain)} and general text, half each, it has "
        f"{ratio} the dense perplexity"
    )
    if tied:
        names = listing([f"{weight:g}" for weight in sorted((best, *tied))])
        widest = _percent(gaps[max(tied, key=lambda weight: gaps[weight].hi)])
        text += (
            f". The data cannot tell w = {names} apart (the widest difference from the least loss, at w = {best:g}, is "
            f"{widest}), so the one nearest to 1/2 is taken"
        )
    else:
        text += ", the least of all weights asked for, beyond the intervals of the paired differences"
    worse = [f"w = {weight:g} by {_percent(gaps[weight])}" for weight in scores if weight not in (best, *tied)]
    return text + (f". Worse than w = {best:g}: {listing(worse)}" if worse else "") + "."


def _nearest_mix(runs: dict[Weight, str]) -> float | None:
    """The weight strictly between 0 and 1 that is nearest to 1/2, if any.

    >>> _nearest_mix({0.0: "a", 0.25: "b", 0.5: "c", 1.0: "d"}), _nearest_mix({None: "a"})
    (0.5, None)
    """
    mixes = [weight for weight in runs if weight is not None and 0.0 < weight < 1.0]
    return min(mixes, key=lambda weight: abs(weight - DEFAULT_WEIGHT)) if mixes else None


# ------------------------------------------------------------------------------------------ claims


def _subject(page: Page) -> dict:
    settings = page.settings
    return {
        "method": style_of(settings.method).label,
        "target": str(parse_target(settings.target)),
        "domain": _named(settings.domain),
        "general": _named(settings.general),
    }


def _kept_rows(page: Page) -> pd.DataFrame:
    """Perplexity on either side and accuracy over all tasks, at the recommended setting, each judged by its word."""
    runs, choice = _runs(page), recommend(page).weight
    if not runs:
        return pd.DataFrame()
    weight = choice if choice in runs else next(iter(runs))
    rows = []
    for measure in _losses(page, runs[weight]):
        if measure.kind == "ratio" or "all tasks" in measure.name:
            p_yes, p_no = float(measure.word != KEPT_WORD), float(measure.word not in (SOME, MUCH))
            judged = {"p_yes": p_yes, "p_yes_holm": p_yes, "p_no": p_no, "p_no_holm": p_no}  # the intervals' words
            line = {**_subject(page), **vars(measure.estimate), **judged, "name": str(measure)}
            rows.append(line | {"setting": _weight_name(weight, page.settings)})
    return pd.DataFrame(rows)


CHAPTER.claim(
    "kept",
    "{method} to {target} keeps the model",
    _kept_rows,
    every("no worse"),
    on=PERPLEXITY,
    evidence=FIGURE,
    each="method",
    says=lambda _, rows: f"with {rows['setting'].iloc[0]}, {listing(list(rows['name']))}",
    otherwise="Compression keeps the model",
    missing=lambda page: (
        "no text and no task is common to all runs" if _runs(page) else "no run of this method and target is stored"
    ),
)


def _mix_rows(page: Page, reference: float, side: int) -> pd.DataFrame:
    """The mix nearest to 1/2 against one text alone, on the domain's text (side 0) or on general text."""
    runs, names = _runs(page), _texts(page)[side]
    mix = _nearest_mix(runs)
    if mix is None or reference not in runs or not names:
        return pd.DataFrame()
    ratio = _text_ratio(page, runs[mix], runs[reference], names)
    pair = f"{_weight_name(mix, page.settings)} against {_weight_name(reference, page.settings)}"
    return pd.DataFrame(
        [{**_subject(page), **vars(ratio), "name": pair, "run_id": runs[mix], "other": runs[reference]}]
    )


def _mix_effect(_: Page, rows: pd.DataFrame) -> str:
    """The change of perplexity; the test's least p is 2^(1 - windows), so that few windows cannot show a saving."""
    row = rows.iloc[0]
    few = f"; {row['n']} windows are too few to tell by this test" if 2.0 ** (1 - row["n"]) >= LEVEL else ""
    change = _percent(Estimate(row["value"], row["lo"], row["hi"], row["n"]))
    return f"perplexity with {row['name']}: {change}, {p_text(row['p_holm'])}{few}"


def _needs(reference: float):
    return lambda page: f"it needs runs of a mix and {_weight_name(reference, page.settings)}, evaluated on that text"


for name, sentence, reference, side, otherwise in (
    ("mix-saves-domain", "Mixing {domain} into {general} saves perplexity on {domain}", 0.0, 0,
     "Mixing the domain's text into general text saves perplexity on it"),
    ("mix-spares-general", "The mix costs general text less than {domain} alone", 1.0, 1,
     "The mix costs general text less than the domain's text alone"),
):  # fmt: skip
    CHAPTER.claim(
        name,
        sentence,
        lambda page, reference=reference, side=side: _mix_rows(page, reference, side),
        every("better", by=SMALL),
        on=PERPLEXITY,
        family="mix",
        evidence=FIGURE,
        each="method",
        says=_mix_effect,
        otherwise=otherwise,
        missing=_needs(reference),
    )

# ------------------------------------------------------------------------------------------ figure, tables and card


def _panels(measures: list[Measure]) -> list[Measure]:
    """Perplexity first, then one divergence and one accuracy, then what is left, as many as fit."""
    ranked = sorted(measures, key=lambda m: list(LIMITS).index(m.kind))
    picked = [m for m in ranked if m.kind == "ratio"]
    for kind in ("divergence", "change"):  # one of each before a second of any
        picked += [m for m in ranked if m.kind == kind][:1]
    return [*picked, *[m for m in ranked if m not in picked]][:PANELS]


@CHAPTER.figure(FIGURE)
def _card_figure(page: Page):
    """Up to four losses, one panel each, a line per setting; what counts as kept is shaded."""
    settings, runs = page.settings, _runs(page)
    losses = {weight: {m.name: m for m in _losses(page, run_id)} for weight, run_id in runs.items()}
    chosen = _panels(list(next(iter(losses.values()), {}).values()))
    what = f"{style_of(settings.method).label} to {parse_target(settings.target)}"
    if not chosen:
        return f"No run of {what} is stored, so there is nothing to show."
    rows, axes = [], {}
    for first in chosen:
        scale, limit = 100.0 if first.kind in ("flips", "change") else 1.0, LIMITS[first.kind][0]
        title, start = first.name.replace("\\", ""), 1.0 if first.kind == "ratio" else 0.0
        end = -limit * scale if first.kind == "change" else limit * scale
        axes[title] = Axis(UNITS[first.kind], lines={"": start}, band=(min(start, end), max(start, end)))
        for weight, measures in losses.items():
            one = measures[first.name]
            line = {"run_id": runs[weight], "weight": weight, "panel": title, "word": one.word}
            line["name"] = _weight_name(weight, settings).replace("\\", "")
            estimate = one.estimate.map(lambda value, scale=scale: scale * value)
            rows.append(line | {k: v for k, v in vars(estimate).items() if k != "p"})
    frame = pd.DataFrame(rows)
    choice = recommend(page).weight
    weight = choice if choice in losses else next(iter(losses))
    name = "the recommended setting" if weight == choice and len(losses) > 1 else "the setting"
    parts = [losses[weight][m.name] for m in chosen]
    parts = [f"{m.name} {m.number.split(' [')[0]} ({m.word})" for m in parts]
    words = f"At {name}, {_weight_name(weight, settings)}: {listing(parts)}."
    caption = (
        f"Report card of {settings.model}, {what}. {words} Shaded: counts as kept. Dark line: the dense model. Bars: "
        "95 % bootstrap intervals, paired with it."
    )
    drawing = forest(frame, axes, size=(6.6, 0.36), columns=2, labels=frame["word"])
    return drawing, caption, f"Losses of each calibration setting. {words}".replace("\\", "")


@CHAPTER.table("losses")
def _losses_table(page: Page) -> Table:
    """One line per loss, one column per setting: the loss with interval, and its word."""
    runs, choice = _runs(page), recommend(page)
    by_weight = [_losses(page, run_id) for run_id in runs.values()]
    marks = [" ←" * (weight == choice.weight and len(runs) > 1) for weight in runs]
    head = ["lost", *[_weight_name(w, page.settings) + mark for w, mark in zip(runs, marks, strict=True)]]
    lines = zip(*by_weight, strict=True)
    body = [[line[0].name, *[f"{m.number}, **{m.word}**" for m in line]] for line in lines]
    ratio, divergence, flips, change = (LIMITS[kind] for kind in ("ratio", "divergence", "flips", "change"))
    note = (
        "Against the dense model on the same windows and items, in brackets 95 % bootstrap intervals. *Kept*: the "
        f"interval stays within {ratio[0]:g} times the perplexity, {divergence[0]:.3f} nats of JS divergence, "
        f"{100 * flips[0]:.0f} % flipped answers or {100 * change[0]:.0f} points; *much loss*: it begins at "
        f"{ratio[1]:g} times, {divergence[1]:.3f} nats, {100 * flips[1]:.0f} % or {100 * change[1]:.0f} points; "
        "*some loss*: between the two; *unclear*: it holds both sides of what counts as kept."
        + " ← marks the recommended setting."
        * (len(runs) > 1 and choice.weight is not None)
    )
    return Table(head, body, note)


@lru_cache(maxsize=8)
def _savings(page: Page) -> list[tuple[str, dict[str, tuple[str, Estimate]]]]:
    """Every other setting against general text alone, then the mix nearest to 1/2 against the domain text alone.

    (pair, {measure: (kind, estimate)}) of domain and general perplexity and of mean accuracy, as far as known.
    """
    runs, settings = _runs(page), page.settings
    pairs = [(weight, 0.0) for weight in runs if weight not in (0.0, None)] if 0.0 in runs else []
    mix = _nearest_mix(runs)
    pairs += [(mix, 1.0)] if mix is not None and 1.0 in runs else []
    sides = zip((f"perplexity, {_named(settings.domain)}", "perplexity, general"), _texts(page), strict=True)
    sides, saved = [(side, names) for side, names in sides if names], []
    for weight, reference in pairs:
        both = runs[weight], runs[reference]
        cells = {side: ("ratio", _text_ratio(page, *both, names)) for side, names in sides}
        for group, names in _task_groups(page).items():
            cells[f"accuracy, {group}"] = ("change", _task_change(page, *both, names))
        saved.append((f"{_weight_name(weight, settings)} against {_weight_name(reference, settings)}", cells))
    return saved


def _saved(kind: str, estimate: Estimate) -> str:
    return _percent(estimate) if kind == "ratio" else _number(kind, estimate)


@CHAPTER.table("savings")
def _savings_table(page: Page) -> Table:
    """What calibration saved: every other setting against general text alone, and the mix against the domain alone."""
    saved = _savings(page)
    columns = list(saved[0][1]) if saved else []
    p = {column: holm([cells[column][1].p for _, cells in saved]) for column in columns}
    body = [
        [pair, *[_saved(*cells[column]) + r"\*" * bool(p[column][number] < LEVEL) for column in columns]]
        for number, (pair, cells) in enumerate(saved)
    ]
    note = (
        "Negative perplexity and positive accuracy are savings. In brackets: 95 % bootstrap intervals, paired by "
        f"window or item. \\* sign-flip p < {LEVEL}, Holm-corrected over each column. One draw of calibration text: "
        "what another draw would give is not in the intervals."
    )
    if not saved:
        note = "Nothing to compare: this needs general text alone, or a mix and domain text alone."
    return Table(["setting", *columns], body, note)


@CHAPTER.table("card")
def _card(page: Page) -> str:
    """The whole card as text that reads well as it is: what was lost, what calibration saved, which setting to use."""
    settings, runs, choice = page.settings, _runs(page), recommend(page)
    title = f"**Report card: {settings.model}, {style_of(settings.method).label} to {parse_target(settings.target)}**"
    domain, general = _texts(page)
    held_out = f" Held-out general text: {listing([_named(name) for name in general])}." if general else ""
    held_out += "" if domain else " The domain's held-out text was not evaluated."
    sources = f"General text {_named(settings.general)}, domain text {_named(settings.domain)}.{held_out}"
    parts = [title, f"{sources} {_sizes(page)}"]
    for weight, run_id in runs.items():
        mark = ", recommended" * (weight == choice.weight and len(runs) > 1)
        lines = [f"- {measure}" for measure in _losses(page, run_id)]
        parts.append("\n".join([f"**What was lost, {_weight_name(weight, settings)}{mark}**\n", *lines]))
    saved = []
    for pair, cells in _savings(page):
        texts = [f"{_side(name)} {_saved(*one)}" for name, one in cells.items()]
        saved.append(f"- {pair}: {listing(texts) or 'nothing was evaluated on both'}")
    if saved:
        parts.append("\n".join(["**What calibration saved**\n", *saved]))
    parts.append(f"**Which setting to use**\n\n{choice.sentence}")
    return "\n\n".join(parts) + "\n"


def _side(name: str) -> str:
    """A measure's name in a sentence: `perplexity on general text`, `accuracy, all tasks,`."""
    if name == "perplexity, general":
        return "perplexity on general text"
    return name.replace("perplexity, ", "perplexity on ") if name.startswith("perplexity") else f"{name},"


def _sizes(page: Page) -> str:
    if not _runs(page):
        return "No run is stored."
    run = page.every.describe_run(next(iter(_runs(page).values())))
    made = f"{run['n_windows']} windows of {run['window']} tokens from each text, one draw" if run["n_windows"] else ""
    return f"A weight takes {run['storage_bits']:.2f} bits{'; calibrated on ' * bool(made)}{made}."
