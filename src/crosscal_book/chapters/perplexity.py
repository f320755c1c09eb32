"""Chapter 1, beyond its main figure: tasks at equal perplexity, the order in which tasks break, uneven sparsity."""

from itertools import combinations

import numpy as np
import pandas as pd

from crosscal.results.compare import (
    ALL_TASKS,
    ALL_TEXTS,
    LEVEL,
    accuracy_tasks,
    differences,
    mean_changes,
    text_changes,
)
from crosscal.results.frame import DENSE, Results
from crosscal.stats import Estimate, bootstrap_means, holm, two_sided_p
from crosscal_book.axes import by_method
from crosscal_book.style import style_of
from crosscal_book.tables import Table
from crosscal_book.verdicts import FAILS, HOLDS, OPEN, Verdict
from crosscal_book.words import listing, p_text, point_change, points, times

RATIOS = (1.25, 1.5, 2.0, 3.0)  # relative perplexities at which methods are compared; fixed before any run was seen
HALF = 0.5  # a task is broken where it has lost half of what the dense model has above chance
FAR = 3.0  # between two runs whose perplexities differ by a larger factor no line is drawn
EQUAL = 0.02  # two methods' tasks count as equal when the interval of their difference stays within two points


def uniform(results: Results) -> Results:
    """The runs in which all blocks are pruned alike."""
    kept = [i for i in results.run_ids if results.configs.get(i, {}).get("allocation", "uniform") == "uniform"]
    return results.subset(kept)


def at_equal_perplexity(results: Results) -> pd.DataFrame:
    """Change of mean accuracy at each relative perplexity of `RATIOS`, by method, with intervals.

    Between a method's runs over sparsity the change is taken linear in the logarithm of perplexity; a ratio outside of
    what a method's runs span, or between runs more than `FAR` apart, is left out. One bootstrap over items serves all
    runs, so that differences are paired.
    """
    draws = _curves(results)
    lines = []
    for ratio in RATIOS:
        for method, curve in draws.items():
            found = _at(curve, ratio)
            if found is not None:
                lo, hi = np.percentile(found[1:], [2.5, 97.5])
                lines.append({"ratio": ratio, "method": method, "change": found[0], "lo": lo, "hi": hi})
    return pd.DataFrame(lines, columns=["ratio", "method", "change", "lo", "hi"])


def equal_perplexity_pairs(results: Results) -> pd.DataFrame:
    """At each relative perplexity, the difference of two methods' accuracy changes, with intervals and Holm's p."""
    draws = _curves(results)
    lines = []
    for ratio in RATIOS:
        for first, second in combinations(draws, 2):
            one, other = _at(draws[first], ratio), _at(draws[second], ratio)
            if one is not None and other is not None:
                gap = one - other
                lo, hi = np.percentile(gap[1:], [2.5, 97.5])
                line = {"ratio": ratio, "first": first, "second": second, "gap": gap[0], "lo": lo, "hi": hi}
                lines.append(line | {"p": two_sided_p(gap[1:])})
    pairs = pd.DataFrame(lines, columns=["ratio", "first", "second", "gap", "lo", "hi", "p"])
    return pairs.assign(p_holm=holm(pairs["p"]) if len(pairs) else pairs["p"])


def equal_perplexity_table(results: Results) -> Table:
    """The accuracy changes at equal perplexity, and the widest gap between two methods."""
    frame, pairs = at_equal_perplexity(results), equal_perplexity_pairs(results)
    methods = [method for method, _ in by_method(frame)]
    body = []
    for ratio in sorted(frame["ratio"].unique()):
        part = frame[frame["ratio"] == ratio].set_index("method")
        cells = [_interval(part.loc[m]) if m in part.index else "" for m in methods]
        gaps = pairs[pairs["ratio"] == ratio]
        widest = gaps.loc[gaps["gap"].abs().idxmax()] if len(gaps) else None
        body.append([times(ratio), *cells, "" if widest is None else _gap(widest)])
    note = (
        "Change of mean accuracy in points where perplexity, over all texts, is so many times the dense model's, "
        "interpolated between sparsities; 95 % bootstrap intervals over items. Gap: the two methods that differ most, "
        "paired on the same items; p is Holm-corrected over all pairs and rows."
    )
    return Table(["perplexity", *[style_of(m).label for m in methods], "widest gap"], body, note)


