"""Decoder blocks and their linear layers, found by structure, and the inventory: which matrices are compressed, and why
others are not.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from fnmatch import fnmatchcase
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from crosscal.errors import InputError
from crosscal.models.experts import _matrices, _Matrix
from crosscal.models.families import _ADAPTER, _EMBEDS, _HEAD, _TOWER, _is_cross, _is_linear, _is_router, _reason

ASKED = "asked to be left out"
_UNCOUNTED = ("embedding", "head", "cross-attention", "recurrent or convolution state", "outside the text decoder")


@dataclass(frozen=True)
class LinearLayer:
    """One linear map of a block, its weight seen as [d_out, d_in] however it is stored.

    GPT-2 stores it transposed, in a `Conv1D`; mixtures of experts stack many in one parameter, `parameter_name` in the
    block. `expert` is the number of the expert it belongs to, `mixture` the module whose first input is all tokens of
    that layer. Hooks on `module` see its inputs; for a stacked one they do so inside `experts_apart`.
    """

    name: str
    module: nn.Module
    parameter_name: str = ""
    expert: int | None = None
    mixture: nn.Module | None = field(default=None, repr=False)

    @property
    def stacked(self) -> bool:
        """Whether it is part of a parameter that holds other layers too."""
        return isinstance(self.module, _Matrix)

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter that holds it."""
        return self.module.parameter if isinstance(self.module, _Matrix) else self.module.weight

    @property
    def role(self) -> str:
        """Its name without the number of the expert."""
        return self.name if self.expert is None else self.name.replace(f".{self.expert}", ".*", 1)

    def seen(self, stored: Tensor) -> Float[Tensor, "d_out d_in"]:
        """Return this layer's part of a tensor that is shaped like its parameter, [d_out, d_in]; a view."""
        if isinstance(self.module, _Matrix):
            return self.module.seen(stored)
        return stored.T if isinstance(self.module, Conv1D) else stored

    @property
    def weight(self) -> Float[Tensor, "d_out d_in"]:
        """The current weight, [d_out, d_in]; a view, not a copy."""
        return self.seen(self.parameter.detach())

    def write(self, weight: Float[Tensor, "d_out d_in"]) -> None:
        """Overwrite the weight in place, rounded to the parameter's own dtype."""
        with torch.no_grad():
            self.weight.copy_(weight)


def linear_layers(block: nn.Module) -> list[LinearLayer]:
    """Return the linear layers of one block, routers included, in the order the block declares them.

    >>> [layer.name for layer in linear_layers(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)))]
    ['0', '2']
    """
    layers, modules = [], dict(block.named_modules())
    for path, module in modules.items():
        start = f"{path}." if path else ""
        if stacks := _matrices(module):
            of_expert = "expert" in f"{path}{type(module).__name__}".lower()
            for index in range(max(map(len, stacks.values()))):
                for leaf, matrices in stacks.items():
                    if index < len(matrices):
                        name = f"{start}{index}" + ("" if leaf == "weight" else f".{leaf}")
                        expert = (index, module) if of_expert else (None, None)
                        layers.append(LinearLayer(name, matrices[index], f"{start}{leaf}", *expert))
        elif _is_linear(module):
            layers.append(LinearLayer(path, module, f"{start}weight", *_expert_of(path, modules)))
    return layers


def _expert_of(path: str, modules: dict[str, nn.Module]) -> tuple[int | None, nn.Module | None]:
    """Return the number of the expert in a list of experts, and the module that hands out the tokens."""
    parts = path.split(".")
    for n in range(1, len(parts)):
        experts = modules[".".join(parts[:n])]
        if parts[n].isdigit() and isinstance(experts, nn.ModuleList) and "expert" in parts[n - 1]:
            own = type(experts).forward is not nn.ModuleList.forward
            return int(parts[n]), experts if own else modules[".".join(parts[: n - 1])]
    return None, None


def decoder_blocks(model: nn.Module) -> nn.ModuleList:
    """Return the blocks of the text decoder, which may be of several classes; of several stacks one after the other.

    Raises `InputError` when the model has no list of blocks with linear layers.
    """
    stacks = [stack for _, stack in _block_lists(model)]
    return stacks[0] if len(stacks) == 1 else nn.ModuleList(block for stack in stacks for block in stack)


def _block_lists(model: nn.Module) -> list[tuple[str, nn.ModuleList]]:
    """Return the outermost lists of blocks in the text decoder with their paths."""
    decoder = _text_decoder(model)
    root = next(path for path, module in model.named_modules() if module is decoder)
    lists = list(_outermost(decoder, root))
    if not lists:
        raise InputError(f"{type(model).__name__} has no list of decoder blocks with linear layers; give another model")
    return lists


