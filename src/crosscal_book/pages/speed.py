"""The speed page's tables, from the stored benchmark runs: one table for each machine."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from crosscal_book.tables import Table

CLOCKS = {"cpu_seconds": "CPU seconds", "seconds": "seconds"}
HEAD = (
    "work",
    "{clock}, crosscal",
    "textbook",
    "times faster [range]",
    "peak memory (MiB), crosscal",
    "textbook",
    "perplexity, crosscal",
    "textbook",
)


def speed_tables(folder: Path) -> str:
    """Markdown: every stored benchmark, with its machine, versions and commit."""
    files = sorted(folder.glob("*.json"))
    return "\n".join(_benchmark(json.loads(path.read_text(encoding="utf-8"))) for path in files)


def _benchmark(found: Mapping) -> str:
    clock = found["clock"]
    head = [cell.format(clock=CLOCKS[clock]) for cell in HEAD]
    text = f"{found['n_windows']} windows of {found['length']:,} tokens"
    title = f"**{found['model']} in {found['dtype']}, {text}, on {found['device']}.**"
    body = [_line(row, clock) for row in found["rows"]]
    runs = max(len(row["ours"]) for row in found["rows"])
    note = (
        f"The textbook always in float32; medians of at most {runs} runs, ratios pairwise. "
        "Perplexity on Wikipedia, where the model is a real one. "
        f"{found['versions']}; commit {found['commit']}; {found['finished']}."
    )
    return f"{title}\n\n{Table(head, body, note)}"


def _line(row: Mapping, clock: str) -> list[str]:
    ours, theirs = row["ours"], row["textbook"]
    options = ", ".join(f"{name} {value}" for name, value in row.get("options", {}).items())
    ratios = sorted(t[clock] / o[clock] for o, t in zip(ours, theirs, strict=False))
    times = f"{median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]" if ratios else ""
    return [
        row["name"] + (f" ({options})" if options else ""),
        _middle(ours, clock),
        _middle(theirs, clock),
        times,
        *(f"{max(run['peak_bytes'] for run in side) / 2**20:,.0f}" if side else "" for side in (ours, theirs)),
        *(f"{row[key]:.2f}" if key in row else "" for key in ("perplexity", "textbook_perplexity")),
    ]


def _middle(side: Sequence[Mapping], clock: str) -> str:
    return f"{median(run[clock] for run in side):.1f}" if side else ""
