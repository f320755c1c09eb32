"""What the rows say, in sentences: every number and every verdict is computed, so the text cannot outlive its data."""

import pandas as pd

from crosscal.results.compare import ALL_TASKS, ALL_TEXTS, LEVEL, mean_changes, task_changes, tasks, text_changes
from crosscal.results.frame import Results, model_names
from crosscal.stats import holm
from crosscal_book.axes import by_method
from crosscal_book.chapters.perplexity import first_to_break, same_tasks_at_equal_perplexity
from crosscal_book.style import style_of
from crosscal_book.tradeoff import runs_by_ratio
from crosscal_book.verdicts import FAILS, HOLDS, OPEN, Text, Verdict, takeaway_text
from crosscal_book.words import KEPT, listing, p_text, points, run_name, times

MARGIN = 0.01  # a mean loss below one point is called none
EVIDENCE = "fig-loss-perplexity"


def hidden_loss(results: Results) -> Verdict:
    """Can a compressed model keep its perplexity and still lose task accuracy?

    Looks at the runs whose perplexity over all texts is at most `KEPT` times the dense model's. The claim holds when
    one of them loses accuracy with Holm-corrected sign-flip p below `LEVEL`; it does not hold when the intervals of all
    of them exclude a loss of `MARGIN`; otherwise it cannot be told.
    """
    claim = "Perplexity hides task loss: a model that keeps its perplexity can still lose accuracy"
    kept_within = f"within {100 * (KEPT - 1):.0f} % of the dense model's"
    runs = runs_by_ratio(results)
    if runs.empty:
        return Verdict(claim, OPEN, "the dense model is above chance on no accuracy task, so there is nothing to lose")
    kept = runs[runs["ratio"] <= KEPT]
    if kept.empty:
        nearest = f"{run_name(runs.iloc[0])}, is at {times(runs.iloc[0]['ratio'])}"
        return Verdict(claim, OPEN, f"no run keeps its perplexity {kept_within}; the nearest, {nearest}")
    kept = kept.assign(p_holm=holm(kept["p"]))
    proofs = kept[(kept["p_holm"] < LEVEL) & (kept["change"] < 0)]
    if len(proofs):
        worst = proofs.sort_values("change").iloc[0]
        return Verdict(claim, HOLDS, _effect(worst), EVIDENCE, _brief(worst))
    if (kept["lo"] > -MARGIN).all():
        weakest = kept.sort_values("lo").iloc[0]
        return Verdict(
            claim,
            FAILS,
            f"no run {kept_within} loses a point or more; the nearest to it: {_effect(weakest)}",
            EVIDENCE,
            _brief(weakest),
        )
    widest = kept.sort_values("lo").iloc[0]
    none = "no run with perplexity" if len(kept) > 1 else "the one run with perplexity"
    verb = "loses accuracy significantly" if len(kept) > 1 else "does not lose accuracy significantly"
    effect = f"{none} {kept_within} {verb}, but a loss is not excluded: {_effect(widest)}"
    return Verdict(claim, OPEN, effect, EVIDENCE, _brief(widest))


def takeaway(results: Results, focus: str) -> Text:
    """The chapter's answer: the verdicts, each method at `focus` (a pattern), and which tasks break."""
    parts = [
        f"At {focus} sparsity on {model_names(results.rows)}, {_kept_at(results, focus)}:\n\n"
        + "\n".join(_method_lines(results, focus)),
        _broken_tasks(results, focus),
        first_to_break(results),
    ]
    return takeaway_text([hidden_loss(results), same_tasks_at_equal_perplexity(results)], *parts)


def _effect(run: pd.Series) -> str:
    return (
        f"{run_name(run)} has {times(run['ratio'])} [{times(run['ratio_lo'])}, {times(run['ratio_hi'])}] the dense "
        f"perplexity and its mean accuracy over {run['tasks']} tasks changes by {points(run['change'])} points "
        f"[{points(run['lo'])}, {points(run['hi'])}]" + (f", {p_text(run['p_holm'])}" if "p_holm" in run else "")
    )


def _brief(run: pd.Series) -> str:
    change = f"{points(run['change'])} points [{points(run['lo'])}, {points(run['hi'])}]"
    return f"accuracy {change} at {times(run['ratio'])} the perplexity ({run_name(run)})"


def _method_lines(results: Results, focus: str) -> list[str]:
    ratios, means = text_changes(results), mean_changes(results)
    ratios = ratios[(ratios["eval_set"] == ALL_TEXTS) & (ratios["pattern"] == focus)]
    lines = []
    for method, part in by_method(ratios):
        ratio = part.iloc[0]
        text = f"perplexity {times(ratio['ratio'])} [{times(ratio['lo'])}, {times(ratio['hi'])}]"
        mean = means[(means["run_id"] == ratio["run_id"]) & (means["group"] == ALL_TASKS)]
        for change in mean.to_dict("records"):
            text += (
                f", mean accuracy {points(change['change'])} points [{points(change['lo'])}, {points(change['hi'])}]"
            )
            text += f" over {change['tasks']} tasks"
        lines.append(f"- {style_of(method).label}: {text}")
    return lines


def _kept_at(results: Results, focus: str) -> str:
    """How many methods keep their perplexity at one pattern."""
    ratios = text_changes(results)
    ratios = ratios[(ratios["eval_set"] == ALL_TEXTS) & (ratios["pattern"] == focus)]["ratio"]
    return f"{int((ratios <= KEPT).sum())} of {len(ratios)} methods keep perplexity within {100 * (KEPT - 1):.0f} %"


def _broken_tasks(results: Results, focus: str) -> str:
    changes, table = task_changes(results), tasks(results)
    at_focus = changes[(changes["pattern"] == focus) & changes["usable"]]
    lines = []
    for method, part in by_method(at_focus):
        fell = part[(part["p_holm"] < LEVEL) & (part["change"] < 0)].sort_values("change")
        names = listing(list(fell["eval_set"])) if len(fell) else "none"
        lines.append(f"{style_of(method).label}: {len(fell)} of {len(part)} ({names})")
    text = (
        f"Tasks that fall significantly at {focus} (Holm-corrected p < {LEVEL}), {'; '.join(lines)}." if lines else ""
    )
    left_out = table[~table["usable"]]["eval_set"]
    if len(left_out):
        text += f" Left out, because the dense model is not above chance: {listing(list(left_out))}."
    return text
