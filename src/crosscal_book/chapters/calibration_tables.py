"""Chapter 3, the tables: every source on every text, what moves results, sizes, written answers."""

import numpy as np

from crosscal.results.compare import LEVEL
from crosscal.results.frame import Results
from crosscal.stats import bootstrap_mean
from crosscal_book.chapters.calibration_answers import (
    SCORES,
    Answers,
    dense_run,
    differences_table,
    gather_answers,
)
from crosscal_book.chapters.calibration_data import (
    ACCURACY,
    DIVERGENCE,
    PERPLEXITY,
    Evidence,
    bounds,
    estimate,
    gap,
    gather,
    interval,
    is_group,
    name_of,
    percent,
)
from crosscal_book.chapters.calibration_spread import source_to_draw, spreads
from crosscal_book.style import style_of
from crosscal_book.tables import Table
from crosscal_book.words import points, times


def source_table(results: Results, general: str = "c4") -> Table:
    """Perplexity beside the dense model's on every text, divergence and accuracy, after every source."""
    evidence = gather(results, general)
    texts = list(evidence.results.only(metric="perplexity", run_id=evidence.results.dense_id)["eval_set"])
    body = []
    for group in evidence.groups:
        for source in evidence.sources(group):
            ids = evidence.draws(group, source)
            name = [name_of(group), source + (f" ({len(ids)} draws)" if len(ids) > 1 else "")]
            cells = [_ratio(evidence, ids, (text,), own=text == source) for text in texts]
            cells.append(_ratio(evidence, ids, None))
            cells += [
                interval(gap(evidence, ids, [], m), text) if evidence.sets(m) else ""
                for m, text in ((DIVERGENCE, "{:.4f}".format), (ACCURACY, points))
            ]
            body.append([*name, *cells])
    note = (
        "Perplexity / dense perplexity (bold: the text's own source) and its mean over all but the tasks' prompts; "
        "Jensen-Shannon divergence in nats; change of mean accuracy in points over the "
        f"{len(evidence.sets(ACCURACY))} tasks that all runs share. In brackets: 95 % intervals over windows or items "
        "and over calibration draws."
    )
    head = ["", "calibration", *[t.replace("_", " ") for t in texts], "mean", "JS", "accuracy"]
    return Table(head, body, note, 2)


def _ratio(evidence: Evidence, ids: list[str], sets: tuple[str, ...] | None, own: bool = False) -> str:
    found = estimate(gap(evidence, ids, [], PERPLEXITY, sets), np.exp)
    value = f"**{times(found.value)}**" if own else times(found.value)
    return f"{value} [{bounds(found)}]"


def spread_table(results: Results, general: str = "c4") -> Table:
    """The variance decomposition: SD by draw and by source and their ratio, range over texts, and other effects."""
    evidence = gather(results, general)
    frame = spreads(evidence)
    body = []
    for group in evidence.groups:
        own = frame[is_group(frame, group)]
        for what in dict.fromkeys(own["what"]):
            lines = own[own["what"] == what]
            cells = {line["measure"].name: _amount(line) for line in lines.to_dict("records")}
            body.append([name_of(group), what, *[cells.get(m.name, "") for m in (PERPLEXITY, DIVERGENCE, ACCURACY)]])
        ratios = [
            source_to_draw(evidence, group, m) if evidence.sets(m) else None for m in (PERPLEXITY, DIVERGENCE, ACCURACY)
        ]
        if any(ratio is not None for ratio in ratios):
            cells = ["" if r is None else interval(r, "{:.1f}".format) for r in ratios]
            body.append([name_of(group), "SD due to source / SD due to draw", *cells])
    note = (
        "Sizes without sign. SDs and ranges are over runs; the SD over sources holds the draw's as well, which the "
        "ratio takes out. In brackets: 95 % intervals; an interval of a difference that includes 0 has a negative end."
    )
    return Table(["", "what varies", "perplexity (%)", "JS divergence (nats)", "accuracy (points)"], body, note, 2)


def _amount(line: dict) -> str:
    found = estimate(line["draws"], line["measure"].scale)
    digits = 4 if line["measure"] is DIVERGENCE else 1
    return f"{found.value:.{digits}f} [{found.lo:.{digits}f}, {found.hi:.{digits}f}]".replace("-", "−")


def size_table(results: Results, general: str = "c4") -> Table:
    """Every number and length of windows of the general text's first draw."""
    evidence = gather(results, general)
    body = []
    for group in evidence.groups:
        runs = evidence.pick(group, calibration=general, seed=evidence.seed).sort_values(["window", "n_windows"])
        for run in runs.to_dict("records") if len(runs) > 1 else ():
            beside = ""
            usual = evidence.base(group, general)
            if usual and usual != run["run_id"]:
                beside = interval(gap(evidence, [run["run_id"]], [usual], PERPLEXITY), percent)
            cells = [_ratio(evidence, [run["run_id"]], None), beside]
            cells += [
                interval(gap(evidence, [run["run_id"]], [], m), text) if evidence.sets(m) else ""
                for m, text in ((DIVERGENCE, "{:.4f}".format), (ACCURACY, points))
            ]
            body.append([name_of(group), f"{run['n_windows']} × {run['window']}", *cells])
    note = (
        f"Windows × tokens in each, of {general}. Beside the usual: perplexity beside {evidence.size[0]} × "
        f"{evidence.size[1]}. In brackets: 95 % intervals over windows or items and over calibration draws."
    )
    note = note if body else f"No method was calibrated on several numbers or lengths of windows of {general}."
    return Table(
        ["", "windows", "perplexity / dense", "beside the usual", "JS (nats)", "accuracy (points)"], body, note, 2
    )


def answer_table(results: Results, general: str = "c4") -> Table:
    """Scores of written answers by model and calibration, and the paired differences; * marks Holm p < 5 %."""
    answers = gather_answers(results, general)
    head = ["answers", "model", "calibration", *SCORES.values()]
    if answers is None:
        return Table(head, [], f"No run wrote answers after calibration on task data and on {general}.", 3)
    differences = differences_table(answers)
    body = []
    for name in answers.sets:
        dense = dense_run(answers)
        if dense:
            body.append([name, "dense", "", *_scores(answers, dense, name)])
        for run in answers.runs[answers.runs["calibration"] == ""].to_dict("records"):
            if run["run_id"] != dense:
                body.append(
                    [
                        name,
                        f"{style_of(run['method']).label} {run['pattern']}",
                        "",
                        *_scores(answers, run["run_id"], name),
                    ]
                )
        for group in answers.pairs:
            for source in (general, answers.task):
                body.append([name, name_of(group), source, *_scores(answers, answers.run(group, source), name)])
            own = differences[(differences["set"] == name) & is_group(differences, group)]
            cells = [_difference(line) for line in own.to_dict("records")]
            body.append([name, name_of(group), f"{answers.task} less {general}", *cells])
    note = (
        "Scores in %, differences in points, paired over items. In brackets: 95 % bootstrap intervals over items. "
        f"\\* marks Holm-corrected p < {LEVEL} (sign flips) over all differences of this table."
    )
    return Table(head, body, note, 3)


def _scores(answers: Answers, run_id: str, name: str) -> list[str]:
    found = [bootstrap_mean([answers.scores(run_id, name, score)]) for score in SCORES]
    return [f"{100 * f.value:.1f} [{100 * f.lo:.1f}, {100 * f.hi:.1f}]" for f in found]


def _difference(line: dict) -> str:
    star = r"\*" if line["p_holm"] < LEVEL else ""
    return f"{points(line['value'])}{star} [{points(line['lo'])}, {points(line['hi'])}]"
