"""Hidden states of the calibration windows, kept in files: one micro-batch at a time is on the device.

Between two blocks all of them lie in one file, so that a run that was killed finds them again. While the system has
memory to spare it keeps the file's pages there by itself. What blocks hand on beside them, as shared keys and values,
is in a file of its own for each micro-batch, beside that of the block it enters.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten, treespec_dumps, treespec_loads

from crosscal.engine.batches import MicroBatch, _Output
from crosscal.engine.streams import PROBE_TOKENS, Streams
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
            self._recall(self.probe, _PROBE)

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
        self._remember(self.probe, _PROBE, self.index)
        self.file.flush()

    def _prepare(self, shapes: Sequence[tuple[int, int]]) -> None:
        if self._first:
            self.file = TensorFile.open(self._path(self._first))
            return
        hidden = self.probe.hidden
        longer = self._enter(_PROBE, self.probe.tokens.new_zeros(2, PROBE_TOKENS + 1)).hidden
        sizes = list(zip(hidden.shape, longer.shape, strict=True))
        contents = {str(number): (hidden.dtype, _states_shape(sizes, *shape)) for number, shape in enumerate(shapes)}
        self.file = TensorFile.create(self._path(0), contents | {_PROBE: (hidden.dtype, tuple(hidden.shape))})

    def _stored(self, number: int, batch: MicroBatch) -> "_StoredBatch":
        if not self._first:
            _write_state(self.file, str(number), batch.hidden)
        batch.calls, batch.hidden = self._shared.of(batch.calls), batch.hidden[:0]
        return _StoredBatch(**vars(batch), streams=self, number=str(number))

    def _remember(self, batch: MicroBatch, number: str, index: int) -> None:
        """Write what a micro-batch carries to a block beside its hidden states; nothing where that is nothing."""
        shared = [dict(mapping) for mapping in batch.shared]
        if batch.carried or any(shared):
            path = self._more(index, number)
            _save_tree([[(*key, leaf) for key, leaf in batch.carried.items()], shared], path)
            TensorFile.flush_path(path)

    def _recall(self, batch: MicroBatch, number: str) -> None:
        """Read what `_remember` wrote for the block that comes next."""
        path = self._more(self.index, number)
        if path.exists():
            carried, shared = _load_tree(path, batch.tokens.device)
            batch.carried = {_Output(block, place): leaf for block, place, leaf in carried}
            for mapping, entries in zip(batch.shared, shared, strict=True):
                mapping.update(entries)

    def _more(self, index: int, number: str) -> Path:
        path = self._path(index)
        return path.with_name(f"{path.stem}-{number}.safetensors")


@dataclass
class _StoredBatch(MicroBatch):
    """A micro-batch whose hidden states are in the streams' file under its `number`."""

    streams: Any = None  # `_StoredStreams`
    number: str = ""

    def outputs(self, index: int, block: nn.Module) -> list:
        """Return all that the block puts out for the stored hidden states, and write what others will read of it."""
        hidden = self.streams.file.read(self.number).to(self.tokens.device)
        before = [dict(mapping) for mapping in self.shared]
        batch = MicroBatch(self.source, self.tokens, hidden, self.calls, self.until, self.shared)
        self.streams._recall(batch, self.number)
        try:
            leaves = batch.outputs(index, block)
            if self.streams.output is not None:
                self.streams._remember(batch, self.number, index + 1)
        finally:
            for mapping, entries in zip(self.shared, before, strict=True):
                mapping.clear()
                mapping.update(entries)
        return leaves

    def keep(self, output: Tensor) -> None:
        """Write a block's output to the next file, if any block follows."""
        if self.streams.output is not None:
            _write_state(self.streams.output, self.number, output)

    def advance(self) -> None:
        """Leave it to the streams, which change files for all micro-batches."""


def _save_tree(tree: Any, path: Path) -> None:
    """Write nested lists, tuples and mappings of tensors and plain values as safetensors, their form in the metadata.

    Raises `InputError` for values of another kind.
    """
    leaves, form = tree_flatten(tree)
    tensors = {str(n): leaf.clone(memory_format=torch.contiguous_format) for n, leaf in enumerate(leaves)
               if isinstance(leaf, Tensor)}  # fmt: skip
    try:
        plain = json.dumps([None if isinstance(leaf, Tensor) else leaf for leaf in leaves])
        save_file(tensors, path, {"form": treespec_dumps(form), "plain": plain})
    except (TypeError, NotImplementedError) as error:
        raise InputError(
            f"a block hands on what cannot be kept in a file ({error}); use load_model, compress and save_model"
        ) from None


def _load_tree(path: Path, device: torch.device) -> Any:
    """Read what `_save_tree` wrote."""
    with safe_open(path, "pt", device=str(device)) as file:
        told, tensors = file.metadata(), {int(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    leaves = [tensors.get(n, leaf) for n, leaf in enumerate(json.loads(told["plain"]))]
    return tree_unflatten(leaves, treespec_loads(told["form"]))


def _write_state(file: TensorFile, name: str, states: Tensor) -> None:
    """Write hidden states to their place; raises `InputError` where a block changes their shape or dtype."""
    slot = file.slots[name]
    if (states.dtype, tuple(states.shape)) != (slot.dtype, slot.shape):
        raise InputError(
            f"a block puts out {states.dtype} {list(states.shape)} for {slot.dtype} {list(slot.shape)}, which cannot "
            "be streamed; use load_model, compress and save_model"
        )
    file.write(name, states)


def _states_shape(sizes: Sequence[tuple[int, int]], n_windows: int, length: int) -> tuple[int, ...]:
    """Return the shape of windows' hidden states; `sizes` are those of one window of the probe and of two longer ones.

    >>> _states_shape([(2, 2), (1, 2), (8, 9), (64, 64)], 4, 32)  # two streams, as in Gemma 3n
    (2, 4, 32, 64)
    """
    longer = Fraction(PROBE_TOKENS + 1, PROBE_TOKENS)
    tokens = Fraction(length, PROBE_TOKENS)
    grown = {1: 1, 2: n_windows, longer: tokens, 2 * longer: n_windows * tokens}
    return tuple(int(one * grown[Fraction(other, one)]) for one, other in sizes)


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
