"""Time and memory of a compression, estimated before it starts, from the model's config alone.

The sizes of the layers give the amount of work, a second of measurement (`crosscal.machine.samples`) the speed of this
machine. Estimates are meant to be right within a factor of two.
"""

from dataclasses import asdict, dataclass

import torch
from transformers import PreTrainedConfig

from crosscal.engine.ranks import floats_sent, owners, ranks
from crosscal.engine.windows import CPU_TOKENS, CUDA_TOKENS
from crosscal.machine.samples import _BlockShape, _Sample, _solve_flops, _take_sample
from crosscal.methods.compose import composed
from crosscal.methods.registry import Method, find_method
from crosscal.models import resolve_device, resolve_dtype
from crosscal.types import Target

_SLACK = 1.3  # over the memory that can be counted, for allocators and libraries
_CROSS = 2  # sums of G that take as long as one of the products with the dense model's inputs, which are not symmetric
_BACKWARD = 3  # forward passes that take as long as one with its gradients


@dataclass(frozen=True)
class Estimate:
    """Seconds and bytes of one compression; `forward`, `sums` and `solve` are parts of `seconds`.

    `memory_bytes` is the peak, with the whole model or, when `streamed`, two blocks of it in memory; `work_bytes` is
    the part of it beside the weights, `weights_bytes` the size of the whole model. Of several `ranks`, these are for
    the one with the most windows; `exchanged_bytes` are what all of them receive, which takes a time of its own.
    """

    seconds: float
    forward: float
    sums: float
    solve: float
    memory_bytes: int
    work_bytes: int
    weights_bytes: int
    parameters: int
    streamed: bool
    device: str
    dtype: str
    ranks: int = 1
    exchanged_bytes: int = 0

    def to_json(self) -> dict:
        """Return a plain dictionary."""
        return asdict(self)

    def __str__(self) -> str:
        how = "two blocks of the model at a time" if self.streamed else "the whole model in memory"
        each, between = "", ""
        if self.ranks > 1:
            each = f" on each of {self.ranks} processes"
            between = f", and the exchange of {size(self.exchanged_bytes)} between them"
        return (
            f"about {_duration(self.seconds)} and {size(self.memory_bytes)} of memory{each}{between} ({how}, "
            f"{self.dtype} on {self.device}; an estimate, good to a factor of two)"
        )


@dataclass(frozen=True)
class _Work:
    """The size of a compression: blocks of this shape, and how many tokens of how many sources pass through them."""

    shape: _BlockShape
    solver: Method
    tokens: int
    n_sources: int
    schedule: str
    diagonal_only: bool
    device: torch.device
    number: int
    anchored: bool

    def solve_seconds(self, sample: _Sample, n_losses: int) -> float:
        """Solving one block, and its layers' losses on `n_losses` sources: two products with half of G each."""
        total = 0.0
        for group in self.shape.groups:
            rows, d_in = sum(group.d_outs), group.d_in
            flops = _solve_flops(self.solver, d_in, rows) + 2 * n_losses * rows * d_in**2
            decomposed = sum(d_in * d_out * min(d_in, d_out) for d_out in group.d_outs)
            total += group.weights * sample.solve_weight + flops * sample.solve_flop + decomposed * sample.svd_flop
        return total

    def busiest_share(self, world: int) -> float:
        """Return the part of solving that takes time: all where groups wait for each other, else that of one owner."""
        if self.schedule == "sublayer":
            return 1.0
        groups = self.shape.groups
        costs = [_solve_flops(self.solver, g.d_in, sum(g.d_outs)) + g.weights for g in groups]
        pairs = list(zip(costs, owners(costs, world), strict=True))
        return max(sum(cost for cost, owner in pairs if owner == rank) for rank in range(world)) / sum(costs)

    def exchanged(self, world: int) -> int:
        """Return the bytes that all ranks receive for a block: sums of each source at owners, new weights elsewhere."""
        sums = 0
        for group in self.shape.groups if self.tokens else ():
            half, whole = floats_sent(group.d_in), group.d_in**2
            sums += group.d_in if self.diagonal_only else half + whole * self.anchored
        weights = self.number * sum(group.weights for group in self.shape.groups)
        return int((world - 1) * (4 * self.n_sources * sums * (1 + 1 / world) + weights))

    def bytes_needed(self) -> int:
        """Memory beside the weights: activations, sums, and one group's solution.

        All windows wait in front of a block; in the sublayer schedule also inside of it, with the input of the layer
        they wait for and the residual.
        """
        groups, on_gpu = self.shape.groups, self.device.type == "cuda"
        widest = max(group.d_in for group in groups)
        factors = 3 * widest**2 if self.solver.reads == "gram" else 0
        solution = 4 * (factors + 4 * max(group.weights for group in groups))
        if not self.tokens:
            return int(_SLACK * solution)
        gram = 0 if self.diagonal_only else self.n_sources * sum(group.d_in**2 for group in groups)
        once = min(self.tokens, CUDA_TOKENS if on_gpu else CPU_TOKENS)
        inside = widest if self.schedule == "sublayer" else 0
        if self.anchored:  # a second stream, and what enters each of its layers until it is used
            noted = sum(group.d_in for group in groups) if self.schedule == "sublayer" else 0
            gram, inside = 3 * gram, inside + 2 * self.shape.hidden + noted
        waiting = self.tokens * self.number * (2 * self.shape.hidden + inside)
        passing = once * self.number * (self.shape.hidden + sum(sum(group.d_outs) for group in groups))
        widened = 0 if on_gpu or self.diagonal_only else 4 * once * sum({group.d_in for group in groups})
        moments = self.solver.gradients + (self.solver.term is not None)
        moments *= 1 if self.solver.domain_last else self.n_sources
        if self.solver.masks is not None:  # the mix, the scores, and a copy of these in which the best are kept
            moments = max(moments, 3)
        return int(_SLACK * (waiting + passing + widened + 4 * gram + solution + 4 * moments * self.shape.linear))


