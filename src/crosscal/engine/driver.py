"""The one loop over a model: gather a block's input statistics, compress it, pass its new outputs on.

Block by block, in the order of the forward pass, so that memory is bounded by a block and its inputs. Only linear
layers inside the decoder blocks change; embeddings and head stay.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from tqdm import tqdm

from crosscal.calibration.gradients import WeightGradient, mix_gradients
from crosscal.calibration.statistics import check_weights
from crosscal.engine.blockstep import block_from_text, block_without_text, settled
from crosscal.engine.blockwork import BlockWork, Job
from crosscal.engine.gather import ModelStatistics, gather_statistics
from crosscal.engine.gradients import gather_gradients
from crosscal.engine.memory import PeakMemory
from crosscal.engine.reports import CompressionReport, LayerReport
from crosscal.engine.schedules import Schedule, find_schedule
from crosscal.engine.streams import MicroBatch, Windows, open_probe, open_streams, token_windows
from crosscal.errors import InputError
from crosscal.methods.allocation import Owl, allocate, block_outliers
from crosscal.methods.registry import Method, check_request, find_method
from crosscal.models import LinearLayer, LoadedModel, decoder_blocks, linear_layers
from crosscal.types import SparseGrid, Target, Unstructured

__all__ = ["CompressionReport", "LayerReport", "compress"]


@torch.no_grad()
def compress(
    model: nn.Module | LoadedModel,
    method: str,
    target: Target,
    *,
    calibration: Mapping[str, Windows] | None = None,
    weights: Mapping[str, float] | None = None,
    statistics: ModelStatistics | None = None,
    schedule: str = "sublayer",
    allocation: Owl | None = None,
    damp: float = 0.01,
    measure_loss: bool = True,
    micro_batch: int | None = None,
    progress: bool = True,
    **options: object,
) -> CompressionReport:
    """Compress a causal language model in place and report on every layer.

    `target` says to what: `Unstructured`, `NofM`, `Grid`, `SparseGrid` or `LowRank`. `calibration` maps each text
    source to its token windows (or to what `load_text` returns) and `weights` gives each source's share (equal
    shares when left out): the statistics of the sources are combined by `mix`. `statistics` of the dense model, from
    `gather_statistics`, take the place of both text and schedule. `schedule` is "sublayer", "block" or "parallel"
    (see `crosscal.engine.schedules`). `allocation=Owl()` gives blocks different sparsities. `damp` is the damping of
    second-order methods, raised tenfold up to three times where a factorization fails. With `measure_loss` every
    layer's loss on every source is reported, by data-free methods too if they are given text (statistics that hold
    only diagonals cannot tell). `micro_batch` windows
    run at a time. Further `options` go to the method: `act_order`, `block`, `strength`. `model` may also be what
    `load_model` returns.

    Raises `InputError`, with the model as it was, for an unknown method, schedule or option, a target the method
    does not know, a method that needs text and gets none, weights that do not fit the sources, a pattern whose group
    does not divide a layer's inputs, and weights that are not finite; later, naming the layer, for activations that
    are not finite and a factorization that no damping saves.
    """
    model = getattr(model, "model", model) if not isinstance(model, nn.Module) else model
    solver, run = find_method(method), find_schedule(schedule)
    blocks, sources = decoder_blocks(model), token_windows(calibration)
    shares = check_call(solver, target, options, blocks, sources, weights, statistics)
    if statistics is not None:
        statistics.check_fits(blocks)
    _check_finite_weights([layer for block in blocks for layer in linear_layers(block)])
    report, started = CompressionReport(), time.perf_counter()
    with PeakMemory(next(model.parameters()).device) as memory:
        mixed = statistics_shares(solver, shares)
        gradients = _gradients(model, solver, sources, shares, progress)
        job = Job(solver, mixed, measure_loss, damp, options, gradients)
        targets = _allocated(model, target, allocation, sources, statistics, job.shares, micro_batch, progress)
        bar = tqdm(blocks, desc=f"{method} {target}", unit="block", disable=not progress)
        if statistics is not None:
            report.layers = _from_statistics(bar, targets, job, statistics)
        elif runs_text(job, sources):
            report.layers = _from_text(
                model, blocks, bar, targets, job, run, open_streams(model, blocks, sources, micro_batch)
            )
        else:
            report.layers = _without_text(model, blocks, bar, targets, job)
    report.seconds, report.peak_bytes = time.perf_counter() - started, memory.peak_bytes
    return report


def check_call(
    solver: Method,
    target: Target,
    options: Mapping[str, object],
    blocks: nn.ModuleList,
    sources: Mapping[str, Tensor],
    weights: Mapping[str, float] | None,
    statistics: ModelStatistics | None = None,
) -> dict[str, float]:
    """Each source's share; raises `InputError` for what can be judged before any work is done, as `compress` says."""
    check_request(
        solver, target, options, [layer.weight.shape[1] for block in blocks for layer in linear_layers(block)]
    )
    names = list(sources) if statistics is None else statistics.sources
    shares = dict(weights) if weights is not None else {name: 1.0 / len(names) for name in names}
    _check_text(solver, sources, names, shares, statistics)
    return shares


def runs_text(job: Job, sources: Mapping[str, Tensor]) -> bool:
    """Whether calibration windows have to flow through the blocks."""
    return bool(sources) and (job.method.reads != "nothing" or job.measure_loss)


