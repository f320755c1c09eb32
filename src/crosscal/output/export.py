"""Write a model in memory to a folder that transformers, the evaluation harness and llama.cpp's converter read."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from crosscal.engine.reports import CompressionReport
from crosscal.errors import InputError
from crosscal.models import LinearLayer, LoadedModel, inventory
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

    width = None

    def __init__(self, model: PreTrainedModel):
        parts = inventory(model)
        self.model, self.layers, self._paths = model, parts.layers, parts.paths
        once = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}  # tied weights count once
        ignored = set(getattr(model, "_keys_to_ignore_on_save", None) or ())
        state = {name: tensor for name, tensor in model.state_dict().items() if name in once - ignored}
        self._tensors = revert_weight_conversion(model, state)
        places = {tensor.data_ptr(): key for key, tensor in self._tensors.items()}
        self._keys = {name: places[tensor.data_ptr()] for name, tensor in state.items() if tensor.data_ptr() in places}
        units = {self._block_prefix(path): number for number, path in enumerate(self._paths)}
        self.units = [[] for _ in range(len(self._paths) + 1)]
        for key in self._tensors:
            self.units[next((number for start, number in units.items() if key.startswith(start)), -1)].append(key)

    def _block_prefix(self, path: str) -> str:
        """Return how the keys of a block begin: with its path, or as the checkpoint calls that."""
        name, key = next((name, key) for name, key in self._keys.items() if name.startswith(f"{path}."))
        end = name.removeprefix(path)
        return key.removesuffix(end) + "." if key.endswith(end) else f"{path}."

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point dtype of most of the bytes."""
        sizes: Counter = Counter()
        for tensor in self._tensors.values():
            sizes[tensor.dtype] += tensor.nbytes * tensor.is_floating_point()
        return sizes.most_common(1)[0][0]

    def keys(self, index: int, layer: LinearLayer) -> Sequence[str]:
        """Return the key of a layer's parameter, unless it is stored in several tensors."""
        key = self._keys.get(f"{self._paths[index]}.{layer.parameter_name}")
        return () if key is None else (key,)

    def changed(self, index: int) -> Mapping[str, Tensor]:
        """Return nothing: all tensors are those of the model."""
        return {}

    def slot(self, key: str) -> _Slot:
        """Return the dtype and shape of a tensor."""
        return _Slot(self._tensors[key].dtype, tuple(self._tensors[key].shape), 0)

    def parts(self, key: str) -> Iterator[tuple[int, Tensor]]:
        """Yield the whole tensor."""
        yield 0, self._tensors[key]
