"""Tables of the chapter: every (method, domain) pair's answer, the weights, the draws, the costs, and every run."""

from collections.abc import Sequence

import numpy as np

from crosscal.results.compare import LEVEL
from crosscal.results.frame import Results
from crosscal.stats import bootstrap_mean, holm
from crosscal_book.chapters.cross_both import MARGIN_TEXT, both, drawn
from crosscal_book.chapters.cross_calibration import models_of
from crosscal_book.chapters.cross_claims import regrets, task_domain
from crosscal_book.chapters.cross_figures import PART_NAMES, draws_of
from crosscal_book.chapters.cross_paired import Paired, judge, over_draws, percent, percent_text
from crosscal_book.chapters.cross_runs import DOUBLED, GENERAL, TOGETHER, Mixes, Pair, domain_texts, general_texts
from crosscal_book.tables import Table
from crosscal_book.words import number, p_text, points, run_name

NONE = ["no runs of this kind"]


def pairs_table(results: Results, general: str = "c4") -> Table:
    """Both gains of the mix at weight 1/2, and whether they hold, for every (method, domain) pair of every model."""
    body = []
    for model, found in models_of(results, general).items():
        pairs = found.pairs()
        gains = [both(found, [pair]) for pair in pairs]
        yes, no = (holm([getattr(gain, name) for gain in gains]) for name in ("p_holds", "p_fails"))
        for pair, gain, p_yes, p_no in zip(pairs, gains, yes, no, strict=True):
            domain, other = (percent_text(part.estimate()) for part in gain.parts)
            body.append([model, _target(pair), pair.source, domain, other, p_text(p_yes), judge(p_yes, p_no)])
    note = (
        "Change of perplexity with half the weight on the domain: of the domain's text against calibrating on general "
        "text alone, of general texts against calibrating on the domain alone; 95 % bootstrap intervals paired over "
        "windows. p: of the claim that both are gains (the larger p of two one-sided t tests), Holm-corrected "
        f"over a model's pairs; the claim does not hold where a gain of {MARGIN_TEXT} is excluded for one of them."
    )
    head = ["model", "method", "domain", "domain text", "general texts", "p", "keeps both"]
    return _table(head, body, note, 3)


def weights_table(results: Results, general: str = "c4") -> Table:
    """The best other weight of every pair, and what weight 1/2 costs against it."""
    found = next(iter(models_of(results, general).values()))
    body = []
    for line in regrets(found).to_dict("records"):
        costs = line["estimate"]
        text = f"{percent(-costs.value)} [{percent(-costs.lo)}, {percent(-costs.hi)}]"
        answer = "yes" if line["p_within"] < LEVEL else "no" if line["p_beyond"] < LEVEL else "cannot be told"
        body.append([_target(line["pair"]), line["pair"].source, f"{line['best']:g}", text, answer])
    note = (
        "Change of perplexity, in the mean of domain and general text, of weight 0.5 from the best of the other "
        "weights tried; negative: 0.5 is the best. The best is chosen on the windows that are compared, so a cost is "
        f"rather too high. Within {MARGIN_TEXT}: no other weight is better by as much (one-sided t tests)."
    )
    return _table(["method", "domain", "best other", "0.5 against it", f"within {MARGIN_TEXT}"], body, note, 2)


def draws_table(results: Results, general: str = "c4") -> Table:
    """Mean and standard deviation over draws of both losses at each weight."""
    found = next(iter(models_of(results, general).values()))
    pairs, seeds = drawn(found)
    body = []
    for pair in pairs if len(seeds) > 1 else []:
        cells = {part: draws_of(found, pair, part, seeds) for part in ("domain", GENERAL)}
        for weight in cells["domain"]:
            both_parts = [text for part in cells.values() for text in _over_draws(part[weight])]
            body.append([_target(pair), pair.source, f"{weight:g}", *both_parts])
    head = ["method", "domain", "weight"]
    for part in ("domain", GENERAL):
        head += [PART_NAMES[part], "SD"]
    note = (
        f"Perplexity relative to the dense model in {len(seeds)} draws of the calibration windows, on the same "
        "held-out windows: geometric mean with Student's 95 % interval over draws, and standard deviation over draws."
    )
    return _table(head, body, note, 3)


