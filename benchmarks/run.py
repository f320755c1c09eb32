"""Speed and memory against the textbook, in one run on this machine: `make bench` or `python benchmarks/run.py`.

The package and the textbook take turns; what counts is the ratio of their CPU seconds (on a GPU: of their wall
seconds), the median over repeats with its range. The windows are the same, and perplexities beside the times show
that both do the same work. On one GPU, for a model of Llama-2 7B's shape with random weights:

    python benchmarks/run.py --model llama-2-7b-shape --windows 128 --length 2048 --repeats 1 --save h200

`--save NAME` keeps the numbers in results/benchmarks/NAME.json, from which `make notebooks` makes the book's table.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from statistics import median

import textbook
import torch
from shapes import SHAPES, Subject, subject

from crosscal import compress
from crosscal.engine.reports import PeakMemory
from crosscal.files import write_atomically
from crosscal.metrics import perplexity
from crosscal.metrics.text_scores import _score_texts, dense_reference
from crosscal.paths import results_dir
from crosscal.results.provenance import provenance
from crosscal.types import Grid, PerGroup, Unstructured, Width

TARGETS = {"wanda": Unstructured(0.5), "sparsegpt": Unstructured(0.5), "gptq": Grid(4, PerGroup(128))}
TARGETS |= {"fisher": Unstructured(0.5), "alps": Unstructured(0.5), "dpruner": Unstructured(0.5), "width": Width(0.8)}
TARGETS |= {"awq": Grid(4, PerGroup(128))}
BESIDE = [
    ("sparsegpt", {"refine": "lsq"}),
    ("sparsegpt", {"anchor": 0.25}),
    ("wanda", {"refine": "swaps"}),
    ("alps", {}),
]
BESIDE += [("fisher", {}), ("fisher", {"refine": "lsq", "anchor": 0.25}), ("dpruner", {}), ("gptq", {"anchor": 0.25})]
BESIDE += [("awq", {}), ("awq", {"anchor": 0.25}), ("width", {})]
"""What has no textbook here: its cost is to be read beside that of SparseGPT and GPTQ in the same table."""


def timed(device: torch.device, work: Callable[[], object]) -> dict:
    """CPU seconds, wall seconds and peak bytes of a call."""
    with PeakMemory(device) as memory:
        cpu, wall = time.process_time(), time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found = {"cpu_seconds": time.process_time() - cpu, "seconds": time.perf_counter() - wall}
    return found | {"peak_bytes": memory.peak_bytes}


def measure_method(what: Subject, method: str, options: dict, repeats: int, against_textbook: bool) -> dict:
    """Ours and the textbook's, alternating, each on a copy of the model; perplexities of the last copies."""
    row = {"name": f"{method} {TARGETS[method]}", "options": options, "ours": [], "textbook": []}
    tokens = what.windows.to(what.fast.device)

    def ours(model: torch.nn.Module) -> None:
        compress(model, method, TARGETS[method], calibration={"c4": what.windows}, progress=False, **options)

    def plain(model: torch.nn.Module) -> None:
        textbook.compress(model, method, tokens)

    for _ in range(repeats):
        found, quality = run_on_copy(what.fast, ours, what.held_out)
        row["ours"].append(found)
        row |= {"perplexity": quality} if quality else {}
        if against_textbook:
            found, quality = run_on_copy(what.plain, plain, what.held_out)
            row["textbook"].append(found)
            row |= {"textbook_perplexity": quality} if quality else {}
    return row


def run_on_copy(model: torch.nn.Module, work: Callable, held_out: torch.Tensor | None) -> tuple[dict, float | None]:
    """What `work` costs on a copy of the model, and the copy's perplexity afterwards where there is text."""
    model = copy.deepcopy(model)
    found = timed(next(model.parameters()).device, lambda: work(model))
    return found, None if held_out is None else perplexity(model, held_out)


