"""Chapter 6: what is forgotten first, knowledge, reading or robustness, and what low rank costs beside pruning."""

from functools import lru_cache

import pandas as pd

from crosscal.metrics.tasks import TASKS
from crosscal.results.compare import changes, paired, tasks
from crosscal.results.quantities import ACCURACY, PERPLEXITY
from crosscal.stats import LEVEL, Estimate, holm
from crosscal_book.chapter import Chapter, Page
from crosscal_book.claims import FACTS, every, mean, select, some
from crosscal_book.drawing import Axis
from crosscal_book.marks import forest, lines, scatter
from crosscal_book.numbers.skills import ENDS, POOLED, READING, REPHRASING, RUINED, TYPOS, Skills
from crosscal_book.style import MethodStyle
from crosscal_book.tables import Table
from crosscal_book.words import KEPT, cell, listing, p_text, points, run_name, times

# A loss below one point is called none, as in chapter 1. Shares of skill that differ by less than a twentieth of the
# skill are called the same: less than one item in forty of a task whose dense accuracy is 50 points above chance.
# Storage counts as equal within a tenth: ranks and patterns are steps. All set before the runs were made.
MARGIN, SAME, EQUAL_STORAGE, RIVALS = 0.01, 0.05, 0.10, ("svd", "fwsvd")
LOWEST, HIGHEST, FAR = -40.0, 140.0, 100.0  # ends of axes: shares of skill (%), below 0 worse than guessing; perplexity
SHAPES = (("knowledge", "#A3241B", "o"), ("reading", "#123F7A", "s"), ("language", "#5B7F00", "^"))
LOOKS = {shape[0]: MethodStyle(*shape) for shape in SHAPES}  # they differ in lightness, each is readable on white
RUN_LOOKS = {"run": MethodStyle("run", "#0067A5", "o"), POOLED: MethodStyle(POOLED, "#111111", "D")}
WITHIN, STORAGE = f"within {100 * (KEPT - 1):.0f} % of the dense model's", "fig-forgetting-storage"


@lru_cache(maxsize=8)
def _skills(page: Page) -> Skills:
    return Skills(page.results)


def _note(page: Page) -> str:
    """What was left out, and how far perturbations move the dense model itself."""
    runs, unusable = _skills(page).runs, sorted(tasks(page.results).query("not usable")["eval_set"])
    ruined = f"Left out of contrasts, because perplexity is at least {RUINED:g} times the dense model's: "
    parts = [ruined + listing(list(runs.loc[runs["ruined"], "name"])) + "."] if runs["ruined"].any() else []
    parts += [f"Left out, because the dense model is not above chance: {listing(unusable)}."] if unusable else []
    gaps = {kind: _skills(page).dense_gap(kind) for kind in _skills(page).pairs if kind != READING}
    moved = [f"{cell(vars(gap), write=points, unit=' points')} {kind[0]}" for kind, gap in gaps.items()]
    return " ".join([*parts, *([f"The dense model itself changes by {listing(moved)}."] if moved else [])])


CHAPTER = Chapter("forgetting", note=_note)


def _judged(share: Estimate, moved: Estimate, p: float) -> dict:
    """One-sided p-values of a contrast, 1 where shares and points contradict each other.

    That the shares differ by less than `SAME` refutes the claim as well.
    """
    sure, both_sure = (all(one.hi < 0 or one.lo > 0 for one in ones) for ones in ((share,), (share, moved)))
    against = both_sure and share.value * moved.value < 0
    same = share.lo > -SAME and share.hi < SAME and not (sure and p < LEVEL)
    p_side = p if sure and not against else 1.0
    p_yes, p_no = (p_side if share.value < 0 else 1.0), (0.0 if same else p_side if share.value > 0 else 1.0)
    tested = {"p_yes": p_yes, "p_yes_holm": p_yes, "p_no": p_no, "p_no_holm": p_no}
    return tested | {"against": "; the two scales contradict each other" * against}


def _contrast_rows(page: Page, kind: tuple[str, str]) -> pd.DataFrame:
    """The contrast over all runs that still predict text, and what each of them says alone."""
    skills = _skills(page)
    own = skills.contrasts[skills.contrasts["kind"] == kind]
    if own.empty:
        return own
    pooled, alone = own[own["series"] == POOLED].set_index("scale"), select(own, {"series": "run", "scale": "share"})
    share, moved = (Estimate(*pooled.loc[scale, [*ENDS, "n", "p"]]) for scale in ("share", "points"))
    line = pooled.loc["share"].to_dict() | _judged(share, moved, pooled.loc["share", "p_holm"])
    line |= {"told": cell(line, write=points, unit=" %"), "moved": moved.text(points), "runs": len(alone)}
    sure = alone.loc[alone["p_holm"] < LEVEL, "value"]
    questions = sum(len(skills.columns([page.results.dense_id], pair, "correct")) for pair in skills.pairs[kind])
    return pd.DataFrame([line | {"questions": questions, "show": sum(sure < 0), "oppose": sum(sure > 0)}])


