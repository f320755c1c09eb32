"""Importance matrices for llama.cpp: how much energy each input of a layer has on text, by source and weight.

`llama-quantize --imatrix` rounds a weight so that inputs with energy count more. Its file holds, for every matrix of
the model's GGUF file, the sum over tokens of x_j^2 for each input j and the number of tokens; only their quotient is
used. Files of llama.cpp's own tool merge by adding both, so that a text counts by its length. Here sources are kept
apart and mixed like all statistics of this package, each normalized by its own number of tokens:

    in_sum2_j = N sum_s w_s sum_t x_tj^2 / N_s      counts = N sum_s w_s n_s / N_s

N_s are the tokens of source s, N those of all, n_s the tokens that reached the layer (fewer than N_s for an expert).
Source: Williams et al. 2025 for the mix; the layout is that of llama.cpp's `tools/imatrix` (GGUF, type `imatrix`).
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedConfig

from crosscal.calibration.statistics import check_weights
from crosscal.engine.gather import gather_statistics
from crosscal.engine.windows import _token_windows
from crosscal.errors import InputError
from crosscal.files import write_atomically
from crosscal.models import inventory

# Architectures of llama.cpp that are called otherwise than transformers' model types, up to "_text", "_" and "-".
_CALLED = {"mistral": "llama", "mixtral": "llama", "ministral": "mistral3", "cohere": "command-r", "phi": "phi2"}
_CALLED |= {"gpt_bigcode": "starcoder", "qwen3_5": "qwen35", "qwen3_5_moe": "qwen35moe", "deepseek_v2": "deepseek2"}
_CALLED |= {"deepseek_v3": "deepseek2", "glm4_moe": "glm4moe", "olmo3": "olmo2", "ministral3": "mistral3"}
# Matrices that llama.cpp stores apart and transformers in one, all of which read the same input.
_JOINED = {"gate_up_proj": ("gate_proj", "up_proj"), "qkv_proj": ("q_proj", "k_proj", "v_proj")}


class Importance(NamedTuple):
    """The energy of the inputs of one GGUF tensor: `sums` over tokens of x_j^2, and `counts` of tokens, by expert."""

    sums: Float[Tensor, "experts d_in"]
    counts: Float[Tensor, " experts"]


def importance_matrix(
    model: Any,
    config: PreTrainedConfig,
    calibration: Mapping[str, Any],
    weights: Mapping[str, float],
    *,
    micro_batch: int | None = None,
    progress: bool = True,
) -> tuple[dict[str, Importance], list[str]]:
    """Return the importance of every matrix of a model by its name in a GGUF file, and the layers without a name there.

    `model` is what `load_model` returns or a `StreamedModel`, `calibration` the token windows of each source. One pass
    of the dense model, block by block. An expert that no token reached has a count of 0, for which llama.cpp counts all
    inputs the same.

    Raises `InputError` for an architecture that llama.cpp does not know, weights that do not fit the sources, and all
    that `gather_statistics` refuses.
    """
    check_weights(list(calibration), weights)
    names = _Names(config)
    tokens = {source: int((windows >= 0).sum()) for source, windows in _token_windows(calibration).items()}
    parts = model.inventory if hasattr(model, "inventory") else None
    paths = (parts or inventory(model.model)).paths
    kept = gather_statistics(
        model, calibration, diagonal_only=True, micro_batch=micro_batch, parts=parts, progress=progress
    )
    found: dict[str, dict[int, tuple[Tensor, float]]] = {}
    unnamed: list[str] = []
    for index, path in enumerate(paths):
        for layers, stats in kept.block(index):
            shares = {source: weights[source] * sum(tokens.values()) / tokens[source] for source in stats}
            sums = torch.zeros(max((len(part.diagonal) for part in stats.values()), default=0), dtype=torch.float64)
            for source, part in stats.items():
                sums += shares[source] * part.diagonal.cpu().double()
            count = float(sum(shares[source] * part.n_tokens for source, part in stats.items()))
            for layer in layers:
                expert = re.search(r"experts\.(\d+)\.", layer)
                named = names.of(f"{path}.{layer}".replace(expert[0], "experts.") if expert else f"{path}.{layer}")
                unnamed += [] if named else [f"{index}.{layer}"]
                for name in named:
                    found.setdefault(name, {})[int(expert[1]) if expert else 0] = (sums, count)
    return {name: _stacked(experts) for name, experts in sorted(found.items())}, unnamed


def _stacked(experts: Mapping[int, tuple[Tensor, float]]) -> Importance:
    """All experts of a layer, in order; those without statistics have zeros."""
    width = max(len(sums) for sums, _ in experts.values())
    sums, counts = torch.zeros(max(experts) + 1, width), torch.zeros(max(experts) + 1)
    for number, (part, count) in experts.items():
        sums[number, : len(part)], counts[number] = part, count
    return Importance(sums, counts)


class _Names:
    """The names that the `gguf` package gives to the tensors of an architecture."""

    def __init__(self, config: PreTrainedConfig):
        try:
            import gguf
        except ImportError:
            raise InputError("an importance matrix needs the package 'gguf'; run pip install gguf") from None
        config = config.get_text_config()
        kind = str(config.model_type)
        known = {name.replace("-", "").replace("_", ""): arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
        plain = _CALLED.get(kind, kind.removesuffix("_text"))
        plain = _CALLED.get(plain, plain).replace("-", "").replace("_", "")
        if plain not in known:
            raise InputError(
                f"llama.cpp's names of the tensors of a '{kind}' are not known to gguf "
                f"{getattr(gguf, '__version__', '')}; install a newer gguf, if llama.cpp can run this model at all"
            )
        self._map = gguf.get_tensor_name_map(known[plain], config.num_hidden_layers)

    def of(self, name: str) -> list[str]:
        """The tensors that a layer is in a GGUF file: one, several where they are stored apart there, or none."""
        stem, _, leaf = name.rpartition(".")
        whole = self._map.get_name(name)
        apart = [] if whole else [self._map.get_name(f"{stem}.{part}") for part in _JOINED.get(leaf, ())]
        return [f"{found}.weight" for found in ([whole] if whole else apart) if found]


def write_importance(
    path: Path, matrix: Mapping[str, Importance], sources: Mapping[str, float], chunks: Sequence[int]
) -> None:
    """Write an importance matrix as llama.cpp reads it; `chunks` are the number of windows and the tokens in each.

    The names of the sources are the data sets'; their weights are in a key of our own, `crosscal.weights`. Raises
    `InputError` when it cannot be written.
    """
    import gguf

    class Writer(gguf.GGUFWriter):
        def add_architecture(self) -> None:  # an importance matrix is no model
            self.add_type(gguf.GGUFType.IMATRIX)

    with TemporaryDirectory() as folder:  # the package writes to a path, and here all is written or nothing
        writer = Writer(unfinished := Path(folder) / "imatrix.gguf", "")
        writer.add_array(gguf.Keys.IMatrix.DATASETS, list(sources))
        writer.add_uint32(gguf.Keys.IMatrix.CHUNK_COUNT, chunks[0])
        writer.add_uint32(gguf.Keys.IMatrix.CHUNK_SIZE, chunks[1])
        writer.add_array("crosscal.weights", [float(weight) for weight in sources.values()])
        for name, part in matrix.items():
            writer.add_tensor(f"{name}.in_sum2", part.sums.numpy().astype(np.float32))
            writer.add_tensor(f"{name}.counts", part.counts.numpy().astype(np.float32)[:, None])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        write_atomically(path, unfinished.read_bytes())
