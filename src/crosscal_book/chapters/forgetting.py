"""Chapter 6: what is forgotten first, knowledge, reading or robustness, and what low rank costs beside pruning.

A task's accuracy is put on a common axis as the *share of skill kept*: (accuracy - chance) / (dense accuracy - chance),
1 for the dense model and 0 for guessing. A skill's share is the ratio of the means over its tasks, which one task near
chance cannot blow up.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

from crosscal.metrics.tasks import TASKS
from crosscal.results.compare import accuracy_tasks, changes, paired, run_measures, tasks
from crosscal.results.quantities import ACCURACY, PERPLEXITY
from crosscal.stats import LEVEL, Estimate, bootstrap_statistic, holm
from crosscal_book.chapter import Chapter, Page
from crosscal_book.claims import every, mean, select, some
from crosscal_book.drawing import Axis
from crosscal_book.marks import forest, lines, scatter
from crosscal_book.style import MethodStyle, style_of
from crosscal_book.tables import Table
from crosscal_book.words import KEPT, cell, interval, listing, p_text, points, run_name, times

# A loss below one point is called none, as in chapter 1. Shares of skill that differ by less than a twentieth of the
# skill are called the same: less than one item in forty of a task whose dense accuracy is 50 points above chance. A
# run with at least `RUINED` times the dense perplexity has collapsed, and says more of collapse than of what goes
# first: it is drawn, but enters no contrast. Storage counts as equal within a tenth: ranks and patterns are steps.
# All set before the runs were made.
MARGIN, SAME, RUINED, EQUAL_STORAGE = 0.01, 0.05, 10.0, 0.10
LOWEST, HIGHEST = -40.0, 140.0  # shares of skill (%) beyond are cut: below 0 is worse than guessing
FAR = 100.0  # runs with a higher relative perplexity are named in the storage figure's caption
PERTURBATIONS = {"typos": "_typos", "rephrasing": "_rephrased"}
RIVALS = ("svd", "fwsvd")
POOLED = "mean of runs"
LOOKS = {  # the three differ in lightness, and each is readable on white
    "knowledge": MethodStyle("knowledge", "#A3241B", "o"),
    "reading": MethodStyle("reading", "#123F7A", "s"),
    "language": MethodStyle("language", "#5B7F00", "^"),
}
RUN_LOOKS = {"run": MethodStyle("run", "#0067A5", "o"), POOLED: MethodStyle(POOLED, "#111111", "D")}
WITHIN = f"within {100 * (KEPT - 1):.0f} % of the dense model's"
FACTS = ["run_id", "method", "target", "calibration", "weight"]
SKILLS_FIGURE, STORAGE_FIGURE = "fig-forgetting-skills", "fig-forgetting-storage"


def _note(page: Page) -> str:
    """What was left out, and how far perturbations move the dense model itself."""
    runs, parts = _runs(page), []
    if runs["ruined"].any():
        text = f"Left out of contrasts, because perplexity is at least {RUINED:g} times the dense model's"
        parts.append(f"{text}: {listing([run_name(run) for run in runs[runs['ruined']].to_dict('records')])}.")
    table = tasks(page.results)
    if not table["usable"].all():
        names = listing(sorted(table.loc[~table["usable"], "eval_set"]))
        parts.append(f"Left out, because the dense model is not above chance: {names}.")
    for kind, ending in PERTURBATIONS.items():
        if pairs := _variants(page, ending):
            gap = _dense_gap(page, pairs).text(points).replace(" [", " points [")
            text = f"The dense model itself changes by {gap}"
            parts.append(f"{text} when questions are given {kind}." if kind == "typos" else f"{text} by {kind}.")
    return " ".join(parts)


CHAPTER = Chapter("forgetting", note=_note)

# ------------------------------------------------------------------------------------------ skills and contrasts


@lru_cache(maxsize=8)
def _usable(page: Page) -> dict[str, float]:
    """The usable accuracy tasks with what guessing scores."""
    table = accuracy_tasks(page.results)
    return dict(zip(table["eval_set"], table["chance"], strict=True))


@lru_cache(maxsize=8)
def _skills(page: Page) -> dict[str, list[str]]:
    """The usable tasks of each skill; variants with perturbed questions are left to the robustness contrasts."""
    own = [TASKS[name] for name in _usable(page) if name in TASKS and not TASKS[name].variant_of]
    members = {skill: [task.name for task in own if task.skill == skill] for skill in LOOKS}
    return {skill: names for skill, names in members.items() if names}


def _variants(page: Page, ending: str) -> list[tuple[str, str]]:
    """(perturbed task, its base task), both usable: without skill there is none to lose."""
    usable = [TASKS[name] for name in _usable(page) if name in TASKS and name.endswith(ending)]
    return sorted((task.name, task.variant_of) for task in usable if task.variant_of in _usable(page))


def _reading(page: Page) -> list[tuple[str, str]]:
    """(knowledge task, reading task) that ask the same questions, both usable."""
    usable = [TASKS[name] for name in _usable(page) if name in TASKS and TASKS[name].skill == "reading"]
    return sorted((task.paired_with, task.name) for task in usable if task.paired_with in _usable(page))


@lru_cache(maxsize=8)
def _runs(page: Page) -> pd.DataFrame:
    """The compressed runs, the mildest by perplexity first, and which are `ruined`."""
    runs = run_measures(page.results, PERPLEXITY).sort_values("perplexity", kind="stable").reset_index(drop=True)
    return runs.assign(ruined=runs["perplexity"] >= RUINED)


def _readable(page: Page) -> tuple[str, ...]:
    """The runs that still predict text, the mildest first."""
    return tuple(_runs(page).loc[~_runs(page)["ruined"], "run_id"])


def _columns(page: Page, run_ids: Sequence[str], names: Sequence[str], key: str) -> np.ndarray:
    """[items that the tasks share, tasks x runs]: the runs of the first task, then those of the second."""
    items = page.results.items
    entries = [items[run_id][name] for name in names for run_id in run_ids]
    by_id = [dict(zip(entry["id"], entry[key], strict=True)) for entry in entries]
    dense = [set(items[page.results.dense_id][name]["id"]) for name in names]
    ids = [i for i in items[page.results.dense_id][names[0]]["id"] if all(i in one for one in dense)]
    return np.array([[column[i] for i in ids] for column in by_id], dtype=float).T


def _share(after: np.ndarray, before: np.ndarray, chance: float) -> np.ndarray:
    """The share of skill kept; NaN in the rare resample where the dense model does not beat guessing."""
    return (after - chance) / np.where(before - chance > 1e-9, before - chance, math.nan)


@lru_cache(maxsize=8)
def _kept(page: Page, key: str) -> pd.DataFrame:
    """What every run keeps of each skill: the share of "correct" (%), or the shift of the "margin".

    Margins move before answers do; theirs is the mean change in standard deviations of the dense model's.
    """
    rows = []
    for run in _runs(page).to_dict("records"):
        for skill, members in _skills(page).items():
            groups = [_columns(page, [page.results.dense_id, run["run_id"]], [task], key) for task in members]
            if key == "correct":
                chance = float(np.mean([_usable(page)[task] for task in members]))
                kept = bootstrap_statistic(groups, lambda m, c=chance: 100 * _share(m[:, 1], m[:, 0], c))
            else:
                scaled = [group / max(group[:, 0].std(), 1e-12) for group in groups]
                kept = bootstrap_statistic(scaled, lambda m: m[:, 1] - m[:, 0])
            rows.append({**run, "skill": skill, **vars(kept)})
    return pd.DataFrame(rows, columns=None if rows else [*_runs(page).columns, "skill", "value", "lo", "hi", "n"])


@lru_cache(maxsize=256)
def _contrast(page: Page, run_ids: tuple[str, ...], pairs: tuple[tuple[str, str], ...]) -> dict[str, Estimate]:
    """What compression does to the first tasks less what it does to the second ones, mean over runs and pairs.

    `share` compares shares of skill kept, `points` changes of accuracy, `margin` changes of the right option's
    log-probability less the best other one's (nats); negative: the first tasks suffer more. All runs answer the same
    items, so items are resampled for all of them together.
    """
    order = [page.results.dense_id, *run_ids]
    correct, margins = ([_columns(page, order, pair, key) for pair in pairs] for key in ("correct", "margin"))
    chance = np.mean([[_usable(page)[name] for name in pair] for pair in pairs], axis=0)

    def shares(means: np.ndarray) -> np.ndarray:
        parts = np.split(means, 2, axis=1)
        first, second = (_share(m[:, 1:], m[:, :1], c) for m, c in zip(parts, chance, strict=True))
        return (first - second).mean(axis=1)

    def moves(means: np.ndarray) -> np.ndarray:
        first, second = (m[:, 1:] - m[:, :1] for m in np.split(means, 2, axis=1))
        return (first - second).mean(axis=1)

    statistics = {"share": (correct, shares), "points": (correct, moves), "margin": (margins, moves)}
    return {name: bootstrap_statistic(*parts) for name, parts in statistics.items()}


def _dense_gap(page: Page, pairs: Sequence[tuple[str, str]]) -> Estimate:
    """How much lower the dense model scores on the first tasks than on the second, paired by item (of 1)."""
    groups = [_columns(page, [page.results.dense_id], pair, "correct") for pair in pairs]
    return bootstrap_statistic(groups, lambda means: means[:, 0] - means[:, 1])


def _sure(estimate: Estimate) -> bool:
    return estimate.hi < 0 or estimate.lo > 0


def _contrast_row(contrast: dict[str, Estimate], p_holm: float | None = None) -> dict:
    """A contrast as a claim's row: one-sided p-values that are 1 where shares and points contradict each other.

    That the shares differ by less than `SAME` refutes the claim as well.
    """
    share, moved = contrast["share"], contrast["points"]
    p = share.p if p_holm is None else p_holm
    against = share.value * moved.value < 0 and _sure(share) and _sure(moved)
    p_side = p if _sure(share) and not against else 1.0
    same = share.lo > -SAME and share.hi < SAME and not (_sure(share) and p < LEVEL)
    p_yes, p_no = (p_side if share.value < 0 else 1.0), (0.0 if same else p_side if share.value > 0 else 1.0)
    tested = {"p_yes": p_yes, "p_yes_holm": p_yes, "p_no": p_no, "p_no_holm": p_no}  # corrected already
    return {**vars(share), "p_holm": p, "against": against} | tested


def _contrast_rows(page: Page, pairs: list, p_holm: float | None = None) -> pd.DataFrame:
    ids = _readable(page)
    if not pairs or not ids:
        return pd.DataFrame()
    contrast = _contrast(page, ids, tuple(pairs))
    return pd.DataFrame([_contrast_row(contrast, p_holm) | {"pairs": tuple(pairs), "points": contrast["points"]}])


def _perturbed(page: Page, kind: str) -> pd.DataFrame:
    """The contrast of one perturbation, p corrected over both."""
    pairs = {name: _variants(page, ending) for name, ending in PERTURBATIONS.items()}
    ids = _readable(page)
    p = {name: _contrast(page, ids, tuple(both))["share"].p for name, both in pairs.items() if both and ids}
    return _contrast_rows(page, pairs[kind], dict(zip(p, holm(list(p.values())), strict=True)).get(kind))


def _contrast_effect(page: Page, rows: pd.DataFrame, first: str, second: str) -> str:
    row, ids = rows.iloc[0], _readable(page)
    each = [_contrast(page, (run_id,), row["pairs"])["share"] for run_id in ids]
    sides = [one.value for one, p in zip(each, holm([one.p for one in each]), strict=True) if p < LEVEL]
    n = sum(len(_columns(page, [page.results.dense_id], pair, "correct")) for pair in row["pairs"])
    text = (
        f"share of skill kept, {first} less {second}: {_percent(row)} of the dense model's skill, mean of {len(ids)} "
        f"runs on {n} shared questions ({p_text(row['p_holm'])}); accuracy, in points: {row['points'].text(points)}; "
        f"alone, {sum(v < 0 for v in sides)} of {len(ids)} runs show it and {sum(v > 0 for v in sides)} the opposite "
        "(Holm-corrected)"
    )
    return text + "; the two scales contradict each other" * bool(row["against"])


def _percent(line) -> str:
    return f"{points(line['value'])} % [{points(line['lo'])}, {points(line['hi'])}]"


def _no_contrast(first: str, second: str):
    asked = f"no two tasks ask the same questions, {first} and {second}, with the dense model above chance on both"
    return lambda page: asked if _readable(page) else f"no run stays below {RUINED:g} times the dense perplexity"


# ------------------------------------------------------------------------------------------ claims


@lru_cache(maxsize=8)
def _mild(page: Page, nearest: bool = False) -> pd.DataFrame:
    """The accuracy change of each skill in the runs that keep perplexity, or in the `nearest` to it."""
    runs, rows = _runs(page), []
    chosen = runs[runs["perplexity"].notna()].head(1) if nearest else runs[runs["perplexity"] <= KEPT]
    for run in chosen.to_dict("records"):
        for skill, members in _skills(page).items():
            change = paired(page.results, run["run_id"], None, ACCURACY, members).estimate(test=True)
            rows.append({**run, "skill": skill, **vars(change)})
    return pd.DataFrame(rows, columns=None if rows else [*runs.columns, "skill", "value", "lo", "hi", "p"])


def _mild_run(page: Page, shown: dict, lines: pd.DataFrame) -> str:
    parts = lines[lines["run_id"] == shown["run_id"]].to_dict("records")
    moved = listing([f"{line['skill']} {cell(line, write=points).replace(' [', ' points [')}" for line in parts])
    tested = f" ({p_text(shown['p_holm'])})" if "p_holm" in shown else ""
    return f"{run_name(shown)} at {cell(shown, 'perplexity')} the dense perplexity changes {moved}{tested}"


def _lost_effect(page: Page, rows: pd.DataFrame) -> str:
    proven, mild = rows[rows["shows"]], _mild(page)
    if len(proven):
        start = f"{len(proven)} of {len(rows)} runs with perplexity {WITHIN} lose knowledge significantly; the most: "
        return start + _mild_run(page, proven.sort_values("value").iloc[0].to_dict(), mild)
    none = "loses a point or more; the nearest to it: "
    if not rows["refutes"].all():
        none = "loses knowledge significantly, but a loss is not excluded: "
    least = rows.sort_values("lo").iloc[0].to_dict()
    return f"none of {len(rows)} runs with perplexity {WITHIN} {none}{_mild_run(page, least, mild)}"


def _no_mild(page: Page) -> str:
    if "knowledge" not in _skills(page):
        return "the dense model is above chance on no knowledge task"
    near = _mild(page, nearest=True)
    more = f"; the nearest, {_mild_run(page, near.iloc[0].to_dict(), near)}" if len(near) else ""
    return f"no run has perplexity {WITHIN}{more}"


CHAPTER.claim(
    "lost-before-perplexity",
    "Knowledge is lost before perplexity shows it",
    lambda page: select(_mild(page), {"skill": "knowledge"}).reset_index(drop=True),
    some("worse", by=MARGIN),
    on=ACCURACY,
    evidence="fig-forgetting-perplexity",
    paper="namburi2023",
    says=_lost_effect,
    missing=_no_mild,
)
CHAPTER.claim(
    "knowledge-before-reading",
    "Knowledge falls more than reading, on the very same questions",
    lambda page: _contrast_rows(page, _reading(page)),
    mean("worse", by=SAME),
    on=ACCURACY,
    evidence="fig-forgetting-pairs",
    says=lambda page, rows: _contrast_effect(page, rows, "knowledge", "reading"),
    missing=_no_contrast("knowledge", "reading"),
)
for kind in PERTURBATIONS:
    CHAPTER.claim(
        f"less-robust-to-{kind}",
        f"Compression makes models less robust to {kind}",
        lambda page, kind=kind: _perturbed(page, kind),
        mean("worse", by=SAME),
        on=ACCURACY,
        evidence="fig-forgetting-robustness",
        paper="du2023",
        says=lambda page, rows, kind=kind: _contrast_effect(page, rows, f"with {kind}", "plain"),
        missing=_no_contrast(f"with {kind}", "plain"),
    )


def _main_tasks(page: Page) -> list[str]:
    """The usable tasks without perturbed variants, which ask the same questions again."""
    return [name for name in _usable(page) if name not in TASKS or not TASKS[name].variant_of]


def _against(page: Page, run: dict, rival: dict) -> dict:
    """Two runs compared on perplexity (`x`) and mean accuracy (`value`), each with interval and p."""
    own = {fact: run[fact] for fact in [*FACTS, "storage_bits"]}
    line = own | {"other": rival["run_id"], "rival": run_name(rival), "rival_method": rival["method"]}
    line |= {"rival_bits": rival["storage_bits"], "name": f"{run_name(run)} against {run_name(rival)}"}
    for prefix, quantity, sets in (("x", PERPLEXITY, None), ("value", ACCURACY, _main_tasks(page))):
        both = paired(page.results, run["run_id"], rival["run_id"], quantity, sets)
        one = Estimate(math.nan, math.nan, math.nan, 0) if both is None else both.estimate(test=True)
        one = one.map(quantity.change)
        ends = ("lo", "hi") if prefix == "value" else ("x_lo", "x_hi")
        line |= {prefix: one.value, ends[0]: one.lo, ends[1]: one.hi, f"{prefix}_p": one.p}
    return line


def _corrected(rows: list[dict]) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    for name in ("x", "value") if rows else ():
        known = frame[f"{name}_p"].notna()
        frame.loc[known, f"{name}_p_holm"] = holm(frame.loc[known, f"{name}_p"])
    return frame


@lru_cache(maxsize=8)
def _rivals(page: Page) -> pd.DataFrame:
    """ASVD against each other low-rank SVD at the same rank."""
    runs = _runs(page)
    pairs = [(run, rival) for run in select(runs, {"method": "asvd"}).to_dict("records")
             for rival in select(runs, {"target": run["target"], "method": RIVALS}).to_dict("records")]  # fmt: skip
    return _corrected([_against(page, *pair) for pair in pairs])


@lru_cache(maxsize=8)
def _equal_storage(page: Page) -> pd.DataFrame:
    """Every low-rank run against every pruned run of equal storage; `best` marks the pairs that decide.

    At each rank the best low-rank run meets the best pruned run of equal storage. Perplexity chooses the best, the
    tasks decide, so that the choice cannot favour either.
    """
    runs, rows, met = _runs(page), [], set()
    for run in select(runs, {"kind": "low rank"}).to_dict("records"):  # the lowest perplexity first
        near = (runs["storage_bits"] / run["storage_bits"] - 1).abs() <= EQUAL_STORAGE
        pruned = select(runs[near], {"kind": "pruning"}).to_dict("records")
        best = [number == 0 and run["target"] not in met for number in range(len(pruned))]
        rows += [_against(page, run, rival) | {"best": b} for rival, b in zip(pruned, best, strict=True)]
        met |= {run["target"]} if pruned else set()
    return _corrected(rows)


def _rival_rows(page: Page) -> pd.DataFrame:
    """The rows of a claim on perplexity that needs both rivals, and that tasks do not contradict."""
    rows = _rivals(page)
    if rows.empty or rows["x"].isna().all():
        return pd.DataFrame()
    rows = rows[rows["x"].notna()]
    worse_tasks = (rows["value"] < 0) & (rows["value_p_holm"] < LEVEL)
    supported = (rows["x"] < 1) & ~worse_tasks.any() & (len(set(rows["rival_method"])) == len(RIVALS))
    p_yes, p_no = rows["x_p_holm"].where(supported, 1.0), rows["x_p_holm"].where(rows["x"] > 1, 1.0)
    return rows.assign(p_yes=p_yes, p_yes_holm=p_yes, p_no=p_no, p_no_holm=p_no, support=-rows["x"])


def _low_rank_rows(page: Page) -> pd.DataFrame:
    rows = _equal_storage(page)
    rows = rows[rows["best"].astype(bool) & rows["value"].notna()].reset_index(drop=True) if len(rows) else rows
    return rows.rename(columns={"value_p": "p"})


def _storage_effect(line: dict, p: str) -> str:
    name = f"{style_of(line['method']).label} {line['target']} against {line['rival']}"
    ratio = interval(line["x"], line["x_lo"], line["x_hi"])
    text = f"{name}: {ratio} its perplexity" if line["x"] == line["x"] else name
    change = f", mean accuracy {cell(line, write=points).replace(' [', ' points [')} ({p_text(line[p])})"
    return text + change * (line["value"] == line["value"])


def _rival_effect(_: Page, rows: pd.DataFrame) -> str:
    lower = ((rows["x"] < 1) & (rows["x_p_holm"] < LEVEL)).sum()
    closest = rows.sort_values("x").iloc[-1].to_dict()
    text = _storage_effect(closest, "value_p_holm")
    return f"lower perplexity in {lower} of {len(rows)} comparisons; the closest: {text}"


CHAPTER.claim(
    "activation-aware",
    "Activation-aware SVD beats plain and Fisher-weighted SVD",
    _rival_rows,
    every("better"),
    on=PERPLEXITY,
    evidence=STORAGE_FIGURE,
    says=_rival_effect,
    missing="no two of these methods were run at the same rank",
)
CHAPTER.claim(
    "low-rank-loses",
    "Low rank loses more than pruning at equal storage",
    _low_rank_rows,
    every("worse", by=MARGIN),
    on=ACCURACY,
    evidence=STORAGE_FIGURE,
    says=lambda _, rows: "; ".join(_storage_effect(line, "p_holm") for line in rows.to_dict("records")),
    missing="no low-rank and no pruned run take equal storage, or no task is usable",
)

# ------------------------------------------------------------------------------------------ figures


def _limits(kept: pd.DataFrame) -> tuple[float, float]:
    return max(LOWEST, min(kept["lo"].min(), -5)), min(HIGHEST, max(kept["hi"].max(), 105))


def _cut(kept: pd.DataFrame) -> str:
    beyond = (kept["lo"] < LOWEST) | (kept["hi"] > HIGHEST)
    return f" Intervals are cut at {LOWEST:.0f} and {HIGHEST:.0f} %." if beyond.any() else ""


@CHAPTER.figure(SKILLS_FIGURE)
def _skills_kept(page: Page):
    """The share of each skill that every run keeps, the mildest run by perplexity on top."""
    kept = _kept(page, "correct")
    if kept.empty:
        return "The dense model is above chance on no task of a skill, so there is nothing to keep."
    ratio = [times(x) if x == x else "no text" for x in kept["perplexity"]]
    names = [f"{run_name(run)} ({r})" for run, r in zip(kept.to_dict("records"), ratio, strict=True)]
    frame = kept.assign(name=names)[[*FACTS, "name", "skill", "value", "lo", "hi", "n"]]
    x = Axis("share of skill kept (%)", limits=_limits(kept), lines={"guessing": 0, "dense": 100})
    part, present = kept[kept["run_id"].isin(_readable(page))], list(_skills(page))
    said, n = f"All runs have at least {RUINED:g} times the dense perplexity.", part["run_id"].nunique()
    if n:
        middle = part.groupby("skill")["value"].median()
        shares = listing([f"{skill} {middle[skill]:.0f} %" for skill in present])
        half = f"Half of the {n} runs below {RUINED:g}× perplexity keep at least"
        said = f"{half} {shares}." if n > 1 else f"Kept: {shares}."
    members = "; ".join(f"{skill}: {listing(names)}" for skill, names in _skills(page).items())
    caption = (
        f"Share of skill kept by every compressed model, the mildest by perplexity (in brackets, relative to the dense "
        f"model's) on top. {said} 100 % is the dense model, 0 % guessing. Bars: 95 % bootstrap intervals over items. "
        f"Tasks, {members}." + _cut(kept)
    )
    drawing = forest(frame, x, size=(6.6, 0.42), series="skill", looks=LOOKS, key=True)
    return drawing, caption, f"Dots of the share of each skill kept, one line per compressed model. {said}"


@CHAPTER.figure("fig-forgetting-perplexity")
def _skills_by_perplexity(page: Page):
    """The share of each skill kept against relative perplexity; the shaded strip is "perplexity looks kept"."""
    kept = _kept(page, "correct")
    kept = kept[~kept["ruined"].astype(bool) & kept["perplexity"].notna()]
    if kept.empty:
        return f"No run stays below {RUINED:g} times the dense perplexity on tasks that can be lost."
    frame = kept.assign(x=kept["perplexity"])[[*FACTS, "skill", "x", "value", "lo", "hi", "n"]].sort_values("x")
    x = Axis(PERPLEXITY.compared + ", geometric mean over texts", 10, suffix="×", band=(1.0, KEPT),
             limits=(0.97, max(frame["x"].max() * 1.12, 1.3)))  # fmt: skip
    y = Axis("share of skill kept (%)", limits=_limits(kept), lines={"guessing": 0, "dense": 100})
    said = _mild_sentence(page)
    caption = (
        f"Share of skill kept against perplexity, one point per compressed model and skill. {said} Shaded: perplexity "
        f"{WITHIN}. Lines only join a skill's points, models differ in "
        f"method. Bars: 95 % bootstrap intervals over items. 0 % is guessing." + _cut(kept)
    )
    drawing = lines(frame, x, y, size=(6.4, 3.8), series="skill", looks=LOOKS, aside=0.006)
    return drawing, caption, f"Share of knowledge, reading and language kept against perplexity. {said}"


def _mild_sentence(page: Page) -> str:
    mild, parts = _mild(page), []
    if mild.empty:
        return f"No run has perplexity {WITHIN}."
    for skill, part in mild.groupby("skill", sort=False):
        least, most = points(part["value"].max()), points(part["value"].min())
        parts.append(f"{skill} by {least if least == most else f'{most} to {least}'} points")
    n, lost = mild["run_id"].nunique(), ((mild["skill"] == "knowledge") & (mild["hi"] < -MARGIN)).sum()
    more = f"; {lost} of {n} certainly lost more than a point of knowledge." if lost else "."
    subject = f"In the {n} runs" if n > 1 else "In the one run"
    return f"{subject} in the shaded strip accuracy changes: {listing(parts)}{more}"


def _by_run(page: Page, pairs: Sequence[tuple[str, str]], panels: dict[str, str]) -> pd.DataFrame:
    """The contrast of every run, the mildest first, then that of all together; one panel for each scale."""
    ids, runs, rows = _readable(page), _runs(page).set_index("run_id", drop=False), []
    names = [run_name(runs.loc[i]) for i in ids]
    if len(set(names)) < len(ids):
        names = [f"{name}, {runs.loc[i, 'calibration']}" for i, name in zip(ids, names, strict=True)]
    for name, chosen in [*zip(names, [(i,) for i in ids], strict=True), (POOLED, tuple(ids))]:
        facts = runs.loc[chosen[0], FACTS].to_dict() if name != POOLED else dict.fromkeys(FACTS, "")
        for scale, panel in panels.items():
            one = vars(_contrast(page, chosen, tuple(pairs))[scale]) | {}
            if scale == "share":
                one |= {end: 100 * one[end] for end in ("value", "lo", "hi")}
            rows.append({**facts, "name": name, "series": POOLED if name == POOLED else "run", "panel": panel, **one})
    return pd.DataFrame(rows).drop(columns="method")


@CHAPTER.figure("fig-forgetting-pairs")
def _same_questions(page: Page):
    """Knowledge less reading on the same questions, every run: share of skill kept, and margins."""
    pairs, ids = _reading(page), _readable(page)
    if not pairs or not ids:
        return "No two usable tasks ask the same questions without and with their paragraph."
    labels = {"share": "share of skill kept,\nknowledge less reading (%)"}
    labels["margin"] = "change of margin,\nknowledge less reading (nats)"
    frame, pooled = _by_run(page, pairs, {scale: scale for scale in labels}), _contrast(page, ids, tuple(pairs))
    nats = pooled["margin"].text("{:+.2f}".format).replace("-", "−").replace(" [", " nats [")
    words = (
        f"On average over {len(ids)} runs knowledge keeps {_percent(vars(pooled['share']))} of its skill relative to "
        f"reading, and its margins change by {nats} relative to reading's."
    )
    asked = listing([f"{first} (without) and {second} (with the paragraph)" for first, second in pairs])
    caption = (
        f"The same questions asked without and with the paragraph that answers them: {asked}. {words} Left of zero, "
        "knowledge falls more. Margin: log-probability of the right option less the best other one's. Bars: 95 % "
        "bootstrap intervals over questions, paired by question and with the dense model."
    )
    axes = {scale: Axis(label, lines={"": 0.0}) for scale, label in labels.items()}
    drawing = forest(frame, axes, size=(6.6, 0.3), series="series", looks=RUN_LOOKS, title="", bold=(POOLED,))
    return drawing, caption, f"Knowledge less reading for every compressed model. {words}"


@CHAPTER.figure("fig-forgetting-robustness")
def _robustness(page: Page):
    """Perturbed less plain questions, every run: what each perturbation costs beyond its cost before."""
    ids = _readable(page)
    kinds = {kind: pairs for kind, ending in PERTURBATIONS.items() if (pairs := _variants(page, ending)) and ids}
    if not kinds:
        return "No task with perturbed questions is usable together with its plain one."
    frame = pd.concat([_by_run(page, pairs, {"share": kind}) for kind, pairs in kinds.items()], ignore_index=True)
    pooled = {kind: vars(_contrast(page, ids, tuple(pairs))["share"]) for kind, pairs in kinds.items()}
    parts = ", ".join(f"with {kind} {_percent(line)}" for kind, line in pooled.items())
    words = f"On average over {len(ids)} runs the share of skill kept, less that on plain questions: {parts}."
    caption = (
        f"Robustness after compression. {words} Left of zero, perturbation costs the compressed model more than the "
        "dense one. Bars: 95 % bootstrap intervals over questions, paired by question and with the dense model."
    )
    axis = Axis("share of skill kept, perturbed less plain (%)", lines={"": 0.0})
    drawing = forest(frame, axis, size=(2.4 + 2.1 * len(kinds), 0.3), series="series", looks=RUN_LOOKS, bold=(POOLED,))
    return drawing, caption, f"Perturbed less plain questions for every compressed model. {words}"


@CHAPTER.figure(STORAGE_FIGURE)
def _storage(page: Page):
    """Perplexity and mean accuracy change against bits per weight, one point per compressed model."""
    runs = _runs(page)[_runs(page)["perplexity"].notna()]
    if runs.empty:
        return "There is no compressed model to compare."
    ratio = changes(page.results, PERPLEXITY).assign(panel=PERPLEXITY.name)
    rows = []
    for run in runs.to_dict("records") if _main_tasks(page) else ():
        change = paired(page.results, run["run_id"], None, ACCURACY, _main_tasks(page)).estimate()
        rows.append({**run, "panel": ACCURACY.name, **vars(change.map(lambda share: 100 * share))})
    frame = pd.concat([ratio, pd.DataFrame(rows)], ignore_index=True)
    frame = frame.assign(x=frame["storage_bits"])[[*FACTS, "panel", "x", "value", "lo", "hi", "n"]]
    y = {PERPLEXITY.name: Axis(PERPLEXITY.compared, 10, suffix="×", limits=(0.9, FAR), lines={"": 1.0})}
    y[ACCURACY.name] = Axis(ACCURACY.compared, lines={"": 0.0})
    words, far = _storage_words(page), [run_name(run) for run in runs[runs["perplexity"] > FAR].to_dict("records")]
    caption = (
        f"Low rank, pruning and quantization by what a weight takes. {words} Bars: 95 % bootstrap intervals over "
        f"windows (left) and over items of {len(_main_tasks(page))} tasks (right), paired with the dense model."
        + f" Beyond {FAR:g}× and not drawn on the left: {listing(far)}."
        * bool(far)
    )
    x = Axis("storage (bits per weight, masks and scales counted)")
    drawing = scatter(frame, x, y, columns=2, size=(6.6, 3.6), aside=0.05, title="")
    return drawing, caption, f"Perplexity and accuracy change against storage. {words}"


def _storage_words(page: Page) -> str:
    parts = [
        f"{style_of(line['method']).label} {line['target']} has {times(line['x'])} the perplexity of {line['rival']} "
        f"and differs by {cell(line, write=points).replace(' [', ' points [')}"
        for line in _low_rank_rows(page).to_dict("records")
    ]
    return f"At equal storage, best against best: {'; '.join(parts)}." if parts else "No two kinds take equal storage."


# ------------------------------------------------------------------------------------------ tables


@CHAPTER.table("tasks")
def _task_table(page: Page) -> Table:
    """The tasks, what they ask, and what the dense model scores on them."""
    body = []
    for task in tasks(page.results).to_dict("records"):
        known = TASKS.get(task["eval_set"])
        of = f"{known.variant_of}, perturbed" if known and known.variant_of else ""
        of = f"the questions of {known.paired_with}" if known and known.paired_with else of
        score = interval(*(100 * task[end] for end in ("value", "lo", "hi")), "{:.1f}".format)
        name, skill = task["eval_set"] + ("" if task["usable"] else " †"), known.skill if known else ""
        body.append([name, skill, of, f"{100 * task['chance']:.0f}", score, str(task["n"])])
    note = "Accuracy in %, with 95 % bootstrap intervals. † not above chance: shown, used for no claim."
    return Table(["task", "skill", "pairs with", "chance", "dense", "items"], body, note, 3)


@CHAPTER.table("skills")
def _skill_table(page: Page) -> Table:
    """Every run: storage, perplexity, the share of each skill kept, and how far its margins moved."""
    scales, present = {key: _kept(page, key) for key in ("correct", "margin")}, list(_skills(page))
    writers = {"correct": lambda v: f"{v:.0f}".replace("-", "−"), "margin": lambda v: f"{v:+.2f}".replace("-", "−")}
    body = []
    for run in _runs(page).to_dict("records"):
        cells = [run_name(run), f"{run['storage_bits']:.2f}", cell(run, "perplexity")]
        for key, frame in scales.items():
            own = frame[frame["run_id"] == run["run_id"]].set_index("skill")
            cells += [cell(own.loc[skill], write=writers[key]) for skill in present]
        body.append(cells)
    head = ["", "bits", "perplexity", *[f"{s} kept (%)" for s in present], *[f"{s} margin" for s in present]]
    note = (
        "Share of skill kept: (accuracy − chance) / (dense accuracy − chance). Margin: mean change of the right "
        "option's log-probability less the best other one's (of a cloze, of its word's log-probability), in standard "
        "deviations over items of the dense model's. In brackets: 95 % bootstrap intervals, paired with it."
    )
    return Table(head, body, note)


@CHAPTER.table("contrasts")
def _contrast_table(page: Page) -> Table:
    """Every contrast on three scales: knowledge less reading, and perturbed less plain, by run and for all together."""
    families = {"knowledge less reading": _reading(page)}
    families |= {f"with {kind} less plain": _variants(page, end) for kind, end in PERTURBATIONS.items()}
    runs, ids, body = _runs(page).set_index("run_id"), _readable(page), []
    every_run = (*ids, *[i for i in runs.index if i not in ids])
    named = [(POOLED, ids), *[(f"{POOLED}, collapsed ones too", every_run)] * (len(every_run) > len(ids))]
    named += [(run_name(runs.loc[i]), (i,)) for i in ids]
    for title, pairs in families.items():
        if not pairs or not ids:
            continue
        body.append([title, "dense model itself", "", _dense_gap(page, pairs).text(points), ""])
        for name, chosen in named:
            one = _contrast(page, chosen, tuple(pairs))
            margin = one["margin"].text("{:+.2f}".format).replace("-", "−")
            body.append([title, name, one["share"].text(points), one["points"].text(points), margin])
    note = (
        "Share of skill kept (%), accuracy (points) and margin (nats): change of the first less change of the second, "
        "paired by question, with 95 % bootstrap intervals; the dense model's line is the plain difference of "
        "accuracy. "
        f"Runs with at least {RUINED:g} times the dense perplexity have collapsed: they enter no verdict."
    )
    return Table(["contrast", "run", "share of skill", "accuracy", "margin"], body, note, 2)


@CHAPTER.table("storage")
def _storage_table(page: Page) -> Table:
    """ASVD against other low-rank methods at the same rank, and low rank against pruning at equal storage."""
    body = []
    for line in [line for frame in (_rivals(page), _equal_storage(page)) for line in frame.to_dict("records")]:
        stars = {name: r"\*" * (line[f"{name}_p_holm"] < LEVEL) for name in ("x", "value")}
        ratio = "" if line["x"] != line["x"] else interval(line["x"], line["x_lo"], line["x_hi"])
        first = f"{style_of(line['method']).label} {line['target']} ({line['storage_bits']:.2f})"
        rival = f"{line['rival']} ({line['rival_bits']:.2f})"
        body.append([first, rival, ratio + stars["x"], cell(line, write=points) + stars["value"]])
    note = (
        "In round brackets: bits per weight; storage counts as equal within "
        f"{100 * EQUAL_STORAGE:.0f} %. Perplexity: the first run's over the second's. Accuracy: the first run's less "
        "the second's, in points. In square brackets: 95 % bootstrap intervals, paired by window or item. \\* "
        f"sign-flip p < {LEVEL}, Holm-corrected over the comparisons of each kind."
    )
    return Table(["low rank", "against", "perplexity", "accuracy"], body, note, 2)
