"""The one writer of compressed models: a shard for every block as it is done, and in the end everything else.

The folder holds what the Hugging Face format holds (weights in safetensors shards, configuration, tokenizer) and
beside it the masks, a report of every layer and a model card that says how it was made. Files depend on the request
alone, and not on time or memory, so that the same call always writes the same bytes.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from crosscal import __version__
from crosscal.engine.reports import CompressionReport
from crosscal.errors import InputError
from crosscal.models import LinearLayer
from crosscal.models.channels import config_entry, feed_forwards
from crosscal.models.folders import INDEX
from crosscal.output.packing import FORMATS, _packable_layers, _quantization_config
from crosscal.output.tensorfile import TensorFile, _Slot
from crosscal.types import Grid, Width

REPORT, MASKS, CARD, EARLIER = "crosscal.json", "masks.safetensors", "README.md", "earlier"
SCHEMA = 2  # of crosscal.json; 1 had no such entry, and told seconds and peak_bytes where a loaded model was saved
ROOM = 1.05  # of the weights' bytes, for configuration, tokenizer and masks
_KEPT = re.compile(r".+\.(json|jinja|txt|model|tiktoken|vocab|bpe|spm)(\.v\d+)?|(LICEN[SC]E|NOTICE|USE_POLICY).*")
_NOT_KEPT = re.compile(rf".+\.index\.json|adapter_.*|{re.escape(REPORT)}")
_TEMPLATES = "additional_chat_templates"


class _Source(Protocol):
    """The tensors of a model, by the names they have in its checkpoint."""

    model: PreTrainedModel

    @property
    def width(self) -> Width | None:
        """The width to which feed-forward layers are cut as they are written, if they are."""
        ...

    @property
    def layers(self) -> Sequence[Sequence[LinearLayer]]:
        """Compressed layers of each block."""
        ...

    @property
    def units(self) -> Sequence[Sequence[str]]:
        """Keys of each block, and in the end those of what lies outside of the blocks."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point dtype of most of the bytes."""
        ...

    def keys(self, index: int, layer: LinearLayer) -> Sequence[str]:
        """Return the keys that make up a layer's parameter."""
        ...

    def changed(self, index: int) -> Mapping[str, Tensor]:
        """Return the tensors of a block's compressed parameters by key, as far as `parts` does not yield them."""
        ...

    def slot(self, key: str) -> _Slot:
        """Return the dtype and shape of a tensor."""
        ...

    def parts(self, key: str) -> Iterator[tuple[int, Tensor]]:
        """Yield a tensor in parts of some rows, each with the number of its first row."""
        ...