def cost_table(results: Results, general: str = "c4") -> Table:
    """Seconds and memory of compressing on one source, on two, on twice the windows and on all sources."""
    body = []
    for model, found in models_of(results, general).items():
        runs = found.runs.drop_duplicates("run_id")
        runs = runs.merge(
            found.results.rows.drop_duplicates("run_id")[["run_id", "calibration", "window"]], on="run_id"
        )
        keys = ["method", "pattern", "calibration", "n_windows", "window"]
        for (method, pattern, calibration, n_windows, window), part in runs.groupby(keys, sort=False):
            rows = [found.results.describe_run(run_id) for run_id in part["run_id"]]
            seconds, memory = ([row[name] for row in rows] for name in ("seconds", "peak_bytes"))
            tokens = n_windows * window * len(calibration.split("+"))
            name = run_name({"method": method, "pattern": pattern})
            cells = [model, name, calibration.replace("+", " + "), f"{tokens:,}", str(len(rows))]
            body.append([*cells, _range(seconds), _range([value / 2**20 for value in memory])])
    note = (
        "Tokens of calibration text; compression's seconds and peak memory beyond the loaded model, least to most over "
        "the runs with these texts (weights and draws). Timed as the runs came, once each."
    )
    return _table(["model", "method", "texts", "tokens", "runs", "seconds", "MiB"], body, note, 3)


def runs_table(results: Results, general: str = "c4") -> Table:
    """Every run, once for each domain: perplexity on the domain's and general texts, change on both kinds of tasks."""
    body = []
    for model, found in models_of(results, general).items():
        for source in found.sources:
            runs = found.runs[found.runs["source"] == source]
            dense = {"run_id": found.results.dense_id, "method": "dense", "pattern": "", "role": "", "weight": np.nan}
            for run in [{**dense, "seed": "", "kind": "", "source": source}, *runs.to_dict("records")]:
                body.append(
                    [model, source, run_name(run).strip(), _texts(run), str(run["seed"]), *_measures(found, run)]
                )
    note = (
        "Perplexity (general: geometric mean over texts) with 95 % bootstrap intervals over windows; change of mean "
        "accuracy from dense in points, over tasks on which the dense model is above chance, with intervals paired "
        "over items; empty where a run was not asked all of these tasks."
    )
    head = ["model", "domain", "method", "weight of the domain", "draw", "domain perplexity", "general perplexity"]
    return _table([*head, "domain tasks", "general tasks"], body, note, 4)


def _texts(run: dict) -> str:
    """The weight of the domain, or what else the run was calibrated on."""
    named = {DOUBLED: "0, twice the windows", TOGETHER: f"{run['weight']:.2g}, all sources", "": ""}
    return named.get(run["role"], f"{run['weight']:g}")


def _measures(mixes: Mixes, run: dict) -> list[str]:
    pair = Pair(run["method"], run["pattern"], run["kind"], run["source"])
    cells = []
    for texts in (domain_texts(mixes.results, pair.source), general_texts(mixes.results, pair.source)):
        losses = [np.array(mixes.results.items[run["run_id"]][text]["nll"]) for text in texts]
        value = bootstrap_mean(losses).map(lambda loss: float(np.exp(loss)))
        cells.append(f"{number(value.value)} [{number(value.lo)}, {number(value.hi)}]")
    for domain in (task_domain(mixes, pair), GENERAL):
        change = mixes.task_change(run["run_id"], domain)
        cells.append("" if change is None or run["method"] == "dense" else _points(change))
    return cells


def _points(change: Paired) -> str:
    found = change.estimate()
    return f"{points(found.value)} [{points(found.lo)}, {points(found.hi)}]"


def _over_draws(values: Sequence[float]) -> list[str]:
    found = over_draws(values).map(lambda loss: float(np.exp(loss)))
    spread = float(np.std(np.exp(values), ddof=1))
    return [f"{found.value:.3f}× [{found.lo:.3f}, {found.hi:.3f}]", f"{spread:.3f}"]


def _range(values: Sequence[float]) -> str:
    least, most = f"{min(values):,.0f}", f"{max(values):,.0f}"
    return least if least == most else f"{least} to {most}"


def _target(pair: Pair) -> str:
    return run_name(pair._asdict())


def _table(head: list[str], body: list[list[str]], note: str, text_columns: int) -> Table:
    return Table(head, body or [[*NONE, *[""] * (len(head) - 1)]], note if body else "", text_columns)