def _no_mild(page: Page) -> str:
    if "knowledge" not in _skills(page).members:
        return "the dense model is above chance on no knowledge task"
    near = [f"; the nearest, {run['name']} at {run['ratio']} the dense perplexity, changes {run['moved']}"
            for run in _skills(page).changed.dropna(subset="perplexity").head(1).to_dict("records")]  # fmt: skip
    return f"no run has perplexity {WITHIN}{''.join(near)}"


CHAPTER.claim(
    "lost-before-perplexity",
    "Knowledge is lost before perplexity shows it",
    lambda page: _skills(page).changed.query("skill == 'knowledge' and perplexity <= @KEPT"),
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
    runs = _skills(page).runs.filter(regex="^(?!perplexity)")  # the lowest perplexity first
    both = runs.merge(runs, how="cross", suffixes=("", "_of"))
    near = (both["storage_bits_of"] / both["storage_bits"] - 1).abs() <= EQUAL_STORAGE
    rivals = both[(both["method"] == "asvd") & both["method_of"].isin(RIVALS) & (both["target"] == both["target_of"])]
    equal = both[(both["kind"] == "low rank") & (both["kind_of"] == "pruning") & near]
    frame = pd.concat([rivals.assign(family="rivals"), equal.assign(family="storage")], ignore_index=True)
    for quantity, sets in ((PERPLEXITY, None), (ACCURACY, _skills(page).main)):
        pairs = [paired(page.results, *ids, quantity, sets) for ids in frame[["run_id", "run_id_of"]].to_numpy()]
        found = [vars(pair.estimate(test=True).map(quantity.change)) if pair else {} for pair in pairs]
        ends = pd.DataFrame(found, columns=[*ENDS, "p"], dtype=float).add_prefix(f"{quantity.name}_")
        frame = frame.join(ends.rename(columns={f"{quantity.name}_value": quantity.name}))
        frame[f"{quantity.name}_p_holm"] = frame.groupby("family")[f"{quantity.name}_p"].transform(holm)
    best = (frame["family"] == "storage") & ~frame.duplicated(["family", "target"])
    gains = [cell(line, "accuracy", points, " points") for line in frame.to_dict("records")]
    return frame.assign(name=frame["name"] + " against " + frame["name_of"], best=best, told=gains)


def _on(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    return rows.dropna(subset=name).assign(value=rows[name], lo=rows[f"{name}_lo"], hi=rows[f"{name}_hi"])


def _rival_rows(page: Page) -> pd.DataFrame:
    """The rows of a claim on perplexity that needs both rivals, and that tasks do not contradict."""
    rows = _on(select(_matches(page), {"family": "rivals"}), "perplexity")
    p, worse_tasks = rows["perplexity_p_holm"], (rows["accuracy"] < 0) & (rows["accuracy_p_holm"] < LEVEL)
    supported = (rows["value"] < 1) & ~worse_tasks.any() & (rows["method_of"].nunique() == len(RIVALS))
    p_yes, p_no = p.where(supported, 1.0), p.where(rows["value"] > 1, 1.0)
    lower, sure = ((rows["value"] < 1) & (p < LEVEL)).sum(), rows["accuracy_p_holm"].map(p_text)
    tested = {"p_yes": p_yes, "p_yes_holm": p_yes, "p_no": p_no, "p_no_holm": p_no}
    return rows.assign(sure=sure, lower=lower, support=-rows["value"], **tested)


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
    "accuracy {told} ({sure})",
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
    kept = _skills(page).kept.query("key == 'correct'")
    if kept.empty:
        return "The dense model is above chance on no task of a skill, so there is nothing to keep."
    (axis, cut), part = _share_axis(kept), kept[~kept["ruined"]]
    names = kept["name"] + " (" + kept["perplexity"].map(lambda x: times(x) if x == x else "no text") + ")"
    frame = kept.assign(name=names)[[*FACTS, "name", "skill", *ENDS, "n"]]
    shares = [f"{skill} {own.median():.0f} %" for skill, own in part.groupby("skill", sort=False)["value"]]
    words = f"Half of the {part['run_id'].nunique()} runs below {RUINED:g}× perplexity keep at least {listing(shares)}."
    words = words if shares else f"All runs have at least {RUINED:g} times the dense perplexity."
    said = "Share of skill kept by every compressed model, the mildest by perplexity (in brackets, relative to the "
    said += f"dense model's) on top. {words}"
    rest = " 100 % is the dense model, 0 % guessing. Bars: 95 % bootstrap intervals over items. Tasks, "
    rest += "; ".join(f"{skill}: {listing(members)}" for skill, members in _skills(page).members.items())
    return forest(frame, axis, size=(6.6, 0.42), series="skill", looks=LOOKS, key=True), f"{said}{rest}.{cut}", said


@CHAPTER.figure("fig-forgetting-perplexity")
def _skills_by_perplexity(page: Page):
    kept = _skills(page).kept.query("key == 'correct' and perplexity < @RUINED")
    if kept.empty:
        return f"No run stays below {RUINED:g} times the dense perplexity on tasks that can be lost."
    frame = kept.assign(x=kept["perplexity"])[[*FACTS, "skill", "x", *ENDS, "n"]].sort_values("x")
    x = Axis(PERPLEXITY.compared + ", geometric mean over texts", 10, suffix="×", band=(1.0, KEPT),
             limits=(0.97, max(frame["x"].max() * 1.12, 1.3)))  # fmt: skip
    mild, y = _skills(page).changed.query("perplexity <= @KEPT and skill != 'main'"), _share_axis(kept)
    ends = mild.groupby("skill", sort=False)["value"].agg(lambda own: [points(own.min()), points(own.max())])
    spans = [f"{skill} by {' to '.join(dict.fromkeys(pair))} points" for skill, pair in ends.items()]
    lost = ((mild["skill"] == "knowledge") & (mild["hi"] < -MARGIN)).sum()
    words = f"In the {mild['run_id'].nunique()} runs in the shaded strip accuracy changes: {listing(spans)}; {lost} "
    words = f"{words}certainly lost more than a point of knowledge" if spans else f"No run has perplexity {WITHIN}"
    said = f"Share of skill kept against perplexity, one point per compressed model and skill. {words}."
    rest = f" Shaded: perplexity {WITHIN}. Lines only join a skill's points, models differ in method. Bars: 95 % "
    drawing = lines(frame, x, y[0], size=(6.4, 3.8), series="skill", looks=LOOKS, aside=0.006)
    return drawing, f"{said}{rest}bootstrap intervals over items. 0 % is guessing.{y[1]}", said


def _by_run(page: Page, panels: dict[tuple, str], size: tuple[float, float]):
    """Contrasts (kind, scale) of every run, the mildest first, and of all together; a panel for each, by its label."""
    frame = _skills(page).contrasts
    named = [panels.get(key, "") for key in zip(frame["kind"], frame["scale"], strict=True)]
    parts = [select(frame.assign(panel=named), {"panel": panel, "series": series})
             for panel in panels.values() for series in ("run", POOLED)]  # fmt: skip
    frame = pd.concat(parts, ignore_index=True)
    frame[ENDS] = frame[ENDS].mul(frame["scale"].map({"share": 100.0, "margin": 1.0}), axis=0)
    frame = frame[[*FACTS, "panel", "series", "name", *ENDS, "n"]].drop(columns="method")
    axes = {panel: Axis(panel.replace(", ", ",\n"), lines={"": 0.0}) for panel in panels.values()}
    return forest(frame, axes, size=size, series="series", looks=RUN_LOOKS, title="", bold=(POOLED,))


def _pooled(page: Page, kind: tuple[str, str], scale: str = "share", write=points, unit: str = " %") -> str:
    own = select(_skills(page).contrasts, {"scale": scale, "series": POOLED})
    return cell(own[own["kind"] == kind].iloc[0], write=write, unit=unit)


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


@CHAPTER.figure("fig-forgetting-pairs")
def _same_questions(page: Page):
    if READING not in set(_skills(page).contrasts["kind"]):
        return "No two usable tasks ask the same questions without and with their paragraph."
    panels = {(READING, "share"): "share of skill kept, knowledge less reading (%)"}
    panels |= {(READING, "margin"): "change of margin, knowledge less reading (nats)"}
    asked = [f"{first} (without) and {second} (with the paragraph)" for first, second in _skills(page).pairs[READING]]
    said = f"The same questions asked without and with the paragraph that answers them: {listing(asked)}. On average "
    margin = _pooled(page, READING, "margin", _signed, " nats")
    said += f"over {_skills(page).readable} runs knowledge keeps {_pooled(page, READING)} of its skill relative to "
    said += f"reading, and its margins change by {margin} relative to reading's."
    rest = " Left of zero, knowledge falls more. Margin: log-probability of the right option less the best other's. "
    rest += "Bars: 95 % bootstrap intervals over questions, paired by question and with the dense model."
    return _by_run(page, panels, (6.6, 0.3)), said + rest, said


@CHAPTER.figure("fig-forgetting-robustness")
def _robustness(page: Page):
    kinds = [kind for kind in _skills(page).contrasts["kind"].unique() if kind != READING]
    if not kinds:
        return "No task with perturbed questions is usable together with its plain one."
    panels = {(kind, "share"): f"share of skill kept, {' less '.join(kind)} (%)" for kind in kinds}
    said = f"Robustness after compression. On average over {_skills(page).readable} runs the share of skill kept, less "
    said += f"that on plain questions: {', '.join(f'{kind[0]} {_pooled(page, kind)}' for kind in kinds)}."
    rest = " Left of zero, perturbation costs the compressed model more than the dense one. Bars: 95 % bootstrap "
    rest += "intervals over questions, paired by question and with the dense model."
    return _by_run(page, panels, (2.4 + 2.1 * len(kinds), 0.3)), said + rest, said


@CHAPTER.figure(STORAGE)
def _storage(page: Page):
    runs, main = _skills(page).runs.dropna(subset="perplexity"), _skills(page).changed.query("skill == 'main'")
    if runs.empty:
        return "There is no compressed model to compare."
    main = main.assign(panel=ACCURACY.name, **{end: 100 * main[end] for end in ENDS})
    frame = pd.concat([changes(page.results, PERPLEXITY).assign(panel=PERPLEXITY.name), main], ignore_index=True)
    frame = frame.assign(x=frame["storage_bits"])[[*FACTS, "panel", "x", *ENDS, "n"]]
    y = {PERPLEXITY.name: Axis(PERPLEXITY.compared, 10, suffix="×", limits=(0.9, FAR), lines={"": 1.0})}
    y[ACCURACY.name] = Axis(ACCURACY.compared, lines={"": 0.0})
    pairs = [f"{run_name(line)} has {times(line['perplexity'])} the perplexity of {line['name_of']} and differs by "
             f"{line['told']}" for line in _low_rank_rows(page).to_dict("records")]  # fmt: skip
    words = f"At equal storage, best against best: {'; '.join(pairs)}" if pairs else "No two kinds take equal storage"
    said = f"Low rank, pruning and quantization by what a weight takes. {words}."
    far = [f"{run['name']} ({times(run['perplexity'])})" for run in runs[runs["perplexity"] > FAR].to_dict("records")]
    rest = f" Bars: 95 % bootstrap intervals over windows (left) and items of {len(_skills(page).main)} tasks (right), "
    rest += "paired with the dense model." + f" Beyond the left axis: {listing(far)}." * bool(far)
    x = Axis("storage (bits per weight, masks and scales counted)")
    return scatter(frame, x, y, columns=2, size=(6.6, 3.6), aside=0.05, title=""), said + rest, said


@CHAPTER.table("tasks")
def _task_table(page: Page) -> Table:
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
    runs, cells = _skills(page).runs.to_dict("records"), []
    cells += [(run["name"], "bits", f"{run['storage_bits']:.2f}") for run in runs]
    cells += [(run["name"], "perplexity", cell(run, "perplexity")) for run in runs]
    writers = {"correct": ("kept (%)", lambda v: f"{v:.0f}".replace("-", "−")), "margin": ("margin", _signed)}
    for key, (head, write) in writers.items():
        lines = select(_skills(page).kept, {"key": key}).to_dict("records")
        cells += [(line["name"], f"{line['skill']} {head}", cell(line, write=write)) for line in lines]
    return Table.of_cells(cells)


@CHAPTER.table("contrasts")
def _contrast_table(page: Page) -> Table:
    frame, body, writers = _skills(page).contrasts, [], {"share": points, "points": points, "margin": _signed}
    for kind, title in {kind: " less ".join(kind) for kind in frame["kind"]}.items():
        body.append([title, "dense model itself", "", _skills(page).dense_gap(kind).text(points), ""])
        for name, own in frame[frame["kind"] == kind].groupby("name", sort=False):
            body.append([title, name, *[cell(line, write=writers[line["scale"]]) for line in own.to_dict("records")]])
    return Table(["contrast", "run", "share of skill", "accuracy", "margin"], body, text_columns=2)


@CHAPTER.table("storage")
def _storage_table(page: Page) -> Table:
    body = []
    for line in _matches(page).to_dict("records"):
        stars = {name: r"\*" * (line[f"{name}_p_holm"] < LEVEL) for name in ("perplexity", "accuracy")}
        values = [cell(line, "perplexity") + stars["perplexity"], cell(line, "accuracy", points) + stars["accuracy"]]
        other = f"{line['name_of']} ({line['storage_bits_of']:.2f})"
        body.append([f"{run_name(line)} ({line['storage_bits']:.2f})", other, *values])
    return Table(["low rank", "against", "perplexity", "accuracy"], body, text_columns=2)