class Place:
    """The folder a model is written to, and hidden ones beside it in which it is made.

    `work` stays when the work is interrupted, so that it can be continued; `temporary` does not.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser()
        self.work = self.folder.with_name(f".{self.folder.name}.partial")
        self.temporary = self.folder.with_name(f".{self.folder.name}.{os.getpid()}.partial")

    def check(self, overwrite: bool) -> None:
        """Raise `InputError` unless a model may be written to this folder."""
        if not self.folder.exists():
            return
        if not overwrite:
            raise InputError(f"{self.folder} exists already; give another folder, or allow to overwrite it")
        if not (self.folder / REPORT).exists() and any(self.folder.iterdir()):
            raise InputError(f"{self.folder} was not made by crosscal, so it is not overwritten; give another folder")

    def check_room(self, needed: float, held: int = 0) -> None:
        """Raise `InputError` where the disk has too few free bytes beside those `held` already."""
        parent = next(path for path in self.work.parents if path.exists())
        free = shutil.disk_usage(parent).free + held
        if needed > free:
            raise InputError(
                f"not enough disk space in {parent}: {needed / 2**30:.1f} GiB needed, {free / 2**30:.1f} GiB free; "
                "free some space there"
            )

    def put(self, made: Path) -> None:
        """Move a finished folder into place; an earlier one is set aside until it is there."""
        aside = self.work / EARLIER
        if self.folder.exists():
            shutil.rmtree(aside, ignore_errors=True)  # left by a process killed after it had moved its folder
            self.work.mkdir(exist_ok=True)
            self.folder.rename(aside)
        try:
            made.rename(self.folder)
        except OSError:
            self.restore()
            raise
        TensorFile.flush_path(self.folder.parent)
        shutil.rmtree(aside, ignore_errors=True)
        with suppress(OSError):  # it holds something else, or never was
            self.work.rmdir()

    def restore(self) -> None:
        """Put back the folder that was set aside by a process killed before it put the new one there."""
        aside = self.work / EARLIER
        if aside.exists() and not self.folder.exists():
            aside.rename(self.folder)


class Writer:
    """Writes a model to a folder, block by block.

    `dtype` is what floating-point tensors are stored in, None for what they are stored in already. With a `grid` the
    compressed weights are stored in the format `storage`. Raises `InputError` for layers that cannot be stored so.
    """

    def __init__(self, folder: Path, source: _Source, dtype: torch.dtype | None, storage: str, grid: Grid | None):
        self.folder, self.source, self.dtype, self.storage, self.grid = folder, source, dtype, storage, grid
        self._packed = {} if grid is None else _packable_layers(source.model, source.layers, storage, grid)
        self._n_shards = len(source.units)

    def write_all(self, place: Place, describe: Callable[[Path], None], *about) -> None:
        """Write a whole model and put it in its place; `describe` writes what is no tensor, `about` is for `finish`.

        Raises `InputError` when the disk has too little room, and when writing fails; nothing is left then.
        """
        place.check_room(ROOM * self.bytes_needed())
        try:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            describe(self.folder)  # first, as transformers would remove shards that it did not write
            for index in range(len(self.source.layers)):
                self.write_block(index)
            self.write_rest()
            self.finish(*about)
            place.put(self.folder)
        except OSError as error:
            said = error.strerror or error
            raise InputError(f"{place.folder} could not be written ({said}); free some space there") from error
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def write_block(self, index: int) -> None:
        """Write a finished block and the masks of its layers; both are on the disk when this returns.

        Raises `InputError` for weights that the output's dtype or grid cannot hold.
        """
        self.folder.mkdir(exist_ok=True)
        unit, masks, changed = list(self.source.units[index]), self._masks(), {}
        largest: dict[str, float] = {}
        for layer in self.source.layers[index] if self.grid is not None else ():
            owner = layer.name.rpartition(".")[0]
            largest[owner] = max(largest.get(owner, 0.0), layer.weight.abs().max().item())
        for layer in self.source.layers[index]:
            keys, name = self.source.keys(index, layer), f"{index}.{layer.name}"
            weight = self._rounded(name, layer, self._kind(keys[0])[0] if keys else layer.weight.dtype)
            if masks is not None:
                masks.write(name, torch.from_numpy(np.packbits((weight != 0).numpy())))
            if self.grid is not None and keys[0] in unit:
                changed |= FORMATS[self.storage].tensors(
                    keys[0].removesuffix(".weight"), weight, self.grid, largest[layer.name.rpartition(".")[0]]
                )
                unit.remove(keys[0])
        if self.grid is None:
            tensors = {key: tensor for key, tensor in self.source.changed(index).items() if key in unit}
            changed = {key: tensor.to(self._kind(key)[0]) for key, tensor in tensors.items()}
        self._write_shard(index, changed, [key for key in unit if key not in changed])
        if masks is not None:
            masks.flush()
        TensorFile.flush_path(self.folder)

    def write_rest(self) -> None:
        """Copy what lies outside the blocks: embeddings, norms, head."""
        self._write_shard(self._n_shards - 1, {}, self.source.units[-1])

    def copy_descriptions(self, source: Path, *, code: bool) -> None:
        """Copy configuration, tokenizer, processor, chat templates and licence from the model's folder."""
        kept = [path for path in source.iterdir() if _KEPT.fullmatch(path.name) or (code and path.suffix == ".py")]
        kept += (source / _TEMPLATES).glob("*.jinja")
        for path in sorted(kept):
            if path.is_file() and not _NOT_KEPT.fullmatch(path.name):
                target = self.folder / path.relative_to(source)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, target)

    def finish(self, name: str, fingerprint: str, report: CompressionReport | None, made: Mapping[str, object]) -> None:
        """Complete `config.json` and write index, report and model card; all is on the disk when this returns."""
        config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        self._write_json("config.json", config | self._changes(config))
        files = [TensorFile.open(self.folder / self._shard(number)) for number in range(self._n_shards)]
        places = {key: file.path.name for file in files for key in file.slots}
        total = sum(slot.size for file in files for slot in file.slots.values())
        self._write_json(INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))})
        made = dict(made) | ({} if self.grid is None else {"storage": f"{self.storage}, {self.grid}"})
        body = {"schema": SCHEMA, "crosscal": __version__, "model": name, "fingerprint": fingerprint, "made": made}
        if report is None:
            (self.folder / MASKS).unlink(missing_ok=True)
        else:
            body |= {
                "inventory": report.inventory,
                "sparsity": report.sparsity,
                "layers": [vars(layer) for layer in report.layers],
            }
        self._write_json(REPORT, body)
        (self.folder / CARD).write_text(_model_card(name, report, made), encoding="utf-8")
        for path in (self.folder, *self.folder.rglob("*")):
            TensorFile.flush_path(path)

    def bytes_needed(self) -> int:
        """Return the bytes that all tensors take."""
        kinds = [self._kind(key) for keys in self.source.units for key in keys]
        dense = sum(dtype.itemsize * math.prod(shape) for dtype, shape in kinds)
        grid, itemsize = self.grid, (self.dtype or self.source.dtype).itemsize
        if grid is None:
            return dense
        shapes = [layer.weight.shape for layer in self._packed.values()]
        return dense + sum(FORMATS[self.storage].bytes(shape, grid) - itemsize * shape.numel() for shape in shapes)

    def _write_shard(self, number: int, changed: Mapping[str, Tensor], copied: Sequence[str]) -> None:
        contents = {key: (tensor.dtype, tuple(tensor.shape)) for key, tensor in changed.items()}
        contents |= {key: self._kind(key) for key in copied}
        file = TensorFile.create(self.folder / self._shard(number), contents)
        for key, tensor in changed.items():
            file.write(key, tensor)
        for key in copied:
            for first, part in self.source.parts(key):
                file.write(key, part.to(contents[key][0]), first)
        file.flush()

    def _kind(self, key: str) -> tuple[torch.dtype, tuple[int, ...]]:
        """Return the dtype and shape of a tensor in the output."""
        dtype, shape, _ = self.source.slot(key)
        return (self.dtype if self.dtype is not None and dtype.is_floating_point else dtype), shape

    def _rounded(self, name: str, layer: LinearLayer, dtype: torch.dtype) -> Tensor:
        """Return a compressed weight, [d_out, d_in], in the output's dtype and on the CPU."""
        weight = layer.weight.to(dtype).cpu()
        if not weight.sum(dtype=torch.float32).isfinite():
            raise InputError(f"the new weights of layer {name} do not fit into {weight.dtype}; pass dtype='bfloat16'")
        return weight

    def _masks(self) -> TensorFile | None:
        """Return the file of all masks: for each layer one bit a weight, numpy's `packbits` of "weight is not zero".

        A narrower model has none: what is zero is cut away.
        """
        if self.source.width is not None:
            return None
        contents = {
            f"{index}.{layer.name}": (torch.uint8, (-(-layer.weight.numel() // 8),))
            for index, layers in enumerate(self.source.layers)
            for layer in layers
        }
        return TensorFile.create(self.folder / MASKS, contents, keep=True)

    def _changes(self, config: dict) -> dict:
        """Return the entries of the configuration that are new; packed weights are unpacked to the dtype it names."""
        changes: dict[str, Any] = {}
        dtype = self.dtype or (self.source.dtype if self.grid is not None else None)
        if dtype is not None:
            name = str(dtype).removeprefix("torch.")
            parts = {key: part for key, part in config.items() if isinstance(part, dict)}
            typed = {key: part for key, part in parts.items() if {"dtype", "torch_dtype"} & part.keys()}
            changes = {key: part | {"dtype": name} for key, part in typed.items()} | {"dtype": name}
            config.pop("torch_dtype", None)
        if self.source.width is not None:
            channels = feed_forwards(self.source.model)[0][0].channels
            entry, count = config_entry(self.source.model, channels), self.source.width.channels(channels)
            inner: dict = changes.get("text_config") or config.get("text_config") or {}
            default = isinstance(config.get("text_config"), dict) and entry not in config
            changes |= {"text_config": inner | {entry: count}} if entry in inner or default else {entry: count}
        if self.grid is not None:
            packing = _quantization_config(self.source.model, self.storage, self.grid, self._packed)
            changes["quantization_config"] = packing
        return changes

    def _shard(self, number: int) -> str:
        return f"model-{number + 1:05d}-of-{self._n_shards:05d}.safetensors"

    def _write_json(self, name: str, body: dict) -> None:
        (self.folder / name).write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")


def _model_card(name: str, report: CompressionReport | None, made: Mapping[str, object]) -> str:
    """Return a card in the hub's form: how the model was made, and what its layers lost."""
    lines = ["---", f"base_model: {json.dumps(name)}", "library_name: transformers", "tags: [crosscal, compressed]"]
    lines += ["---", "", f"# {name}, compressed with crosscal {__version__}", ""]
    lines += [f"- {key}: {_plain(value)}" for key, value in made.items()]
    if report is not None:
        errors = [layer.relative_error for layer in report.layers if layer.relative_error is not None]
        zeros = f"{len(report.layers)}, {100 * report.sparsity:.1f} % of their weights are zero"
        lines += [f"- layers: {report.width_sentence() or zeros}"]
        lines += [f"- compressed: {report.share_sentence()}"]
        lines += [f"- {report.fallback_sentence()}"] if report.fallbacks() else []
        if errors:
            mean, worst = sum(errors) / len(errors), max(errors)
            lines += [f"- output error of the layers on the calibration text: mean {mean:.4g}, worst {worst:.4g}"]
        if rows := report.left_out():
            marks = [
                "",
                "| left out | matrices | weights | of the decoder's | names |",
                "| :-- | --: | --: | --: | :-- |",
            ]
            lines += [*marks, *(f"| {' | '.join(row)} | `{names}` |" for *row, names in rows)]
    lines += ["", "Only linear layers inside the decoder blocks changed; embeddings and head are the base model's."]
    return "\n".join(lines) + "\n"


def _plain(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