def estimate(
    config: PreTrainedConfig,
    method: str,
    target: Target,
    *,
    n_windows: int = 128,
    length: int = 1024,
    n_sources: int = 1,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    schedule: str = "sublayer",
    measure_loss: bool = True,
    owl: bool = False,
    refine: str = "",
    anchor: float = 0.0,
    streamed: bool = True,
    trust_remote_code: bool = False,
) -> Estimate:
    """Return time and memory of compressing a model of this config with `n_sources` texts of `n_windows` windows each.

    Measures this machine for about a second. Loading, reading text and writing the result are not counted. Methods
    that need gradients, and `owl`, hold the whole model whatever `streamed` says. Raises `InputError` for an unknown
    method, device or dtype.
    """
    solver, where = composed(find_method(method), refine, anchor), resolve_device(device)
    kind = resolve_dtype(dtype, where)
    reads_text = n_sources > 0 and (solver.reads != "nothing" or measure_loss or owl)
    diagonal = solver.reads == "diagonal" and not measure_loss
    sample = _take_sample(config, solver, target, where, kind, length, diagonal, trust_remote_code)
    world = ranks().world
    shape, tokens = sample.shape, -(-n_windows // world) * length * n_sources if reads_text else 0
    work = _Work(shape, solver, tokens, n_sources, schedule, diagonal, where, kind.itemsize, anchor > 0)
    scale = shape.linear / sum(group.weights for group in shape.groups)  # in first blocks
    passes = (
        {"block": 2 - 1 / shape.blocks}.get(schedule, 1) + owl + (anchor > 0) + (_BACKWARD if solver.gradients else 0)
    )
    forward, sums = scale * tokens * sample.forward * passes, scale * tokens * sample.sums * (1 + _CROSS * (anchor > 0))
    solve = scale * work.solve_seconds(sample, n_sources if reads_text and measure_loss else 0)
    solve *= work.busiest_share(world)
    whole = shape.parameters * kind.itemsize
    streamed = streamed and not owl and not solver.gradients
    resident = min(whole, (2 * shape.block + shape.elsewhere) * kind.itemsize) if streamed else whole
    return Estimate(
        seconds=forward + sums + solve,
        forward=forward,
        sums=sums,
        solve=solve,
        memory_bytes=resident + work.bytes_needed(),
        work_bytes=work.bytes_needed(),
        weights_bytes=whole,
        parameters=shape.parameters,
        streamed=streamed,
        device=str(where),
        dtype=str(kind).removeprefix("torch."),
        ranks=world,
        exchanged_bytes=int(scale * work.exchanged(world)),
    )


def _duration(seconds: float) -> str:
    """Return seconds in a convenient unit.

    >>> _duration(0.4), _duration(75), _duration(5400), _duration(200_000)
    ('0.4 s', '1.2 min', '1.5 h', '2.3 days')
    """
    for limit, unit, each in ((60, "s", 1), (3600, "min", 60), (86400, "h", 3600)):
        if seconds < limit:
            return f"{seconds / each:.2g} {unit}" if seconds / each < 10 else f"{seconds / each:.0f} {unit}"
    return f"{seconds / 86400:.1f} days"


def size(n_bytes: float) -> str:
    """Return bytes in a convenient unit.

    >>> size(3e8), size(2.5 * 2**30)
    ('286 MiB', '2.5 GiB')
    """
    return f"{n_bytes / 2**20:,.0f} MiB" if n_bytes < 2**30 else f"{n_bytes / 2**30:,.1f} GiB"
