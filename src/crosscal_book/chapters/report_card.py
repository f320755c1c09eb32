"""Chapter 8: the report card of one model, method and domain: what was lost, what calibration saved, what to use.

Words stand beside the numbers so that nobody needs colour to read the card: `kept`, `some loss`, `much loss`, and
`unclear` where the interval holds both sides of a limit.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pandas as pd

from crosscal.plan.parameters import ReportCardSettings
from crosscal.results.compare import PROMPTS, accuracy_tasks, paired
from crosscal.results.frame import Results
from crosscal.results.quantities import ACCURACY, DIVERGENCE, PERPLEXITY
from crosscal.stats import LEVEL, Estimate, Paired, holm
from crosscal.text import domain_of
from crosscal.types import parse_target
from crosscal_book.chapter import Chapter, Page
from crosscal_book.claims import every
from crosscal_book.drawing import Axis
from crosscal_book.marks import forest
from crosscal_book.numbers.experts import experts_figure
from crosscal_book.style import style_of
from crosscal_book.tables import Table
from crosscal_book.words import KEPT, cell, interval, listing, points, times

# kind of measure -> (up to this it is kept, from this on it is much; its axis; how it is written, and in which unit).
# A convention, set before any run was seen: perplexity as in the study's other chapters, and doubled; JS divergence is
# to first order a quarter of KL, which is the expected rise of the log-perplexity on text of the dense model's own; of
# a task's items a change of 3 in 100 is about what can be seen in a few hundred, and 10 in 100 is what a user notices.
KINDS = {
    "ratio": (KEPT, 2.0, "times dense", times, ""),
    "divergence": (math.log(KEPT) / 4, math.log(2.0) / 4, "nats per token", "{:.3f}".format, " nats"),
    "change": (0.03, 0.10, "points", points, " points"),
    "flips": (0.05, 0.20, "% of items", lambda share: f"{100 * share:.1f} %", ""),
}
KEPT_WORD, SOME, MUCH, UNCLEAR = "kept", "some loss", "much loss", "unclear"
# A change of perplexity below one in a hundred is called none; panels of the figure; letters of a file's name
SMALL, DEFAULT_WEIGHT, PANELS, LONGEST = 0.01, 0.5, 4, 18
FIGURE, GENERAL, PERCENT = "fig-report-card", "general text", ("change", "flips")
LINE = ["lost", "run_id", "measure", "kind", "word", "text", "value", "lo", "hi", "n", "p"]
LINE += ["weight", "reference", "setting", "pair", "chosen", "mix", "said"]
Weight = float | None  # of the domain text; None for a method that reads no text


@lru_cache(maxsize=8)
def _runs_by_weight(results: Results, settings: ReportCardSettings) -> dict[Weight, str]:
    """The run of each weight that was asked for and is stored, by weight; data-free methods have one, under None."""
    found: dict[Weight, str] = {}
    wanted = (settings.method, str(parse_target(settings.target)), settings.seed, settings.model)
    for run in results.runs.to_dict("records"):
        known = {"": None, settings.general: 0.0, settings.domain: 1.0}
        known[f"{settings.general}+{settings.domain}"] = float(run["weight"])
        if wanted == (run["method"], run["target"], run["seed"], run["model"]) and run["calibration"] in known:
            weight = known[run["calibration"]]
            asked = [w for w in settings.weights if weight is not None and math.isclose(w, weight, abs_tol=1e-6)]
            found.setdefault(asked[0] if asked else weight, run["run_id"])
    return {w: found[w] for w in ([None] if None in found else sorted(set(settings.weights))) if w in found}


CHAPTER = Chapter(
    "report_card",
    note=lambda page: f"**Which setting.** {recommend(page).sentence}",
    prepare=lambda results, settings: results.subset(list(_runs_by_weight(results, settings).values())).common(),
)


def _runs(page: Page) -> dict[Weight, str]:
    return _runs_by_weight(page.every, page.settings)


def _named(source: str) -> str:
    r"""A text source as Markdown that is read as it stands: a file by its name alone, cut in the middle where long.

    >>> _named("/home/me/notes.jsonl"), _named("hub:me/bills"), _named("a|b $1.txt"), _named("letters_2019_2024.txt")
    ('notes.jsonl', 'hub:me/bills', 'a\\|b \\$1.txt', 'letters_…2024.txt')
    """
    name = source if source.startswith("hub:") else source.replace("\\", "/").rsplit("/", 1)[-1]
    name = name if len(name) <= LONGEST else f"{name[: LONGEST // 2 - 1]}…{name[-(LONGEST // 2 - 1) :]}"
    return "".join(f"\\{letter}" if letter in "\\|$*`<[]" else letter for letter in name)


def _setting(weight: Weight, settings: ReportCardSettings) -> str:
    """A setting for people: `w = 0.5`, `w = 1 (pubmed alone)`, `no text`."""
    alone = {0.0: f" ({_named(settings.general)} alone)", 1.0: f" ({_named(settings.domain)} alone)"}
    return "no text" if weight is None else f"w = {weight:g}{alone.get(weight, '')}"


def _texts(page: Page) -> dict[str, list[str]]:
    """The domain's held-out text, and the texts of the general source's kind, else all general ones, else the others.

    Whether the domain is one of the preset's texts or not, it is never part of the general side; nor are task prompts.
    """
    rows = page.results.only(run_id=page.results.dense_id, metric=PERPLEXITY.name)
    rows = rows[rows["domain"] != PROMPTS]
    own = rows["eval_set"] == page.settings.domain
    kinds, others = (domain_of(page.settings.general), "general"), rows[~own]
    parts = [part for kind in kinds if kind != "own" and len(part := others[others["domain"] == kind])]
    sides = {_named(page.settings.domain): list(rows[own]["eval_set"]), GENERAL: list([*parts, others][0]["eval_set"])}
    return {side: names for side, names in sides.items() if names}


def _task_groups(page: Page) -> dict[str, list[str]]:
    """The usable accuracy tasks: all, and the domain's own where there are some besides others."""
    table, kind = accuracy_tasks(page.results), domain_of(page.settings.domain)
    every, own = list(table["eval_set"]), list(table.loc[table["domain"] == kind, "eval_set"])
    groups = {"all": every} | ({kind: own} if len(own) < len(every) else {})
    return {f"{name} tasks ({len(tasks)})": tasks for name, tasks in groups.items() if tasks}