def same_tasks_at_equal_perplexity(results: Results) -> Verdict:
    """Do equal perplexities mean equal tasks, whatever the method?

    Holds when every pair of methods at every ratio of `RATIOS` differs by less than `EQUAL` with its whole interval;
    fails when one pair differs with Holm-corrected p below `LEVEL`; cannot be told otherwise.
    """
    claim = "At equal perplexity two pruning methods leave the tasks equally good"
    pairs = equal_perplexity_pairs(results)
    if pairs.empty:
        return Verdict(claim, OPEN, "no two methods have runs on both sides of one perplexity")
    proofs = pairs[pairs["p_holm"] < LEVEL]
    widest = (proofs if len(proofs) else pairs).sort_values("gap", key=abs).iloc[-1]
    effect = f"at {times(widest['ratio'])} the dense perplexity the widest gap is {_gap(widest)}"
    if len(proofs):
        return Verdict(claim, FAILS, effect, "fig-loss-perplexity")
    inside = (pairs["lo"] > -EQUAL).all() and (pairs["hi"] < EQUAL).all()
    return Verdict(claim, HOLDS if inside else OPEN, effect, "fig-loss-perplexity")


def breaking_points(results: Results) -> pd.DataFrame:
    """The sparsity at which a task has lost half of what the dense model has above chance, by method, with intervals.

    Linear between runs; `value` is 1 where the task never falls so far within the runs (`censored`).
    """
    table, lines = accuracy_tasks(results), []
    for method, runs in _sparsities(results):
        xs = [0.0, *runs["sparsity"]]
        for task in table.to_dict("records"):
            limit = -HALF * (task["value"] - task["chance"])
            changes = [bootstrap_means([differences(results, i, task["eval_set"])]) for i in runs["run_id"]]
            curve = np.stack([np.zeros_like(changes[0]), *changes])
            found = _first_below(np.array(xs), curve, limit)
            lo, hi = np.percentile(found[1:], [2.5, 97.5])
            line = {"method": method, "eval_set": task["eval_set"], "value": found[0], "lo": lo, "hi": hi}
            lines.append(line | {"censored": found[0] >= 1, "last": xs[-1]})
    return pd.DataFrame(lines, columns=["method", "eval_set", "value", "lo", "hi", "censored", "last"])


def breaking_table(results: Results) -> Table:
    """Tasks in the order in which they break, with the sparsity of each method."""
    found = breaking_points(results)
    methods = [method for method, _ in by_method(found)]
    order = found.groupby("eval_set")["value"].mean().sort_values().index
    body = []
    for task in order:
        part = found[found["eval_set"] == task].set_index("method")
        body.append([task, *[_breaking(part.loc[m]) if m in part.index else "" for m in methods]])
    note = (
        "Sparsity (%) at which a task has lost half of what the dense model has above chance, first to break first; "
        "95 % bootstrap intervals over items. “Beyond” is the highest sparsity run."
    )
    return Table(["task", *[style_of(m).label for m in methods]], body, note)


def allocation_table(results: Results) -> Table:
    """Uneven sparsity by outliers (OWL) against even sparsity, run for run."""
    body = []
    for run_id, twin in _twins(results):
        run = results.describe_run(run_id)
        ratio = _paired_ratio(results, run_id, twin)
        change = _paired_change(results, run_id, twin)
        name = f"{style_of(run['method']).label} {run['pattern']}"
        body.append([name, f"{times(ratio.value)} [{times(ratio.lo)}, {times(ratio.hi)}]", _interval(vars(change))])
    note = (
        "Uneven sparsity (OWL) against even sparsity of the same method and mean: perplexity over all texts, change of "
        "mean accuracy in points; 95 % bootstrap intervals, paired on windows and items. Below 1× OWL is better."
    )
    return Table(["", "perplexity, OWL / even", "accuracy, OWL − even (points)"], body, note)


