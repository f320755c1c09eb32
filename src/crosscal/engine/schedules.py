"""In which order the layers of a block are compressed, and on what inputs their statistics are gathered.

* `sublayer`: every layer sees the outputs of all compressed layers before it, those of its own block included (the
  "true sequential" order). One forward pass for each block: a micro-batch is parked where it reaches a layer that is
  not compressed yet, and resumes once all micro-batches have arrived and the layer is solved.
* `block`: all layers of a block see the outputs of the compressed blocks before it. Two passes for each block.
* `parallel`: every layer sees the outputs of the dense model. One pass, and its statistics serve any number of
  methods, sparsities and mix weights.
"""

from collections.abc import Callable, Sequence

from greenlet import GreenletExit, getcurrent, greenlet
from torch import nn

from crosscal.engine.blockwork import BlockWork
from crosscal.engine.capture import hooked
from crosscal.engine.streams import Batch, run_and_add
from crosscal.errors import InputError, suggest

Schedule = Callable[[int, nn.Module, Sequence[Batch], BlockWork, bool], list]
"""(index, block, batches, work, last) -> the block's outputs, which nobody needs after the `last` block."""


def parallel(index: int, block: nn.Module, batches: Sequence[Batch], work: BlockWork, last: bool) -> list:
    """One pass; the outputs are those of the block as it was."""
    outputs = run_and_add(index, block, batches, work.groups, work.add)
    work.solve_all()
    return outputs


def blockwise(index: int, block: nn.Module, batches: Sequence[Batch], work: BlockWork, last: bool) -> list:
    """One pass for the statistics, and one for the outputs of the compressed block."""
    run_and_add(index, block, batches, work.groups, work.add)
    work.solve_all()
    return [] if last else [batch.run(index, block) for batch in batches]


def sublayer(index: int, block: nn.Module, batches: Sequence[Batch], work: BlockWork, last: bool) -> list:
    """One pass, in which each micro-batch waits at every input group until that group is compressed.

    Each micro-batch runs in a greenlet of its own: all of them on this thread, so that torch's thread-local modes
    hold, and switched only where a micro-batch parks.
    """
    hub, group_of = getcurrent(), {layer.module: n for n, group in enumerate(work.groups) for layer in group}

    def park(module: nn.Module, args: tuple) -> None:
        group = group_of[module]
        if group not in work.solved:
            work.add(group, batches[runners.index(getcurrent())].source, args[0])
            hub.switch(group)

    runners = [greenlet(lambda batch=batch: batch.run(index, block)) for batch in batches]
    try:
        with hooked(list(group_of), park):
            arrived = [runner.switch() for runner in runners]  # a group's number, or the block's output
            while any(not runner.dead for runner in runners):
                group = min(at for at, runner in zip(arrived, runners, strict=True) if not runner.dead)
                work.solve(group)
                if last and len(work.solved) == len(work.groups):
                    return []
                for n, runner in enumerate(runners):
                    if not runner.dead and arrived[n] == group:
                        arrived[n] = runner.switch()
        return arrived
    finally:
        for runner in runners:
            if runner:  # still parked
                runner.throw(GreenletExit)


SCHEDULES: dict[str, Schedule] = {"sublayer": sublayer, "block": blockwise, "parallel": parallel}


def find_schedule(name: str) -> Schedule:
    """The schedule of this name; raises `InputError` that lists the names otherwise."""
    if name not in SCHEDULES:
        raise InputError(
            f"unknown schedule '{name}'{suggest(name, list(SCHEDULES))}; give one of {', '.join(SCHEDULES)}"
        )
    return SCHEDULES[name]
