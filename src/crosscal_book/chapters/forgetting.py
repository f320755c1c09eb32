"""Chapter 6: what is forgotten first. Verdicts on knowledge, reading and robustness, and the chapter's takeaways."""

import pandas as pd

from crosscal.results.compare import LEVEL, accuracy_tasks, differences, tasks
from crosscal.results.frame import Results
from crosscal.stats import bootstrap_mean, holm, sign_flip_p
from crosscal_book.chapters.forgetting_measures import (
    RUINED,
    Contrast,
    compressed,
    contrast,
    dense_gap,
    prepared,
    readable,
    reading_pairs,
    shared_items,
    significant,
    skills,
    variant_pairs,
)
from crosscal_book.chapters.forgetting_storage import activation_aware, low_rank_loses
from crosscal_book.verdicts import FAILS, HOLDS, OPEN, Text, Verdict, takeaway_text
from crosscal_book.words import KEPT, listing, p_text, points, run_name, times

MARGIN = 0.01
"""A loss of knowledge below one point is called none, as in chapter 1."""
SAME = 0.05
"""Shares of skill kept that differ by less than a twentieth of the skill are called the same: less than one item in
forty of a task whose dense accuracy is 50 points above chance. Set before the runs were made."""
PERTURBATIONS = {"typos": "_typos", "rephrasing": "_rephrased"}


def verdicts(results: Results) -> list[Verdict]:
    """All claims of the chapter, each by the rule its function states."""
    robust = robustness(results)
    return [
        lost_before_perplexity(results),
        knowledge_before_reading(results),
        *robust,
        activation_aware(results),
        low_rank_loses(results),
    ]


def takeaway(results: Results) -> Text:
    """The opening of the chapter: its claims, and what was left out of them."""
    return takeaway_text(verdicts(results), _left_out(results))


def mild_changes(results: Results) -> pd.DataFrame:
    """`skill_changes` of the runs that keep their perplexity within `KEPT` times the dense model's."""
    runs = compressed(results)
    return skill_changes(results, runs[runs["ratio"] <= KEPT])


def skill_changes(results: Results, runs: pd.DataFrame) -> pd.DataFrame:
    """The accuracy change of each skill in some of the lines of `compressed`.

    One line per (run, skill): `change`, `lo`, `hi` (of 1), `p` of the sign-flip test.
    """
    lines: list[dict] = []
    for run in runs.to_dict("records"):
        for skill, members in skills(results).items():
            gaps = [differences(results, run["run_id"], task) for task in members]
            found = bootstrap_mean(gaps)
            line = {"skill": skill, "change": found.value, "lo": found.lo, "hi": found.hi, "p": sign_flip_p(gaps)}
            lines.append({**run, **line})
    return pd.DataFrame(lines, columns=[*runs.columns, "skill", "change", "lo", "hi", "p"])


def lost_before_perplexity(results: Results) -> Verdict:
    """Is knowledge lost before perplexity shows it (Namburi et al. 2023, arXiv 2312.00960)?

    Looks at the runs with at most `KEPT` times the dense perplexity over all texts. Holds when one of them loses
    accuracy on the knowledge tasks with Holm-corrected sign-flip p below `LEVEL`; does not hold when the intervals of
    all exclude a loss of `MARGIN`; otherwise it cannot be told. Reading and language are reported beside it.
    """
    claim, evidence = "Knowledge is lost before perplexity shows it", "fig-forgetting-perplexity"
    within = f"within {100 * (KEPT - 1):.0f} % of the dense model's"
    mild, runs = mild_changes(results), compressed(results)
    if "knowledge" not in skills(results):
        return Verdict(claim, OPEN, "the dense model is above chance on no knowledge task", evidence)
    if mild.empty:
        nearest = skill_changes(results, runs[runs["ratio"].notna()].head(1))
        more = f"; the nearest, {_mild_run(nearest.iloc[0], nearest)}" if len(nearest) else ""
        return Verdict(claim, OPEN, f"no run has perplexity {within}{more}", evidence)
    knowledge = mild[mild["skill"] == "knowledge"]
    knowledge = knowledge.assign(p_holm=holm(knowledge["p"]))
    proofs = knowledge[(knowledge["p_holm"] < LEVEL) & (knowledge["change"] < 0)]
    if len(proofs):
        answer, shown, start = HOLDS, proofs.sort_values("change").iloc[0], f"{len(proofs)} of {len(knowledge)} runs"
        start += f" with perplexity {within} lose knowledge significantly; the most: "
    elif (knowledge["lo"] > -MARGIN).all():
        answer, shown = FAILS, knowledge.sort_values("lo").iloc[0]
        start = f"none of {len(knowledge)} runs with perplexity {within} loses a point or more; the nearest to it: "
    else:
        answer, shown = OPEN, knowledge.sort_values("lo").iloc[0]
        start = f"none of {len(knowledge)} runs with perplexity {within} loses knowledge significantly, but a loss is "
        start += "not excluded: "
    return Verdict(claim, answer, start + _mild_run(shown, mild), evidence)


def knowledge_before_reading(results: Results) -> Verdict:
    """Does knowledge fall more than reading on the very same questions, asked without and with their paragraph?

    Reading scores higher to begin with, so the claim is decided on the share of skill kept: the mean over all runs
    below `RUINED` times the dense perplexity, items resampled for all runs together. Holds when the share that
    knowledge keeps is smaller and the interval excludes 0; does not hold when it is greater by the same test, or when
    the interval stays within `SAME`; cannot be told otherwise, and when points say the opposite significantly.
    """
    claim = "Knowledge falls more than reading, on the very same questions"
    return _contrast_verdict(results, claim, reading_pairs(results), "fig-forgetting-pairs", "knowledge", "reading")


