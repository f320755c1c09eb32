"""How long a compression will take and how much memory it will need, before it starts: from the config alone.

The sizes of the layers give the amount of work, a second of measurement (`crosscal.machine.samples`) the pace of this
machine. What comes out is an estimate, meant to be right within a factor of two.
"""

from dataclasses import asdict, dataclass

import torch
from transformers import PreTrainedConfig

from crosscal.engine.streams import CPU_TOKENS, CUDA_TOKENS
from crosscal.machine.samples import BlockShape, Sample, solve_flops, take_sample
from crosscal.methods.registry import Method, find_method
from crosscal.models.loading import resolve_device, resolve_dtype
from crosscal.types import Target

SLACK = 1.3  # of the memory that can be counted: what allocators and libraries keep beside it
BACKWARD = 3  # forward passes that take as long as one with its gradients
OF_NUMBER = {torch.float32: 4, torch.bfloat16: 2, torch.float16: 2}


@dataclass(frozen=True)
class Estimate:
    """Seconds and bytes of one compression; `forward`, `sums` and `solve` are parts of `seconds`.

    `work_bytes` is what it needs beside the weights, `memory_bytes` all it needs: with the whole model, or only two
    blocks of it where it is `streamed`. `weights_bytes` is the size of the model itself, on disk too.
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

    def to_json(self) -> dict:
        """A plain dictionary."""
        return asdict(self)

    def __str__(self) -> str:
        how = "two blocks of the model at a time" if self.streamed else "with the whole model"
        return (
            f"about {duration(self.seconds)} and {size(self.memory_bytes)} of memory ({how}, {self.dtype} on "
            f"{self.device}; an estimate, good to a factor of two)"
        )


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
    streamed: bool = True,
    trust_remote_code: bool = False,
) -> Estimate:
    """Time and memory of compressing a model of this config with `n_sources` texts of `n_windows` windows each.

    Measures this machine for about a second. Loading, reading text and writing the result are not counted. Methods
    that need gradients, and `owl`, hold the whole model whatever `streamed` says. Raises `InputError` for an unknown
    method, device or dtype.
    """
    solver, where = find_method(method), resolve_device(device)
    kind = resolve_dtype(dtype, where)
    reads_text = n_sources > 0 and (solver.reads != "nothing" or measure_loss or owl)
    diagonal_only = solver.reads == "diagonal" and not measure_loss
    sample = take_sample(
        config,
        method,
        target,
        where,
        kind,
        length=length,
        diagonal_only=diagonal_only,
        trust_remote_code=trust_remote_code,
    )
    tokens = n_windows * length * n_sources if reads_text else 0
    scale = sample.shape.linear / sum(group.weights for group in sample.shape.groups)  # in first blocks
    passes = {"block": 2 - 1 / sample.shape.blocks}.get(schedule, 1) + owl + (BACKWARD if solver.gradients else 0)
    forward = scale * tokens * sample.forward * passes
    sums = scale * tokens * sample.sums
    solve = scale * _solve_seconds(
        method, sample, n_sources if reads_text and measure_loss and not diagonal_only else 0
    )
    number = OF_NUMBER[kind]
    work = _work_bytes(sample.shape, tokens, number, n_sources, where, schedule, solver, diagonal_only)
    whole = sample.shape.parameters * number
    streamed = streamed and not owl and not solver.gradients
    resident = (2 * sample.shape.block + sample.shape.elsewhere) * number if streamed else whole
    return Estimate(
        seconds=forward + sums + solve,
        forward=forward,
        sums=sums,
        solve=solve,
        memory_bytes=min(resident, whole) + work,
        work_bytes=work,
        weights_bytes=whole,
        parameters=sample.shape.parameters,
        streamed=streamed,
        device=str(where),
        dtype=str(kind).removeprefix("torch."),
    )


def _solve_seconds(method: str, sample: Sample, n_losses: int) -> float:
    """Solving one block, and measuring its layers' losses on `n_losses` sources: two products with half of G each."""
    total = 0.0
    for group in sample.shape.groups:
        rows, d_in = sum(group.d_outs), group.d_in
        flops = solve_flops(method, d_in, rows) + 2 * n_losses * rows * d_in**2
        decomposed = sum(d_in * d_out * min(d_in, d_out) for d_out in group.d_outs)
        total += group.weights * sample.solve_weight + flops * sample.solve_flop + decomposed * sample.svd_flop
    return total


def _work_bytes(
    shape: BlockShape,
    tokens: int,
    number: int,
    n_sources: int,
    device: torch.device,
    schedule: str,
    solver: Method,
    diagonal_only: bool,
) -> int:
    """What a compression holds beside the weights: activations, sums, and one group's solution.

    All windows wait in front of a block; in the sublayer schedule also inside of it, with the input of the layer they
    wait for and the residual.
    """
    widest = max(group.d_in for group in shape.groups)
    gram = 0 if diagonal_only else n_sources * sum(group.d_in**2 for group in shape.groups)
    factors = 3 * widest**2 if solver.reads == "gram" else 0
    solution = 4 * (factors + 4 * max(group.weights for group in shape.groups))
    if not tokens:
        return int(SLACK * solution)
    once = min(tokens, CUDA_TOKENS if device.type == "cuda" else CPU_TOKENS)
    waiting = tokens * number * (2 * shape.hidden + (widest if schedule == "sublayer" else 0))
    passing = once * number * (shape.hidden + sum(sum(group.d_outs) for group in shape.groups))
    widened = (
        4 * once * sum({group.d_in for group in shape.groups}) if device.type == "cpu" and not diagonal_only else 0
    )
    gradients = (4 * solver.gradients + 4 * (solver.term is not None)) * shape.linear
    return int(SLACK * (waiting + passing + widened + 4 * gram + solution + gradients))


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(0.4), duration(75), duration(5400), duration(200_000)
    ('0.4 s', '1.2 min', '1.5 h', '2.3 days')
    """
    for limit, unit, each in ((60, "s", 1), (3600, "min", 60), (86400, "h", 3600)):
        if seconds < limit:
            return f"{seconds / each:.2g} {unit}" if seconds / each < 10 else f"{seconds / each:.0f} {unit}"
    return f"{seconds / 86400:.1f} days"


def size(n_bytes: float) -> str:
    """Bytes as people say them.

    >>> size(3e8), size(2.5 * 2**30)
    ('286 MiB', '2.5 GiB')
    """
    return f"{n_bytes / 2**20:,.0f} MiB" if n_bytes < 2**30 else f"{n_bytes / 2**30:,.1f} GiB"
