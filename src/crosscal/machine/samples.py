"""Timings of this machine at the shapes of one model: the parts of a compression, in about a second.

One decoder block is made from the config, with constant weights. Timed are a forward pass of a few tokens, the sums
over the inputs of its layers, and the solution of one small layer.
"""

import copy
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig

from crosscal.calibration.gram import InputSums
from crosscal.calibration.statistics import InputStats, WeightGradient
from crosscal.engine.streams import open_streams
from crosscal.engine.windows import CPU_TOKENS, CUDA_TOKENS
from crosscal.methods.registry import Evidence, Method
from crosscal.models.folders import attention_of
from crosscal.models.structure import inventory
from crosscal.types import LowRank, NofM, SparseGrid, Target

_SIDE = 512  # of the layer that is solved
_ENOUGH = 0.2  # seconds of one measurement
_WORK = 3e11  # operations of the block's sample: about as long, on few cores


@dataclass(frozen=True)
class _Group:
    """Layers of a block that share an input of width `d_in`, with `d_outs` outputs."""

    d_in: int
    d_outs: tuple[int, ...]

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.d_in * sum(self.d_outs)


@dataclass(frozen=True)
class _BlockShape:
    """The sizes of a model's blocks: the groups of the first one, and the parameters of all parts.

    `linear` counts the weights to be compressed in all blocks, `block` the parameters of the largest block and
    `elsewhere` those outside of the blocks.
    """

    groups: tuple[_Group, ...]
    blocks: int
    hidden: int
    linear: int
    block: int
    elsewhere: int

    @property
    def parameters(self) -> int:
        """All parameters, blocks taken as large as the largest."""
        return self.blocks * self.block + self.elsewhere


@dataclass(frozen=True)
class _Sample:
    """Measured seconds: of a block for each token, of its sums for each token, and of a solution for each weight.

    `solve_flop` is what one operation of a float32 product takes, `svd_flop` one of a decomposition.
    """

    shape: _BlockShape
    forward: float
    sums: float
    solve_weight: float
    solve_flop: float
    svd_flop: float


def _take_sample(
    config: PreTrainedConfig,
    solver: Method,
    target: Target,
    device: torch.device,
    dtype: torch.dtype,
    length: int,
    diagonal_only: bool,
    trust: bool = False,
) -> _Sample:
    """Measure this machine with one block of a model of this config and windows of `length` tokens."""
    with torch.no_grad():
        model = _one_block(config, device, dtype, trust)
        parts = inventory(model)
        first = parts.blocks[0]
        shape = _shape(config, open_streams(model, parts, {}).groups(0, first), trust)
        most = CUDA_TOKENS if device.type == "cuda" else CPU_TOKENS
        tokens = int(max(256, min(most, _WORK / (2 * shape.block))))
        window = min(length, tokens)
        ids = torch.ones(max(1, tokens // window), window, dtype=torch.int64)
        (batch,) = open_streams(model, parts, {"sample": ids}, micro_batch=len(ids)).batches
        forward = _seconds(device, lambda: batch.run(0, first)) / ids.numel()
        sums = _sums(shape, ids.numel(), device, dtype, diagonal_only) / ids.numel()
        flop, solve = _product(device), _solve(solver, target, device, dtype)
    if isinstance(target, LowRank):
        return _Sample(shape, forward, sums, 0.0, flop, solve / _SIDE**3)
    each = max(0.0, solve - flop * _solve_flops(solver, _SIDE, _SIDE)) / _SIDE**2
    return _Sample(shape, forward, sums, each, flop, 0.0)


def _solve_flops(solver: Method, d_in: int, rows: int) -> float:
    """Operations of the matrix products in a solution for `rows` outputs that share `d_in` inputs."""
    cubic, by_rows = solver.cost
    return cubic * d_in**3 + by_rows * rows * d_in**2


def _one_block(config: PreTrainedConfig, device: torch.device, dtype: torch.dtype, trust: bool):
    """A model of this config with one block and few words, every weight the same small number."""
    small = copy.deepcopy(config.get_text_config())
    small.num_hidden_layers, small.vocab_size, small.pad_token_id, small.num_kv_shared_layers = 1, 256, 0, 0
    if getattr(small, "layer_types", None):
        with suppress(AttributeError):  # where it follows from the number of layers
            small.layer_types = small.layer_types[:1]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            small, dtype=dtype, attn_implementation=attention_of(small), trust_remote_code=trust
        )
    model = model.to_empty(device=device).eval()
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.fill_(0.01 if tensor.is_floating_point() else 0)
    return model


def _shape(config: PreTrainedConfig, groups: list, trust: bool) -> _BlockShape:
    """The sizes, counted on a model without memory."""
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(config.get_text_config(), trust_remote_code=trust)
    parts = inventory(whole)
    sizes = [sum(part.numel() for part in block.parameters()) for block in parts.blocks]
    return _BlockShape(
        groups=tuple(_Group(group[0].weight.shape[1], tuple(len(layer.weight) for layer in group)) for group in groups),
        blocks=len(sizes),
        hidden=config.get_text_config().hidden_size,
        linear=parts.n_compressed,
        block=max(sizes),
        elsewhere=sum(part.numel() for part in whole.parameters()) - sum(sizes),
    )


def _sums(shape: _BlockShape, tokens: int, device: torch.device, dtype: torch.dtype, diagonal_only: bool) -> float:
    """Seconds to add the inputs of one block to its sums."""
    scratch: dict[int, Tensor] = {}
    took = {}
    for width in {group.d_in for group in shape.groups}:
        inputs, sums = torch.randn(tokens, width, device=device).to(dtype), InputSums(diagonal_only, scratch)
        took[width] = _seconds(device, partial(sums.add, "sample", inputs))
    return sum(took[group.d_in] for group in shape.groups)


def _product(device: torch.device) -> float:
    """Seconds of one operation in a float32 matrix product, as solutions do them."""
    left, out = torch.randn(1024, 1024, device=device), torch.empty(1024, 1024, device=device)
    return _seconds(device, lambda: torch.mm(left, left, out=out)) / (2 * 1024**3)


def _solve(solver: Method, target: Target, device: torch.device, dtype: torch.dtype) -> float:
    """Seconds to solve one layer of `_SIDE` inputs and outputs."""
    pattern = target.pattern if isinstance(target, SparseGrid) else target
    side = _SIDE - _SIDE % pattern.m if isinstance(pattern, NofM) else _SIDE
    inputs = torch.randn(2 * side, side, device=device)
    weight = torch.randn(side, side, device=device).to(dtype)
    slope = 1e-3 * torch.randn(side, side, device=device)
    term = None if solver.term is None else solver.term(slope, weight.float())
    gradients = [WeightGradient(slope.square(), 1, term)] if solver.gradients else None
    evidence = Evidence(InputStats(inputs.T @ inputs, len(inputs)), gradients)
    return _seconds(device, lambda: solver.solve([weight], evidence, target))


def _seconds(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds of one call, averaged over `_ENOUGH` of them after a first one.

    On a CPU these are CPU seconds shared among its threads, which other processes do not falsify much.
    """
    on_gpu = device.type == "cuda"
    clock, shared = (time.perf_counter, 1) if on_gpu else (time.process_time, torch.get_num_threads())
    begun = start = calls = 0
    while calls < 2 or time.perf_counter() - begun < _ENOUGH:
        work()
        if on_gpu:
            torch.cuda.synchronize(device)
        calls += 1
        if calls == 1:
            begun, start = time.perf_counter(), clock()
    return (clock() - start) / (calls - 1) / shared
