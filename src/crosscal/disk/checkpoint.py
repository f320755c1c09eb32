"""Tensors on disk, and which of them make up each parameter of a model."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from crosscal.engine.streams import WholeModelError
from crosscal.errors import InputError
from crosscal.models import Inventory, LinearLayer
from crosscal.models.channels import cut_parameters
from crosscal.models.folders import weight_files
from crosscal.models.layout import Stored, stored_parameters
from crosscal.output.tensorfile import TensorFile
from crosscal.types import Width


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
    """The tensors of a checkpoint that make up each parameter and stored buffer, and so the source of a writer.

    `of` has an entry for each name, tied ones included. `units` holds, for each block and in the end for what lies
    outside of the blocks, the keys that a copy of the model needs, with those of tensors that the model does not use.
    Tied parameters that differ in the checkpoint are untied in the skeleton, as transformers does.

    Raises `InputError` for a parameter that the checkpoint lacks or has in another shape. Unless the model is `loaded`,
    raises `WholeModelError` where blocks share weights, and where a parameter cannot be put back as it is stored.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        parts: Inventory,
        checkpoint: _Checkpoint,
        *,
        loaded: bool = False,
        width: Width | None = None,
    ):
        self.model, self.layers, self.checkpoint, self._paths = model, parts.layers, checkpoint, parts.paths
        self.width, self._blocks = width, parts.blocks
        self.slot, self.parts, self.dtype = checkpoint.slot, checkpoint.parts, checkpoint.dtype
        shapes = {key: file.slots[key].shape for key, file in checkpoint.home.items()}
        stored, _, wrong = stored_parameters(model, shapes)
        if wrong and not loaded:
            raise WholeModelError(f"its checkpoint stores {wrong[0]} in a form that cannot be made again")
        used = {key for part in stored.values() for key in part.keys}
        for names in () if loaded else _aliases(model):
            if len({self._unit(name) for name in names}) > 1:
                raise WholeModelError("its blocks share weights")
            self._untie(names, stored)
        self.of: dict[str, Stored] = dict(stored)
        for names in _aliases(model):
            found = [name for name in names if name in stored]
            self.of |= {name: stored[found[0]] for name in names if found}
            for name in found[1:]:
                del stored[name]
        self._check(wrong)
        self.units: list[list[str]] = [[] for _ in range(len(self._paths) + 1)]
        for name, part in stored.items():
            self.units[self._unit(name)] += [] if name != part.names[0] else part.keys
        self.units[-1] += [key for key in checkpoint.home if key not in used]

    def keys(self, index: int, layer: LinearLayer) -> Sequence[str]:
        """Return the keys that make up a layer's parameter."""
        return self.of[self._name(index, layer)].keys

    def changed(self, index: int) -> dict[str, Tensor]:
        """Return the tensors of a block's compressed parameters, by their keys; those of a `width` are cut to it."""
        tensors: dict[str, Tensor] = {}
        if self.width is not None:
            for name, tensor in cut_parameters(self.model, self._blocks[index], self.width):
                tensors |= self.of[f"{self._paths[index]}.{name}"].write({f"{self._paths[index]}.{name}": tensor.cpu()})
            return tensors
        for part in (self.of[self._name(index, layer)] for layer in self.layers[index]):
            if part.keys[0] not in tensors:
                tensors |= part.write({name: _parameter(self.model, name).detach().cpu() for name in part.names})
        return tensors

    def _name(self, index: int, layer: LinearLayer) -> str:
        return f"{self._paths[index]}.{layer.parameter_name}"

    def _unit(self, name: str) -> int:
        """Return the number of the block that a parameter belongs to, -1 for none."""
        return next((n for n, path in enumerate(self._paths) if name.startswith(path + ".")), -1)

    def _untie(self, names: list[str], stored: dict[str, Stored]) -> None:
        for before, name in pairwise(name for name in names if name in stored):
            one, other = stored[before].keys, stored[name].keys
            if len(one) != len(other) or not all(map(self.checkpoint.equal, one, other)):
                path, _, leaf = name.rpartition(".")
                module = self.model.get_submodule(path)
                setattr(module, leaf, nn.Parameter(torch.empty_like(getattr(module, leaf)), requires_grad=False))

    def _check(self, wrong: Sequence[str]) -> None:
        for name, tensor in self.model.state_dict().items():
            if name in wrong:
                continue
            if name not in self.of:
                raise InputError(f"the checkpoint lacks weight {name}; fetch all of its files")
            keys, names = self.of[name].keys, self.of[name].names
            shape = self.checkpoint.slot(keys[0]).shape
            if len(keys) == len(names) == 1 and shape != tuple(tensor.shape) and type(self.of[name]) is Stored:
                raise InputError(
                    f"weight {name} is {list(shape)} in the checkpoint and {list(tensor.shape)} by its config.json; "
                    "fetch both again"
                )


def _parameter(model: nn.Module, name: str) -> Tensor:
    """Return a parameter as its module holds it, also where `experts_apart` puts something else in its place."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    held: Any = module._parameters if leaf in module._parameters else module._buffers
    return held[leaf]


def _aliases(model: PreTrainedModel) -> list[list[str]]:
    """Return the names of each parameter, of which tied ones have several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return list(names.values())
