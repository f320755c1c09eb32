"""Tensors on disk, and which of them each parameter of a model is."""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from crosscal.errors import InputError
from crosscal.models import LinearLayer, decoder_blocks
from crosscal.models.folders import weight_files
from crosscal.models.layout import stored_parameters
from crosscal.output.tensorfile import TensorFile


class _WholeModelError(InputError):
    """A model that cannot be taken block by block; the `reason` follows "because"."""

    def __init__(self, reason: str):
        super().__init__(f"the model cannot be read block by block, because {reason}; load it with load_model")
        self.reason = reason


class _Checkpoint:
    """Tensors of a folder's safetensors files, by the names they have there."""

    def __init__(self, folder: Path):
        self.files = [TensorFile.open(folder / name) for name in weight_files(folder)]
        self.home = {key: file for file in self.files for key in file.slots}

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point dtype of most of the bytes."""
        sizes: Counter = Counter()
        for file in self.files:
            for slot in file.slots.values():
                sizes[slot.dtype] += slot.size * slot.dtype.is_floating_point
        return sizes.most_common(1)[0][0]

    def identity(self) -> dict[str, list[int | str]]:
        """Return path, size and time of the last change of each file."""
        stats = {file.path.name: (file.path.resolve(), file.path.stat()) for file in self.files}
        return {name: [str(path), stat.st_size, stat.st_mtime_ns] for name, (path, stat) in stats.items()}

    def slot(self, key: str):
        """Return the dtype, shape and size of a tensor."""
        return self.home[key].slots[key]

    def read(self, key: str) -> Tensor:
        """Return a whole tensor, on the CPU."""
        return self.home[key].read(key)

    def parts(self, key: str) -> Iterator[tuple[int, Tensor]]:
        """Yield a tensor in parts of some rows, each with the number of its first row."""
        return self.home[key].parts(key)

    def equal(self, one: str, other: str) -> bool:
        """Return whether two tensors hold the same."""
        if self.slot(one)[:2] != self.slot(other)[:2]:
            return False
        pairs = zip(self.parts(one), self.parts(other), strict=True)
        return all(torch.equal(mine, theirs) for (_, mine), (_, theirs) in pairs)


class _Places:
    """The checkpoint key of every parameter and stored buffer of a model, and so the source of a writer.

    `of` has an entry for each name, tied ones included. `units` holds, for each block and in the end for what lies
    outside of the blocks, the keys that a copy of the model needs, with those of tensors that the model does not use.
    Tied parameters that differ in the checkpoint are untied in the skeleton, as transformers does.

    Raises `InputError` for a parameter that the checkpoint lacks or has in another shape. Unless the model is `loaded`,
    raises `_WholeModelError` where blocks share weights, and where the checkpoint stores a parameter in several pieces
    or in another layout.
    """

    def __init__(self, model: PreTrainedModel, checkpoint: _Checkpoint, *, loaded: bool = False):
        self.model, self.checkpoint, self.blocks = model, checkpoint, decoder_blocks(model)
        self._prefix = next(path for path, module in model.named_modules() if module is self.blocks) + "."
        self.slot, self.parts, self.dtype = checkpoint.slot, checkpoint.parts, checkpoint.dtype
        self.stored, unmatched, wrong = stored_parameters(
            model, {key: checkpoint.slot(key).shape for key in checkpoint.home}
        )
        pieces = {
            id(one): one for name, one in self.stored.items() if (one.keys, one.names) != ((one.keys[0],), (name,))
        }
        converted = {name for one in pieces.values() for name in one.names} | set(wrong)
        written = {name: one.keys[0] for name, one in self.stored.items() if name not in converted}
        if converted and not loaded:
            raise _WholeModelError(f"its checkpoint stores {min(converted)} in another layout than the model")
        aliases = _aliases(model)
        for names in () if loaded else aliases:
            if len({self._unit(name) for name in names}) > 1:
                raise _WholeModelError("its blocks share weights")
            self._untie(names, written)
        self.of = dict(written)
        for names in _aliases(model):
            stored = [name for name in names if name in written]
            self.of |= {name: written[stored[0]] for name in names if stored}
            for name in stored[1:]:
                del written[name]
        self._check(converted)
        self.units = [[] for _ in range(len(self.blocks) + 1)]
        for name, key in written.items():
            self.units[self._unit(name)].append(key)
        for one in pieces.values():
            self.units[self._unit(one.names[0])] += one.keys
        self.units[-1] += unmatched

    def pieces(self, index: int, layer: LinearLayer) -> dict[str, Tensor]:
        """Return {key: tensor} of the parameter that a layer is stacked in."""
        one = self.stored[f"{self._prefix}{index}.{layer.parameter_name}"]
        return one.write({name: self.model.get_parameter(name).detach() for name in one.names})

    def key(self, index: int, layer: LinearLayer) -> str:
        """Return the key of a layer's weight."""
        return self.of[f"{self._prefix}{index}.{layer.name}.weight"]

    def _unit(self, name: str) -> int:
        """Return the number of the block that a parameter belongs to, -1 for none."""
        inside = name.startswith(self._prefix)
        return int(name.removeprefix(self._prefix).partition(".")[0]) if inside else -1

    def _untie(self, names: list[str], written: dict[str, str]) -> None:
        stored = [name for name in names if name in written]
        for before, name in pairwise(stored):
            if not self.checkpoint.equal(written[before], written[name]):
                path, _, leaf = name.rpartition(".")
                module = self.model.get_submodule(path)
                setattr(module, leaf, nn.Parameter(torch.empty_like(getattr(module, leaf)), requires_grad=False))

    def _check(self, converted: set[str]) -> None:
        for name, tensor in self.model.state_dict().items():
            if name in converted:
                continue
            if name not in self.of:
                raise InputError(f"the checkpoint lacks weight {name}; fetch all of its files")
            shape = self.checkpoint.slot(self.of[name]).shape
            if shape != tuple(tensor.shape):
                raise InputError(
                    f"weight {name} is {list(shape)} in the checkpoint and {list(tensor.shape)} by its config.json; "
                    "fetch both again"
                )


def _aliases(model: PreTrainedModel) -> list[list[str]]:
    """Return the names of each parameter, of which tied ones have several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return list(names.values())
