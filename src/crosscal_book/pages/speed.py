"""The speed page's tables, from the stored benchmark runs: one table for each machine."""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import median

import pandas as pd

from crosscal_book.tables import Table

CLOCKS = {"cpu_seconds": "CPU seconds", "seconds": "seconds"}


def speed_tables(folder: Path) -> str:
    """Return every stored benchmark, one table for each machine, with versions and commit."""
    files = sorted(folder.glob("*.json"))
    return "\n".join(_benchmark(json.loads(path.read_text(encoding="utf-8"))) for path in files)


def kernel_table(folder: Path) -> str:
    """Return what every variant of the sweep kernel takes of a GPU, as compiled without one; "" if none is stored."""
    path = folder / "kernels.csv"
    if not path.exists():
        return ""
    lines = pd.read_csv(path)
    rows = lines.groupby("architecture", sort=False).agg(
        variants=("registers", "size"), least=("registers", "min"), most=("registers", "max"),
        spilled=("local", "sum"), shared=("shared", "max"), low=("occupancy", "min"), high=("occupancy", "max"),
    )  # fmt: skip
    columns = {
        "architecture": "{architecture}",
        "variants": "{variants}",
        "registers of a thread": "{least} to {most}",
        "bytes spilled": "{spilled}",
        "shared memory (KiB), most": lambda line: f"{line['shared'] / 1024:.0f}",
        "occupancy (%)": lambda line: f"{100 * line['low']:.0f} to {100 * line['high']:.0f}",
    }
    note = (
        f"Every variant of the sweep kernel, compiled ahead of time by Triton {lines['triton'].iloc[0]} without a GPU. "
        "Occupancy: the share of a multiprocessor's warps that fit beside each other, by registers and shared memory."
    )
    return str(Table.of(rows.reset_index(), columns, note))


def _benchmark(made: Mapping) -> str:
    clock = made["clock"]
    head = ["work", f"{CLOCKS[clock]}, crosscal", "textbook", "times faster [range]", "peak memory (MiB), crosscal"]
    head += ["textbook", "perplexity, crosscal", "textbook"]
    text = f"{made['n_windows']} windows of {made['length']:,} tokens"
    runs = max(len(row["ours"]) for row in made["rows"])
    note = (
        f"The textbook always in float32; medians of at most {runs} runs, ratios pairwise. "
        "Perplexity on Wikipedia, where the model is a real one. "
        f"{made['versions']}; commit {made['commit']}; {made['finished']}."
    )
    table = Table(head, [_timed(row, clock) for row in made["rows"]], note)
    return f"**{made['model']} in {made['dtype']}, {text}, on {made['device']}.**\n\n{table}"


def _timed(row: Mapping, clock: str) -> list[str]:
    both = row["ours"], row["textbook"]
    options = ", ".join(f"{name} {value}" for name, value in row.get("options", {}).items())
    ratios = sorted(theirs[clock] / ours[clock] for ours, theirs in zip(*both, strict=False))
    return [
        row["name"] + (f" ({options})" if options else ""),
        *(f"{median(run[clock] for run in side):.1f}" if side else "" for side in both),
        f"{median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]" if ratios else "",
        *(f"{max(run['peak_bytes'] for run in side) / 2**20:,.0f}" if side else "" for side in both),
        *(f"{row[key]:.2f}" if key in row else "" for key in ("perplexity", "textbook_perplexity")),
    ]
