"""Chapter 5: its runs as one table, and the comparisons that its verdicts rest on."""

import math
from functools import lru_cache

import numpy as np
import pandas as pd

from crosscal.results.compare import ALL_TASKS, mean_changes
from crosscal.results.frame import Results
from crosscal.stats.estimates import bootstrap_mean, bootstrap_means, two_sided_p
from crosscal_book.chapters.quantization_pairs import (
    PAIR_COLUMNS,
    comparisons,
    corrected,
    excess,
    mean_divergence,
    run_table,
    shared_texts,
)
from crosscal_book.style import style_of

# Fewest bits at which the methods' authors report models that still work, and the bits that every verdict looks at:
# at 2 bits a small model is broken whatever is done, and 4 bits are what the embedded model's weights come from.
FOCUS_BITS = 3
EQUAL_STORAGE = 0.01  # storage that differs by at most one per cent is called equal: 0.03 of 3 bits
ROWS = "per row"
LEAST = 1e-4  # nats; a smaller loss is noise, and interpolation needs a logarithm
FLOAT32 = "float32"


@lru_cache(maxsize=8)
def grid_runs(results: Results) -> pd.DataFrame:
    """Every run on a grid: method, bits, group, whether `joint` with sparsity, `act_order`, and its losses.

    `ratio`, `js` and `change` (perplexity to the dense model's, divergence in nats, mean accuracy) have `_lo`, `_hi`.
    """
    runs = run_table(results)
    runs = runs[(runs["group"] != "") & (runs["method"] != FLOAT32)].reset_index(drop=True)
    texts, changes = shared_texts(results), mean_changes(results)
    changes = changes[changes["group"] == ALL_TASKS].set_index("run_id")
    lines = []
    for run in runs.to_dict("records"):
        line = {key: run[key] for key in ("run_id", "method", "pattern", "bits", "group", "act_order")}
        line |= {"storage": run["storage_bits"], "joint": "+" in run["pattern"], "seconds": run["seconds"]}
        if texts:
            found = bootstrap_mean(excess(results, run["run_id"])).map(math.exp)
            line |= {"ratio": found.value, "ratio_lo": found.lo, "ratio_hi": found.hi, "n": found.n}
            js = mean_divergence(results, run["run_id"])
            line |= {"js": js.value, "js_lo": js.lo, "js_hi": js.hi}
        if run["run_id"] in changes.index:
            change = changes.loc[run["run_id"]]
            line |= {"change": change["change"], "change_lo": change["lo"], "change_hi": change["hi"]}
        lines.append(line)
    measures = [f"{name}{end}" for name in ("ratio", "js", "change") for end in ("", "_lo", "_hi")]
    facts = ["run_id", "method", "pattern", "bits", "group", "act_order", "storage", "joint", "seconds", "n"]
    return pd.DataFrame(lines, columns=[*facts, *measures])


def plain_runs(results: Results) -> pd.DataFrame:
    """The runs that only quantize, in the methods' default order of columns."""
    runs = grid_runs(results)
    return runs[~runs["joint"].astype(bool) & ~runs["act_order"].astype(bool)]


@lru_cache(maxsize=8)
def all_pairs(results: Results) -> pd.DataFrame:
    """Every comparison of the chapter, with Holm's correction over all of them.

    Kinds: a method's name (it against RTN at `FOCUS_BITS`), "joint" (sparse and quantized against quantized at equal
    storage), "groups" (groups against rows at the same storage, `FOCUS_BITS`), "order" (act-order on against off).
    """
    parts = [comparisons(results, [*_against_rtn(results), *_joint(results), *_orders(results)]), _groups(results)]
    parts = [part for part in parts if len(part)]
    return corrected(pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=PAIR_COLUMNS[:-1]))