def _check_text(
    solver: Method, sources: Mapping, names: Sequence[str], shares: Mapping, statistics: ModelStatistics | None
) -> None:
    """Let everything about text and weights be judged before any work is done."""
    if solver.needs_text and not names:
        raise InputError(f"{solver.name} needs calibration text; pass calibration={{'c4': load_text('c4', tokenizer)}}")
    if solver.gradients and not sources:
        raise InputError(f"{solver.name} needs gradients, which statistics do not hold; pass calibration text")
    if statistics is not None and sources and not solver.gradients:
        raise InputError("both text and statistics were given; leave one of them out")
    if statistics is not None and statistics.diagonal_only and solver.reads == "gram":
        raise InputError(f"{solver.name} needs Gram matrices; gather statistics without diagonal_only")
    if names:
        check_weights(names, shares)


def _check_finite_weights(layers: Sequence[LinearLayer]) -> None:
    """One pass and one wait for the device: a sum is finite only if every term is."""
    finite = torch.stack([layer.weight.sum(dtype=torch.float32).isfinite() for layer in layers]).tolist()
    if not all(finite):
        raise InputError(
            f"a weight of layer {layers[finite.index(False)].name} is NaN or infinite; "
            "load an undamaged copy of the model"
        )


def statistics_shares(solver: Method, shares: Mapping[str, float]) -> dict[str, float]:
    """The shares of the sources in the mixed statistics; D-Pruner's come from all sources but the domain's."""
    if not solver.domain_last or len(shares) < 2:
        return dict(shares)
    *general, domain = shares
    total = sum(shares[name] for name in general)
    if total == 0:
        raise InputError(
            f"{solver.name} needs general text beside the domain's; give a source before the last a weight"
        )
    return {name: shares[name] / total for name in general} | {domain: 0.0}


def _gradients(
    model: nn.Module, solver: Method, sources: Mapping[str, Tensor], shares: Mapping[str, float], progress: bool
) -> dict[nn.Module, WeightGradient] | None:
    """The mixed gradients of every layer on the dense model, or of the last source alone where that is the domain."""
    if not solver.gradients:
        return None
    if solver.domain_last:
        domain = list(sources)[-1]
        sources, shares = {domain: sources[domain]}, {domain: 1.0}
    found = gather_gradients(model, sources, progress=progress)
    return {module: mix_gradients(parts, shares) for module, parts in found.items()}


def _allocated(model, target, allocation, sources, statistics, shares, micro_batch, progress) -> list[Target]:
    """The target of each block: the same for all, or by outliers in the dense model's scores."""
    blocks = decoder_blocks(model)
    if allocation is None:
        return [target] * len(blocks)
    pattern = target.pattern if isinstance(target, SparseGrid) else target
    if not isinstance(pattern, Unstructured):
        raise InputError(f"allocation gives blocks different sparsities, which {target} cannot have; use Unstructured")
    if statistics is None:
        if not sources:
            raise InputError("allocation counts outliers on text; pass calibration text")
        statistics = gather_statistics(model, sources, diagonal_only=True, micro_batch=micro_batch, progress=progress)
    outliers, sizes = [], []
    for index, block in enumerate(blocks):
        by_name = {layer.name: layer.weight for layer in linear_layers(block)}
        parts = [(by_name[name], found) for names, found in statistics.groups(index, shares) for name in names]
        weights, found = zip(*parts, strict=True)
        outliers.append(block_outliers(weights, [part.mean_square for part in found], allocation.outlier))
        sizes.append(sum(weight.numel() for weight in by_name.values()))
    sparsities = allocate(torch.stack(outliers).tolist(), sizes, pattern.sparsity, allocation)
    patterns = [Unstructured(sparsity) for sparsity in sparsities]
    return [replace(target, pattern=p) for p in patterns] if isinstance(target, SparseGrid) else patterns


def _from_text(
    model: nn.Module,
    blocks: nn.ModuleList,
    bar: tqdm,
    targets: Sequence[Target],
    job: Job,
    run: Schedule,
    batches: list[MicroBatch],
) -> list[LayerReport]:
    """The usual way: windows flow through the blocks as these are compressed."""
    probe, reports = open_probe(model, blocks), []
    for index, block in enumerate(bar):
        last = index + 1 == len(blocks)
        reports += block_from_text(index, block, targets[index], job, run, batches, probe, last)
    return reports


def _from_statistics(bar: tqdm, targets: Sequence[Target], job: Job, statistics: ModelStatistics) -> list[LayerReport]:
    """The short way: statistics of the dense model are at hand, no text runs."""
    reports = []
    for index, block in enumerate(bar):
        by_name = {layer.name: layer for layer in linear_layers(block)}
        stored = statistics.block(index, next(iter(by_name.values())).weight.device)
        groups = [[by_name[name] for name in names] for names, _ in stored]

        def solve(work: BlockWork) -> None:
            for group, (_, stats) in enumerate(stored):  # noqa: B023
                work.solve(group, stats)

        reports += settled(index, groups, targets[index], job, solve)[1]
    return reports


def _without_text(
    model: nn.Module, blocks: nn.ModuleList, bar: tqdm, targets: Sequence[Target], job: Job
) -> list[LayerReport]:
    """Data-free methods; which layers belong together is seen on a few arbitrary tokens."""
    probe = open_probe(model, blocks) if job.method.linked else None
    return [
        report
        for index, block in enumerate(bar)
        for report in block_without_text(index, block, targets[index], job, probe)
    ]
