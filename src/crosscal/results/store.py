"""The results store: one folder per preset, one file per run, written whole or not at all.

    results/<preset>/<run_id>.json          configuration, provenance, rows, layer report
    results/<preset>/items/<run_id>.json    per-item task outcomes and per-window losses, for paired tests

A run exists once its main file does: items are written first, each file under a temporary name that is then
renamed, so a killed run leaves nothing half-written and starting again repeats only the run in progress.
This file imports neither torch nor pandas: pages read results on machines that have no torch.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from crosscal.errors import InputError
from crosscal.files import write_atomically
from crosscal.types import ROW_FIELDS, Row


@dataclass(frozen=True)
class RunRecord:
    """A finished run: what was asked (`config`), what ran (`provenance`), what came out (`rows`, `layers`, `items`).

    `items` maps an evaluation set to a dictionary of equally long lists, one entry per window or task item.
    """

    run_id: str
    config: dict
    provenance: dict
    rows: list[Row]
    layers: list[dict] = field(default_factory=list)
    items: dict[str, dict[str, list]] = field(default_factory=dict)


def save_run(folder: Path, record: RunRecord, *, optional: bool = False) -> Path:
    """Store a finished run; the main file comes last, so its presence means the run is complete.

    Raises `InputError` when it cannot be written, unless it is `optional`: then a line goes to standard error.
    """
    body, path = asdict(record), folder / f"{record.run_id}.json"
    items = _dump({"items": body.pop("items")})
    if write_atomically(folder / "items" / path.name, items, optional=optional):
        write_atomically(path, _dump(body), optional=optional)
    return path


def _dump(value: dict) -> str:
    """JSON with one line per list element of the top level: small, and readable in a diff."""
    lines = []
    for key, entry in value.items():
        if isinstance(entry, list):
            inner = ",\n".join("  " + json.dumps(e, allow_nan=False) for e in entry)
            lines.append(f'"{key}": [\n{inner}\n ]' if entry else f'"{key}": []')
        elif isinstance(entry, dict) and key == "items":
            inner = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in entry.items())
            lines.append(f'"{key}": {{\n{inner}\n }}')
        else:
            lines.append(f'"{key}": {json.dumps(entry, allow_nan=False)}')
    return "{" + ",\n ".join(lines) + "\n}\n"


def has_run(folder: Path, run_id: str) -> bool:
    """Return whether this run is complete in the folder: a damaged one, or one without its items, is made again."""
    try:
        load_run(folder, run_id, with_items=True)
    except InputError:
        return False
    return True


def load_run(folder: Path, run_id: str, with_items: bool = False) -> RunRecord:
    """Read one run back, its items only on request; raise `InputError` when it is missing, damaged or incomplete."""
    path = folder / f"{run_id}.json"
    if not path.exists():
        raise InputError(f"no run at {path}; run the study first, or name the folder that holds its results")
    return _record(path, _read(path), with_items)


def load_runs(folder: Path, with_items: bool = False, *, skip_damaged: bool = False) -> list[RunRecord]:
    """Read every run of a folder, in the order of their ids; JSON files of another kind are left out.

    Raises `InputError` for a damaged run, unless those are to be left out too.
    """
    runs = []
    for path in sorted(folder.glob("[!.]*.json")):
        try:
            body = _read(path)
            runs += [_record(path, body, with_items)] if {"run_id", "rows"} & body.keys() else []
        except InputError:
            if not skip_damaged:
                raise
    return runs


def _record(path: Path, body: dict, with_items: bool) -> RunRecord:
    try:
        rows = [Row(**{name: row[name] for name in ROW_FIELDS}) for row in body["rows"]]
        record = RunRecord(body["run_id"], body["config"], body["provenance"], rows, body["layers"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} lacks {error}; delete it and run the study again") from error
    if not with_items:
        return record
    items = _read(path.parent / "items" / path.name, of=path).get("items")
    if not isinstance(items, dict):
        raise _damaged(path.parent / "items" / path.name, path)
    return replace(record, items=items)


def _read(path: Path, of: Path | None = None) -> dict:
    """The JSON object in a file that belongs to the run `of`."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, of or path) from error
    if not isinstance(body, dict):
        raise _damaged(path, of or path)
    return body


def _damaged(path: Path, run: Path) -> InputError:
    return InputError(f"{path} is damaged or missing; delete {run} and make the run again")
