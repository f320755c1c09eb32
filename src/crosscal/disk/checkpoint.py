"""The tensors on disk, and which of them each parameter of a skeleton is."""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from crosscal.disk.names import WholeModelError, match_names
from crosscal.disk.tensorfile import Slot, TensorFile
from crosscal.errors import InputError
from crosscal.models import decoder_blocks
from crosscal.models.folders import weight_files


class Checkpoint:
    """The tensors of a folder's safetensors files, by the names they have there."""

    def __init__(self, folder: Path):
        self.files = [TensorFile.open(folder / name) for name in weight_files(folder)]
        self.home = {key: file for file in self.files for key in file.slots}

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point dtype that most of the bytes are in."""
        sizes: Counter = Counter()
        for file in self.files:
            for slot in file.slots.values():
                sizes[slot.dtype] += slot.size * slot.dtype.is_floating_point
        return sizes.most_common(1)[0][0]

    def identity(self) -> dict[str, list[int | str]]:
        """What changes when a file does: where it lies, its size and the time of its last change."""
        found = {file.path.name: (file.path.resolve(), file.path.stat()) for file in self.files}
        return {name: [str(path), stat.st_size, stat.st_mtime_ns] for name, (path, stat) in found.items()}

    def slot(self, key: str) -> Slot:
        """Dtype, shape and size of a tensor."""
        return self.home[key].slots[key]

    def read(self, key: str) -> Tensor:
        """A whole tensor, on the CPU."""
        return self.home[key].read(key)

    def parts(self, key: str) -> Iterator[tuple[int, Tensor]]:
        """A tensor in parts of some rows, each with the number of its first row."""
        return self.home[key].parts(key)

    def equal(self, one: str, other: str) -> bool:
        """Whether two tensors hold the same."""
        if self.slot(one)[:2] != self.slot(other)[:2]:
            return False
        pairs = zip(self.parts(one), self.parts(other), strict=True)
        return all(torch.equal(mine, theirs) for (_, mine), (_, theirs) in pairs)


class Places:
    """The checkpoint key of every parameter and stored buffer of a skeleton.

    `of` has an entry for each name, tied ones included; `written` one for each tensor, which is what a copy of the
    model holds. Tied parameters that differ in the checkpoint are untied in the skeleton, as transformers does.

    Raises `InputError` for a parameter that the checkpoint lacks or has in another shape, and `WholeModelError` for a
    model whose blocks share weights.
    """

    def __init__(self, model: PreTrainedModel, checkpoint: Checkpoint):
        self.written = match_names(model, checkpoint.home)
        blocks = decoder_blocks(model)
        self.blocks_path = next(path for path, module in model.named_modules() if module is blocks)
        for names in _aliases(model):
            if len(names) > 1 and len({self._unit(name) for name in names}) > 1:
                raise WholeModelError("its blocks share weights")
            self._untie(model, checkpoint, names)
        self.of = dict(self.written)
        for names in _aliases(model):
            stored = [name for name in names if name in self.written]
            self.of |= {name: self.written[stored[0]] for name in names if stored}
            for name in stored[1:]:
                del self.written[name]
        self._check(model, checkpoint)

    def _unit(self, name: str) -> str:
        """The block a name belongs to, or nothing."""
        return name.removeprefix(self.blocks_path + ".").split(".")[0] if self.in_blocks(name) else ""

    def in_blocks(self, name: str) -> bool:
        """Whether a parameter belongs to a decoder block."""
        return name.startswith(self.blocks_path + ".")

    def _untie(self, model: PreTrainedModel, checkpoint: Checkpoint, names: list[str]) -> None:
        stored = [name for name in names if name in self.written]
        for before, name in pairwise(stored):
            if not checkpoint.equal(self.written[before], self.written[name]):
                path, _, leaf = name.rpartition(".")
                module = model.get_submodule(path)
                setattr(module, leaf, nn.Parameter(torch.empty_like(getattr(module, leaf)), requires_grad=False))

    def _check(self, model: PreTrainedModel, checkpoint: Checkpoint) -> None:
        for name, tensor in model.state_dict().items():
            if name not in self.of:
                raise InputError(f"the checkpoint lacks weight {name}; fetch all of its files")
            shape = checkpoint.slot(self.of[name]).shape
            if shape != tuple(tensor.shape):
                raise InputError(
                    f"weight {name} is {list(shape)} in the checkpoint and {list(tensor.shape)} by its config.json; "
                    "fetch both again"
                )


def _aliases(model: PreTrainedModel) -> list[list[str]]:
    """The names of each parameter, of which tied ones have several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return list(names.values())