def measure_divergence(what: Subject, repeats: int) -> dict:
    """All divergences of one model from another, against the two forward passes that give their logits."""
    device = what.fast.device
    tokens = what.windows[:4] if what.held_out is None else what.held_out

    @torch.inference_mode()
    def forward() -> None:
        for part in tokens.to(device).split(2):
            what.fast(part, use_cache=False)

    def diverge() -> None:
        reference = dense_reference(what.fast, {"text": tokens})
        _score_texts(what.fast, {"text": tokens}, reference, progress=False)["text"]

    ours, theirs = [], []
    forward(), diverge()
    for _ in range(2 * repeats + 1):
        ours.append(timed(device, diverge))
        theirs.append(timed(device, lambda: (forward(), forward())))
    return {"name": "divergence from the dense model, against two forward passes", "ours": ours, "textbook": theirs}


def line(row: dict, clock: str) -> str:
    """One line of the table."""
    ours, theirs = row["ours"], row["textbook"]
    middle = [f"{median(run[k] for run in ours):.1f}" for k in ("cpu_seconds", "seconds")]
    middle += [f"{median(run[k] for run in theirs):.1f}" if theirs else "" for k in ("cpu_seconds", "seconds")]
    ratios = sorted(t[clock] / o[clock] for o, t in zip(ours, theirs, strict=False))
    ratio = f"{median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})" if ratios else ""
    peaks = [f"{max(run['peak_bytes'] for run in side) / 2**20:,.0f}" if side else "" for side in (ours, theirs)]
    perplexities = [f"{row[k]:.2f}" if k in row else "" for k in ("perplexity", "textbook_perplexity")]
    options = ", ".join(f"{k} {v}" for k, v in row.get("options", {}).items())
    return (
        f"| {row['name']}{f' ({options})' if options else ''} | "
        + " | ".join([*middle, ratio, *peaks, *perplexities])
        + " |"
    )


def main() -> None:
    """Measure, print the table line by line, and keep the numbers if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help=f"asset, folder, hub id, or one of {', '.join(SHAPES)}")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default)")
    parser.add_argument("--dtype", default="auto", help="the package's side; the textbook is always float32")
    parser.add_argument("--windows", type=int, default=16, help="calibration windows (default: %(default)s)")
    parser.add_argument("--length", type=int, default=1024, help="tokens a window (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="times each side runs (default: %(default)s)")
    parser.add_argument("--methods", default="wanda,sparsegpt,gptq", help="(default: %(default)s)")
    parser.add_argument("--schedules", action="store_true", help="time the other two schedules as well, ours alone")
    parser.add_argument("--beside", action="store_true", help="time refinements, anchors and the other methods as well")
    parser.add_argument("--save", metavar="NAME", help="keep the numbers in results/benchmarks/NAME.json")
    options = parser.parse_args()
    what = subject(options.model, options.device, options.dtype, options.windows, options.length)
    clock = "seconds" if what.fast.device.type == "cuda" else "cpu_seconds"
    facts = provenance(what.fast.device) | {
        "model": options.model,
        "dtype": str(what.fast.dtype).removeprefix("torch."),
        "n_windows": options.windows,
        "length": options.length,
        "clock": clock,
    }
    print(f"{options.model}, {options.windows} x {options.length} tokens, {facts['device']}; {facts['versions']}")
    print(f"crosscal in {facts['dtype']}, the textbook in float32; medians of {options.repeats}; ratio of {clock}\n")
    print("| work | CPU s | s | textbook CPU s | s | ratio (range) | peak MiB | textbook's | perplexity | textbook's |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    rows = []

    def keep(row: dict) -> None:
        print(line(row, clock), flush=True)
        rows.append(row)
        if options.save:
            write_atomically(
                results_dir("benchmarks") / f"{options.save}.json", json.dumps(facts | {"rows": rows}, indent=1)
            )

    for method in options.methods.split(","):
        keep(measure_method(what, method, {"measure_loss": False}, options.repeats, against_textbook=True))
        keep(measure_method(what, method, {}, options.repeats, against_textbook=False))
    for schedule in ("block", "parallel") if options.schedules else ():
        keep(measure_method(what, "sparsegpt", {"schedule": schedule}, options.repeats, against_textbook=False))
    for method, more in BESIDE if options.beside else ():
        keep(measure_method(what, method, {"measure_loss": False} | more, options.repeats, against_textbook=False))
    keep(measure_divergence(what, options.repeats))


if __name__ == "__main__":
    main()
