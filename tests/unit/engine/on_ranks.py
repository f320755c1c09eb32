"""Run by torchrun: compress tiny models on all ranks, and keep weights, reports and bytes received for a test to read.

torchrun --nproc-per-node 2 -m tests.unit.engine.on_ranks <folder> <case> ...
"""

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from crosscal.calibration.statistics import InputStats
from crosscal.engine.driver import compress
from crosscal.engine.ranks import join, leave, ranks
from crosscal.methods.allocation import Owl
from crosscal.types import Grid, LowRank, NofM, PerGroup, Unstructured
from tests.unit.families import random_windows, tiny_model

HALF, EIGHTS = Unstructured(0.5), PerGroup(8)
TEXT = {"a": random_windows(9), "b": random_windows(5, seed=1)}
MIX = {"a": 0.75, "b": 0.25}
CASES = {
    "wanda": ("llama", "wanda", HALF, {"measure_loss": False}),
    "sparsegpt": ("llama", "sparsegpt", HALF, {}),
    "block": ("llama", "sparsegpt", HALF, {"schedule": "block"}),
    "parallel": ("llama", "gptq", Grid(4, EIGHTS), {"schedule": "parallel"}),
    "anchor": ("llama", "gptq", Grid(4, EIGHTS), {"anchor": 0.25}),
    "balance": ("llama", "sparsegpt", HALF, {"balance": "worst", "weights": None}),
    "fisher": ("llama", "fisher", HALF, {}),
    "dpruner": ("llama", "dpruner", HALF, {}),
    "owl": ("llama", "wanda", HALF, {"allocation": Owl(limit=0.1, outlier=2.0)}),
    "refined": ("llama", "wanda", NofM(2, 4), {"refine": "lsq"}),
    "asvd": ("llama", "asvd", LowRank(0.5), {}),
    "experts": ("mixtral", "sparsegpt", HALF, {}),
    "few": ("mixtral", "gptq", Grid(4, EIGHTS), {"calibration": {"a": TEXT["a"][:3], "b": TEXT["b"][:1]}}),
    "whole": ("hrm_text", "sparsegpt", HALF, {}),
    "data-free": ("llama", "magnitude", HALF, {"calibration": None, "weights": None}),
}


def random_stats(d_in: int = 4) -> InputStats:
    """The statistics of some inputs."""
    inputs = torch.randn(9, d_in, generator=torch.Generator().manual_seed(0))
    return InputStats(inputs.T @ inputs, len(inputs))


def made(case: str):
    """A compressed model and its report."""
    family, method, target, more = CASES[case]
    model = tiny_model(family)
    options = {"calibration": TEXT, "weights": MIX, "progress": False, "micro_batch": 2} | more
    return model, compress(model, method, target, **options)


def main(folder: str, *cases: str) -> None:
    """Keep what each case makes as `<case>-<rank>.safetensors` and `.json`."""
    torch.set_num_threads(1)
    here = join("cpu")
    for case in cases:
        before = here.received
        model, report = made(case)
        place = Path(folder) / f"{case}-{here.rank}"
        save_file({name: part.clone() for name, part in model.state_dict().items()}, f"{place}.safetensors")
        layers = [vars(layer) for layer in report.layers]
        told = {"received": here.received - before, "layers": layers}
        Path(f"{place}.json").write_text(json.dumps(told))
    assert os.environ["WORLD_SIZE"] == str(here.world)
    leave()
    assert ranks().world == 1


if __name__ == "__main__":
    main(*sys.argv[1:])