def _word(kind: str, lo: float, hi: float) -> str:
    """What an interval says by the limits of its kind; a change is lost when negative."""
    (least, great), (lo, hi) = KINDS[kind][:2], (-hi, -lo) if kind == "change" else (lo, hi)
    return KEPT_WORD if hi <= least else UNCLEAR if lo <= least else MUCH if lo >= great else SOME


def _compared(page: Page, run_id: str, other: str) -> pd.DataFrame:
    """A run against another by `measure`; against the dense one divergence and flips, too, else ratios in per cent."""
    results, lost = page.results, other == page.results.dense_id
    sides, groups, stored = _texts(page), _task_groups(page), results.items[run_id]
    found = [(f"perplexity, {side}", "ratio", paired(results, run_id, other, PERPLEXITY, names))
             for side, names in sides.items()]  # fmt: skip
    found += [(f"JS divergence, {side}", "divergence", paired(results, run_id, None, DIVERGENCE, names))
              for side, names in sides.items()
              if lost and all(DIVERGENCE.items[0] in stored[name] for name in names)]  # fmt: skip
    changed = {group: paired(results, run_id, other, ACCURACY, names) for group, names in groups.items()}
    if lost and groups:
        flipped = {task: np.abs(gaps) for task, gaps in next(iter(changed.values())).values.items()}
        found.append(("answers flipped", "flips", Paired.equal(flipped)))
    found += [(f"accuracy, {group}", "change", both) for group, both in changed.items()]
    rows = []
    for measure, kind, both in found:
        one = both.estimate(test=True).map(math.exp if kind == "ratio" else float)
        text = interval(one.value, one.lo, one.hi, *KINDS[kind][3:]) if lost or kind != "ratio" else _percent(one)
        facts = {"run_id": run_id, "measure": measure, "kind": kind, "word": _word(kind, one.lo, one.hi), "text": text}
        rows.append({**facts, **vars(one), "lost": lost, "said": f"{measure} {text} ({facts['word']})"})
    return pd.DataFrame(rows, columns=None if rows else LINE)


