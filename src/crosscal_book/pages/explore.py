"""The data of the two pages that readers explore: every row, and the trade-off between domain and general text.

Both are JSON inside the page: the pages need no server. Numbers keep five digits; the stored runs hold the rest.
"""

import json
from collections.abc import Mapping

import pandas as pd

from crosscal.results.compare import PROMPTS, changes
from crosscal.results.frame import DENSE, Results
from crosscal.results.quantities import PERPLEXITY
from crosscal_book.style import style_of

RUN_FACTS = ("model", "method", "target", "calibration", "windows", "draw", "schedule")
GENERAL = "general"


def explore_data(results: Results) -> dict[str, str]:
    """Return the generated parts of both pages, by their path in the book."""
    return {
        "_generated/explore_rows.html": _script("explore-rows", _every_row(results)),
        "_generated/explore_runs.html": _script("explore-runs", _trade_offs(results)),
    }


def _every_row(results: Results) -> dict:
    """Runs, with what they are, and rows that point to them: [run, set, metric, value, lo, hi, n]."""
    rows = results.rows.sort_values(["run_id", "eval_set", "metric"])
    runs = rows.drop_duplicates("run_id").to_dict("records")
    sets, metrics = sorted(rows["eval_set"].unique()), sorted(rows["metric"].unique())
    index = {run["run_id"]: number for number, run in enumerate(runs)}
    body = [
        [index[r["run_id"]], sets.index(r["eval_set"]), metrics.index(r["metric"]), *_short(r), int(r["n"])]
        for r in rows.to_dict("records")
    ]
    units = dict(zip(rows["metric"], rows["unit"], strict=True))
    facts = [[*_run_facts(run, results.configs), run["run_id"]] for run in runs]
    return {"facts": [*RUN_FACTS, "run"], "runs": facts, "sets": sets, "metrics": metrics, "units": units, "rows": body}


def _run_facts(run: Mapping, configs: Mapping[str, dict]) -> list[str]:
    """What a run is, in words, in the order of `RUN_FACTS`; its configuration tells what rows have no column for."""
    config = configs.get(run["run_id"], {})
    text = run["calibration"].replace("+", " + ")
    if "+" in run["calibration"]:
        text += f" ({run['mix_weight']:.2g} on the last)"
    windows = f"{run['n_windows']} × {run['window']}" if run["calibration"] else ""
    extras = ["OWL"] if config.get("allocation") == "owl" else []
    extras += [name if value is True else f"{name} {value}" for name, value in config.get("options", [])]
    schedule = run["schedule"] if run["method"] != DENSE else ""
    target = ", ".join([run["pattern"], *extras])
    return [run["model"], style_of(run["method"]).label, target, text, windows, str(run["seed"]), schedule]


def _trade_offs(results: Results) -> dict:
    """Each compressed run's perplexity relative to the dense model's: on each domain's text, and on general text."""
    points = []
    for _, rows in results.rows.groupby("model"):
        dense = _widest_dense(rows)
        others = _distinct(rows, results.configs)
        if dense is None or not others:
            continue
        part = results.only_runs([dense, *(run["run_id"] for run in others)])
        by_text, by_domain = (changes(part, PERPLEXITY, by) for by in ("eval_set", "domain"))
        for run in others:
            texts, domains = (
                {line["over"]: _short(line) for line in frame[frame["run_id"] == run["run_id"]].to_dict("records")}
                for frame in (by_text, by_domain)
            )
            if GENERAL in domains:
                facts = _run_facts(run, results.configs)
                points.append({"facts": facts, "general": domains[GENERAL], "texts": texts})
    colours = {style_of(m).label: style_of(m).colour for m in results.rows["method"].unique() if m != DENSE}
    return {"facts": list(RUN_FACTS), "domains": _domains(results.rows), "colours": colours, "points": points}


def _distinct(rows: pd.DataFrame, configs: Mapping[str, dict]) -> list[dict]:
    """The compressed runs of the default schedule; of those that differ only in what they were asked, the first."""
    runs = rows[(rows["method"] != DENSE) & (rows["schedule"] == "sublayer")].drop_duplicates("run_id")
    kept = {tuple(_run_facts(run, configs)): run["run_id"] for run in reversed(runs.to_dict("records"))}
    return [run for run in runs.to_dict("records") if run["run_id"] in kept.values()]


def _domains(rows: pd.DataFrame) -> dict[str, str]:
    """The texts of special domains, by name: what domain they are of."""
    texts = rows[(rows["metric"] == "perplexity") & ~rows["domain"].isin([GENERAL, PROMPTS])]
    return dict(sorted(zip(texts["eval_set"], texts["domain"], strict=True)))


def _widest_dense(rows: pd.DataFrame) -> str | None:
    """The dense run that read the most texts."""
    dense = rows[(rows["method"] == DENSE) & (rows["metric"] == "perplexity")]
    return None if dense.empty else str(dense.groupby("run_id").size().sort_index().idxmax())


def _short(line: Mapping) -> list[float]:
    return [float(f"{line[column]:.5g}") for column in ("value", "lo", "hi")]


def _script(name: str, data: Mapping[str, object]) -> str:
    """JSON that a browser reads but does not run; `<` is written so that no text can end the element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">\n{text}\n</script>\n'
