"""What several ranks take against the formulas of the book: CPU seconds, bytes received and memory of each rank.

Blocks of Llama's shape with random weights are compressed by SparseGPT on two random texts. CPU seconds of the busiest
rank try the work that the formula gives it, also where ranks share cores; they say nothing of waiting and of networks.

    for n in 1 2 4; do torchrun --nproc-per-node $n benchmarks/ranks.py --save xeon; done

`--save NAME` adds the point to results/benchmarks/ranks/NAME.json.
"""

import argparse
import json
import time

import torch

from crosscal import compress
from crosscal.engine.block import _BlockWork
from crosscal.engine.ranks import join, leave
from crosscal.files import write_atomically
from crosscal.paths import results_dir
from crosscal.results.provenance import provenance
from crosscal.types import Unstructured

WIDTH, INTERMEDIATE, BLOCKS, LENGTH, WINDOWS, VOCABULARY = 512, 1408, 2, 512, 16, 256
SOURCES = ("general", "domain")


def make_model() -> torch.nn.Module:
    """Blocks of Llama's shape, each weight random."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": INTERMEDIATE, "num_hidden_layers": BLOCKS}
    sizes |= {"vocab_size": VOCABULARY, "num_attention_heads": WIDTH // 64, "max_position_embeddings": LENGTH}
    return LlamaForCausalLM(LlamaConfig(**sizes)).eval().requires_grad_(False)


def measured(schedule: str, calibration: dict) -> dict:
    """One compression: this rank's CPU seconds, those of them that solved, bytes received and peak memory."""
    model, solving, solve = make_model(), [0.0], _BlockWork._solve

    def timed(self, *arguments):
        start = time.process_time()
        solve(self, *arguments)
        solving[0] += time.process_time() - start

    _BlockWork._solve, here = timed, join()
    before, start = here.received, time.process_time()
    try:
        report = compress(
            model, "sparsegpt", Unstructured(0.5), calibration=calibration, schedule=schedule, progress=False
        )
    finally:
        _BlockWork._solve = solve
    point = {"cpu_seconds": time.process_time() - start, "solve_seconds": solving[0]}
    return point | {"received": here.received - before, "peak_bytes": report.peak_bytes}


def main() -> None:
    """Measure both schedules on these ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", help="the name of the stored trial")
    options = parser.parse_args()
    torch.set_num_threads(1)
    here = join("cpu")
    draw = torch.Generator().manual_seed(0)
    texts = {name: torch.randint(VOCABULARY, (WINDOWS, LENGTH), generator=draw) for name in SOURCES}
    points = []
    for schedule in ("sublayer", "block"):
        by_rank = here.all(measured(schedule, texts))
        point = {"ranks": here.world, "schedule": schedule}
        points.append(point | {key: [part[key] for part in by_rank] for key in by_rank[0]})
    if here.first:
        print(json.dumps(points, indent=1))
    if here.first and options.save:
        path = results_dir("benchmarks") / "ranks" / f"{options.save}.json"
        kept = json.loads(path.read_text())["points"] if path.exists() else []
        kept = [point for point in kept if point["ranks"] != here.world]
        facts = provenance(torch.device("cpu")) | {"shape": {"hidden": WIDTH, "intermediate": INTERMEDIATE}}
        facts["shape"] |= {"blocks": BLOCKS, "windows": WINDOWS, "length": LENGTH, "sources": len(SOURCES)}
        write_atomically(path, json.dumps(facts | {"points": kept + points}, indent=1) + "\n")
    leave()


if __name__ == "__main__":
    main()
