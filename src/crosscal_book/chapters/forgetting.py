"""Chapter 6: what is forgotten first, knowledge, reading or robustness, and what low rank costs beside pruning.

A task's accuracy is put on a common axis as the *share of skill kept*: (accuracy - chance) / (dense accuracy - chance),
1 for the dense model and 0 for guessing. A skill's share is the ratio of the means over its tasks, which one task near
chance cannot blow up.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import numpy as np
import pandas as pd

from crosscal.metrics.tasks import TASKS
from crosscal.results.compare import accuracy_tasks, changes, paired, run_measures, tasks
from crosscal.results.quantities import ACCURACY, PERPLEXITY
from crosscal.stats import LEVEL, Estimate, bootstrap_statistic, holm
from crosscal_book.chapter import Chapter, Page
from crosscal_book.claims import FACTS, every, mean, select, some
from crosscal_book.drawing import Axis
from crosscal_book.marks import forest, lines, scatter
from crosscal_book.style import MethodStyle
from crosscal_book.tables import Table
from crosscal_book.words import KEPT, cell, listing, p_text, points, run_name, times

# A loss below one point is called none, as in chapter 1. Shares of skill that differ by less than a twentieth of the
# skill are called the same: less than one item in forty of a task whose dense accuracy is 50 points above chance. A
# run with at least `RUINED` times the dense perplexity has collapsed, and says more of collapse than of what goes
# first: it is drawn, but enters no contrast. Storage counts as equal within a tenth: ranks and patterns are steps.
# All set before the runs were made.
MARGIN, SAME, RUINED, EQUAL_STORAGE = 0.01, 0.05, 10.0, 0.10
LOWEST, HIGHEST, FAR = -40.0, 140.0, 100.0  # ends of axes: shares of skill (%), below 0 worse than guessing; perplexity
READING, TYPOS, REPHRASING = ("knowledge", "reading"), ("with typos", "plain"), ("with rephrasing", "plain")
RIVALS, ENDS, POOLED, STORAGE = ("svd", "fwsvd"), ["value", "lo", "hi"], "mean of runs", "fig-forgetting-storage"
LOOKS = {  # the three differ in lightness, and each is readable on white
    "knowledge": MethodStyle("knowledge", "#A3241B", "o"),
    "reading": MethodStyle("reading", "#123F7A", "s"),
    "language": MethodStyle("language", "#5B7F00", "^"),
}
RUN_LOOKS = {"run": MethodStyle("run", "#0067A5", "o"), POOLED: MethodStyle(POOLED, "#111111", "D")}
WITHIN = f"within {100 * (KEPT - 1):.0f} % of the dense model's"


def _note(page: Page) -> str:
    """What was left out, and how far perturbations move the dense model itself."""
    runs, unusable = _runs(page), sorted(tasks(page.results).query("not usable")["eval_set"])
    ruined = f"Left out of contrasts, because perplexity is at least {RUINED:g} times the dense model's: "
    parts = [ruined + listing(list(runs.loc[runs["ruined"], "name"])) + "."] if runs["ruined"].any() else []
    parts += [f"Left out, because the dense model is not above chance: {listing(unusable)}."] if unusable else []
    gaps = {kind: _dense_gap(page, pairs) for kind, pairs in _pairs(page).items() if kind != READING}
    moved = [f"{cell(vars(gap), write=points, unit=' points')} {kind[0]}" for kind, gap in gaps.items()]
    return " ".join([*parts, *([f"The dense model itself changes by {listing(moved)}."] if moved else [])])


CHAPTER = Chapter("forgetting", note=_note)


@lru_cache(maxsize=8)
def _usable(page: Page) -> dict[str, float]:
    """The usable accuracy tasks with what guessing scores."""
    table = accuracy_tasks(page.results)
    return dict(zip(table["eval_set"], table["chance"], strict=True))


def _main(page: Page) -> list[str]:
    """The usable tasks without perturbed variants, which ask the same questions again."""
    return [name for name in _usable(page) if name not in TASKS or not TASKS[name].variant_of]


@lru_cache(maxsize=8)
def _skills(page: Page) -> dict[str, list[str]]:
    """The usable tasks of each skill, without variants."""
    members = {skill: [n for n in _main(page) if n in TASKS and TASKS[n].skill == skill] for skill in LOOKS}
    return {skill: names for skill, names in members.items() if names}


@lru_cache(maxsize=8)
def _pairs(page: Page) -> dict[tuple[str, str], tuple[tuple[str, str], ...]]:
    """The pairs of usable tasks that ask the same questions, by contrast."""
    own = [TASKS[name] for name in _usable(page) if name in TASKS]
    found = {READING: [(task.paired_with, task.name) for task in own if task.skill == "reading"]}
    for kind, ending in ((TYPOS, "_typos"), (REPHRASING, "_rephrased")):
        found[kind] = [(task.name, task.variant_of) for task in own if task.name.endswith(ending)]
    usable = {kind: tuple(sorted(p for p in pairs if set(p) <= set(_usable(page)))) for kind, pairs in found.items()}
    return {kind: pairs for kind, pairs in usable.items() if pairs}


@lru_cache(maxsize=8)
def _runs(page: Page) -> pd.DataFrame:
    """The compressed runs with a `name` each, the mildest by perplexity first, and which are `ruined`."""
    runs = run_measures(page.results, PERPLEXITY).sort_values("perplexity", kind="stable").reset_index(drop=True)
    names = pd.Series([run_name(run) for run in runs.to_dict("records")], runs.index, dtype=object)
    names = names.mask(names.duplicated(keep=False), names + ", " + runs["calibration"])
    return runs.assign(name=names, ruined=runs["perplexity"] >= RUINED)


def _columns(page: Page, run_ids: Sequence[str], names: Sequence[str], key: str) -> np.ndarray:
    """[items that the tasks share, tasks x runs]: the runs of the first task, then those of the second."""
    items, dense = page.results.items, page.results.items[page.results.dense_id]
    entries = [items[run_id][name] for name in names for run_id in run_ids]
    by_id = [dict(zip(entry["id"], entry[key], strict=True)) for entry in entries]
    ids = [i for i in dense[names[0]]["id"] if all(i in set(dense[name]["id"]) for name in names)]
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
            chance = float(np.mean([_usable(page)[task] for task in members]))
            if key == "correct":
                kept = bootstrap_statistic(groups, lambda m, c=chance: 100 * _share(m[:, 1], m[:, 0], c))
            else:
                scaled = [group / max(group[:, 0].std(), 1e-12) for group in groups]
                kept = bootstrap_statistic(scaled, lambda m: m[:, 1] - m[:, 0])
            rows.append({**run, "skill": skill, **vars(kept)})
    return pd.DataFrame(rows, columns=None if rows else [*_runs(page).columns, "skill", *ENDS, "n"])


def _contrast(page: Page, run_ids: Sequence[str], pairs: Sequence[tuple[str, str]]) -> dict[str, Estimate]:
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


@lru_cache(maxsize=8)
def _contrasts(page: Page) -> pd.DataFrame:
    """Every contrast (`kind`) on every `scale`: of all runs that still predict text together, and of each alone.

    Holm's correction runs over the runs alone, and over both perturbations of all runs together.
    """
    runs, rows = _runs(page), []
    readable = runs[~runs["ruined"]]
    parts = [(POOLED, POOLED, readable), ("all", f"{POOLED}, collapsed ones too", runs)][
        : 1 + (len(runs) > len(readable))
    ]
    parts += [("run", name, part) for name, part in readable.groupby("name", sort=False)]
    for (kind, pairs), (series, name, part) in product(_pairs(page).items(), parts if len(readable) else ()):
        facts = {fact: part.iloc[0][fact] if series == "run" else "" for fact in FACTS}
        facts |= {"kind": kind, "series": series, "name": name, "family": kind if series == "run" else kind[1]}
        estimates = _contrast(page, tuple(part["run_id"]), pairs)
        rows += [{**facts, "scale": scale, **vars(one)} for scale, one in estimates.items()]
    frame = pd.DataFrame(rows, columns=[*FACTS, "kind", "series", "name", "family", "scale", *ENDS, "n", "p"])
    return frame.assign(p_holm=frame.groupby(["scale", "series", "family"])["p"].transform(holm))


def _judged(share: Estimate, moved: Estimate, p: float) -> dict:
    """One-sided p-values of a contrast, 1 where shares and points contradict each other.

    That the shares differ by less than `SAME` refutes the claim as well.
    """
    sure, both_sure = (all(one.hi < 0 or one.lo > 0 for one in ones) for ones in ((share,), (share, moved)))
    against = both_sure and share.value * moved.value < 0
    same = share.lo > -SAME and share.hi < SAME and not (sure and p < LEVEL)
    p_side = p if sure and not against else 1.0
    p_yes, p_no = (p_side if share.value < 0 else 1.0), (0.0 if same else p_side if share.value > 0 else 1.0)
    contradiction = "; the two scales contradict each other" * against
    return {"p_yes": p_yes, "p_yes_holm": p_yes, "p_no": p_no, "p_no_holm": p_no, "against": contradiction}


def _contrast_rows(page: Page, kind: tuple[str, str]) -> pd.DataFrame:
    """The contrast over all runs that still predict text, and what each of them says alone."""
    own = _contrasts(page)[_contrasts(page)["kind"] == kind]
    if own.empty:
        return own
    pooled, alone = own[own["series"] == POOLED].set_index("scale"), select(own, {"series": "run", "scale": "share"})
    share, moved = (Estimate(*pooled.loc[scale, [*ENDS, "n", "p"]]) for scale in ("share", "points"))
    line = pooled.loc["share"].to_dict() | _judged(share, moved, pooled.loc["share", "p_holm"])
    line |= {"told": cell(line, write=points, unit=" %"), "moved": moved.text(points), "runs": len(alone)}
    sure = alone.loc[alone["p_holm"] < LEVEL, "value"]
    items = [_columns(page, [page.results.dense_id], pair, "correct") for pair in _pairs(page)[kind]]
    return pd.DataFrame([line | {"questions": sum(map(len, items)), "show": sum(sure < 0), "oppose": sum(sure > 0)}])


@lru_cache(maxsize=8)
def _changed(page: Page) -> pd.DataFrame:
    """The accuracy change of each skill in each run, and how all skills of the run `moved`, in words."""
    rows = []
    for run in _runs(page).to_dict("records"):
        found = {skill: vars(paired(page.results, run["run_id"], None, ACCURACY, names).estimate(test=True))
                 for skill, names in _skills(page).items()}  # fmt: skip
        moved = listing([f"{skill} {cell(one, write=points, unit=' points')}" for skill, one in found.items()])
        told = {"moved": moved, "ratio": cell(run, "perplexity")}
        rows += [{**run, **told, "skill": skill, **one} for skill, one in found.items()]
    return pd.DataFrame(rows, columns=None if rows else [*_runs(page), "moved", "ratio", "skill", *ENDS, "p"])


def _no_mild(page: Page) -> str:
    if "knowledge" not in _skills(page):
        return "the dense model is above chance on no knowledge task"
    near = [f"; the nearest, {run['name']} at {run['ratio']} the dense perplexity, changes {run['moved']}"
            for run in _changed(page).dropna(subset="perplexity").head(1).to_dict("records")]  # fmt: skip
    return f"no run has perplexity {WITHIN}{''.join(near)}"


CHAPTER.claim(
    "lost-before-perplexity",
    "Knowledge is lost before perplexity shows it",
    lambda page: _changed(page).query("skill == 'knowledge' and perplexity <= @KEPT"),
    some("worse", by=MARGIN),
    on=ACCURACY,
    evidence="fig-forgetting-perplexity",
    paper="namburi2023",
    says=f"of {{count}} runs with perplexity {WITHIN}, {{shown}} lose knowledge significantly and {{refuted}} "
    "certainly lose less than a point; the clearest, {name} at {ratio} the dense perplexity, changes {moved} ({p})",
    missing=_no_mild,
)
for kind, name, sentence, paper in (
    (READING, "knowledge-before-reading", "Knowledge falls more than reading, on the very same questions", ""),
    (TYPOS, "less-robust-to-typos", "Compression makes models less robust to typos", "du2023"),
    (REPHRASING, "less-robust-to-rephrasing", "Compression makes models less robust to rephrasing", "du2023"),
):
    CHAPTER.claim(
        name,
        sentence,
        lambda page, kind=kind: _contrast_rows(page, kind),
        mean("worse", by=SAME),
        on=ACCURACY,
        evidence=f"fig-forgetting-{'pairs' if kind == READING else 'robustness'}",
        paper=paper,
        says=f"share of skill kept, {' less '.join(kind)}: {{told}} of the dense model's skill, mean of {{runs}} runs "
        "on {questions} shared questions ({p}); accuracy, in points: {moved}; alone, {show} of {runs} runs show it and "
        "{oppose} the opposite (Holm-corrected){against}",
        missing=f"no two tasks ask the same questions, {' and '.join(kind)}, with the dense model above chance on "
        f"both, or no run stays below {RUINED:g} times the dense perplexity",
    )


@lru_cache(maxsize=8)
def _matches(page: Page) -> pd.DataFrame:
    """ASVD against each other low-rank SVD at its rank (`rivals`), and low rank against pruning of equal `storage`.

    Perplexity and mean accuracy of the first, against those of the second (`_of`). At each rank the `best` low-rank run
    meets the best pruned run: perplexity chooses the best, the tasks decide, so that the choice cannot favour either.
    """
    runs = _runs(page).drop(columns=["perplexity", "perplexity_lo", "perplexity_hi"])  # the lowest perplexity first
    both = runs.merge(runs, how="cross", suffixes=("", "_of"))
    near = (both["storage_bits_of"] / both["storage_bits"] - 1).abs() <= EQUAL_STORAGE
    rivals = both[(both["method"] == "asvd") & both["method_of"].isin(RIVALS) & (both["target"] == both["target_of"])]
    equal = both[(both["kind"] == "low rank") & (both["kind_of"] == "pruning") & near]
    frame = pd.concat([rivals.assign(family="rivals"), equal.assign(family="storage")], ignore_index=True)
    for quantity, sets in ((PERPLEXITY, None), (ACCURACY, _main(page))):
        pairs = [paired(page.results, *ids, quantity, sets) for ids in frame[["run_id", "run_id_of"]].to_numpy()]
        found = [vars(pair.estimate(test=True).map(quantity.change)) if pair else {} for pair in pairs]
        ends = pd.DataFrame(found, columns=[*ENDS, "p"], dtype=float).add_prefix(f"{quantity.name}_")
        frame = frame.join(ends.rename(columns={f"{quantity.name}_value": quantity.name}))
        frame[f"{quantity.name}_p_holm"] = frame.groupby("family")[f"{quantity.name}_p"].transform(holm)
    best = (frame["family"] == "storage") & ~frame.duplicated(["family", "target"])
    return frame.assign(name=frame["name"] + " against " + frame["name_of"], best=best)


def _on(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """The rows of a claim on one of the quantities of matches."""
    return rows.dropna(subset=name).assign(value=rows[name], lo=rows[f"{name}_lo"], hi=rows[f"{name}_hi"])


def _rival_rows(page: Page) -> pd.DataFrame:
    """The rows of a claim on perplexity that needs both rivals, and that tasks do not contradict."""
    rows = _on(select(_matches(page), {"family": "rivals"}), "perplexity")
    p, worse_tasks = rows["perplexity_p_holm"], (rows["accuracy"] < 0) & (rows["accuracy_p_holm"] < LEVEL)
    supported = (rows["value"] < 1) & ~worse_tasks.any() & (rows["method_of"].nunique() == len(RIVALS))
    p_yes, p_no = p.where(supported, 1.0), p.where(rows["value"] > 1, 1.0)
    told = [
        f"{cell(line, 'accuracy', points, ' points')} ({p_text(line['accuracy_p_holm'])})"
        for line in rows.to_dict("records")
    ]
    rows = rows.assign(told=told, lower=((rows["value"] < 1) & (p < LEVEL)).sum(), support=-rows["value"])
    return rows.assign(p_yes=p_yes, p_yes_holm=p_yes, p_no=p_no, p_no_holm=p_no)


def _low_rank_rows(page: Page) -> pd.DataFrame:
    rows = _on(_matches(page)[_matches(page)["best"]], "accuracy")
    names = [f"{line['name']}, with {cell(line, 'perplexity')} its perplexity," for line in rows.to_dict("records")]
    return rows.assign(name=names, p=rows["accuracy_p"])


CHAPTER.claim(
    "activation-aware",
    "Activation-aware SVD beats plain and Fisher-weighted SVD",
    _rival_rows,
    every("better"),
    on=PERPLEXITY,
    evidence=STORAGE,
    says="lower perplexity in {lower} of {count} comparisons; the closest, {name}: {estimate} its perplexity, mean "
    "accuracy {told}",
    missing="no two of these methods were run at the same rank",
)
CHAPTER.claim(
    "low-rank-loses",
    "Low rank loses more than pruning at equal storage",
    _low_rank_rows,
    every("worse", by=MARGIN),
    on=ACCURACY,
    evidence=STORAGE,
    lead="changes of mean accuracy in points",
    missing="no low-rank and no pruned run take equal storage, or no task is usable",
)


def _share_axis(kept: pd.DataFrame) -> tuple[Axis, str]:
    """The axis of shares of skill, and what a caption says where it cuts intervals."""
    limits = max(LOWEST, min(kept["lo"].min(), -5)), min(HIGHEST, max(kept["hi"].max(), 105))
    cut = bool(((kept["lo"] < LOWEST) | (kept["hi"] > HIGHEST)).any())
    axis = Axis("share of skill kept (%)", limits=limits, lines={"guessing": 0, "dense": 100})
    return axis, f" Intervals are cut at {LOWEST:.0f} and {HIGHEST:.0f} %." * cut


@CHAPTER.figure("fig-forgetting-skills")
def _skills_kept(page: Page):
    """The share of each skill that every run keeps, the mildest run by perplexity on top."""
    kept = _kept(page, "correct")
    if kept.empty:
        return "The dense model is above chance on no task of a skill, so there is nothing to keep."
    (axis, cut), part = _share_axis(kept), kept[~kept["ruined"]]
    ratio = kept["perplexity"].map(lambda x: times(x) if x == x else "no text")
    frame = kept.assign(name=kept["name"] + " (" + ratio + ")")[[*FACTS, "name", "skill", *ENDS, "n"]]
    n, middle = part["run_id"].nunique(), part.groupby("skill", sort=False)["value"].median()
    shares = listing([f"{skill} {value:.0f} %" for skill, value in middle.items()])
    words = f"Half of the {n} runs below {RUINED:g}× perplexity keep at least {shares}."
    words = words if n else f"All runs have at least {RUINED:g} times the dense perplexity."
    said = (
        "Share of skill kept by every compressed model, the mildest by perplexity (in brackets, relative to the dense "
    )
    said += f"model's) on top. {words}"
    members = "; ".join(f"{skill}: {listing(names)}" for skill, names in _skills(page).items())
    rest = " 100 % is the dense model, 0 % guessing. Bars: 95 % bootstrap intervals over items. Tasks, "
    drawing = forest(frame, axis, size=(6.6, 0.42), series="skill", looks=LOOKS, key=True)
    return drawing, f"{said}{rest}{members}.{cut}", said


@CHAPTER.figure("fig-forgetting-perplexity")
def _skills_by_perplexity(page: Page):
    """The share of each skill kept against relative perplexity; the shaded strip is "perplexity looks kept"."""
    kept = _kept(page, "correct")
    kept = kept[~kept["ruined"].astype(bool) & kept["perplexity"].notna()]
    if kept.empty:
        return f"No run stays below {RUINED:g} times the dense perplexity on tasks that can be lost."
    frame = kept.assign(x=kept["perplexity"])[[*FACTS, "skill", "x", *ENDS, "n"]].sort_values("x")
    x = Axis(PERPLEXITY.compared + ", geometric mean over texts", 10, suffix="×", band=(1.0, KEPT),
             limits=(0.97, max(frame["x"].max() * 1.12, 1.3)))  # fmt: skip
    mild, y = _changed(page).query("perplexity <= @KEPT"), _share_axis(kept)
    ends = {
        skill: [points(v) for v in (own.min(), own.max())] for skill, own in mild.groupby("skill", sort=False)["value"]
    }
    spans = [f"{skill} by {' to '.join(dict.fromkeys(pair))} points" for skill, pair in ends.items()]
    lost = ((mild["skill"] == "knowledge") & (mild["hi"] < -MARGIN)).sum()
    words = f"In the {mild['run_id'].nunique()} runs in the shaded strip accuracy changes: {listing(spans)}; {lost} "
    words += "certainly lost more than a point of knowledge."
    words = words if len(mild) else f"No run has perplexity {WITHIN}."
    said = f"Share of skill kept against perplexity, one point per compressed model and skill. {words}"
    rest = f" Shaded: perplexity {WITHIN}. Lines only join a skill's points, models differ in method. Bars: 95 % "
    drawing = lines(frame, x, y[0], size=(6.4, 3.8), series="skill", looks=LOOKS, aside=0.006)
    return drawing, f"{said}{rest}bootstrap intervals over items. 0 % is guessing.{y[1]}", said


def _by_run(page: Page, panels: dict[tuple, str], size: tuple[float, float]):
    """Contrasts (kind, scale) of every run, the mildest first, and of all together; a panel for each, by its label."""
    frame = _contrasts(page)
    keys = list(zip(frame["kind"], frame["scale"], strict=True))
    frame = frame.assign(panel=[panels.get(key, "") for key in keys])
    parts = [
        select(frame, {"panel": panel, "series": series}) for panel in panels.values() for series in ("run", POOLED)
    ]
    frame = pd.concat(parts, ignore_index=True)
    frame[ENDS] = frame[ENDS].mul(frame["scale"].map({"share": 100.0, "margin": 1.0}), axis=0)
    frame = frame[[*FACTS, "panel", "series", "name", *ENDS, "n"]].drop(columns="method")
    axes = {panel: Axis(panel.replace(", ", ",\n"), lines={"": 0.0}) for panel in panels.values()}
    return forest(frame, axes, size=size, series="series", looks=RUN_LOOKS, title="", bold=(POOLED,))


def _pooled(page: Page, kind: tuple[str, str], scale: str = "share") -> dict:
    return next(line for line in _contrasts(page).to_dict("records")
                if (line["kind"], line["scale"], line["series"]) == (kind, scale, POOLED))  # fmt: skip


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


@CHAPTER.figure("fig-forgetting-pairs")
def _same_questions(page: Page):
    """Knowledge less reading on the same questions, every run: share of skill kept, and margins."""
    if READING not in set(_contrasts(page)["kind"]):
        return "No two usable tasks ask the same questions without and with their paragraph."
    axes = {(READING, "share"): "share of skill kept, knowledge less reading (%)"}
    axes |= {(READING, "margin"): "change of margin, knowledge less reading (nats)"}
    share = cell(_pooled(page, READING), write=points, unit=" %")
    margin = cell(_pooled(page, READING, "margin"), write=_signed, unit=" nats")
    asked = listing([f"{first} (without) and {second} (with the paragraph)" for first, second in _pairs(page)[READING]])
    said = f"The same questions asked without and with the paragraph that answers them: {asked}. On average over "
    said += f"{(~_runs(page)['ruined']).sum()} runs knowledge keeps {share} of its skill relative to reading, and its "
    said += f"margins change by {margin} relative to reading's."
    rest = (
        " Left of zero, knowledge falls more. Margin: log-probability of the right option less the best other one's. "
    )
    rest += "Bars: 95 % bootstrap intervals over questions, paired by question and with the dense model."
    return _by_run(page, axes, (6.6, 0.3)), said + rest, said


@CHAPTER.figure("fig-forgetting-robustness")
def _robustness(page: Page):
    """Perturbed less plain questions, every run: what each perturbation costs beyond its cost before."""
    kinds = [kind for kind in _contrasts(page)["kind"].unique() if kind != READING]
    if not kinds:
        return "No task with perturbed questions is usable together with its plain one."
    axes = {(kind, "share"): f"share of skill kept, {' less '.join(kind)} (%)" for kind in kinds}
    parts = ", ".join(f"{kind[0]} {cell(_pooled(page, kind), write=points, unit=' %')}" for kind in kinds)
    said = f"Robustness after compression. On average over {(~_runs(page)['ruined']).sum()} runs the share of skill "
    said += f"kept, less that on plain questions: {parts}."
    rest = " Left of zero, perturbation costs the compressed model more than the dense one. Bars: 95 % bootstrap "
    rest += "intervals over questions, paired by question and with the dense model."
    return _by_run(page, axes, (2.4 + 2.1 * len(kinds), 0.3)), said + rest, said


@CHAPTER.figure(STORAGE)
def _storage(page: Page):
    """Perplexity and mean accuracy change against bits per weight, one point per compressed model."""
    runs, main = _runs(page).dropna(subset="perplexity"), _main(page)
    if runs.empty:
        return "There is no compressed model to compare."
    rows = []
    for run in runs.to_dict("records") if main else ():
        change = paired(page.results, run["run_id"], None, ACCURACY, main).estimate()
        rows.append({**run, "panel": ACCURACY.name, **vars(change.map(lambda share: 100 * share))})
    ratios = changes(page.results, PERPLEXITY).assign(panel=PERPLEXITY.name)
    frame = pd.concat([ratios, pd.DataFrame(rows)], ignore_index=True)
    frame = frame.assign(x=frame["storage_bits"])[[*FACTS, "panel", "x", *ENDS, "n"]]
    y = {PERPLEXITY.name: Axis(PERPLEXITY.compared, 10, suffix="×", limits=(0.9, FAR), lines={"": 1.0})}
    y[ACCURACY.name] = Axis(ACCURACY.compared, lines={"": 0.0})
    pairs = [f"{run_name(line)} has {times(line['perplexity'])} the perplexity of {line['name_of']} and differs by "
             f"{cell(line, write=points, unit=' points')}"
             for line in _low_rank_rows(page).to_dict("records")]  # fmt: skip
    words = f"At equal storage, best against best: {'; '.join(pairs)}" if pairs else "No two kinds take equal storage"
    said = f"Low rank, pruning and quantization by what a weight takes. {words}."
    far = [f"{run['name']} ({times(run['perplexity'])})" for run in runs[runs["perplexity"] > FAR].to_dict("records")]
    rest = (
        f" Bars: 95 % bootstrap intervals over windows (left) and over items of {len(main)} tasks (right), paired with "
    )
    rest += "the dense model." + f" Beyond the left axis: {listing(far)}." * bool(far)
    x = Axis("storage (bits per weight, masks and scales counted)")
    return scatter(frame, x, y, columns=2, size=(6.6, 3.6), aside=0.05, title=""), said + rest, said


@CHAPTER.table("tasks")
def _task_table(page: Page) -> Table:
    """The tasks, what they ask, and what the dense model scores on them."""
    cells = []
    for line in tasks(page.results).to_dict("records"):
        known, name = TASKS.get(line["eval_set"]), line["eval_set"] + " †" * (not line["usable"])
        other = f"{known.variant_of}, perturbed" if known and known.variant_of else ""
        other = f"the questions of {known.paired_with}" if known and known.paired_with else other
        score = cell({end: 100 * line[end] for end in ENDS}, write="{:.1f}".format)
        facts = {"skill": known.skill if known else "", "pairs with": other, "chance": f"{100 * line['chance']:.0f}"}
        cells += [(name, *fact) for fact in {**facts, "dense": score, "items": str(line["n"])}.items()]
    note = "Accuracy in %, with 95 % bootstrap intervals. † not above chance: shown, used for no claim."
    return Table.of_cells(cells, "task", note, 3)


@CHAPTER.table("skills")
def _skill_table(page: Page) -> Table:
    """Every run: storage, perplexity, the share of each skill kept, and how far its margins moved."""
    runs, cells = _runs(page).to_dict("records"), []
    cells += [(run["name"], "bits", f"{run['storage_bits']:.2f}") for run in runs]
    cells += [(run["name"], "perplexity", cell(run, "perplexity")) for run in runs]
    writers = {"correct": ("kept (%)", lambda v: f"{v:.0f}".replace("-", "−")), "margin": ("margin", _signed)}
    for key, (head, write) in writers.items():
        lines = _kept(page, key).to_dict("records")
        cells += [(line["name"], f"{line['skill']} {head}", cell(line, write=write)) for line in lines]
    return Table.of_cells(cells)


@CHAPTER.table("contrasts")
def _contrast_table(page: Page) -> Table:
    """Every contrast on three scales: knowledge less reading, and perturbed less plain, by run and for all together."""
    frame, body, writers = _contrasts(page), [], {"share": points, "points": points, "margin": _signed}
    for kind in frame["kind"].unique():
        title = " less ".join(kind)
        body.append([title, "dense model itself", "", _dense_gap(page, _pairs(page)[kind]).text(points), ""])
        for name, own in frame[frame["kind"] == kind].groupby("name", sort=False):
            body.append([title, name, *[cell(line, write=writers[line["scale"]]) for line in own.to_dict("records")]])
    return Table(["contrast", "run", "share of skill", "accuracy", "margin"], body, text_columns=2)


@CHAPTER.table("storage")
def _storage_table(page: Page) -> Table:
    """ASVD against other low-rank methods at the same rank, and low rank against pruning at equal storage."""
    body = []
    for line in _matches(page).to_dict("records"):
        stars = {name: r"\*" * (line[f"{name}_p_holm"] < LEVEL) for name in ("perplexity", "accuracy")}
        values = [cell(line, "perplexity") + stars["perplexity"], cell(line, "accuracy", points) + stars["accuracy"]]
        own, other = (
            f"{run_name(line)} ({line['storage_bits']:.2f})",
            f"{line['name_of']} ({line['storage_bits_of']:.2f})",
        )
        body.append([own, other, *values])
    return Table(["low rank", "against", "perplexity", "accuracy"], body, text_columns=2)