def _percent(ratio: Estimate) -> str:
    """A ratio as a change in per cent, with interval: `−3.2 % [−4.0, −2.5]`."""
    return cell(vars(ratio.map(lambda value: value - 1)), write=points, unit=" %")


@lru_cache(maxsize=8)
def _lines(page: Page) -> pd.DataFrame:
    """What each run `lost`; what settings saved against general text alone, and a `mix` against domain text alone."""
    settings, choice, frames = page.settings, recommend(page).weight, [pd.DataFrame(columns=LINE)]
    runs, names = _runs(page), {"domain": _named(settings.domain), "general": _named(settings.general)}
    mix = min((w for w in runs if w and w < 1), key=lambda w: abs(w - DEFAULT_WEIGHT), default=None)
    others = runs | {"dense": page.results.dense_id}
    for weight, other in [*((w, "dense") for w in runs), *((w, 0.0) for w in runs if w), (mix, 1.0)]:
        if weight in runs and other in others:  # chosen: the recommended one of several settings
            setting, chosen = _setting(weight, settings), weight == choice and len(runs) > 1
            facts = {"method": style_of(settings.method).label, "target": str(parse_target(settings.target)), **names}
            facts |= {"weight": weight, "reference": other, "setting": setting, "chosen": chosen, "mix": weight == mix}
            pair = "" if other == "dense" else f"{setting} against {_setting(other, settings)}"
            frames.append(_compared(page, runs[weight], others[other]).assign(**facts, pair=pair))
    frame = pd.concat(frames[1:] or frames, ignore_index=True).astype({"lost": bool, "chosen": bool, "mix": bool})
    return frame.assign(p_holm=frame.groupby(["lost", "measure"])["p"].transform(holm))


@dataclass(frozen=True)
class Choice:
    """The weight to use, those the data cannot tell from the best, and the sentence that says so."""

    weight: Weight
    tied: tuple[float, ...]
    sentence: str


def _balanced(page: Page, run_id: str, other: str) -> Estimate:
    """The perplexity ratio, geometric mean over domain and general text, half each, or over the one there is."""
    sides = _texts(page).values()
    weights = {name: 1 / (len(sides) * len(names)) for names in sides for name in names}
    both = paired(page.results, run_id, other, PERPLEXITY, list(weights))
    return replace(both, weights=weights).estimate().map(math.exp)


def recommend(page: Page) -> Choice:
    """Return which weight of the domain text to use, among those asked for.

    The best has the least mean log-perplexity ratio to the dense model over domain text and general text, half each.
    A weight is tied with it when the 95 % interval of their paired difference includes 0, by windows. Among the best
    and its ties the one nearest to 1/2 is chosen, the default that needs no search; of two equally near ones, the one
    with the lower loss. The sentence says when the data cannot tell weights apart, and what was missing.
    """
    settings, runs = page.settings, _runs(page)
    missing = [f"{weight:g}" for weight in settings.weights if weight not in runs] if None not in runs else []
    note = f" Not stored, so not compared: w = {listing(missing)}." * bool(missing)
    if not runs:
        return Choice(None, (), "No run of this method and target is stored, so nothing can be recommended.")
    only, label = next(iter(runs)), style_of(settings.method).label
    if only is None:
        return Choice(None, (), f"{label} reads no calibration text, so there is no weight to choose.")
    if len(runs) == 1:
        return Choice(only, (), f"Only {_setting(only, settings)} is here: there is nothing to choose between.{note}")
    if not _texts(page):
        return Choice(None, (), f"No held-out text is common to all runs, so no weight can be recommended.{note}")
    scores = {weight: _balanced(page, run_id, page.results.dense_id) for weight, run_id in runs.items()}
    best = min(scores, key=lambda weight: scores[weight].value)
    gaps = {weight: _balanced(page, runs[weight], runs[best]) for weight in runs if weight != best}
    tied = tuple(weight for weight, gap in gaps.items() if gap.lo <= 1.0)
    chosen = min((best, *tied), key=lambda w: (round(abs(w - DEFAULT_WEIGHT), 9), scores[w].value))
    said = f"Use {_setting(chosen, settings)}: over {_named(settings.domain)} and general text, half each, it has "
    said += f"{scores[chosen].text(times)} the dense perplexity"
    if tied:
        names = listing([f"{weight:g}" for weight in sorted((best, *tied))])
        widest = _percent(gaps[max(tied, key=lambda weight: gaps[weight].hi)])
        said += f". The data cannot tell w = {names} apart (the widest difference from the least loss, at w = {best:g},"
        said += f" is {widest}), so the one nearest to 1/2 is taken"
    else:
        said += ", the least of all weights asked for, beyond the intervals of the paired differences"
    worse = [f"w = {weight:g} by {_percent(gap)}" for weight, gap in gaps.items() if weight not in tied]
    return Choice(chosen, tied, f"{said}{f'. Worse than w = {best:g}: {listing(worse)}' * bool(worse)}.{note}")


