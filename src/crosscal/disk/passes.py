"""The schedule in which every layer sees all compressed layers before it, for windows that memory cannot hold.

`crosscal.engine.schedules.sublayer` passes through a block once, with every micro-batch parked inside of it. Where
there is no room for what they hold there, each micro-batch runs from the start of the block for every group of layers
instead: more work for the same bits.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from crosscal.engine.blockwork import BlockWork
from crosscal.engine.capture import hooked
from crosscal.engine.schedules import SCHEDULES, Schedule, find_schedule
from crosscal.engine.streams import Batch
from crosscal.machine.facts import host_memory
from crosscal.models import linear_layers

SHARE = 0.5  # of the free memory, for parked micro-batches


class _ReachedError(Exception):
    """Stops a pass at the layers it was for."""


def sublayer_in_passes(index: int, block: nn.Module, batches: Sequence[Batch], work: BlockWork, last: bool) -> list:
    """One pass, up to its layers, for each input group, and one for the outputs of the compressed block."""
    source, found = "", False

    def stop(module: nn.Module, args: tuple) -> None:
        nonlocal found
        found = True
        work.add(group, source, args[0])
        raise _ReachedError

    for group, layers in enumerate(work.groups):
        found = False
        with hooked([layer.module for layer in layers], stop):
            for batch in batches:
                source = batch.source
                with suppress(_ReachedError):
                    batch.run(index, block)
        if found:
            work.solve(group)
    return [] if last else [batch.run(index, block) for batch in batches]


def choose_schedule(
    name: str, block: nn.Module, n_tokens: int, width: int, dtype: torch.dtype, device: torch.device
) -> Schedule:
    """The schedule of this name, in the form that the device has memory for.

    Raises `InputError` for an unknown name.
    """
    run = find_schedule(name)
    if run is not SCHEDULES["sublayer"]:
        return run
    # Parked before its widest layer a micro-batch holds that layer's input, the residual and the attention's tensors.
    widest = max(layer.weight.shape[1] for layer in linear_layers(block))
    parked = n_tokens * (6 * width + 2 * widest) * dtype.itemsize
    return run if parked < SHARE * free_bytes(device) else sublayer_in_passes


def free_bytes(device: torch.device) -> int:
    """Bytes that may still be taken on a device: what is free, within the limits set for this process."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return min([host_memory()[0], *_room_in_limit()])


def _room_in_limit() -> list[int]:
    """What a limit on the process's data (`ulimit -d`) still allows; nothing where there is none."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_DATA)[0]
        lines = Path("/proc/self/status").read_text().splitlines()
        used = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))
    except (ImportError, OSError, StopIteration):
        return []
    return [] if limit == resource.RLIM_INFINITY else [limit - used]
