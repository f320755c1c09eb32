"""Calibration windows on their way through the blocks, in micro-batches.

How a block is called differs by family: some get one attention mask, Gemma 3 a different mask and rotary embedding
for its sliding layers. So nothing is assumed: the model itself is run once for each micro-batch with its blocks
stubbed out, and what it hands to each block is kept.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor, nn

from crosscal.engine.capture import find_groups, hooked
from crosscal.models.heads import check_length
from crosscal.models.structure import LinearLayer, linear_layers

# Tokens of a micro-batch: enough to keep the device busy, little enough to keep the activations small.
CPU_TOKENS, CUDA_TOKENS = 4096, 16384
PROBE_TOKENS = 8


@runtime_checkable
class Batch(Protocol):
    """Windows of one source that run together; `hidden` is what enters the next block, or where it is kept."""

    source: str
    hidden: object

    def run(self, index: int, block: nn.Module) -> object:
        """What becomes `hidden` once this block is done."""
        ...


@runtime_checkable
class HasTokens(Protocol):
    """What `load_text` returns: token windows together with where they come from."""

    tokens: Int[Tensor, "n_windows length"]


Windows = Int[Tensor, "n_windows length"] | HasTokens
"""Token windows of one text source, bare or as `load_text` returns them."""


@dataclass
class MicroBatch:
    """Some windows of one source: the hidden states that enter the next block, and the other arguments of each call."""

    source: str
    hidden: Tensor
    calls: list[tuple[tuple, dict]]

    def run(self, index: int, block: nn.Module) -> Tensor:
        """The output of the block for these hidden states, which stay as they are."""
        args, kwargs = self.calls[index]
        output = block(self.hidden, *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output


def open_streams(
    model: nn.Module, blocks: nn.ModuleList, sources: Mapping[str, Tensor], micro_batch: int | None = None
) -> list[MicroBatch]:
    """The windows of every source, [n_windows, length] tokens each, standing before the first block.

    `micro_batch` windows run at a time; by default as many as make 4,096 tokens, on CUDA 16,384.
    """
    device = _device(model)
    return [enter(model, blocks, source, part.to(device)) for source, part in split(sources, device, micro_batch)]


def split(
    sources: Mapping[str, Tensor], device: torch.device, micro_batch: int | None = None
) -> list[tuple[str, Tensor]]:
    """The windows of every source, cut into micro-batches."""
    enough = CUDA_TOKENS if device.type == "cuda" else CPU_TOKENS
    return [
        (source, part)
        for source, tokens in sources.items()
        for part in tokens.split(micro_batch or max(1, enough // tokens.shape[1]))
    ]


def open_probe(model: nn.Module, blocks: nn.ModuleList, length: int = PROBE_TOKENS) -> MicroBatch:
    """One short window of arbitrary tokens, to see which layers of a block share an input."""
    return enter(model, blocks, "probe", torch.arange(length, device=_device(model))[None])


def _device(model: nn.Module) -> torch.device:
    """Where tokens go in; of a model larger than memory, much else is nowhere."""
    return model.get_input_embeddings().weight.device


def token_windows(calibration: Mapping[str, Windows] | None) -> dict[str, Tensor]:
    """The token windows of each source, whichever way they were given."""
    return {name: text.tokens if isinstance(text, HasTokens) else text for name, text in (calibration or {}).items()}


def input_groups(index: int, block: nn.Module, probe: MicroBatch) -> list[list[LinearLayer]]:
    """The layers of a block that share an input; the probe moves on to the next block."""

    def run() -> None:
        probe.hidden = probe.run(index, block)

    return find_groups(linear_layers(block), run)


def run_and_add(
    index: int,
    block: nn.Module,
    batches: Sequence[Batch],
    groups: Sequence[Sequence[LinearLayer]],
    add: Callable[[int, str, Tensor], None],
) -> list:
    """The outputs of all micro-batches; `add(group, source, inputs)` gets what enters each group on the way."""
    leaders = {group[0].module: number for number, group in enumerate(groups)}
    source = ""

    def note(module: nn.Module, args: tuple) -> None:
        add(leaders[module], source, args[0])

    outputs = []
    with hooked(list(leaders), note):
        for batch in batches:
            source = batch.source
            outputs.append(batch.run(index, block))
    return outputs


def enter(model: nn.Module, blocks: nn.ModuleList, source: str, tokens: Tensor) -> MicroBatch:
    """Embed one micro-batch and record how the model calls each of its blocks."""
    check_length(model, tokens.shape[1])
    inputs: list[Tensor] = []
    calls: list[tuple[tuple, dict]] = []
    with _stubbed(blocks, inputs, calls):
        model.base_model(input_ids=tokens, use_cache=False)
    return MicroBatch(source, inputs[0], calls)


@contextmanager
def _stubbed(blocks: nn.ModuleList, inputs: list[Tensor], calls: list) -> Iterator[None]:
    """Replace each block's forward by one that notes its arguments and returns its input unchanged.

    Whether a block returns a tensor or a tuple is seen by letting the first one run for real.
    """
    real_first = blocks[0].forward
    as_tuple: list[bool] = []

    def stub(*args, **kwargs):
        hidden = args[0] if args else kwargs.pop("hidden_states")
        if not inputs:
            inputs.append(hidden)
            as_tuple.append(isinstance(real_first(hidden, *args[1:], **kwargs), tuple))
        # A cache would grow with every call, and nothing here ever reads one.
        without_cache = {k: v for k, v in kwargs.items() if k not in ("past_key_value", "past_key_values")}
        calls.append((args[1:], without_cache | ({"use_cache": False} if "use_cache" in kwargs else {})))
        return (hidden,) if as_tuple[0] else hidden

    wrapped = [
        vars(block).get("forward") for block in blocks
    ]  # some loaders put a forward of their own on the instance
    try:
        for block in blocks:
            block.forward = stub
        yield
    finally:
        for block, own in zip(blocks, wrapped, strict=True):
            if own is None:
                del block.forward
            else:
                block.forward = own