def _curves(results: Results) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By method: logarithms of relative perplexity [runs], and draws of the accuracy change [runs, 1 + draws]."""
    tasks, ratios = list(accuracy_tasks(results)["eval_set"]), text_changes(results)
    ratios = ratios[ratios["eval_set"] == ALL_TEXTS].set_index("run_id")["ratio"]
    found = {}
    for method, runs in _sparsities(results):
        changes = [bootstrap_means([differences(results, i, task) for task in tasks]) for i in runs["run_id"]]
        if tasks and len(changes):
            logs = np.log([1.0, *ratios[runs["run_id"]]])
            curve = np.stack([np.zeros_like(changes[0]), *changes])
            order = np.argsort(logs, kind="stable")
            found[method] = (logs[order], curve[order])
    return found


def _sparsities(results: Results):
    """(method, its runs over unstructured sparsity, sparsest last), for methods with at least two."""
    runs = mean_changes(results)
    runs = runs[(runs["group"] == ALL_TASKS) & ~runs["pattern"].str.contains(":")].drop_duplicates("run_id")
    for method, lines in by_method(runs):
        if len(lines) > 1 and method != DENSE:
            yield method, lines.sort_values("sparsity")


def _at(curve: tuple[np.ndarray, np.ndarray], ratio: float) -> np.ndarray | None:
    """The draws of the change at one relative perplexity, or None where the curve has no runs near enough."""
    logs, changes = curve
    x = np.log(ratio)
    if not logs[0] <= x <= logs[-1]:
        return None
    right = int(np.searchsorted(logs, x))
    left, right = max(right - 1, 0), max(right, 1)
    if logs[right] - logs[left] > np.log(FAR):
        return None
    share = (x - logs[left]) / (logs[right] - logs[left])
    return changes[left] + share * (changes[right] - changes[left])


def _first_below(xs: np.ndarray, curve: np.ndarray, limit: float) -> np.ndarray:
    """For each column of `curve` [points, draws], where it first falls to `limit`, linear between `xs`; 1 if never."""
    found = np.ones(curve.shape[1])
    for column in range(curve.shape[1]):
        below = np.flatnonzero(curve[1:, column] <= limit)
        if len(below):
            k = below[0]
            before, after = curve[k, column], curve[k + 1, column]
            found[column] = xs[k] + (xs[k + 1] - xs[k]) * (before - limit) / max(before - after, 1e-12)
    return found


def _twins(results: Results) -> list[tuple[str, str]]:
    """(run with OWL, the run that differs in nothing else)."""
    configs, found = results.configs, []
    for run_id, config in configs.items():
        if config.get("allocation") == "owl":
            even = config | {"allocation": "uniform"}
            found += [(run_id, other) for other, its in configs.items() if its == even]
    return found


def _paired_ratio(results: Results, run_id: str, other: str) -> Estimate:
    texts = [t for t in text_changes(results)["eval_set"].unique() if t != ALL_TEXTS]
    losses = [np.array(results.items[run_id][t]["nll"]) - np.array(results.items[other][t]["nll"]) for t in texts]
    draws = np.exp(bootstrap_means(losses))
    return Estimate(draws[0], *np.percentile(draws[1:], [2.5, 97.5]), n=sum(map(len, losses)))


def _paired_change(results: Results, run_id: str, other: str) -> Estimate:
    tasks = list(accuracy_tasks(results)["eval_set"])
    pairs = [differences(results, run_id, t) - differences(results, other, t) for t in tasks]
    draws = bootstrap_means(pairs)
    return Estimate(draws[0], *np.percentile(draws[1:], [2.5, 97.5]), n=sum(map(len, pairs)))


def _interval(line) -> str:
    change = line["change"] if "change" in line else line["value"]
    return f"{points(change)} [{points(line['lo'])}, {points(line['hi'])}]"


def _gap(line: pd.Series) -> str:
    names = f"{style_of(line['first']).label} less {style_of(line['second']).label}"
    interval = f"[{points(line['lo'])}, {points(line['hi'])}]"
    return f"{names}: {point_change(line['gap'])} {interval}, {p_text(line['p_holm'])}"


def _breaking(line: pd.Series) -> str:
    def percent(value: float) -> str:
        return f"{100 * value:.0f}" if value < 1 else f"beyond {100 * line['last']:.0f}"

    if line["censored"]:
        return f"beyond {100 * line['last']:.0f}" + (f" [{percent(line['lo'])}, –]" if line["lo"] < 1 else "")
    return f"{percent(line['value'])} [{percent(line['lo'])}, {percent(line['hi'])}]"


def first_to_break(results: Results) -> str:
    """A sentence: which tasks break first and last."""
    found = breaking_points(results)
    if found.empty:
        return ""
    order = found.groupby("eval_set")["value"].mean().sort_values()
    return f"First to break are {listing(list(order.index[:2]))}; the last is {order.index[-1]}."
