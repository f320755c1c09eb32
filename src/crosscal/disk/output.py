"""The folder being made: a shard for every block as it is done, and in the end everything else."""

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from crosscal import __version__
from crosscal.disk.tensorfile import TensorFile, flush
from crosscal.disk.weights import Weights
from crosscal.engine.reports import CompressionReport
from crosscal.errors import InputError
from crosscal.models import LinearLayer, linear_layers
from crosscal.models.folders import INDEX
from crosscal.output.export import CARD, MASKS, REPORT, model_card
from crosscal.output.packing import model_quantization_config, packed_tensors
from crosscal.types import Grid

KEPT_SUFFIXES = {".json", ".jinja", ".txt", ".model", ".tiktoken", ".vocab", ".bpe"}
KEPT_NAMES = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
MADE_HERE = {"config.json", INDEX, REPORT}


class OutputFolder:
    """Where the tensors of a compressed model go, under the names they have in the checkpoint.

    `dtype` is what floating-point tensors are stored in, None for what they are stored in already. With a `grid` the
    compressed weights are stored as its codes.
    """

    def __init__(self, folder: Path, weights: Weights, dtype: torch.dtype | None, grid: Grid | None):
        self.folder, self.weights, self.dtype, self.grid = folder, weights, dtype, grid
        self._places, self._checkpoint = weights.places, weights.checkpoint
        self._n_shards = len(weights.blocks) + 1
        folder.mkdir(exist_ok=True)

    def write_block(self, index: int, block: nn.Module) -> None:
        """Write a finished block and the masks of its layers; both are on the disk when this returns.

        Raises `InputError` for weights that the output's dtype or grid cannot hold.
        """
        changed: dict[str, Tensor] = {}
        replaced = set()
        masks = self._masks()
        for layer in linear_layers(block):
            key = self._places.of[f"{self._places.blocks_path}.{index}.{layer.name}.weight"]
            weight = self._rounded(f"{index}.{layer.name}", key, layer)
            masks.write(f"{index}.{layer.name}", torch.from_numpy(np.packbits((weight != 0).numpy())))
            changed |= self._stored(key, weight, layer)
            replaced.add(key)
        prefix = f"{self._places.blocks_path}.{index}."
        names = [name for name in self._places.written if name.startswith(prefix)]
        copied = [key for key in map(self._places.written.get, names) if key not in replaced]
        self._write_shard(index + 1, changed, copied)
        masks.flush()
        flush(self.folder)

    def write_rest(self) -> None:
        """Copy what lies outside the blocks: embeddings, norms, head."""
        keys = [key for name, key in self._places.written.items() if not self._places.in_blocks(name)]
        self._write_shard(self._n_shards, {}, keys)

    def write_descriptions(self, source: Path, *, code: bool) -> None:
        """Configuration, tokenizer and licence as in the model's folder, and the index of the shards."""
        for path in sorted(source.iterdir()):
            kept = path.suffix in KEPT_SUFFIXES or path.name.startswith(KEPT_NAMES) or (code and path.suffix == ".py")
            if kept and path.is_file() and path.name not in MADE_HERE and not path.name.endswith(".index.json"):
                shutil.copyfile(path, self.folder / path.name)
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        self._write_json("config.json", config | self._told(config))
        shards = [self.folder / self._shard(number) for number in range(1, self._n_shards + 1)]
        places = {key: file.path.name for file in map(TensorFile.open, shards) for key in file.slots}
        total = sum(slot.size for file in map(TensorFile.open, shards) for slot in file.slots.values())
        self._write_json(INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))})

    def write_report(self, name: str, fingerprint: str, report: CompressionReport, made: Mapping[str, object]) -> None:
        """`crosscal.json` and the model card; all is on the disk when this returns.

        Neither tells time or memory, so that the same call always writes the same files.
        """
        body = {"crosscal": __version__, "model": name, "fingerprint": fingerprint, "made": dict(made)}
        body |= {"sparsity": report.sparsity, "layers": [vars(layer) for layer in report.layers]}
        self._write_json(REPORT, body)
        (self.folder / CARD).write_text(model_card(name, report, made), encoding="utf-8")
        for path in self.folder.iterdir():
            flush(path)
        flush(self.folder)

    def bytes_needed(self) -> int:
        """What the tensors take as dense ones, which is the most they can."""
        kinds = [self._kind(key) for key in self._places.written.values()]
        return sum(dtype.itemsize * math.prod(shape) for dtype, shape in kinds)

    def _write_shard(self, number: int, changed: Mapping[str, Tensor], copied: list[str]) -> None:
        contents = {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in changed.items()}
        file = TensorFile.create(self.folder / self._shard(number), contents | {key: self._kind(key) for key in copied})
        for key, tensor in changed.items():
            file.write(key, tensor)
        for key in copied:
            for first, part in self._checkpoint.parts(key):
                file.write(key, part.to(self._kind(key)[0]), first)
        file.flush()

    def _kind(self, key: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """The dtype and shape of a tensor in the output."""
        dtype, shape, _ = self._checkpoint.slot(key)
        return (self.dtype if self.dtype is not None and dtype.is_floating_point else dtype), shape

    def _rounded(self, name: str, key: str, layer: LinearLayer) -> Tensor:
        """A compressed weight, [d_out, d_in], in the output's dtype and on the CPU."""
        weight = layer.weight.to(self._kind(key)[0]).cpu()
        if not weight.sum(dtype=torch.float32).isfinite():
            raise InputError(f"the new weights of layer {name} do not fit into {weight.dtype}; pass dtype='bfloat16'")
        return weight

    def _stored(self, key: str, weight: Tensor, layer: LinearLayer) -> dict[str, Tensor]:
        if self.grid is None:
            return {key: weight.T if isinstance(layer.module, Conv1D) else weight}
        return packed_tensors(key.removesuffix(".weight"), weight, self.grid)

    def _masks(self) -> TensorFile:
        contents = {
            f"{index}.{layer.name}": (torch.uint8, (-(-layer.weight.numel() // 8),))
            for index, block in enumerate(self.weights.blocks)
            for layer in linear_layers(block)
        }
        return TensorFile.create(self.folder / MASKS, contents, keep=True)

    def _told(self, config: dict) -> dict:
        """What the configuration has to tell anew; packed weights are unpacked to the dtype it names."""
        told, dtype = {}, self.dtype or (self._checkpoint.dtype if self.grid is not None else None)
        if dtype is not None:
            name = str(dtype).removeprefix("torch.")
            told = {part: found | {"dtype": name} for part, found in config.items() if _is_config(found)}
            told["dtype"] = name
            config.pop("torch_dtype", None)
        if self.grid is not None:
            told["quantization_config"] = model_quantization_config(self.weights.model, self.grid)
        return told

    def _shard(self, number: int) -> str:
        return f"model-{number:05d}-of-{self._n_shards:05d}.safetensors"

    def _write_json(self, name: str, body: dict) -> None:
        (self.folder / name).write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def _is_config(part: object) -> bool:
    return isinstance(part, dict) and ("dtype" in part or "torch_dtype" in part)
