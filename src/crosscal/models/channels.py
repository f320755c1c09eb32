"""Feed-forward layers by their structure, and models made narrower: channels that put out nothing are cut away.

A feed-forward layer of C channels is one matrix that reads C inputs and writes the hidden state (`down`), and beside
it, in the same module, one or two that read the hidden state and write C channels, or one that writes 2 C (gate and up
in one). The channels in between are multiplied or passed through a function one by one, so that a channel that `down`
does not read can go, with its rows of the other matrices and their biases. What is left is a model with a smaller
number in its configuration, and nothing else.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from crosscal.errors import InputError
from crosscal.models.structure import ASKED, Inventory, LinearLayer, decoder_blocks, inventory, linear_layers
from crosscal.targets import Width

_DEFAULTS = ("n_inner", "intermediate_size", "ffn_hidden_size")
"""Entries of configurations that may be None, which stands for four times the hidden size."""
_STEP = 8  # the number of channels is a multiple of it, so that a class may round it to that, and to no more
_KEPT = "of no feed-forward layer"


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
    """Return the width of the hidden states; 0 for a model that does not say, which then has no such layers."""
    return getattr(model.config.get_text_config(), "hidden_size", 0)  # type: ignore[union-attr]


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
    """Return the entry of a model's configuration that holds its number of channels.

    It is found by trying: with a few less in it, the model's class makes a model, on the meta device, in which the
    feed-forward layers have the shapes that cutting gives, and all else has the shapes it had.

    Raises `InputError` where no entry does: the class computes the number, or something else depends on it, such as a
    norm over the channels.
    """
    config = model.config.get_text_config()  # type: ignore[union-attr]
    unset = [name for name in _DEFAULTS if getattr(config, name, 0) is None]
    for entry in [name for name, value in vars(config).items() if type(value) is int and value == channels] + unset:
        if _cuts(model, entry, channels):
            return entry
    raise InputError(
        f"the configuration of a {type(model).__name__} has no entry for its {channels} channels and nothing else, so "
        "that no program would load a narrower one; give a sparsity"
    )


def _cuts(model: nn.Module, entry: str, channels: int) -> bool:
    """Return whether a configuration with fewer channels in this entry makes the model that cutting makes."""
    config, count = deepcopy(model.config), max(1, channels - _STEP)
    setattr(config.get_text_config(), entry, count)  # type: ignore[union-attr]
    with torch.device("meta"):
        smaller = type(model)(config)
    expected = {name: list(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}
    modules = {id(module): path for path, module in model.named_modules()}
    for layer in (one for block in decoder_blocks(model) for one in _of_block(block, _hidden_size(model))):
        for part in (layer.down, *layer.producers):
            for leaf in ("weight", "bias"):
                shape = expected.get(f"{modules[id(part.module)]}.{leaf}")
                if shape and (leaf == "weight" or part is not layer.down):
                    axis = 0 if leaf == "bias" else (part is layer.down) ^ isinstance(part.module, Conv1D)
                    shape[axis] = shape[axis] // channels * count
    made = {name: list(parameter.shape) for name, parameter in smaller.named_parameters(remove_duplicate=False)}
    return made == expected


def narrow_inventory(model: nn.Module, target: Width) -> Inventory:
    """Return the inventory for a width: `down` of every feed-forward layer, with which the other matrices are cut."""
    found = [layer for block in feed_forwards(model) for layer in block]
    parts = inventory(model, only=sorted({layer.down.name for layer in found}))
    cut = {layer.name for one in found for layer in one.producers}
    left = [part for part in parts.left_out if _inside(part.name, parts.paths) not in cut]
    left = [part._replace(reason=_KEPT) if part.reason == ASKED else part for part in left]
    n_cut = sum(layer.weight.numel() for one in found for layer in one.producers)
    channels = found[0].channels
    return replace(parts, left_out=left, channels=(channels, target.channels(channels)), n_cut=n_cut)


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
def check_channels(model: nn.Module, block: nn.Module) -> None:
    """Raise `InputError` unless the channels of a block go from the matrices that write them to `down` one by one.

    Tried on the layers themselves, with their weights: noise on the channels that one half of `down` reads must not
    reach the other half. So gate and up in one matrix must lie one behind the other, and nothing may sum over channels.
    Layers that lie in the block itself (OPT's), a matrix before and one after a function, are not tried.
    """
    for one in _of_block(block, _hidden_size(model)):
        path, weight = one.down.name.rpartition(".")[0], one.down.weight
        if not path:
            continue
        generator, read = torch.Generator().manual_seed(0), []
        states = torch.randn(1, 4, len(weight), generator=generator).to(weight)
        noise = torch.randn(one.channels, generator=generator).to(weight) * (torch.arange(one.channels) % 2).to(weight)

        def disturb(module: nn.Module, args: tuple, made: Tensor) -> Tensor:
            return made + noise.repeat(made.shape[-1] // len(noise))  # noqa: B023

        for hooked in ([], one.producers):
            hooks = [layer.module.register_forward_hook(disturb) for layer in hooked]
            hooks.append(one.down.module.register_forward_pre_hook(lambda _, args: read.append(args[0])))  # noqa: B023
            try:
                block.get_submodule(path)(states)
            finally:
                for hook in hooks:
                    hook.remove()
        if not torch.equal(read[0][..., ::2], read[1][..., ::2]):
            raise InputError(
                f"the channels of {type(block.get_submodule(path)).__name__} depend on each other, so that none can be "
                "cut; give a sparsity"
            )


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