def robustness(results: Results) -> list[Verdict]:
    """Are compressed models less robust (Du et al. 2023, arXiv 2110.08419) to typos, and to rephrasing?

    The same rule as `knowledge_before_reading`, for the perturbed questions against the plain ones; the p-values of
    the two claims are corrected by Holm's method.
    """
    found = {name: variant_pairs(results, ending) for name, ending in PERTURBATIONS.items()}
    ids = tuple(readable(results))
    p = {name: contrast(results, ids, tuple(pairs)).share.p for name, pairs in found.items() if pairs and ids}
    corrected = dict(zip(p, holm(list(p.values())), strict=True))
    claim, evidence = "Compression makes models less robust to", "fig-forgetting-robustness"
    return [
        _contrast_verdict(results, f"{claim} {name}", pairs, evidence, f"with {name}", "plain", corrected.get(name))
        for name, pairs in found.items()
    ]


def _contrast_verdict(
    results: Results, claim: str, pairs: list, evidence: str, first: str, second: str, p_holm: float | None = None
) -> Verdict:
    ids = tuple(readable(results))
    if not pairs:
        text = f"no two tasks ask the same questions, {first} and {second}, with the dense model above chance on both"
        return Verdict(claim, OPEN, text, evidence)
    if not ids:
        return Verdict(claim, OPEN, f"no run stays below {RUINED:g} times the dense perplexity", evidence)
    found = contrast(results, ids, tuple(pairs))
    answer = contrast_answer(found, p_holm)
    share, gap = found.share, found.points
    n = shared_items(results, pairs)
    text = (
        f"share of skill kept, {first} less {second}: {points(share.value)} % [{points(share.lo)}, {points(share.hi)}] "
        f"of the dense model's skill, mean of {len(ids)} runs on {n} shared questions "
        f"({p_text(share.p if p_holm is None else p_holm)}); accuracy, in points: {points(gap.value)} "
        f"[{points(gap.lo)}, {points(gap.hi)}]; {_alone(results, ids, pairs)}"
    )
    if contradictory(found):
        text += "; the two scales contradict each other"
    return Verdict(claim, answer, text, evidence)


def contrast_answer(found: Contrast, p_holm: float | None = None) -> str:
    """The rule of `knowledge_before_reading` for one contrast; `p_holm` replaces its p where claims were corrected."""
    p = found.share.p if p_holm is None else p_holm
    if significant(found.share) and p < LEVEL:
        if contradictory(found):
            return OPEN
        return HOLDS if found.share.value < 0 else FAILS
    return FAILS if found.share.lo > -SAME and found.share.hi < SAME else OPEN


def contradictory(found: Contrast) -> bool:
    """Whether the share of skill and points of accuracy say the opposite, both significantly."""
    opposite = found.share.value * found.points.value < 0
    return opposite and significant(found.share) and significant(found.points)


def _alone(results: Results, ids: tuple[str, ...], pairs: list) -> str:
    """How many runs show a difference each by itself."""
    each = [contrast(results, (run_id,), tuple(pairs)).share for run_id in ids]
    p = holm([one.p for one in each])
    less = sum(1 for one, q in zip(each, p, strict=True) if q < LEVEL and one.value < 0)
    more = sum(1 for one, q in zip(each, p, strict=True) if q < LEVEL and one.value > 0)
    return f"alone, {less} of {len(ids)} runs show it and {more} the opposite (Holm-corrected)"


def _mild_run(shown: pd.Series, mild: pd.DataFrame) -> str:
    run = mild[mild["run_id"] == shown["run_id"]]
    changes = [
        f"{line['skill']} {points(line['change'])} points [{points(line['lo'])}, {points(line['hi'])}]"
        for line in run.to_dict("records")
    ]
    ratio = f"{times(shown['ratio'])} [{times(shown['ratio_lo'])}, {times(shown['ratio_hi'])}]"
    tested = f" ({p_text(shown['p_holm'])})" if "p_holm" in shown else ""
    return f"{run_name(shown)} at {ratio} the dense perplexity changes {listing(changes)}{tested}"


def _left_out(results: Results) -> str:
    runs, table = compressed(results), tasks(prepared(results))
    ruined = [run_name(run) for run in runs[runs["ruined"]].to_dict("records")]
    parts = []
    if ruined:
        text = f"Left out of contrasts, because perplexity is at least {RUINED:g} times the dense model's"
        parts.append(f"{text}: {listing(ruined)}.")
    hopeless = sorted(set(table["eval_set"]) - set(accuracy_tasks(prepared(results))["eval_set"]))
    if hopeless:
        parts.append(f"Left out, because the dense model is not above chance: {listing(hopeless)}.")
    for name, ending in PERTURBATIONS.items():
        if pairs := variant_pairs(results, ending):
            gap = dense_gap(results, pairs)
            text = f"The dense model itself changes by {points(gap.value)} points [{points(gap.lo)}, {points(gap.hi)}]"
            parts.append(f"{text} when questions are given {name}." if name == "typos" else f"{text} by {name}.")
    return " ".join(parts)
