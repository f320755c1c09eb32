"""Hidden states of the calibration windows, kept in files: one micro-batch at a time is on the device.

Between two blocks all of them lie in one file, so that a run that was killed finds them again. While the system has
memory to spare it keeps the file's pages there by itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from crosscal.disk.tensorfile import TensorFile
from crosscal.engine.streams import PROBE_TOKENS, MicroBatch, enter, open_probe, split
from crosscal.errors import InputError

PROBE = "probe"


@dataclass
class StoredBatch:
    """A micro-batch whose hidden states are number `number` of the file `hidden`; those it puts out go to `outputs`.

    It stands in for a `MicroBatch`, with files in the place of tensors.
    """

    source: str
    hidden: TensorFile | None
    calls: list[tuple[tuple, dict]]
    number: int
    device: torch.device
    outputs: TensorFile | None = None

    def run(self, index: int, block: nn.Module) -> TensorFile | None:
        """Run a block on these hidden states, and write what it puts out unless nobody needs it."""
        hidden = self.hidden.read(str(self.number)).to(self.device)
        output = MicroBatch(self.source, hidden, self.calls).run(index, block)
        if self.outputs is not None:
            write_state(self.outputs, str(self.number), output)
        return self.outputs


def write_state(file: TensorFile, name: str, states: Tensor) -> None:
    """Write hidden states to their place; raises `InputError` where a block changes their shape or dtype."""
    slot = file.slots[name]
    if (states.dtype, tuple(states.shape)) != (slot.dtype, slot.shape):
        raise InputError(
            f"a block puts out {states.dtype} {list(states.shape)} for {slot.dtype} {list(slot.shape)}, which cannot "
            "be streamed; use load_model, compress and save_model"
        )
    file.write(name, states)


def open_states(
    model: nn.Module,
    blocks: nn.ModuleList,
    sources: Mapping[str, Tensor],
    micro_batch: int | None,
    path: Path,
    *,
    stored: bool,
) -> tuple[list[StoredBatch], MicroBatch, TensorFile]:
    """All micro-batches, the probe, and the file with their hidden states, standing before some block.

    With `stored` the file is there already; otherwise the windows are embedded, and it is written for the first block.
    Either way the model is run once for each micro-batch, to see how it calls its blocks.
    """
    probe, shared, batches = open_probe(model, blocks), _Shared(), []
    device = probe.hidden.device
    parts = split(sources, device, micro_batch)
    shapes = {str(number): tuple(tokens.shape) for number, (_, tokens) in enumerate(parts)} | {PROBE: (1, PROBE_TOKENS)}
    width, dtype = probe.hidden.shape[-1], probe.hidden.dtype
    contents = {name: (dtype, (*shape, width)) for name, shape in shapes.items()}
    file = TensorFile.open(path) if stored else TensorFile.create(path, contents)
    for number, (source, tokens) in enumerate(parts):
        batch = enter(model, blocks, source, tokens.to(device))
        if not stored:
            write_state(file, str(number), batch.hidden)
        batches.append(StoredBatch(source, file, shared.of(batch.calls), number, device))
    if stored:
        probe.hidden = file.read(PROBE).to(device)
    return batches, probe, file


def next_states(path: Path, file: TensorFile) -> TensorFile:
    """A file for what a block puts out, with the same places as that of what enters it."""
    return TensorFile.create(path, {name: (slot.dtype, slot.shape) for name, slot in file.slots.items()})


def states_bytes(sources: Mapping[str, Tensor], width: int, dtype: torch.dtype) -> int:
    """What the hidden states of all windows take, in bytes."""
    return sum(tokens.numel() for tokens in sources.values()) * width * dtype.itemsize


class _Shared:
    """Masks and rotary embeddings that are the same for many micro-batches, each kept once."""

    def __init__(self) -> None:
        self._kept: dict[tuple, list[Tensor]] = {}

    def of(self, tree):
        """The same nested lists, tuples and dictionaries, with tensors of equal contents shared."""
        if isinstance(tree, Tensor):
            alike = self._kept.setdefault((tree.dtype, tree.shape), [])
            same = next((kept for kept in alike if kept is tree or torch.equal(kept, tree)), None)
            if same is None:
                alike.append(tree)
            return tree if same is None else same
        if isinstance(tree, dict):
            return {key: self.of(value) for key, value in tree.items()}
        return type(tree)(map(self.of, tree)) if type(tree) in (list, tuple) else tree