def _text_decoder(model: nn.Module) -> nn.Module:
    """Return the decoder that the model names; the whole model where that holds no list of blocks."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    known = isinstance(decoder, nn.Module) and any(module is decoder for module in model.modules())
    return decoder if known and any(_outermost(decoder, "")) else model


def _outermost(module: nn.Module, path: str) -> Iterator[tuple[str, nn.ModuleList]]:
    for name, child in module.named_children():
        if _TOWER.search(name):
            continue
        inner = f"{path}.{name}" if path else name
        blocks = isinstance(child, nn.ModuleList) and not any(map(_is_linear, child))
        if blocks and any(linear_layers(block) for block in child):
            yield inner, child
        elif not blocks:
            yield from _outermost(child, inner)


class _LeftOut(NamedTuple):
    """A matrix that stays dense."""

    name: str
    n_weights: int
    reason: str


@dataclass(frozen=True)
class Inventory:
    """Every matrix of a model: compressed, in `layers` by block, or `left_out` with a reason.

    `paths` are the names of the blocks in the model. Shares are of the matrices of the text decoder, without embeddings
    and head, which are listed but not counted; so are recurrent states and convolutions, towers for other inputs and
    cross-attention to them. Of a model that is cut to another width `channels` are before and after, and `n_cut` the
    weights of the matrices that are cut with those in `layers`.
    """

    blocks: nn.ModuleList
    paths: list[str]
    layers: list[list[LinearLayer]]
    left_out: list[_LeftOut]
    channels: tuple[int, int] | None = None
    n_cut: int = 0

    @property
    def n_compressed(self) -> int:
        """Number of weights in the matrices that are compressed."""
        return self.n_cut + sum(layer.weight.numel() for block in self.layers for layer in block)

    @property
    def n_weights(self) -> int:
        """Number of weights in all matrices that count."""
        return self.n_compressed + sum(part.n_weights for part in self.left_out if part.reason not in _UNCOUNTED)

    @property
    def share(self) -> float:
        """Share of the decoder's weights that is compressed."""
        return self.n_compressed / max(1, self.n_weights)

    def told(self) -> dict:
        """Return the inventory in plain values, for reports: counts, share, and the names left out by reason."""
        reasons: dict[str, dict] = {}
        for name, size, reason in self.left_out:
            entry = reasons.setdefault(reason, {"weights": 0, "counted": reason not in _UNCOUNTED, "names": []})
            entry["weights"] += size
            entry["names"].append(name)
        told = {"weights": self.n_weights, "compressed": self.n_compressed, "share": self.share}
        if self.channels is not None:
            before, left = self.channels
            told |= {
                "channels": [before, left],
                "weights_left": self.n_weights - self.n_compressed // before * (before - left),
            }
        return told | {"layers": sum(map(len, self.layers)), "left_out": reasons}

    def sentence(self) -> str:
        """Return one sentence: the share that is compressed and what is left out, by reason."""
        counts, sizes = Counter(part.reason for part in self.left_out), Counter()
        for part in self.left_out:
            sizes[part.reason] += part.n_weights
        total = max(1, self.n_weights)
        parts = [
            f"{reason} ({counts[reason]} {'matrices' if counts[reason] > 1 else 'matrix'}"
            + (")" if reason in _UNCOUNTED else f", {100 * sizes[reason] / total:.2g} %)")
            for reason in counts
        ]
        start = f"{100 * self.share:.1f} % of the text decoder's {total:,} weights are compressed"
        return f"{start}; left out: {', '.join(parts)}" if parts else start


def inventory(model: nn.Module, *, skip: Sequence[str] = (), only: Sequence[str] = ()) -> Inventory:
    """Return every matrix of a model, as one to compress or as left out with its reason.

    `skip` and `only` are patterns with `*` for names such as "model.layers.0.mlp.down_proj", "0.mlp.down_proj" or
    "mlp.down_proj". Routers and gates stay dense unless a pattern in `only` ends with their own name. A matrix that
    several blocks share is in the first one. Weights may be on the meta device.

    Raises `InputError` for a model without decoder blocks and for a pattern that no layer matches.
    """
    lists = _block_lists(model)
    blocks = {f"{path}.{n}": block for path, stack in lists for n, block in enumerate(stack)}
    paths, layers, left = list(blocks), [], []
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    unused, done = {*skip, *only}, set()
    for number, (path, block) in enumerate(blocks.items()):
        chosen = []
        sizes = sum(parameter.numel() for parameter in block.parameters())
        for layer in linear_layers(block):
            if (key := (id(layer.parameter), getattr(layer.module, "index", 0))) in done:
                continue
            done.add(key)
            names.pop(id(layer.parameter), None)
            reason = _layer_reason(layer, block, path, number, sizes, skip, only, unused)
            if reason:
                left.append(_LeftOut(f"{path}.{layer.name}", layer.weight.numel(), reason))
            else:
                chosen.append(layer)
        layers.append(chosen)
    if unused:
        pattern = min(unused)
        known = list(dict.fromkeys(layer.role for block in blocks.values() for layer in linear_layers(block)))
        raise InputError(f"no layer matches '{pattern}'; near names are {', '.join(_nearest(pattern, known)[:3])}")
    left += _others(model, paths, set(names.values()))
    return Inventory(decoder_blocks(model), paths, layers, left)


