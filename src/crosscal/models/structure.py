"""Decoder blocks and their linear layers, found by structure, so that a new architecture needs no code here."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from crosscal.errors import InputError


@dataclass(frozen=True)
class LinearLayer:
    """One linear map of a block, its weight always seen as [d_out, d_in].

    GPT-2 stores it transposed, in a `Conv1D`; `weight` and `write` hide that.
    """

    name: str
    module: nn.Module

    @property
    def weight(self) -> Float[Tensor, "d_out d_in"]:
        """The current weight, [d_out, d_in]; a view, not a copy."""
        weight = self.module.weight.detach()
        return weight.T if isinstance(self.module, Conv1D) else weight

    def write(self, weight: Float[Tensor, "d_out d_in"]) -> None:
        """Overwrite the weight in place, rounded to the module's own dtype."""
        with torch.no_grad():
            self.module.weight.copy_(weight.T if isinstance(self.module, Conv1D) else weight)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """The list of decoder blocks: the `ModuleList` of equal modules that holds the most linear weights.

    Raises `InputError` when the model has no repeated blocks with linear layers.
    """
    best, most = None, 0
    for module in model.modules():
        if not isinstance(module, nn.ModuleList) or len({type(block) for block in module}) != 1:
            continue
        count = sum(layer.weight.numel() for layer in module.modules() if _is_linear(layer))
        if count > most:
            best, most = module, count
    if best is None:
        raise InputError(
            f"{type(model).__name__} has no list of decoder blocks with linear layers; give a decoder-only model"
        )
    return best


def linear_layers(block: nn.Module) -> list[LinearLayer]:
    """The linear layers of one block, in the order the block declares them.

    >>> [layer.name for layer in linear_layers(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)))]
    ['0', '2']
    """
    return [LinearLayer(name, module) for name, module in block.named_modules() if _is_linear(module)]
