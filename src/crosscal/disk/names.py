"""Which tensor of a checkpoint belongs to which parameter of a model.

Checkpoints name tensors as their authors did: without the prefix that the language model puts before its body (GPT-2),
or as older releases called a module (GPT-NeoX). transformers knows these renamings, so they are asked of it.
"""

import re
from collections.abc import Iterable

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key


class WholeModelError(Exception):
    """A model that cannot be taken block by block; the text, which follows "because", says why."""


def match_names(model: PreTrainedModel, keys: Iterable[str]) -> dict[str, str]:
    """Parameter or buffer name -> checkpoint key, for all that the checkpoint holds of the model.

    Raises `WholeModelError` where the checkpoint stores a parameter in several pieces or in another layout.
    """
    known, transforms = model.state_dict(), get_model_conversion_mapping(model)
    renamings = [entry for entry in transforms if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in transforms if isinstance(entry, WeightConverter)]
    prefix, names = model.base_model_prefix, {}
    for key in sorted(keys, key=_natural):
        name, converted = rename_source_key(key, renamings, converters, prefix, known)
        if name not in known and key in known:  # a renaming that was meant for other checkpoints
            name, converted = key, None
        if name not in known:
            continue
        if converted is not None:
            raise WholeModelError(f"its checkpoint stores {name} in another layout than the model")
        names.setdefault(name, key)
    return names


def _natural(key: str) -> list:
    """Sorts layer 2 before layer 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", key)]
