"""Read a results folder into tables: the only door between stored runs and pages."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from crosscal.errors import InputError
from crosscal.results.store import load_run, load_runs
from crosscal.types import ROW_FIELDS

DENSE = "dense"
_OF_METRIC = ("domain", "eval_set", "metric", "value", "lo", "hi", "n", "unit", "higher_is_better")


@dataclass(frozen=True, eq=False)
class Results:
    """Rows and per-item outcomes of some runs of one folder.

    `rows` has one line per (run, evaluation set, metric); `items[run_id][eval_set]` holds equally long lists, one
    entry per window or task item; `provenance[run_id]` says what ran where and `configs[run_id]` what was asked.
    Equal only to itself, so that comparisons derived from it can be cached.
    """

    rows: pd.DataFrame
    items: dict[str, dict[str, dict[str, list]]]
    provenance: dict[str, dict]
    configs: dict[str, dict] = field(default_factory=dict)

    @property
    def dense_id(self) -> str:
        """The run every other run is compared with.

        Raises `InputError` unless there is exactly one dense run.
        """
        ids = self.rows.loc[self.rows["method"] == DENSE, "run_id"].unique()
        if len(ids) != 1:
            raise InputError(f"these results hold {len(ids)} dense runs; read the runs of one model and one preset")
        return ids[0]

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One line per run, the dense one included: what its rows share, and what its configuration adds.

        Columns are those of the rows, with `target` (written pattern), `weight` (of the last calibration source),
        `kind` of compression, `allocation` of sparsity over blocks, and `options` of the method as text.
        """
        runs = self.rows.drop_duplicates("run_id").reset_index(drop=True)
        runs = runs.drop(columns=list(_OF_METRIC)).rename(columns={"pattern": "target", "mix_weight": "weight"})
        configs = [self.configs.get(run_id, {}) for run_id in runs["run_id"]]
        options = [" ".join(f"{name}={value}" for name, value in config.get("options", [])) for config in configs]
        allocation = [config.get("allocation", "uniform") for config in configs]
        return runs.assign(kind=runs["target"].map(_kind), allocation=allocation, options=options)

    @property
    def run_ids(self) -> list[str]:
        """The runs in the order they were asked for."""
        return list(self.rows["run_id"].unique())

    def only(self, **equal: object) -> pd.DataFrame:
        """The rows whose columns have these values, such as `only(metric="perplexity", method="wanda")`."""
        rows = self.rows
        for column, value in equal.items():
            rows = rows[rows[column] == value]
        return rows

    def subset(self, run_ids: Sequence[str]) -> "Results":
        """The dense run and some others, with all they hold."""
        return self.only_runs([self.dense_id, *run_ids])

    def only_runs(self, run_ids: Sequence[str]) -> "Results":
        """Return only these runs, with all they hold."""
        wanted = set(run_ids)
        rows = self.rows[self.rows["run_id"].isin(wanted)].reset_index(drop=True)
        parts = (self.items, self.provenance, self.configs)
        return Results(rows, *({run_id: held for run_id, held in part.items() if run_id in wanted} for part in parts))

    def common(self) -> "Results":
        """The same runs with only those texts and tasks that all of them were evaluated on, so that means compare."""
        sets = self.rows.groupby("run_id")["eval_set"].agg(set)
        shared = set.intersection(*sets) | {"layers"}
        rows = self.rows[self.rows["eval_set"].isin(shared)].reset_index(drop=True)
        return Results(rows, self.items, self.provenance, self.configs)

    def describe_run(self, run_id: str) -> pd.Series:
        """The first row of a run, for the columns that are the same in all of them."""
        return self.rows[self.rows["run_id"] == run_id].iloc[0]


def _kind(target: str) -> str:
    """What a written target does to the weights.

    >>> _kind("2:4"), _kind("3 bits g128"), _kind("50% + 4 bits g128"), _kind("low rank 80%")
    ('pruning', 'quantization', 'pruning and quantization', 'low rank')
    """
    if "+" in target:
        return "pruning and quantization"
    return "low rank" if target.startswith("low rank") else "quantization" if "bit" in target else "pruning"


def read_results(folder: Path, run_ids: Sequence[str] | None = None) -> Results:
    """The named runs of a folder, or all of them.

    Raises `InputError` when a run is missing or damaged, or the folder holds none.
    """
    records = [load_run(folder, i, with_items=True) for i in run_ids] if run_ids else load_runs(folder, with_items=True)
    if not records:
        raise InputError(f"there are no runs in {folder}; run the study first, or name the folder that holds them")
    rows = pd.DataFrame([asdict(row) for record in records for row in record.rows], columns=list(ROW_FIELDS))
    parts = ({record.run_id: getattr(record, part) for record in records} for part in ("items", "provenance", "config"))
    return Results(rows, *parts)


def model_names(rows: pd.DataFrame) -> str:
    """The models of some rows, for a sentence.

    >>> model_names(pd.DataFrame({"model": ["a", "b", "a"]}))
    'a, b'
    """
    return ", ".join(sorted(rows["model"].unique()))


def version_line(rows: pd.DataFrame) -> str:
    """The package versions of some rows as readable text, whether stored as JSON or as plain text.

    >>> version_line(pd.DataFrame({"versions": ['{"torch": "2.13.0"}']}))
    'torch 2.13.0'
    """

    def readable(stored: str) -> str:
        is_json = stored.startswith("{")
        return ", ".join(f"{name} {version}" for name, version in json.loads(stored).items()) if is_json else stored

    return "; ".join(map(readable, sorted(rows["versions"].unique())))
