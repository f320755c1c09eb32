"""One block compressed, settled and reported: the step that every loop over a model repeats."""

from collections.abc import Callable, Sequence

from torch import nn

from crosscal.engine.blockwork import BlockWork, Job
from crosscal.engine.reports import LayerReport
from crosscal.engine.schedules import Schedule
from crosscal.engine.streams import Batch, MicroBatch, input_groups
from crosscal.errors import InputError
from crosscal.methods.linalg import ATTEMPTS, DAMP_STEP
from crosscal.models import LinearLayer, linear_layers
from crosscal.types import Target


def block_from_text(
    index: int,
    block: nn.Module,
    target: Target,
    job: Job,
    run: Schedule,
    batches: Sequence[Batch],
    probe: MicroBatch,
    last: bool,
) -> list[LayerReport]:
    """Compress one block on what flows into it; batches and probe move on to the next one."""
    groups = input_groups(index, block, probe)
    outputs, reports = settled(index, groups, target, job, lambda work: run(index, block, batches, work, last))
    for batch, output in zip(batches, outputs, strict=not last):
        batch.hidden = output
    return reports


def block_without_text(
    index: int, block: nn.Module, target: Target, job: Job, probe: MicroBatch | None
) -> list[LayerReport]:
    """Compress one block by its weights alone; the probe, which linked methods need, moves on to the next one."""
    groups = [[layer] for layer in linear_layers(block)] if probe is None else input_groups(index, block, probe)

    def solve(work: BlockWork) -> None:
        for group in range(len(work.groups)):
            work.solve(group, {})

    return settled(index, groups, target, job, solve)[1]


def settled(
    index: int,
    groups: Sequence[Sequence[LinearLayer]],
    target: Target,
    job: Job,
    run: Callable[[BlockWork], list | None],
) -> tuple[list, list[LayerReport]]:
    """Compress one block, and again with more damping where a factorization failed.

    Whether one did is only asked when the block is done, so that a GPU never waits inside of it; failures are rare.
    """
    damps: dict[int, float] = {}
    for _ in range(ATTEMPTS * len(groups)):
        work = BlockWork(index, groups, target, job, damps)
        outputs = run(work)
        reports, failed = work.settle()
        if not failed:
            return outputs or [], reports
        work.restore()
        for group in failed:
            damps[group] = work.damp(group) * DAMP_STEP
            if damps[group] > job.damp * DAMP_STEP ** (ATTEMPTS - 0.5):
                raise InputError(
                    f"the Hessian of layer {index}.{groups[group][0].name} is not positive definite even with damping "
                    f"{work.damp(group):g}; use more calibration text or a larger damp"
                )
    raise AssertionError("each failure raises a damping that has a limit")
