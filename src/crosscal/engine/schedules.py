"""In which order the layers of a block are compressed, and on what inputs their statistics are gathered.

* `sublayer`: every layer sees the outputs of all compressed layers before it, those of its own block included (the
  "true sequential" order of GPTQ, Frantar et al. 2023).
* `block`: all layers of a block see the outputs of the compressed blocks before it. Two passes for each block.
* `parallel`: every layer sees the outputs of the dense model. One pass, and its statistics serve any number of
  methods, sparsities and mix weights.

The true sequential order looks expensive. The inputs of the output projection are only known once query, key and value
are compressed, those of the up projection only once the output projection is, and so on: with four groups of layers a
block is run four times for the statistics and once for its outputs, each time from its beginning. But all these runs
agree up to the layer that is next. If a run could be halted in the middle of the block's forward function and resumed
later, one would be enough. That is what a greenlet does: a function with a stack of its own, which can be left at any
depth and entered again. So each micro-batch runs in a greenlet. A hook in front of every layer adds the input to the
sums and parks the micro-batch there; when all of them have arrived, the group is solved and its weights are written,
and the micro-batches resume into the compressed layer, up to the next one. One pass, and bit for bit the same numbers.
All greenlets share this thread, so torch's thread-local modes hold, and switch only where a micro-batch parks.

Of an expert that hardly any tokens reach, the statistics are those of all experts of its layer. These are known once
the block is done, so that such experts are solved last and the block, if it has any, is run once more.

A model that is run as a whole may pass a layer several times, and a group is solved from all passes. It is run from
its start for every group, too.

A parked micro-batch holds its activations. Where memory is too small for those of all windows, `_sublayer_in_passes`
runs each micro-batch from the start of the block for every group instead: more work for the same bits.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress

from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor, nn

from crosscal.engine.batches import MicroBatch, _hooked, _run_and_add, _run_twin
from crosscal.engine.block import _BlockWork
from crosscal.engine.ranks import ranks

Schedule = Callable[[int, nn.Module, Sequence[MicroBatch], _BlockWork, bool], None]
"""(index, block, batches, work, last): compresses a block; batches keep their outputs, but not those of the `last`."""


def _parallel(index: int, block: nn.Module, batches: Sequence[MicroBatch], work: _BlockWork, last: bool) -> None:
    """One pass; the outputs are those of the block as it was."""
    for batch, output in _run_and_add(index, block, batches, work.groups, work.add):
        batch.keep(output)
    work.solve_all()


def _block(index: int, block: nn.Module, batches: Sequence[MicroBatch], work: _BlockWork, last: bool) -> None:
    """One pass for the statistics, and one for the outputs of the compressed block."""
    for _ in _run_and_add(index, block, batches, work.groups, work.add):
        pass
    work.solve_all()
    _run_all(index, block, batches, last)


def _sublayer(index: int, block: nn.Module, batches: Sequence[MicroBatch], work: _BlockWork, last: bool) -> None:
    """One pass, in which each micro-batch waits at every input group until that group is compressed."""
    hub, group_of = getcurrent(), {layer.module: n for n, group in enumerate(work.groups) for layer in group}

    def park(module: nn.Module, args: tuple) -> None:
        group = group_of[module]
        if group not in work.solved:
            work.add(group, batches[runners.index(getcurrent())], args[0])
            hub.switch(group)

    for batch in batches:
        _run_twin(index, block, batch, work.groups)
    runners = [greenlet(lambda batch=batch: batch.keep(batch.run(index, block))) for batch in batches]
    try:
        with _hooked(list(group_of), park):
            arrived = [runner.switch() for runner in runners]  # a group's number, or None at the end of the block
            while True:
                standing = [at for at, runner in zip(arrived, runners, strict=True) if not runner.dead]
                group = ranks().least(min(standing, default=None))
                if group is None:
                    break
                work.solve(group)
                if last and len(work.solved) == len(work.groups):
                    break
                for n, runner in enumerate(runners):
                    if not runner.dead and arrived[n] == group:
                        arrived[n] = runner.switch()
    finally:
        for runner in runners:
            if runner:  # still parked
                runner.throw(GreenletExit)
    if work.solve_rest():
        _run_all(index, block, batches, last)


class _ReachedError(Exception):
    """Stops a pass at the layers it was for."""


def _sublayer_in_passes(
    index: int, block: nn.Module, batches: Sequence[MicroBatch], work: _BlockWork, last: bool
) -> None:
    """One pass, up to its layers, for each input group, and one for the outputs of the compressed block."""
    reached = False

    def stop(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal reached
        reached = True
        work.add(group, batch, args[0])
        if not batch.whole:
            raise _ReachedError

    for batch in batches:
        _run_twin(index, block, batch, work.groups)
    for group, layers in enumerate(work.groups):
        reached = False
        with _hooked([layers[0].module], stop):
            for batch in batches:
                with suppress(_ReachedError):
                    batch.run(index, block)
        if any(ranks().all(reached)):
            work.solve(group)
    work.solve_rest()
    _run_all(index, block, batches, last)


def _run_all(index: int, block: nn.Module, batches: Sequence[MicroBatch], last: bool) -> None:
    for batch in batches:
        if not (last or batch.whole):
            batch.keep(batch.run(index, block))


_SCHEDULES: dict[str, Schedule] = {
    "sublayer": _sublayer,
    "block": _block,
    "parallel": _parallel,
    "sublayer in passes": _sublayer_in_passes,
}
