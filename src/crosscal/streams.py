"""Calibration windows on their way through the blocks, in micro-batches.

How a block is called differs by family: some get one attention mask, Gemma 3 a different mask and rotary embedding
for its sliding layers. So nothing is assumed: the model itself is run once for each micro-batch with its blocks
stubbed out, and what it hands to each block is kept.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass
class _MicroBatch:
    """The hidden states that enter the next block, and the other arguments of every block's call."""

    hidden: Tensor
    calls: list[tuple[tuple, dict]]


class Stream:
    """One text source's hidden states at the current block."""

    def __init__(self, source: str, batches: list[_MicroBatch]):
        self.source = source
        self.batches = batches

    def run(self, index: int, block: nn.Module, after_each: Callable[[], None]) -> None:
        """Run the block on every micro-batch for the sake of hooks; outputs are dropped."""
        for batch in self.batches:
            _call(block, batch, index)
            after_each()

    def advance(self, index: int, block: nn.Module) -> None:
        """Replace every micro-batch by the block's output."""
        for batch in self.batches:
            batch.hidden = _call(block, batch, index)


def _call(block: nn.Module, batch: _MicroBatch, index: int) -> Tensor:
    args, kwargs = batch.calls[index]
    output = block(batch.hidden, *args, **kwargs)
    return output[0] if isinstance(output, tuple) else output


def open_stream(
    model: nn.Module, blocks: nn.ModuleList, sources: Mapping[str, Tensor], micro_batch: int
) -> list[Stream]:
    """One stream per source, standing before the first block; token windows are [n_windows, length]."""
    device = next(model.parameters()).device
    streams = []
    for source, tokens in sources.items():
        batches = [_enter(model, blocks, part.to(device)) for part in tokens.split(micro_batch)]
        streams.append(Stream(source, batches))
    return streams


def _enter(model: nn.Module, blocks: nn.ModuleList, tokens: Tensor) -> _MicroBatch:
    """Embed one micro-batch and record how the model calls each of its blocks."""
    inputs: list[Tensor] = []
    calls: list[tuple[tuple, dict]] = []
    with _stubbed(blocks, inputs, calls):
        model.base_model(input_ids=tokens, use_cache=False)
    return _MicroBatch(inputs[0], calls)


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
