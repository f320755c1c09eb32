"""Run by torchrun: compress tiny models on all ranks, and keep weights, reports and bytes received for a test to read.

torchrun --nproc-per-node 2 -m tests.unit.engine.on_ranks <folder> <case> ...
"""

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from crosscal.calibration.gram import InputSums
from crosscal.calibration.statistics import InputStats
from crosscal.engine import driver
from crosscal.engine.driver import compress
from crosscal.engine.ranks import join, leave, ranks
from crosscal.methods.allocation import Owl
from crosscal.types import Grid, LowRank, NofM, PerGroup, Unstructured
from tests.unit.families import VOCAB, random_windows, tiny_model

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


WIDE = {"hidden_size": 384, "intermediate_size": 512, "num_hidden_layers": 2}


def counted() -> dict:
    """Bytes that each rank receives and holds for a model wide enough for half sums, with one key head for each query.

    Held are the hidden states before a block, and the sums of one block.
    """
    held, enter, end = {"states": 0, "sums": 0}, driver.open_streams, InputSums.stats

    def entered(*arguments):
        streams = enter(*arguments)
        held["states"] = sum(batch.hidden.nbytes for batch in streams.batches)
        return streams

    def ended(self):
        stats = end(self)
        held["sums"] += sum(part.gram.nbytes for part in stats.values())
        return stats

    driver.open_streams, InputSums.stats = entered, ended
    sizes = dict(vocab_size=VOCAB, num_attention_heads=4, max_position_embeddings=32, **WIDE)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes)).eval().requires_grad_(False)
    compress(model, "sparsegpt", HALF, calibration=TEXT, weights=MIX, progress=False)
    driver.open_streams, InputSums.stats = enter, end
    return held | {"sums": held["sums"] // WIDE["num_hidden_layers"]}


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
    before = here.received
    told = counted() | {"received": here.received - before}
    Path(f"{folder}/counted-{here.rank}.json").write_text(json.dumps(told))
    assert os.environ["WORLD_SIZE"] == str(here.world)
    leave()
    assert ranks().world == 1


if __name__ == "__main__":
    main(*sys.argv[1:])
