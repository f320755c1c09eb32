"""Chapter 6, low rank: activation-aware against plain SVD, and low rank against pruning at equal storage."""

from functools import lru_cache

import numpy as np
import pandas as pd

from crosscal.results.compare import LEVEL, PROMPTS, accuracy_tasks, differences
from crosscal.results.frame import Results
from crosscal.stats import Estimate, bootstrap_mean, holm, sign_flip_p
from crosscal.types import LowRank, NofM, Unstructured, parse_target
from crosscal_book.chapters.forgetting_measures import TASKS, compressed, prepared
from crosscal_book.style import style_of
from crosscal_book.verdicts import FAILS, HOLDS, OPEN, Verdict
from crosscal_book.words import p_text, points, run_name, times

EQUAL_STORAGE = 0.10
"""Two runs count as equally large when their bits per weight differ by at most a tenth: ranks and patterns are steps,
so exact equality is not to be had. Set before the runs were made."""
MARGIN = 0.01
"""A loss below one point of mean accuracy is called none, as in chapter 1."""
EVIDENCE = "fig-forgetting-storage"
RIVALS = ("svd", "fwsvd")


@lru_cache(maxsize=8)
def main_tasks(results: Results) -> tuple[str, ...]:
    """The usable accuracy tasks; perturbed variants are left out, they ask the same questions again."""
    usable = accuracy_tasks(prepared(results))["eval_set"]
    return tuple(name for name in usable if name not in TASKS or not TASKS[name].variant_of)


def kind_of(pattern: str) -> str:
    """What a target does to a weight.

    >>> kind_of("low rank 56.25%"), kind_of("2:4"), kind_of("3 bits g128")
    ('low rank', 'pruning', 'quantization')
    """
    target = parse_target(pattern)
    if isinstance(target, LowRank):
        return "low rank"
    return "pruning" if isinstance(target, (Unstructured, NofM)) else "quantization"


def text_difference(results: Results, first: str, second: str) -> Estimate:
    """Perplexity of the first run over the second's, over all held-out texts, paired by window; p of the sign flips.

    NaN when no held-out text is common.
    """
    rows = prepared(results).only(run_id=first, metric="perplexity")
    texts = rows.loc[rows["domain"] != PROMPTS, "eval_set"]
    gaps = [np.array(results.items[first][t]["nll"]) - np.array(results.items[second][t]["nll"]) for t in texts]
    return _tested(gaps).map(np.exp)


def task_difference(results: Results, first: str, second: str) -> Estimate:
    """Mean accuracy of the first run less the second's over the main tasks, paired by item; p of the sign flips."""
    both = [differences(results, run_id, task) for run_id in (first, second) for task in main_tasks(results)]
    half = len(both) // 2
    return _tested([one - other for one, other in zip(both[:half], both[half:], strict=True)])


def _tested(gaps: list[np.ndarray]) -> Estimate:
    if not gaps:
        nan = float("nan")
        return Estimate(nan, nan, nan, 0)
    found = bootstrap_mean(gaps)
    return Estimate(found.value, found.lo, found.hi, found.n, sign_flip_p(gaps))


@lru_cache(maxsize=8)
def rivals(results: Results) -> pd.DataFrame:
    """ASVD against each other low-rank SVD at the same rank: perplexity over the rival's, accuracy less the rival's."""
    runs = compressed(results)
    lines = []
    for run in runs[runs["method"] == "asvd"].to_dict("records"):
        same = runs[(runs["pattern"] == run["pattern"]) & runs["method"].isin(RIVALS)]
        for rival in same.to_dict("records"):
            lines.append(_line(results, run, rival))
    return _with_holm(lines)


@lru_cache(maxsize=8)
def equal_storage(results: Results) -> pd.DataFrame:
    """Every low-rank run against every pruned run of equal storage, as in `rivals`; `best` marks the pairs that decide.

    At each rank the best low-rank run meets the best pruned run of equal storage. Perplexity chooses the best, the
    tasks decide, so that the choice cannot favour either.
    """
    runs = compressed(results)
    kinds = runs["pattern"].map(kind_of)
    lines, met = [], set()
    for run in runs[kinds == "low rank"].to_dict("records"):  # the lowest perplexity first
        near = (runs["storage_bits"] / run["storage_bits"] - 1).abs() <= EQUAL_STORAGE
        pruned = runs[(kinds == "pruning") & near]
        for number, rival in enumerate(pruned.to_dict("records")):
            lines.append(_line(results, run, rival) | {"best": number == 0 and run["pattern"] not in met})
        if len(pruned):
            met.add(run["pattern"])
    return _with_holm(lines)


