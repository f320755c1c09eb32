"""A whole model in memory, its compressed layers packed."""

from collections.abc import Mapping

from torch import Tensor, nn

from crosscal.errors import InputError
from crosscal.models import LinearLayer, decoder_blocks, linear_layers
from crosscal.output.packing.format import packed_bytes, packed_tensors, quantization_config
from crosscal.output.packing.requests import check_grid
from crosscal.types import Grid


def packable_layers(model: nn.Module, grid: Grid) -> dict[str, LinearLayer]:
    """The linear layers of the decoder blocks by their full names in the model.

    Raises `InputError` for a grid that their widths do not allow, and for GPT-2's kind of layer, whose weights are
    stored inputs first: the format has scales for groups of a row's inputs only.
    """
    names = {module: name for name, module in model.named_modules()}
    layers = {names[layer.module]: layer for block in decoder_blocks(model) for layer in linear_layers(block)}
    for name, layer in layers.items():
        if not isinstance(layer.module, nn.Linear):
            raise InputError(
                f"{name} is a {type(layer.module).__name__}, which keeps its weights transposed and which "
                "compressed-tensors cannot store; use storage='dense'"
            )
    check_grid(grid, [layer.weight.shape[1] for layer in layers.values()])
    return layers


def packed_state(model: nn.Module, grid: Grid) -> dict[str, Tensor]:
    """The model's state dict with packed tensors in the place of the weights of all layers in the decoder blocks.

    Raises `InputError` as `packable_layers` and `packed_tensors` do.
    """
    state = model.state_dict()
    for name, layer in packable_layers(model, grid).items():
        del state[f"{name}.weight"]
        state |= packed_tensors(name, layer.weight, grid)
    return state


def bytes_saved(layers: Mapping[str, LinearLayer], grid: Grid) -> int:
    """How many bytes fewer the packed layers take than the dense ones."""
    weights = [layer.weight for layer in layers.values()]
    return sum(w.numel() * w.element_size() - packed_bytes(tuple(w.shape), grid) for w in weights)


def model_quantization_config(model: nn.Module, grid: Grid) -> dict:
    """`quantization_config` for a model: all its linear modules outside of the decoder blocks are named as dense."""
    packed = packable_layers(model, grid)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return quantization_config(grid, [name for name in linear if name not in packed])