def _against_rtn(results: Results):
    runs = plain_runs(results)
    runs = runs[runs["bits"] == FOCUS_BITS]
    for _, members in runs.groupby("group", sort=False):
        rtn = members[members["method"] == "rtn"]
        for run in members[members["method"] != "rtn"].to_dict("records") if len(rtn) else ():
            name = f"{run['pattern']}: {style_of(run['method']).label} to RTN"
            yield run["method"], run["run_id"], rtn["run_id"].iloc[0], name


def _joint(results: Results):
    runs = grid_runs(results)
    for run in runs[runs["joint"].astype(bool)].to_dict("records"):
        plain = plain_runs(results)
        near = plain[(plain["storage"] - run["storage"]).abs() <= EQUAL_STORAGE * run["storage"]]
        for other in near.to_dict("records"):
            label = style_of(other["method"]).label
            yield "joint", run["run_id"], other["run_id"], f"{run['pattern']} to {label} {other['pattern']}"


def _orders(results: Results):
    by_content = {_without_order(config): run_id for run_id, config in results.configs.items() if not _ordered(config)}
    for run in grid_runs(results).to_dict("records"):
        twin = by_content.get(_without_order(results.configs.get(run["run_id"], {})))
        if run["act_order"] and twin:
            yield "order", run["run_id"], twin, f"{run['pattern']}: act-order to given order"


def _ordered(config: dict) -> bool:
    return bool(dict(config.get("options", [])).get("act_order", False))


def _without_order(config: dict) -> str:
    options = {k: v for k, v in dict(config.get("options", [])).items() if k != "act_order"}
    return repr(sorted({**config, "options": sorted(options.items())}.items()))


def _groups(results: Results) -> pd.DataFrame:
    """Groups against rows at the same storage: the rows' loss is taken from between two numbers of bits."""
    lines = [line for line in group_lines(results) if line["bits"] == FOCUS_BITS]
    return pd.DataFrame(lines, columns=PAIR_COLUMNS[:-1])


def group_lines(results: Results) -> list[dict]:
    """At each number of bits, perplexity with groups over perplexity with rows that take the same storage.

    Between two numbers of bits the logarithm of the rows' loss is taken linear in storage: rounding errors fall by a
    constant factor with each bit. A straight line would pass above and flatter the groups. `p` is the bootstrap's.
    """
    plain = plain_runs(results)
    if not shared_texts(results):
        return []
    lines = []
    for run in plain[plain["group"] != ROWS].to_dict("records"):
        rows = plain[(plain["method"] == run["method"]) & (plain["group"] == ROWS)].sort_values("storage")
        below, above = rows[rows["bits"] == run["bits"]], rows[rows["storage"] > run["storage"]]
        if below.empty or above.empty or below["storage"].iloc[0] > run["storage"]:
            continue
        least, most = below.iloc[0], above.iloc[0]
        share = (run["storage"] - least["storage"]) / (most["storage"] - least["storage"])
        draws = {i: bootstrap_means(excess(results, i)) for i in (run["run_id"], least["run_id"], most["run_id"])}
        logs = [np.log(np.maximum(draws[other["run_id"]], LEAST)) for other in (least, most)]
        gap = draws[run["run_id"]] - np.exp((1 - share) * logs[0] + share * logs[1])
        lo, hi = np.exp(np.percentile(gap[1:], [2.5, 97.5]))
        name = f"{style_of(run['method']).label} {run['bits']} bits: {run['group']} to rows of equal storage"
        line = {"kind": "groups", "first": run["run_id"], "second": least["run_id"], "name": name, "bits": run["bits"]}
        lines.append(line | {"ratio": math.exp(gap[0]), "lo": lo, "hi": hi, "n": run["n"], "p": two_sided_p(gap[1:])})
    return lines


def floor_id(results: Results) -> str | None:
    """The run of the dense weights in float32, where there is one: what rounding alone does to the numbers."""
    found = results.only(method=FLOAT32)["run_id"].unique()
    return found[0] if len(found) else None
