"""`crosscal gate`: whether a compressed model loses no more than a margin, as an exit status for pipelines.

A test of non-inferiority on every text and task by itself, paired window by window or item by item with the dense
model: the mean loss is shown to lie within the margin, shown to exceed it, or neither (Welch's t, one-sided, 5 %). To
pass, a model must be within on all of them, so that no correction for their number is due; one that is shown to be
worse on any fails, with Holm's correction over all.
"""

import argparse
import math

import numpy as np
from scipy import stats

from crosscal.cli.files import _as_json, _check_new
from crosscal.cli.measure import _check, _gaps, _measure, _place, _rehearsed, _show_rehearsal, _tasks
from crosscal.cli.request import _fraction
from crosscal.cli.tables import _aligned
from crosscal.errors import InputError, real_number
from crosscal.files import write_atomically
from crosscal.results.store import RunRecord
from crosscal.stats import LEVEL, Paired, bootstrap_mean, holm

WITHIN, WORSE, OPEN = "within", "worse", "cannot be told"
STATUS = {WITHIN: 0, WORSE: 1, OPEN: 3}
POWER = 0.8
_MOST = 1_000_000  # more windows or items than these are not asked for


def _run_gate(options: argparse.Namespace) -> dict:
    """Measure both models and test every text and task; `exit_status` is 0, 1 or 3."""
    _check(options)
    _check_new(options.output, options.overwrite)
    margin = real_number("--max-loss", _fraction("--max-loss", options.max_loss), 0, 1, above=True)
    if options.dry_run:
        return _rehearsed(options, [options.dense, options.model])
    dense, run = _measure(options, [options.dense, options.model])
    checks = [*_texts(run, dense, margin), *_answers(run, dense, margin)]
    for check, adjusted in zip(checks, holm([check["p_worse"] for check in checks]), strict=True):
        check["p_worse_holm"] = float(adjusted)
        check["verdict"] = _verdict(check)
    found = {check["verdict"] for check in checks}
    verdict = WORSE if WORSE in found else WITHIN if found == {WITHIN} else OPEN
    result = {"model": options.model, "dense": options.dense, "max_loss": margin, "verdict": verdict}
    result |= {"exit_status": STATUS[verdict], "checks": checks, **_place(options)}
    if options.output:
        write_atomically(options.output, _as_json(result) + "\n")
    return result


def _texts(run: RunRecord, dense: RunRecord, margin: float) -> list[dict]:
    """Every text: the loss is that of perplexity, a ratio less 1."""
    losses = {
        name: np.array(run.items[name]["nll"]) - np.array(dense.items[name]["nll"]) for name in run.config["texts"]
    }
    return [
        _tested(name, "windows", gaps, math.log1p(margin)) | {"loss": _part(gaps, math.expm1)}
        for name, gaps in losses.items()
    ]


def _answers(run: RunRecord, dense: RunRecord, margin: float) -> list[dict]:
    """Every task: the loss is that of accuracy, in fractions of the items; none where the dense model only guesses."""
    checks = []
    for name, task in _tasks(dense).items():
        if task["metric"] == "auc":
            raise InputError(f"{name} is scored by AUC, of which single items have none; leave it out of --tasks")
        gaps = -_gaps(run, dense, name)
        usable = task["chance"] is None or task["lo"] > task["chance"]
        checks.append(_tested(name, "items", gaps, margin) | {"loss": _part(gaps, float), "usable": usable})
    return checks


def _tested(name: str, unit: str, gaps: np.ndarray, margin: float) -> dict:
    """Both one-sided tests of a mean loss against a margin, and how many units would tell at its size and spread."""
    if not np.isfinite(gaps).all():
        return {"name": name, "unit": unit, "n": len(gaps), "p_within": 1.0, "p_worse": 0.0, "would_tell": None}
    loss, apart = Paired.equal({name: gaps}), abs(margin - float(gaps.mean()))
    spread = float(gaps.std(ddof=1)) if len(gaps) > 1 else math.inf
    wanted = ((stats.norm.isf(LEVEL) + stats.norm.ppf(POWER)) * spread / apart) ** 2 if apart else math.inf
    enough = max(math.ceil(wanted), 5) if wanted <= _MOST else None  # five alike are the fewest that can tell
    tests = {"p_within": loss.p_below(margin), "p_worse": loss.p_above(margin)}
    return {"name": name, "unit": unit, "n": len(gaps), **tests, "would_tell": enough}


def _part(gaps: np.ndarray, scale) -> dict:
    """The mean loss with its 95 % bootstrap interval."""
    if not np.isfinite(gaps).all():
        return {"value": None, "lo": None, "hi": None}
    found = bootstrap_mean([gaps]).map(scale)
    return {"value": found.value, "lo": found.lo, "hi": found.hi}


def _verdict(check: dict) -> str:
    if check["p_worse_holm"] < LEVEL:
        return WORSE
    return WITHIN if check["p_within"] < LEVEL and check.get("usable", True) else OPEN


def _show_gate(result: dict) -> str:
    """Return the verdict in a sentence, and a table of all texts and tasks."""
    if result.get("dry_run"):
        return _show_rehearsal(result)
    margin = f"{100 * result['max_loss']:g}"
    said = {
        WITHIN: f"{result['model']} is within {margin} % of {result['dense']} on every text and task",
        WORSE: f"{result['model']} loses more than {margin} % against {result['dense']}",
        OPEN: f"whether {result['model']} is within {margin} % of {result['dense']} cannot be told",
    }[result["verdict"]]
    rows = [[c["name"], _loss(c), str(c["n"]), c["verdict"], _advice(c)] for c in result["checks"]]
    note = "Loss of perplexity in per cent, of accuracy in points; in brackets: 95 % bootstrap intervals, paired."
    return f"{said}\n\n{_aligned(['', 'loss', 'n', 'verdict', 'would tell'], rows)}\n\n{note}"


def _loss(check: dict) -> str:
    loss, unit = check["loss"], "%" if check["unit"] == "windows" else "points"
    if loss["value"] is None:
        return "not finite"
    value, lo, hi = (f"{100 * loss[end]:+.2f}" for end in ("value", "lo", "hi"))
    return f"{value} {unit} [{lo}, {hi}]"


def _advice(check: dict) -> str:
    """What would tell, where nothing is told: more windows (`--windows`) or items (`--items`)."""
    if check["verdict"] != OPEN:
        return ""
    if not check.get("usable", True):
        return "no number: the dense model guesses"
    return f"{check['would_tell']:,} {check['unit']}" if check["would_tell"] else "no number: it lies at the margin"
