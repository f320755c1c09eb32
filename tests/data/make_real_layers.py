"""Writes real_layers.safetensors: what two layers of SmolLM2-135M see of C4, cut down to a size for tests.

    python tests/data/make_real_layers.py

Of each layer 24 rows and 160 inputs are kept, the 8 loudest inputs among them. A part of a Gram matrix is the Gram
matrix of that part of the inputs, so statistics stay real ones: correlated, of unlike size, far from random.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file

from crosscal import load_model, load_text
from crosscal.engine.gather import gather_gradients, gather_statistics
from crosscal.models import decoder_blocks, linear_layers

LAYERS = {"attention": (10, "self_attn.q_proj"), "mlp": (10, "mlp.down_proj")}
ROWS, INPUTS, LOUDEST, WINDOWS = 24, 160, 8, 4


def main():
    """Gather statistics and gradients of the whole model, keep the parts."""
    loaded = load_model("smollm2-135m", dtype="float32")
    windows = load_text("c4", loaded.tokenizer, n_windows=WINDOWS, length=512).tokens
    statistics = gather_statistics(loaded.model, {"c4": windows})
    gradients = [gather_gradients(loaded.model, {"c4": window[None]}) for window in windows]
    tensors = {}
    for name, (index, layer_name) in LAYERS.items():
        module = next(x for x in linear_layers(decoder_blocks(loaded.model)[index]) if x.name == layer_name).module
        stats = next(found["c4"] for names, found in statistics.block(index) if layer_name in names)
        inputs = _inputs(stats.diagonal)
        rows = torch.arange(0, len(module.weight), len(module.weight) // ROWS)[:ROWS]
        tensors[f"{name}.weight"] = module.weight[rows][:, inputs]
        tensors[f"{name}.gram"] = stats.gram[inputs][:, inputs]
        tensors[f"{name}.gradients"] = torch.stack([g[module]["c4"].mean[rows][:, inputs] for g in gradients])
    tensors = {name: tensor.detach().float().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, Path(__file__).with_name("real_layers.safetensors"), {"n_tokens": str(windows.numel())})


def _inputs(squares):
    """The loudest inputs and others at even distances, in their own order."""
    loudest = squares.argsort(descending=True)[:LOUDEST].tolist()
    others = [j for j in range(len(squares)) if j not in loudest]
    step = len(others) / (INPUTS - LOUDEST)
    return torch.tensor(sorted(loudest + [others[int(i * step)] for i in range(INPUTS - LOUDEST)]))


if __name__ == "__main__":
    main()
