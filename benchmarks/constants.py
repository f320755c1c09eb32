"""Constants of the loss-aware and anchored methods, chosen on calibration text alone.

    python benchmarks/constants.py            # writes results/benchmarks/constants.csv, a line as each run is done

Of one draw of windows from the calibration part of every source, the first calibrate and the last are held out; the
texts on which the book evaluates are never read. A run tells the perplexity on the held-out calibration windows of each
source and its model, seed, windows, device and commit. Lines that are in the file are not made again.
"""

import argparse
import csv
import math
from pathlib import Path
from typing import NamedTuple

import torch

from crosscal import compress, load_model
from crosscal.metrics import perplexity
from crosscal.results.provenance import provenance
from crosscal.text import load_text
from crosscal.types import Grid, PerGroup, Target, Unstructured

SOURCES, LENGTH, HELD_OUT = ("c4", "pubmed"), 512, 4
FILE = Path(__file__).parents[1] / "results" / "benchmarks" / "constants.csv"
SIXTY, HALF, THREE = Unstructured(0.6), Unstructured(0.5), Grid(3, PerGroup(128))
LSQ = {"refine": "lsq"}


class Trial(NamedTuple):
    """One run: what is varied, its value, and the method with all of its options."""

    constant: str
    value: str
    method: str
    target: Target
    options: dict
    windows: int = 8


TRIALS = [
    *(
        Trial("anchor of masks by the loss", str(a), "fisher", SIXTY, LSQ | {"anchor": a})
        for a in (0.0, 0.1, 0.25, 0.5)
    ),
    *(Trial("anchor of GPTQ", str(a), "gptq", THREE, {"anchor": a}) for a in (0.0, 0.1, 0.25, 0.5)),
    *(Trial("windows of each source", str(n), "fisher", SIXTY, LSQ | {"anchor": 0.25}, n) for n in (4, 16)),
    Trial("masks", "each matrix by itself", "fisher", SIXTY, LSQ | {"anchor": 0.25, "whole_model": False}),
    *(Trial("floor", str(f), "fisher", SIXTY, LSQ | {"anchor": 0.25, "floor": f}) for f in (0.0, 0.1, 0.2)),
    *(Trial("refinement", r or "none", "fisher", SIXTY, {"refine": r, "anchor": 0.25}) for r in ("", "swaps")),
    *(Trial("damping", str(d), "fisher", SIXTY, LSQ | {"anchor": 0.25, "damp": d}) for d in (0.003, 0.03, 0.1)),
]


def run(trial: Trial, model: str, seed: int) -> dict:
    """Compress a fresh model and measure it on the held-out calibration windows."""
    loaded = load_model(model)
    size = {"n_windows": 16 + HELD_OUT, "length": LENGTH, "seed": seed}
    drawn = {name: load_text(name, loaded.tokenizer, **size).tokens for name in SOURCES}
    calibration = {name: tokens[: trial.windows] for name, tokens in drawn.items()}
    compress(loaded, trial.method, trial.target, calibration=calibration, measure_loss=False, **trial.options)
    found = {name: perplexity(loaded, tokens[-HELD_OUT:]) for name, tokens in drawn.items()}
    mean = math.exp(sum(map(math.log, found.values())) / len(found))
    about = provenance(torch.device(next(loaded.model.parameters()).device))
    told = {"constant": trial.constant, "value": trial.value, "method": trial.method, "target": str(trial.target)}
    told |= {"windows": trial.windows, "length": LENGTH, "model": model, "seed": seed}
    told |= {f"perplexity on {name}": f"{value:.4f}" for name, value in found.items()}
    return told | {"geometric mean": f"{mean:.4f}"} | {name: about[name] for name in ("device", "commit", "versions")}


def main() -> None:
    """Make the runs that are not in the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    lines = list(csv.DictReader(FILE.open(encoding="utf-8"))) if FILE.exists() else []
    known = {(line["constant"], line["value"], line["model"], line["seed"]) for line in lines}
    for trial in TRIALS:
        if (trial.constant, trial.value, options.model, str(options.seed)) in known:
            continue
        lines.append(run(trial, options.model, options.seed))
        with FILE.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, lines[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)
        print({name: lines[-1][name] for name in ("constant", "value", "geometric mean")}, flush=True)


if __name__ == "__main__":
    main()
