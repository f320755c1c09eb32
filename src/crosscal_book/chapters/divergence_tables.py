"""The tables of chapter 2: correlations, where JS wins and where it does not, and every run."""

import numpy as np
import pandas as pd

from crosscal.results.compare import LEVEL
from crosscal.results.frame import Results
from crosscal.stats import Estimate
from crosscal_book.chapters.correlation import ALL, DRAWS, MIN_RUNS, MIN_SETTINGS, associate, scopes
from crosscal_book.chapters.divergence import where
from crosscal_book.chapters.divergence_runs import (
    FLIPS,
    FLOOR,
    LOSS,
    OUTCOMES,
    PREDICTORS,
    PRUNING,
    QUANTIZATION,
    coefficient,
    nats,
    sample,
)
from crosscal_book.chapters.divergence_tail import percentile
from crosscal_book.tables import Table
from crosscal_book.words import points, times

JS, PERPLEXITY, NEITHER = "JS", "perplexity", "cannot be told"


def correlation_table(results: Results) -> Table:
    """Every number's rank correlation with task loss and answer flips, and its difference from perplexity's."""
    body = []
    for scope in (ALL, PRUNING, QUANTIZATION):
        found = associate(results, scope)
        for name, asked in PREDICTORS.items() if found else ():
            if ("rho", name, LOSS) not in found.estimates:
                continue
            cells = []
            for outcome in OUTCOMES:
                gain = found.estimates.get(("gain", name, outcome))
                rho = found.estimates["rho", name, outcome]
                cells += [rho.text(coefficient), gain.text(lambda v: coefficient(v, 3)) if gain else "0"]
            body.append([scope, asked.label, *cells, f"{found.n}", f"{found.settings}"])
    outcomes = [cell for noun in OUTCOMES.values() for cell in (noun, f"{noun}, minus perplexity's")]
    note = (
        "Spearman rank correlations over runs, and differences from that of perplexity over the same runs; in brackets "
        f"95 % intervals of one paired bootstrap over windows, items and settings ({DRAWS:,} draws). Positive: the "
        f"more of this, the more is lost. A scope with fewer than {MIN_SETTINGS} settings is left out."
    )
    return Table(["runs", "number", *outcomes, "n", "settings"], body, note, 2)


def where_table(results: Results) -> Table:
    """Where JS ranks runs better than perplexity, and where it does not: every group of runs."""
    frame, masks = where(results), scopes(sample(results))
    body = []
    for scope, lines in frame.groupby("scope", sort=False):
        cells = []
        for outcome in OUTCOMES:
            part = lines[lines["outcome"] == outcome]
            cells += [part["gain"].iloc[0].text(lambda v: coefficient(v, 3)), _winner(part.iloc[0])]
        settings = sample(results).runs.loc[masks[scope], "setting"].nunique()
        body.append([scope, f"{masks[scope].sum()}", f"{settings}", *cells])
    columns = [cell for noun in OUTCOMES.values() for cell in (f"JS minus perplexity, {noun}", "better")]
    note = (
        "Difference of rank correlations with 95 % intervals, as in the table above. Better: after Holm's correction "
        f"over all lines and both outcomes, p < {LEVEL}. Halves by the mean of a run's ranks in perplexity and JS. A "
        f"line with one setting holds runs that differ in calibration only, at least {MIN_RUNS}; others have at least "
        f"{MIN_SETTINGS} settings."
    )
    return Table(["runs", "n", "settings", *columns], body, note)


def run_table(results: Results) -> Table:
    """Every run, the least divergent first: divergence, perplexity and what became of the tasks."""
    found = sample(results)
    runs = found.runs.assign(js=found.of("js")).sort_values("js", kind="stable")
    shown = {"js": nats, "kl": nats, "top1": lambda v: f"{100 * v:.1f}", "perplexity": lambda v: times(np.exp(v))}
    shown |= {LOSS: lambda v: points(0.0 - v), FLIPS: lambda v: f"{100 * v:.1f}"}
    ends = {name: found.interval(name) for name in shown}
    signs = {name: PREDICTORS[name].sign if name in PREDICTORS else 1.0 for name in shown}
    body = []
    for row, run in runs.iterrows():
        cells = {}
        for name, text in shown.items():
            values = [signs[name] * v for v in (found.of(name)[row], ends[name][0][row], ends[name][1][row])]
            turned = signs[name] < 0 or name == LOSS
            cells[name] = _cell(values[0], *(values[:0:-1] if turned else values[1:]), text)
        tail = _cell(*percentile(results, run["run_id"], 99), nats)
        body.append([run_label(run, runs), cells.pop("js"), tail, *cells.values()])
    head = ["JS", "JS, 99th percentile", "KL(dense ‖ compressed)", "top-1 agreement (%)", "perplexity"]
    note = (
        "Means over the texts that all runs share, divergences in nats per token; in brackets 95 % bootstrap intervals "
        "over windows or items. Answer flips: share of items that are right in one of the two models only."
    )
    return Table(["", *head, "accuracy change (points)", "answer flips (%)"], body, note)


def run_label(run: pd.Series, runs: pd.DataFrame) -> str:
    """A run's setting, its calibration text, and number, length and draw of the windows where not the usual ones."""
    if run["kind"] == FLOOR:
        return "dense model in float32 (noise floor)"
    if not run["calibration"]:
        return run["setting"]
    calibrated = runs[runs["calibration"] != ""]
    parts = [run["calibration"]]
    if "+" in run["calibration"]:
        parts[0] += f" (last {run['mix_weight']:.2g})"
    sizes = calibrated["n_windows"].astype(str) + " × " + calibrated["window"].astype(str)
    size = f"{run['n_windows']} × {run['window']}"
    parts += [size] if size != sizes.mode().iloc[0] else []
    parts += [f"draw {run['seed']}"] if run["seed"] != calibrated["seed"].mode().iloc[0] else []
    return f"{run['setting']}, {', '.join(parts)}"


def _winner(line: pd.Series) -> str:
    gain: Estimate = line["gain"]
    if line["p_holm"] < LEVEL and (gain.lo > 0 or gain.hi < 0):
        return JS if gain.value > 0 else PERPLEXITY
    return NEITHER


def _cell(value: float, lo: float, hi: float, text) -> str:
    return f"{text(value)} [{text(lo)}, {text(hi)}]" if np.isfinite(value) else ""