def activation_aware(results: Results) -> Verdict:
    """Does activation-aware SVD beat plain and Fisher-weighted SVD at the same rank?

    Decided on perplexity over all held-out texts, as the methods' authors do, by sign flips of the paired windows with
    Holm's correction over the comparisons. Holds when perplexity is lower in every comparison and in none the tasks
    are significantly worse, both rivals being there; does not hold when in one of them perplexity is significantly
    higher; else it cannot be told.
    """
    claim, table = "Activation-aware SVD beats plain and Fisher-weighted SVD", rivals(results)
    table = table[table["ratio"].notna()]
    if table.empty:
        return Verdict(claim, OPEN, "no two of these methods were run at the same rank", EVIDENCE)
    lower = (table["ratio"] < 1) & (table["ratio_p"] < LEVEL)
    worse_tasks = (table["change"] < 0) & (table["change_p"] < LEVEL)
    if ((table["ratio"] > 1) & (table["ratio_p"] < LEVEL)).any():
        answer = FAILS
    else:
        both = len(set(table["rival_method"])) == len(RIVALS)
        answer = HOLDS if both and lower.all() and not worse_tasks.any() else OPEN
    closest = table.sort_values("ratio").iloc[-1]
    text = f"lower perplexity in {int(lower.sum())} of {len(table)} comparisons; the closest: {_effect(closest)}"
    return Verdict(claim, answer, text, EVIDENCE)


def low_rank_loses(results: Results) -> Verdict:
    """Does low rank lose more task accuracy than pruning at equal storage, best against best?

    One comparison per rank (see `equal_storage`), by sign flips of the paired items with Holm's correction. Holds when
    low rank is significantly less accurate in all; does not hold when it is significantly more accurate in one, or
    when all intervals exclude a loss of `MARGIN`; else it cannot be told.
    """
    claim, table = "Low rank loses more than pruning at equal storage", equal_storage(results)
    table = table[table["best"].astype(bool) & table["change"].notna()] if len(table) else table
    if table.empty:
        return Verdict(claim, OPEN, "no low-rank and no pruned run take equal storage, or no task is usable", EVIDENCE)
    table = table.assign(change_p=holm(table["change_raw_p"]))
    worse, better = table["change"] < 0, table["change"] > 0
    sure = table["change_p"] < LEVEL
    if (worse & sure).all():
        answer = HOLDS
    else:
        answer = FAILS if (better & sure).any() or (table["lo"] > -MARGIN).all() else OPEN
    return Verdict(claim, answer, "; ".join(_effect(line) for _, line in table.iterrows()), EVIDENCE)


def _line(results: Results, run: dict, rival: dict) -> dict:
    ratio = text_difference(results, run["run_id"], rival["run_id"])
    change = task_difference(results, run["run_id"], rival["run_id"])
    return {
        "method": run["method"],
        "pattern": run["pattern"],
        "storage_bits": run["storage_bits"],
        "rival": run_name(rival),
        "rival_method": rival["method"],
        "rival_bits": rival["storage_bits"],
        "ratio": ratio.value,
        "ratio_lo": ratio.lo,
        "ratio_hi": ratio.hi,
        "ratio_raw_p": ratio.p,
        "change": change.value,
        "lo": change.lo,
        "hi": change.hi,
        "change_raw_p": change.p,
    }


def _with_holm(lines: list[dict]) -> pd.DataFrame:
    columns = [
        "method",
        "pattern",
        "storage_bits",
        "rival",
        "rival_method",
        "rival_bits",
        "ratio",
        "ratio_lo",
        "ratio_hi",
    ]
    columns += ["ratio_raw_p", "change", "lo", "hi", "change_raw_p", "best"]
    table = pd.DataFrame(lines, columns=columns)
    for name in ("ratio", "change"):
        table[f"{name}_p"] = np.nan
        known = table[f"{name}_raw_p"].notna()
        if known.any():
            table.loc[known, f"{name}_p"] = holm(table.loc[known, f"{name}_raw_p"].to_numpy(float))
    return table


def _effect(line: pd.Series) -> str:
    text = f"{style_of(line['method']).label} {line['pattern']} against {line['rival']}"
    if line["ratio"] == line["ratio"]:
        text += f": {times(line['ratio'])} [{times(line['ratio_lo'])}, {times(line['ratio_hi'])}] its perplexity"
    if line["change"] == line["change"]:
        text += f", mean accuracy {points(line['change'])} points [{points(line['lo'])}, {points(line['hi'])}]"
        text += f" ({p_text(line['change_p'])})"
    return text
