"""The one loop over a model: gather a block's input statistics, compress it, pass its new outputs on.

Block by block, in the order of the forward pass, so that every block is calibrated on what the already compressed
blocks before it really put out. Only linear layers inside the decoder blocks change; embeddings and head stay.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor, nn
from tqdm import tqdm

from crosscal.calibration import GramCapture, InputStats, mix
from crosscal.errors import InputError
from crosscal.memory import PeakMemory
from crosscal.methods.registry import Method, find_method
from crosscal.models import LinearLayer, decoder_blocks, linear_layers
from crosscal.streams import Stream, open_stream
from crosscal.types import Pattern


@dataclass(frozen=True)
class LayerReport:
    """What happened to one layer.

    `relative_error` is tr(dW G dW^T) / tr(W G W^T), the squared output error on the mixed calibration text as a
    fraction of the output, or None for a data-free method; `damp` is the damping that a second-order solver needed.
    """

    name: str
    sparsity: float
    relative_error: float | None = None
    damp: float | None = None


@dataclass
class CompressionReport:
    """The layers in order, the seconds it took and the highest memory use above the start, in bytes."""

    layers: list[LayerReport] = field(default_factory=list)
    seconds: float = 0.0
    peak_bytes: int = 0

    @property
    def sparsity(self) -> float:
        """Mean sparsity over layers, unweighted."""
        return sum(layer.sparsity for layer in self.layers) / max(1, len(self.layers))


@torch.no_grad()
def compress(
    model: nn.Module,
    method: str,
    pattern: Pattern,
    *,
    calibration: Mapping[str, Int[Tensor, "n_windows length"]] | None = None,
    weights: Mapping[str, float] | None = None,
    micro_batch: int = 4,
    progress: bool = True,
) -> CompressionReport:
    """Compress a causal language model in place and report on every layer.

    `calibration` maps each text source to its token windows (or to what `load_text` returns) and `weights` gives
    each source's share (equal shares when left out): the statistics of the sources are combined by `mix`.
    `micro_batch` windows run at a time. `model` may also be what `load_model` returns.

    Raises `InputError` for an unknown method, a method that needs text and gets none, weights that do not fit the
    sources, a pattern whose group does not divide a layer's inputs, or values that are not finite.
    """
    model = getattr(model, "model", model) if not isinstance(model, nn.Module) else model
    solver = find_method(method)
    sources = {name: getattr(text, "tokens", text) for name, text in (calibration or {}).items()}
    if solver.needs_text and not sources:
        raise InputError(f"{method} needs calibration text; pass calibration={{'c4': load_text('c4', tokenizer)}}")
    shares = dict(weights) if weights is not None else {name: 1.0 / len(sources) for name in sources}
    if solver.needs_text:
        _check_shares(sources, shares)
    report, started = CompressionReport(), time.perf_counter()
    blocks = decoder_blocks(model)
    with PeakMemory(next(model.parameters()).device) as memory:
        streams = open_stream(model, blocks, sources, micro_batch) if solver.needs_text else []
        for index, block in enumerate(tqdm(blocks, desc=f"{method} {pattern}", unit="block", disable=not progress)):
            report.layers += _compress_block(index, block, solver, pattern, streams, shares)
            if index + 1 < len(blocks):
                for stream in streams:
                    stream.advance(index, block)
    report.seconds, report.peak_bytes = time.perf_counter() - started, memory.peak_bytes
    return report


def _check_shares(sources: Mapping[str, Tensor], shares: Mapping[str, float]) -> None:
    """Let `mix` judge the weights before any work is done."""
    mix({name: InputStats(torch.zeros(1, 1), tokens.numel()) for name, tokens in sources.items()}, shares)


def _compress_block(
    index: int, block: nn.Module, solver: Method, pattern: Pattern, streams: list[Stream], shares: Mapping[str, float]
) -> list[LayerReport]:
    """Compress every linear layer of one block from statistics of the block as it stood."""
    layers = linear_layers(block)
    if not solver.needs_text:
        return [report for layer in layers for report in _compress_group(index, [layer], solver, pattern, None)]
    with GramCapture(layers) as capture:
        for stream in streams:
            capture.source = stream.source
            stream.run(index, block, after_each=capture.end_pass)
    reports = []
    for group in capture.groups:
        found = capture.stats(group)
        reports += _compress_group(index, group, solver, pattern, mix(found, {name: shares[name] for name in found}))
    return reports


def _compress_group(
    index: int, group: list[LinearLayer], solver: Method, pattern: Pattern, stats: InputStats | None
) -> list[LayerReport]:
    """Solve the layers that share one input, write the weights back and measure what the layers lost."""
    old = [layer.weight.clone() for layer in group]
    new, facts = solver.solve(old, stats, pattern)
    reports = []
    for layer, before, after in zip(group, old, new, strict=True):
        layer.write(after)
        written = layer.weight
        error = None if stats is None else relative_error(before, written, stats)
        zeros = 1.0 - torch.count_nonzero(written).item() / written.numel()
        reports.append(LayerReport(f"{index}.{layer.name}", zeros, error, facts.get("damp")))
    return reports


def relative_error(before: Tensor, after: Tensor, stats: InputStats) -> float:
    """tr(dW G dW^T) / tr(W G W^T): squared output error as a fraction of the squared output; 0 for a silent layer."""
    before, after = before.float(), after.float()

    def energy(matrix: Tensor) -> float:
        return ((matrix @ stats.gram) * matrix).sum().item()

    output = energy(before)
    return energy(before - after) / output if output > 0 else 0.0
