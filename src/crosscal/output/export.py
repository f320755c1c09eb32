"""Write a model in memory to a folder that transformers, the evaluation harness and llama.cpp's converter read."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from crosscal.engine.reports import CompressionReport
from crosscal.errors import InputError
from crosscal.models import LinearLayer, LoadedModel, decoder_blocks
from crosscal.models.folders import WEIGHTS
from crosscal.output.packing import _find_format
from crosscal.output.tensorfile import _Slot
from crosscal.output.writer import Place, Writer
from crosscal.types import Grid


@torch.no_grad()
def save_model(
    loaded: LoadedModel,
    folder: str | Path,
    *,
    report: CompressionReport | None = None,
    made: Mapping[str, object] | None = None,
    overwrite: bool = False,
    storage: str = "dense",
    grid: Grid | None = None,
) -> Path:
    """Write a model with its tokenizer and return the folder; `made`, in plain values, goes into report and card.

    Weights keep their dtype, tied weights stay tied, and shards are written one after the other. Everything is written
    beside `folder` and renamed in the end: a full disk or a kill leaves an earlier folder as it was. With a `report`
    the masks of all compressed layers are kept in `masks.safetensors`, one bit a weight (numpy's `packbits` of
    "weight is not zero", rows first), and the layers' reports in `crosscal.json`.

    `storage` "compressed-tensors" writes codes of a few bits and scales in the place of the weights of the compressed
    layers, which must lie on `grid`: the target, or its grid. `load_model` and transformers get back the very same
    weights.

    Raises `InputError` when `folder` exists and is not to be overwritten, or was not made by this function, when the
    disk has too little room, when writing fails, and for weights that `storage` cannot hold.
    """
    place = Place(folder)
    place.restore()
    place.check(overwrite)
    if storage != "dense":
        _find_format(storage)
        if grid is None:
            raise InputError(f"storage='{storage}' needs the grid of the weights; pass grid=Grid(4, PerGroup(128))")
    writer = Writer(place.temporary, _ModelTensors(loaded.model), None, storage, None if storage == "dense" else grid)
    about = loaded.name, loaded.fingerprint, report, made or {}
    writer.write_all(place, lambda folder: _describe(loaded, folder), *about)
    return place.folder


def _describe(loaded: LoadedModel, folder: Path) -> None:
    """Write configuration, generation configuration, a model's own code, and the tokenizer."""
    loaded.model.save_pretrained(folder, state_dict={})
    (folder / WEIGHTS).unlink(missing_ok=True)  # some releases write a file without tensors
    if loaded.tokenizer is not None:
        loaded.tokenizer.save_pretrained(folder)


class _ModelTensors:
    """The tensors of a loaded model, as the source of a writer: named and laid out as in the model's checkpoint."""

    def __init__(self, model: PreTrainedModel):
        self.model, self.blocks = model, decoder_blocks(model)
        once = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}  # tied weights count once
        ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
        state = {name: tensor for name, tensor in model.state_dict().items() if name in once - ignored}
        self._tensors = revert_weight_conversion(model, state)
        places = {tensor.data_ptr(): key for key, tensor in self._tensors.items()}
        self._keys = {name: places[tensor.data_ptr()] for name, tensor in state.items() if tensor.data_ptr() in places}
        self._prefix = next(path for path, module in model.named_modules() if module is self.blocks)
        first = next(key for name, key in self._keys.items() if name.startswith(f"{self._prefix}.0."))
        inside = re.compile(re.escape(first.partition(".0.")[0]) + r"\.(\d+)\.")
        self.units = [[] for _ in range(len(self.blocks) + 1)]
        for key in self._tensors:
            unit = inside.match(key)
            self.units[int(unit[1]) if unit else -1].append(key)

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point dtype of most of the bytes."""
        sizes: Counter = Counter()
        for tensor in self._tensors.values():
            sizes[tensor.dtype] += tensor.nbytes * tensor.is_floating_point()
        return sizes.most_common(1)[0][0]

    def key(self, index: int, layer: LinearLayer) -> str:
        """Return the key of a layer's weight."""
        return self._keys[f"{self._prefix}.{index}.{layer.name}.weight"]

    def pieces(self, index: int, layer: LinearLayer) -> dict[str, Tensor]:
        """Return {key: tensor} of the parameter that a layer is stacked in."""
        name = f"{self._prefix}.{index}.{layer.parameter_name}"
        return revert_weight_conversion(self.model, {name: layer.parameter.detach()})

    def slot(self, key: str) -> _Slot:
        """Return the dtype and shape of a tensor."""
        return _Slot(self._tensors[key].dtype, tuple(self._tensors[key].shape), 0)

    def parts(self, key: str) -> Iterator[tuple[int, Tensor]]:
        """Yield the whole tensor."""
        yield 0, self._tensors[key]