def _shown(page: Page) -> pd.DataFrame:
    """The losses of the recommended setting, else of the first."""
    losses = _lines(page).query("lost")
    first = losses["setting"].isin(losses["setting"].head(1))
    return losses[losses["chosen"] if losses["chosen"].any() else first]


def _kept_rows(page: Page) -> pd.DataFrame:
    """Perplexity on either side and accuracy over all tasks, at the recommended setting, each judged by its word."""
    rows = _shown(page).query("kind == 'ratio' or measure.str.contains('all tasks')")
    yes, no = ((~rows["word"].isin(words)).astype(float) for words in ((KEPT_WORD,), (SOME, MUCH)))
    return rows.assign(name=rows["said"], p_yes=yes, p_yes_holm=yes, p_no=no, p_no_holm=no)


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
    missing="no run of this method and target is stored, or no text and no task is common to all runs",
)


def _mix_rows(page: Page, reference: float) -> pd.DataFrame:
    """The mix against one text alone, on the other's kind; few windows show nothing: p is at least 2^(1 - n)."""
    side = _named(page.settings.domain) if reference == 0 else GENERAL
    rows = _lines(page).query("not lost")
    rows = rows[rows["mix"] & (rows["reference"] == reference) & (rows["measure"] == f"perplexity, {side}")]
    few = [f"; {n} windows are too few to tell by this test" * (2.0 ** (1 - n) >= LEVEL) for n in rows["n"]]
    return rows.assign(name=rows["pair"], few=few).drop(columns="p_holm")


for name, sentence, reference, otherwise in (
    ("mix-saves-domain", "Mixing {domain} into {general} saves perplexity on {domain}", 0.0,
     "Mixing the domain's text into general text saves perplexity on it"),
    ("mix-spares-general", "The mix costs general text less than {domain} alone", 1.0,
     "The mix costs general text less than the domain's text alone"),
):  # fmt: skip
    CHAPTER.claim(
        name,
        sentence,
        lambda page, reference=reference: _mix_rows(page, reference),
        every("better", by=SMALL),
        on=PERPLEXITY,
        family="mix",
        evidence=FIGURE,
        each="method",
        says="perplexity with {name}: {text}, {p}{few}",
        otherwise=otherwise,
        missing=f"it needs runs of a mix and of w = {reference:g}, evaluated on that text",
    )


@CHAPTER.figure(FIGURE)
def _card_figure(page: Page):
    settings, shown, losses, axes = page.settings, _shown(page), _lines(page).query("lost"), {}
    what = f"{style_of(settings.method).label} to {parse_target(settings.target)}"
    if shown.empty:
        return f"No run of {what} is stored, so there is nothing to show."
    nth = shown.groupby("kind").cumcount().mask(shown["kind"] == "ratio", -1) + 2 * (shown["kind"] == "flips")
    shown = shown.loc[nth.sort_values(kind="stable").index[:PANELS]]
    for panel, kind in shown[["measure", "kind"]].to_numpy():
        scale, start = 100.0 if kind in PERCENT else 1.0, float(kind == "ratio")
        kept = KINDS[kind][0] * (-scale if kind == "change" else scale)
        axes[_plain(panel)] = Axis(KINDS[kind][2], lines={"": start}, band=(min(start, kept), max(start, kept)))
    frame = pd.concat([losses[losses["measure"] == measure] for measure in shown["measure"]], ignore_index=True)
    scaled = frame[["value", "lo", "hi"]].mul(frame["kind"].isin(PERCENT).map({True: 100.0, False: 1.0}), axis=0)
    frame = frame.assign(panel=frame["measure"].map(_plain), name=frame["setting"].map(_plain), **scaled)
    frame = frame[["run_id", "weight", "panel", "name", "value", "lo", "hi", "n", "word"]]
    values = [f"{m} {text.split(' [')[0]} ({word})" for m, text, word in shown[["measure", "text", "word"]].to_numpy()]
    setting = f"{'recommended ' * bool(shown['chosen'].any())}setting, {shown['setting'].iloc[0]}"
    said = f"Report card of {settings.model}, {what}. At the {setting}: {listing(values)}."
    rest = " Shaded: counts as kept. Dark line: the dense model. Bars: 95 % bootstrap intervals, paired with it."
    return forest(frame, axes, size=(6.6, 0.36), columns=2, labels=frame["word"]), said + rest, _plain(said)


