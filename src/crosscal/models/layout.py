"""How the parameters of a model are stored in a checkpoint, which keeps them under other names and in other pieces.

Checkpoints name tensors as their authors did: without the prefix that the language model puts before its body (GPT-2),
as older releases called a module (GPT-NeoX), or with each expert on its own (Mixtral, Qwen3-MoE), which transformers
stacks into one parameter. transformers knows these conversions and their inverses, so they are asked of it.
"""

import re
from collections.abc import Callable, Mapping
from copy import deepcopy

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, apply_renamings, rename_source_key


class Stored:
    """Tensors of a checkpoint, `keys`, and the parameters or buffers that they make up, `names`."""

    def __init__(self, keys: tuple[str, ...], names: tuple[str, ...]):
        self.keys, self.names = keys, names

    def read(self, fetch: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """Return {name: tensor}; `fetch` returns the tensor of a key."""
        return {self.names[0]: fetch(self.keys[0])}

    def write(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return {key: tensor} for {name: tensor}: the inverse of `read`."""
        return {self.keys[0]: values[self.names[0]]}


class _Converted(Stored):
    """Tensors that transformers stacks, joins, splits or transposes.

    Raises `ValueError` where what comes back is not, key by key, what was read.
    """

    def __init__(self, model: PreTrainedModel, converter: WeightConverter, first: str, sources: list, shapes: Mapping):
        self.model, self._first, self._sources = model, first, sources
        self._forward, self._backward = converter, converter.reverse_transform()
        super().__init__(tuple(key for key, _, _ in sources), ())
        meta = self.read(lambda key: torch.empty(shapes[key], device="meta"))
        self.names = tuple(meta)
        back = self.write(meta)
        if {key: tuple(part.shape) for key, part in back.items()} != {key: tuple(shapes[key]) for key in self.keys}:
            raise ValueError(f"{first} cannot be put back into the tensors it was read from")

    def read(self, fetch: Callable[[str], Tensor]) -> dict[str, Tensor]:
        converter = deepcopy(self._forward)
        for key, _, pattern in self._sources:
            converter.add_tensor(self._first, key, pattern, fetch(key))
        return _plain(converter.convert(self._first, model=self.model, config=self.model.config))

    def write(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        converter, first = deepcopy(self._backward), None
        for name in self.names:
            renamed, pattern = converter.rename_source_key(name)
            first = first or renamed
            converter.add_tensor(renamed, name, pattern, values[name])
        made = _plain(converter.convert(first, model=self.model, config=self.model.config))
        prefix = f"{self.model.base_model_prefix}."
        keys = {stem.removeprefix(prefix): key for key, stem, _ in self._sources}
        return {keys[stem.removeprefix(prefix)]: part for stem, part in made.items()}


def _plain(made: Mapping[str, Tensor | list[Tensor]]) -> dict[str, Tensor]:
    return {name: part[0] if isinstance(part, list) else part for name, part in made.items()}


def stored_parameters(
    model: PreTrainedModel, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Stored], list[str], list[str]]:
    """Match the tensors of a checkpoint, given as {key: shape}, with the parameters and buffers of a model.

    Returns {name: Stored} for all that the checkpoint holds of the model; the keys that belong to no parameter, such as
    heads for predicting several tokens; and the names whose conversion has no exact inverse, whose keys match nothing.
    """
    known, transforms = model.state_dict(), get_model_conversion_mapping(model)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    stored: dict[str, Stored] = {}
    joined: dict[str, list] = {}
    unmatched = []
    for key in sorted(shapes, key=_natural):
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, known)
        if name not in known and key in known:  # a renaming that was meant for other checkpoints
            name, pattern = key, None
        if name not in known:
            unmatched.append(key)
        elif pattern is None:
            stored.setdefault(name, Stored((key,), (name,)))
        else:
            joined.setdefault(name, []).append((key, apply_renamings(key, renamings), pattern))
    wrong = []
    for first, sources in joined.items():
        try:
            made = _Converted(model, by_pattern[sources[0][2]], first, sources, shapes)
            stored |= dict.fromkeys(made.names, made)
        except (ValueError, KeyError, RuntimeError, StopIteration, TypeError):
            wrong.append(first)
            unmatched += [key for key, _, _ in sources]
    return stored, unmatched, wrong


def _natural(key: str) -> list:
    """Sort layer 2 before layer 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", key)]
