"""Feed-forward layers by their structure, and models made narrower: channels that put out nothing are cut away.

A feed-forward layer of C channels is one matrix that reads C inputs and writes the hidden state (`down`), and beside
it, in the same module, one or two that read the hidden state and write C channels, or one that writes 2 C (gate and up
in one). The channels in between are multiplied or passed through a function one by one, so that a channel that `down`
does not read can go, with its rows of the other matrices and their biases. What is left is a model with a smaller
number in its configuration, and nothing else.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from crosscal.errors import InputError
from crosscal.models.structure import ASKED, Inventory, LinearLayer, decoder_blocks, inventory, linear_layers
from crosscal.targets import Width

_ENTRIES = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "hidden_dim", "d_ff", "inner_dim")
"""Entries of configurations that hold the number of channels."""
_CUT, _KEPT = "cut with the layer that reads it", "of no feed-forward layer"


class FeedForward(NamedTuple):
    """The matrices of one feed-forward layer: `down` reads the `channels` that the `producers` write."""

    down: LinearLayer
    producers: list[LinearLayer]

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.down.weight.shape[1]

    def kept(self, count: int) -> Tensor:
        """Return the `count` channels that stay, in their order: all that `down` reads, and the first of the others."""
        read = (self.down.weight != 0).any(dim=0)
        return read.to(torch.uint8).argsort(descending=True, stable=True)[:count].sort().values

    def cut(self, count: int) -> list[tuple[LinearLayer, Tensor, Tensor | None]]:
        """Return each layer with its parameter, as it is stored, and its bias, both cut to the channels that stay."""
        kept = self.kept(count)
        parts = [(self.down, _stored(self.down, self.down.weight[:, kept]), _bias(self.down))]
        for layer in self.producers:
            times, bias = layer.weight.shape[0] // self.channels, _bias(layer)
            rows = torch.cat([kept + n * self.channels for n in range(times)])
            parts.append((layer, _stored(layer, layer.weight[rows]), None if bias is None else bias[rows]))
        return parts


def feed_forwards(model: nn.Module) -> list[list[FeedForward]]:
    """Return the feed-forward layers of every block.

    Raises `InputError` for a model that cannot be made narrower: without such layers, with experts, with layers of
    unlike width, or without an entry for their width in its configuration.
    """
    blocks = decoder_blocks(model)
    found = [list(_of_block(block, _hidden_size(model))) for block in blocks]
    widths = {layer.channels for block in found for layer in block}
    name = type(model).__name__
    if any(layer.expert is not None for block in blocks for layer in linear_layers(block)):
        raise InputError(f"{name} is a mixture of experts, whose channels are not cut; give a sparsity or a grid")
    if not all(found) or len(widths) != 1:
        said = (
            f"of {', '.join(map(str, sorted(widths)))} channels" if len(widths) > 1 else "that are not in every block"
        )
        raise InputError(f"{name} has feed-forward layers {said}, which cannot be cut to one width; give a sparsity")
    config_entry(model, widths.pop())
    return found


def _hidden_size(model: nn.Module) -> int:
    return model.config.get_text_config().hidden_size  # type: ignore[union-attr]


def _of_block(block: nn.Module, hidden: int) -> Iterator[FeedForward]:
    """The feed-forward layers of a block: by the module that owns their matrices."""
    owners: dict[str, list[LinearLayer]] = {}
    for layer in linear_layers(block):
        owners.setdefault(layer.name.rpartition(".")[0], []).append(layer)
    for layers in owners.values():
        for down in layers:
            channels = down.weight.shape[1]
            others = [layer for layer in layers if layer is not down]
            outs = sorted(layer.weight.shape[0] for layer in others)
            reads = all(layer.weight.shape[1] == hidden for layer in others)
            writes = outs in ([channels], [channels, channels], [2 * channels]) and channels != hidden
            if len(down.weight) == hidden and reads and writes:
                yield FeedForward(down, others)


def config_entry(model: nn.Module, channels: int) -> str:
    """Return the entry of a model's configuration that holds its number of channels; raises `InputError` without one.

    GPT-2's may be None, which stands for four times the hidden size.
    """
    config = model.config.get_text_config()  # type: ignore[union-attr]
    held = {name: getattr(config, name) for name in _ENTRIES if hasattr(config, name)}
    for name, value in held.items():
        if value == channels or (value is None and channels == 4 * config.hidden_size):
            return name
    raise InputError(
        f"the configuration of a {type(model).__name__} has no entry for its {channels} channels, so that no program "
        "would load a narrower one; give a sparsity"
    )


def narrow_inventory(model: nn.Module) -> Inventory:
    """Return the inventory for a `Width`: `down` of every feed-forward layer; the others are cut with it."""
    found = [layer for block in feed_forwards(model) for layer in block]
    parts = inventory(model, only=sorted({layer.down.name for layer in found}))
    cut = {layer.name for one in found for layer in one.producers}
    reasons = {part: _CUT if _inside(part.name, parts.paths) in cut else part.reason for part in parts.left_out}
    left = [part._replace(reason=_KEPT if why == ASKED else why) for part, why in reasons.items()]
    return Inventory(parts.blocks, parts.paths, parts.layers, left)


def _inside(name: str, paths: Sequence[str]) -> str:
    """The name of a layer within its block."""
    return next((name.removeprefix(f"{path}.") for path in paths if name.startswith(f"{path}.")), name)


def cut_parameters(model: nn.Module, block: nn.Module, target: Width) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters of a block that a width changes, by their names in it, cut to the channels that stay."""
    for layer, weight, bias in (
        cut for one in _of_block(block, _hidden_size(model)) for cut in one.cut(target.channels(one.channels))
    ):
        yield layer.parameter_name, weight
        if bias is not None:
            yield layer.parameter_name.removesuffix("weight") + "bias", bias


@torch.no_grad()
def narrow(model: nn.Module, target: Width) -> int:
    """Cut every feed-forward layer of a model in place, and its configuration; return how many channels are left.

    The channels that go must be ones that `down` does not read, so that the model puts out what it did.
    """
    found = feed_forwards(model)
    before = found[0][0].channels
    count = target.channels(before)
    config, entry = model.config.get_text_config(), config_entry(model, before)  # type: ignore[union-attr]
    for layer, weight, bias in (cut for block in found for one in block for cut in one.cut(count)):
        module = layer.module
        module.weight = nn.Parameter(weight.clone(), requires_grad=module.weight.requires_grad)
        if bias is not None:
            module.bias = nn.Parameter(bias.clone(), requires_grad=module.bias.requires_grad)
        sizes = ("nx", "nf") if isinstance(module, Conv1D) else ("in_features", "out_features")
        vars(module).update(dict(zip(sizes, layer.weight.shape[::-1], strict=True)))
    for module in model.modules():
        if vars(module).get("intermediate_size") == before:
            module.intermediate_size = count
    setattr(config, entry, count)
    return count


def _stored(layer: LinearLayer, weight: Tensor) -> Tensor:
    """A weight [d_out, d_in] as the layer stores it."""
    return layer.seen(weight).contiguous()


def _bias(layer: LinearLayer) -> Tensor | None:
    bias = getattr(layer.module, "bias", None)
    return None if bias is None else bias.detach()