CHAPTER.figure("fig-report-experts")(lambda page: experts_figure(page, _runs(page).values()))


def _plain(text: str) -> str:
    return text.replace("\\", "")


@CHAPTER.table("losses")
def _losses_table(page: Page) -> Table:
    losses = _lines(page).query("lost")
    settings = losses["setting"] + losses["chosen"].map({True: " ←", False: ""})
    cells = zip(losses["measure"], settings, losses["text"] + ", **" + losses["word"] + "**", strict=True)
    ratio, nats, change, flips = (limits[:2] for limits in KINDS.values())
    note = "Against the dense model on the same windows and items, in brackets 95 % bootstrap intervals. *Kept*: the "
    note += f"interval stays within {ratio[0]:g} times the perplexity, {nats[0]:.3f} nats of JS divergence, "
    note += f"{100 * flips[0]:.0f} % flipped answers or {100 * change[0]:.0f} points; *much loss*: it begins at "
    note += f"{ratio[1]:g} times, {nats[1]:.3f} nats, {100 * flips[1]:.0f} % or {100 * change[1]:.0f} points; *some "
    note += "loss*: between the two; *unclear*: it holds both sides of what counts as kept."
    return Table.of_cells(cells, "lost", note + " ← marks the recommended setting." * bool(losses["chosen"].any()))


@CHAPTER.table("savings")
def _savings_table(page: Page) -> Table:
    saved = _lines(page).query("not lost").to_dict("records")
    cells = [(line["pair"], line["measure"], line["text"] + r"\*" * bool(line["p_holm"] < LEVEL)) for line in saved]
    if not cells:
        return Table(["setting"], [], "Nothing to compare: give general text alone, or a mix and domain text alone.")
    note = "Negative perplexity and positive accuracy are savings. In brackets: 95 % bootstrap intervals, paired by "
    note += (
        f"window or item. \\* sign-flip p < {LEVEL}, Holm-corrected over each column. One draw of calibration text: "
    )
    return Table.of_cells(cells, "setting", note + "what another draw would give is not in the intervals.")


@CHAPTER.table("card")
def _card(page: Page) -> str:
    settings, texts, domain = page.settings, _texts(page), _named(page.settings.domain)
    title = f"**Report card: {settings.model}, {style_of(settings.method).label} to {parse_target(settings.target)}**"
    general = listing([_named(name) for name in texts.get(GENERAL, [])])
    about = f"General text {_named(settings.general)}, domain text {domain}."
    about += f" Held-out general text: {general}." * bool(general)
    about += " The domain's held-out text was not evaluated." * (domain not in texts)
    run = page.every.describe_run(next(iter(_runs(page).values()), page.every.dense_id))
    made = f"; calibrated on {run['n_windows']} windows of {run['window']} tokens from each text, one draw"
    sizes = f"A weight takes {run['storage_bits']:.2f} bits{made * bool(run['n_windows'])}."
    parts = [title, f"{about} {sizes if _runs(page) else 'No run is stored.'}"]
    for (setting, chosen), own in _lines(page).query("lost").groupby(["setting", "chosen"], sort=False):
        head = f"**What was lost, {setting}{', recommended' * bool(chosen)}**\n\n"
        parts.append(head + "\n".join("- " + own["said"]))
    saved = _lines(page).query("not lost").groupby("pair", sort=False)
    lines = [f"- {pair}: {'; '.join(own['measure'] + ' ' + own['text'])}" for pair, own in saved]
    parts += ["\n".join(["**What calibration saved**\n", *lines])] if lines else []
    return "\n\n".join([*parts, f"**Which setting to use**\n\n{recommend(page).sentence}"]) + "\n"
