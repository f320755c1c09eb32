"""Hidden states of the calibration windows, kept in files: one micro-batch at a time is on the device.

Between two blocks all of them lie in one file, so that a run that was killed finds them again. While the system has
memory to spare it keeps the file's pages there by itself.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crosscal.engine.streams import PROBE_TOKENS, MicroBatch, Streams
from crosscal.errors import InputError
from crosscal.models import Inventory
from crosscal.output.tensorfile import TensorFile

_PROBE = "probe"


class _StoredStreams(Streams):
    """Micro-batches whose hidden states are in the file `path(index)`, where they stand before that block.

    With `first` above 0 that block's file is there already. The model is run once for each micro-batch in any case, to
    see how it calls its blocks.
    """

    def __init__(
        self,
        model: nn.Module,
        parts: Inventory,
        sources: Mapping[str, Tensor],
        micro_batch: int | None,
        path: Callable[[int], Path],
        first: int,
    ):
        self._path, self.index, self._first, self._shared = path, first, first, _Shared()
        self.output: TensorFile | None = None
        self.file: TensorFile
        super().__init__(model, parts, sources, micro_batch)
        if first:
            self.probe.hidden = self.file.read(_PROBE).to(self.probe.hidden.device)

    def prepare_next(self) -> None:
        """Create the file for what the block puts out; it has the same places as that of what enters it."""
        contents = {name: (slot.dtype, slot.shape) for name, slot in self.file.slots.items()}
        self.output = TensorFile.create(self._path(self.index + 1), contents)

    def advance(self) -> None:
        """Move on to the next block; the hidden states that enter it are on the disk when this returns."""
        super().advance()
        assert self.output is not None, "`prepare_next` comes before a block's outputs"
        self.file, self.output, self.index = self.output, None, self.index + 1
        _write_state(self.file, _PROBE, self.probe.hidden)
        self.file.flush()

    def _prepare(self, shapes: Sequence[tuple[int, int]]) -> None:
        if self._first:
            self.file = TensorFile.open(self._path(self._first))
            return
        hidden = self.probe.hidden
        named = {str(number): shape for number, shape in enumerate(shapes)} | {_PROBE: (1, PROBE_TOKENS)}
        contents = {name: (hidden.dtype, (*shape, hidden.shape[-1])) for name, shape in named.items()}
        self.file = TensorFile.create(self._path(0), contents)

    def _stored(self, number: int, batch: MicroBatch) -> "_StoredBatch":
        if not self._first:
            _write_state(self.file, str(number), batch.hidden)
        calls = self._shared.of(batch.calls)
        return _StoredBatch(batch.source, batch.tokens, batch.hidden[:0], calls, streams=self, number=str(number))


@dataclass
class _StoredBatch(MicroBatch):
    """A micro-batch whose hidden states are in the streams' file under its `number`."""

    streams: Any = None  # `_StoredStreams`
    number: str = ""

    def run(self, index: int, block: nn.Module) -> Tensor:
        """Return the block's output for the stored hidden states."""
        hidden = self.streams.file.read(self.number).to(self.tokens.device)
        return MicroBatch(self.source, self.tokens, hidden, self.calls).run(index, block)

    def keep(self, output: Tensor) -> None:
        """Write a block's output to the next file, if any block follows."""
        if self.streams.output is not None:
            _write_state(self.streams.output, self.number, output)

    def advance(self) -> None:
        """Leave it to the streams, which change files for all micro-batches."""


def _write_state(file: TensorFile, name: str, states: Tensor) -> None:
    """Write hidden states to their place; raises `InputError` where a block changes their shape or dtype."""
    slot = file.slots[name]
    if (states.dtype, tuple(states.shape)) != (slot.dtype, slot.shape):
        raise InputError(
            f"a block puts out {states.dtype} {list(states.shape)} for {slot.dtype} {list(slot.shape)}, which cannot "
            "be streamed; use load_model, compress and save_model"
        )
    file.write(name, states)


def _states_bytes(sources: Mapping[str, Tensor], width: int, dtype: torch.dtype) -> int:
    """Return the size of the hidden states of all windows, in bytes."""
    return sum(tokens.numel() for tokens in sources.values()) * width * dtype.itemsize


class _Shared:
    """Masks and rotary embeddings that are the same for many micro-batches, each kept once."""

    def __init__(self) -> None:
        self._kept: dict[tuple, list[Tensor]] = {}

    def of(self, tree: Any) -> Any:
        """Return the same nested lists, tuples and dictionaries, with tensors of equal contents shared."""
        if isinstance(tree, Tensor):
            alike = self._kept.setdefault((tree.dtype, tree.shape), [])
            same = next((kept for kept in alike if kept is tree or torch.equal(kept, tree)), None)
            if same is None:
                alike.append(tree)
            return tree if same is None else same
        if isinstance(tree, dict):
            return {key: self.of(value) for key, value in tree.items()}
        return type(tree)(map(self.of, tree)) if type(tree) in (list, tuple) else tree