def _nearest(pattern: str, names: Sequence[str]) -> list[str]:
    """Sort names by how near their parts come to those of a pattern.

    >>> _nearest("0.mpl.*", ["self_attn.q_proj", "mlp.up_proj"])
    ['mlp.up_proj', 'self_attn.q_proj']
    """
    parts = re.findall(r"[^\W\d]\w*", pattern)

    def likeness(name: str) -> float:
        return sum(max(SequenceMatcher(None, part, own).ratio() for own in name.split(".")) for part in parts)

    return sorted(names, key=likeness, reverse=True)


def _layer_reason(layer, block, path, number, sizes, skip, only, unused) -> str:
    """Return why a linear layer is left out, or nothing."""
    forms = (f"{path}.{layer.name}", f"{number}.{layer.name}", layer.name)
    skipped = [pattern for pattern in skip if any(fnmatchcase(form, pattern) for form in forms)]
    wanted = [pattern for pattern in only if any(fnmatchcase(form, pattern) for form in forms)]
    unused.difference_update(skipped, wanted)
    parts = layer.name.split(".")
    if any(_ADAPTER.search(part) for part in parts):
        return "adapter"
    if _is_cross(block, parts):
        return "cross-attention"
    owners = [block, *(block.get_submodule(".".join(parts[:n])) for n in range(1, len(parts) + 1) if not layer.stacked)]
    exact = any(pattern.rpartition(".")[2] == parts[-1] for pattern in wanted)
    if not layer.stacked and not exact and _is_router(owners, parts, len(layer.weight), layer.weight.numel() / sizes):
        return "router"
    return ASKED if skipped or (only and not wanted) else ""


def _others(model: nn.Module, paths: Sequence[str], names: set[str]) -> Iterator[_LeftOut]:
    """Yield the matrices that are no linear layers of blocks."""
    decoder, modules = _text_decoder(model), dict(model.named_modules())
    root = next(path for path, module in modules.items() if module is decoder)
    asked = {"embedding": "get_input_embeddings", "head": "get_output_embeddings"}
    places = {id(getattr(model, get)()): reason for reason, get in asked.items() if hasattr(model, get)}
    sizes = (getattr(getattr(model, "config", None), name, None) for name in ("word_embed_proj_dim", "hidden_size"))
    bridge = {size for size in sizes if size}  # matrices between embeddings and blocks of another width, as in OPT
    for name, parameter in model.named_parameters():
        path = name.rpartition(".")[0]
        if name not in names or sum(size > 1 for size in parameter.shape) < 2:
            continue
        owner, inside = modules[path], next((one for one in paths if name.startswith(one + ".")), None)
        bridges = len(bridge) == 2 and inside is None and set(parameter.shape) == bridge
        embeds = isinstance(owner, nn.Embedding) or _EMBEDS.search(name) or bridges
        reason = places.get(id(owner)) or ("embedding" if embeds else "")
        if inside is not None:
            parts = name.removeprefix(inside + ".").split(".")
            owners = [modules[".".join([inside, *parts[:n]])] for n in range(len(parts))]
            routes = _is_router(owners, parts, len(parameter), 1.0)
            cross = _is_cross(owners[0], parts)
            reason = "router" if routes else "cross-attention" if cross else _reason(owner, parts)
        elif not reason and _HEAD.search(name):
            reason = "head"
        elif not reason and _reason(owner, name.split(".")):
            text = name.startswith(f"{root}.") if root else True
            towers = any(map(_TOWER.search, name.split(".")))
            reason = "outside the decoder's blocks" if text and not towers else "outside the text decoder"
        if reason:
            yield _LeftOut(name.removesuffix(".weight"), parameter.numel(), reason)
