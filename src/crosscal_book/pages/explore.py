"""The data of the two pages that readers explore: every row, and the trade-off between domain and general text.

Both are JSON inside the page: the pages need no server. Numbers keep five digits; the stored runs hold the rest.
"""

import json
import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from crosscal.results.compare import PROMPTS, text_changes
from crosscal.results.frame import DENSE, Results
from crosscal.stats import bootstrap_mean
from crosscal_book.answers import ExecutedChapter
from crosscal_book.style import style_of

RUN_FACTS = ("model", "method", "target", "calibration", "windows", "draw", "schedule")
GENERAL = "general"


def explore_data(chapters: Sequence[ExecutedChapter]) -> dict[str, str]:
    """The generated parts of both pages, by their path in the book."""
    whole = merged([chapter.results for chapter in chapters])
    return {
        "_generated/explore_rows.html": _script("explore-rows", every_row(whole)),
        "_generated/explore_runs.html": _script("explore-runs", trade_offs(whole)),
    }


def merged(parts: Sequence[Results]) -> Results:
    """The runs of several chapters, each once."""
    rows = pd.concat([part.rows for part in parts]).drop_duplicates(["run_id", "eval_set", "metric"])
    tables = [[getattr(part, name) for part in parts] for name in ("items", "provenance", "configs")]
    return Results(rows.reset_index(drop=True), *({k: v for one in table for k, v in one.items()} for table in tables))


def every_row(results: Results) -> dict:
    """Runs, with what they are, and rows that point to them: [run, set, metric, value, lo, hi, n]."""
    rows = results.rows.sort_values(["run_id", "eval_set", "metric"])
    runs = rows.drop_duplicates("run_id").to_dict("records")
    sets, metrics = sorted(rows["eval_set"].unique()), sorted(rows["metric"].unique())
    index = {run["run_id"]: number for number, run in enumerate(runs)}
    body = [
        [index[r.run_id], sets.index(r.eval_set), metrics.index(r.metric), *_short((r.value, r.lo, r.hi)), int(r.n)]
        for r in rows.itertuples()
    ]
    units = dict(zip(rows["metric"], rows["unit"], strict=True))
    facts = [[*run_facts(run, results.configs), run["run_id"]] for run in runs]
    return {"facts": [*RUN_FACTS, "run"], "runs": facts, "sets": sets, "metrics": metrics, "units": units, "rows": body}


def run_facts(run: dict, configs: dict[str, dict]) -> list[str]:
    """What a run is, in words, in the order of `RUN_FACTS`; its configuration tells what rows have no column for."""
    config = configs.get(run["run_id"], {})
    text = run["calibration"].replace("+", " + ")
    if "+" in run["calibration"]:
        text += f" ({run['mix_weight']:.2g} on the last)"
    windows = f"{run['n_windows']} × {run['window']}" if run["calibration"] else ""
    extras = ["OWL"] if config.get("allocation") == "owl" else []
    extras += [name if value is True else f"{name} {value}" for name, value in config.get("options", [])]
    schedule = run["schedule"] if run["method"] != DENSE else ""
    return [
        run["model"],
        style_of(run["method"]).label,
        ", ".join([run["pattern"], *extras]),
        text,
        windows,
        str(run["seed"]),
        schedule,
    ]


def trade_offs(results: Results) -> dict:
    """Each compressed run's perplexity relative to the dense model's: on each domain's text, and on general text."""
    points = []
    for model in sorted(results.rows["model"].unique()):
        rows = results.rows[results.rows["model"] == model]
        dense = _widest_dense(rows)
        others = _distinct(rows, results.configs)
        if dense is None or len(others) == 0:
            continue
        one_dense = Results(rows[rows["run_id"].isin([dense, *others])], results.items, results.provenance)
        changes = text_changes(one_dense)
        for run in rows[rows["run_id"].isin(others)].drop_duplicates("run_id").to_dict("records"):
            mine = changes[changes["run_id"] == run["run_id"]]
            found = {line["eval_set"]: _short((line["ratio"], line["lo"], line["hi"])) for line in _lines(mine)}
            general = _general(one_dense, run["run_id"], dense)
            if general:
                points.append(
                    {
                        "facts": run_facts(run, results.configs),
                        "general": general,
                        "texts": found,
                    }
                )
    domains = _domains(results.rows)
    colours = {style_of(m).label: style_of(m).colour for m in results.rows["method"].unique() if m != DENSE}
    return {"facts": list(RUN_FACTS), "domains": domains, "colours": colours, "points": points}


def _distinct(rows: pd.DataFrame, configs: dict[str, dict]) -> list[str]:
    """The compressed runs of the default schedule; of those that differ only in what they were asked, the first."""
    runs = rows[(rows["method"] != DENSE) & (rows["schedule"] == "sublayer")].drop_duplicates("run_id")
    kept = {tuple(run_facts(run, configs)): run["run_id"] for run in reversed(runs.to_dict("records"))}
    return list(kept.values())


def _lines(frame: pd.DataFrame) -> Iterable[dict]:
    return (line for line in frame.to_dict("records") if not line["eval_set"].startswith("all "))


def _domains(rows: pd.DataFrame) -> dict[str, str]:
    """The texts of special domains, by name: what domain they are of."""
    texts = rows[(rows["metric"] == "perplexity") & ~rows["domain"].isin([GENERAL, PROMPTS])]
    return dict(sorted(zip(texts["eval_set"], texts["domain"], strict=True)))


def _widest_dense(rows: pd.DataFrame) -> str | None:
    """The dense run that read the most texts."""
    dense = rows[(rows["method"] == DENSE) & (rows["metric"] == "perplexity")]
    return None if dense.empty else dense.groupby("run_id").size().sort_index().idxmax()


def _general(results: Results, run_id: str, dense: str) -> list[float] | None:
    """The geometric mean over the general texts, with its interval."""
    rows = results.only(run_id=run_id, metric="perplexity", domain=GENERAL)
    mine, others = results.items[run_id], results.items[dense]
    losses = [np.array(mine[text]["nll"]) - np.array(others[text]["nll"]) for text in rows["eval_set"]]
    if not losses:
        return None
    ratio = bootstrap_mean(losses).map(math.exp)
    return _short((ratio.value, ratio.lo, ratio.hi))


def _short(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.5g}") for value in values]


def _script(name: str, data: dict) -> str:
    """JSON that a browser reads but does not run; `<` is written so that no text can end the element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">\n{text}\n</script>\n'
