"""The results store: one folder per preset, one file per run, written whole or not at all.

    results/<preset>/<run_id>.json          configuration, provenance, rows, layer report
    results/<preset>/items/<run_id>.json    per-item task outcomes and per-window losses, for paired tests

A run exists once its main file does: items are written first, each file under a temporary name that is then
renamed, so a killed run leaves nothing half-written and starting again repeats only the run in progress.
This file imports neither torch nor pandas: pages read results on machines that have no torch.
"""

import json
from dataclasses import asdict, dataclass, field
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


def save_run(folder: Path, record: RunRecord) -> Path:
    """Store a finished run; the main file comes last, so its presence means the run is complete."""
    if record.items:
        write_atomically(folder / "items" / f"{record.run_id}.json", _dump({"items": record.items}))
    body = asdict(record)
    del body["items"]
    path = folder / f"{record.run_id}.json"
    write_atomically(path, _dump(body))
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
    """Whether this run is complete in the folder."""
    return (folder / f"{run_id}.json").exists()


def load_run(folder: Path, run_id: str, with_items: bool = False) -> RunRecord:
    """Read one run back; items only on request.

    Raises `InputError` when the run is missing or its file is damaged.
    """
    body = _read(folder / f"{run_id}.json")
    items = _read(folder / "items" / f"{run_id}.json")["items"] if with_items else {}
    try:
        rows = [Row(**{name: row[name] for name in ROW_FIELDS}) for row in body["rows"]]
        return RunRecord(body["run_id"], body["config"], body["provenance"], rows, body["layers"], items)
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / run_id}.json lacks {error}; delete it and run the study again") from error


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no run at {path}; run the study first, or name the folder that holds its results") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise InputError(f"{path} is damaged; delete it and run the study again") from None


def load_runs(folder: Path, with_items: bool = False) -> list[RunRecord]:
    """Every run of a folder, in the order of their ids; an empty list when there is none."""
    return [load_run(folder, path.stem, with_items) for path in sorted(folder.glob("[!.]*.json"))]
