"""The one loop over a model: gather a block's input statistics, compress it, pass its new outputs on.

Block by block, in the order of the forward pass, so that memory is bounded by a block and its inputs. Only linear
layers inside the decoder blocks change; embeddings and head stay. Where the weights are, in memory or on disk, is the
business of a residence.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from crosscal.calibration.statistics import mix_gradients
from crosscal.engine.batches import MicroBatch
from crosscal.engine.block import _BlockWork, _settled
from crosscal.engine.gather import ModelStatistics, gather_gradients, gather_statistics
from crosscal.engine.mixing import model_weights
from crosscal.engine.ranks import ranks
from crosscal.engine.reports import CompressionReport, LayerReport, PeakMemory
from crosscal.engine.request import Request
from crosscal.engine.schedules import _SCHEDULES
from crosscal.engine.streams import Streams, open_streams
from crosscal.engine.windows import Windows, _check_windows, _token_windows
from crosscal.errors import InputError
from crosscal.methods.allocation import Owl
from crosscal.methods.registry import Evidence
from crosscal.models import LinearLayer, LoadedModel, experts_apart, inventory
from crosscal.models.channels import check_channels, narrow, narrow_inventory
from crosscal.types import SparseGrid, Target, Unstructured, Width

__all__ = ["CompressionReport", "LayerReport", "Residence", "compress", "final_states", "run"]


class Residence:
    """Where a model's weights are while a loop runs over its blocks. This one is memory, where nothing is to be done.

    A loop starts at block `first` and calls `fill` before a block runs, `done` after it, and `close` in the end.
    `layers` are the reports so far.
    """

    first = 0

    def __init__(
        self, model: nn.Module, *, skip: Sequence[str] = (), only: Sequence[str] = (), width: Width | None = None
    ):
        self.model: Any = model
        self.inventory = inventory(model, skip=skip, only=only) if width is None else narrow_inventory(model, width)
        self.blocks = self.inventory.blocks
        self.device: torch.device = next(model.parameters()).device
        self.layers: list[LayerReport] = []

    def streams(self, sources: Mapping[str, Tensor], micro_batch: int | None) -> Streams:
        """Return the windows of every source in front of block `first`."""
        return open_streams(self.model, self.inventory, sources, micro_batch)

    def schedule(self, name: str, tokens: int) -> str:
        """Return the schedule of this name in the form that memory allows for so many tokens."""
        return name

    def fill(self, index: int) -> nn.Module:
        """Return a block with its weights on the device."""
        return self.blocks[index]

    def release(self, index: int) -> None:
        """Let go of a block's weights, which stay as they are."""

    def done(self, index: int, reports: Sequence[LayerReport] = ()) -> None:
        """Take note of a block that is done."""
        self.layers += reports

    def close(self) -> None:
        """Finish after the last block."""

    @contextmanager
    def surroundings(self, tokens: Tensor) -> Iterator[None]:
        """Hold the weights around the blocks while code runs that embeds these tokens."""
        yield

    @contextmanager
    def head(self) -> Iterator[nn.Module]:
        """Hold the weights of the language-model head, and yield the model for `head_logits`."""
        yield self.model


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
    refine: str = "",
    anchor: float = 0.0,
    rotate: bool = False,
    balance: str = "",
    damp: float = 0.01,
    measure_loss: bool = True,
    micro_batch: int | None = None,
    skip: Sequence[str] = (),
    only: Sequence[str] = (),
    partial: bool = False,
    progress: bool = True,
    **options: object,
) -> CompressionReport:
    """Compress a causal language model in place and return a report on every layer.

    `target` is an `Unstructured`, `NofM`, `Grid`, `SparseGrid`, `LowRank` or `Width`; with a width the model is cut to
    fewer channels, and its configuration with it. `calibration` maps each text source to its token windows (or to what
    `load_text` or a tokenizer returns) and `weights` gives each source's share (equal shares when left out): the
    statistics of the sources are combined by `mix`. `statistics` of the dense model, from `gather_statistics`, take the
    place of both text and schedule. `schedule` is "sublayer", "block" or "parallel" (see `crosscal.engine.schedules`).
    `allocation=Owl()` gives blocks different sparsities. `refine` improves what a pruning method leaves: "lsq" is least
    squares on the weights that stay, "swaps" exchanges kept and pruned weights before that. `anchor`, such as 0.25,
    lets a method aim that part of the way at what the dense model puts out, at the price of a second forward pass
    (schedules "sublayer" and "block"). `rotate` rounds in a basis in which the inputs of each group are turned by a
    Hadamard matrix. `balance="worst"` finds, layer by layer, the weights with which the source that loses most loses
    least, `balance="model"` one set of weights for all layers. `damp` is the damping of second-order methods, raised
    tenfold up to three times where a factorization fails. With `measure_loss` every layer's loss on every source is
    reported, by data-free methods too if they are given text (statistics that hold only diagonals do not suffice).
    `micro_batch` windows run at a time. `skip` and `only` are names of layers with `*`, such as "mlp.down_proj" or
    "0.*", that are left out or alone compressed; where less than 95 % of the decoder's weights could be compressed
    otherwise, `partial` allows it. Further `options` go to the method: `act_order`, `block`, `strength`. `model` may
    also be what `load_model` returns.

    Raises `InputError`, with the model as it was, for an unknown method, schedule or option, a target the method
    does not know, a method that needs text and gets none, weights that do not fit the sources, a pattern whose group
    does not divide a layer's inputs, and weights that are not finite; later, naming the layer, for activations that
    are not finite and a factorization that no damping saves.
    """
    request = Request(**locals())  # the arguments, by their names
    module = model if isinstance(model, nn.Module) else model.model
    residence = Residence(module, skip=skip, only=only, width=request.width)
    if getattr(getattr(residence.model, "config", None), "quantization_config", None):
        raise InputError("the model is quantized already; give the dense model that it was made from")
    request.check(residence.inventory)
    _check_finite_weights([layer for block in residence.inventory.layers for layer in block])
    for block in residence.blocks if request.width is not None else ():
        check_channels(module, block)
    if request.balance == "model":
        request = replace(request, weights=model_weights(residence, request))
    report = run(request, residence)
    if request.width is not None:
        narrow(module, request.width)
    return report


@torch.no_grad()
def run(request: Request, residence: Residence) -> CompressionReport:
    """Compress the model of a residence, block by block, as a checked request asks; raises as `compress` does."""
    started = time.perf_counter()
    _check_windows(residence.model, request.calibration or {})
    with PeakMemory(residence.device) as memory, experts_apart(residence.model):
        evidence, targets = _evidence(request, residence), _targets(request, residence)
        text, blocks = request.text, residence.blocks
        runs = residence.first < len(blocks) and request.statistics is None and (text or request.solver.linked)
        own = ranks().share(text)
        streams = residence.streams(_with_twins(own, request), request.micro_batch) if runs else None
        if streams is not None and streams.whole and request.schedule == "parallel":  # on the dense model, so first
            options = {"diagonal_only": request.diagonal_only, "parts": residence.inventory}
            statistics = gather_statistics(residence.model, text, progress=request.progress, **options)
            request, streams = replace(request, statistics=statistics), None
        batches = [] if streams is None else _paired(streams, request)
        names = ranks().all(residence.schedule(request.schedule, sum(map(Tensor.numel, own.values()))))
        name = next((name for name in names if name != request.schedule), request.schedule)  # the same for all ranks
        schedule = _SCHEDULES["sublayer in passes" if streams and streams.whole and name == "sublayer" else name]
        order, title = range(residence.first, len(blocks)), f"{request.method} {request.target}"
        bar = {"initial": residence.first, "total": len(blocks), "unit": "block", "disable": not request.progress}
        for index in tqdm(order, title, **bar):
            block, last = residence.fill(index), index + 1 == len(blocks)
            groups, known = _groups(request, residence, streams, index)

            def solve(work: _BlockWork) -> None:
                if known is None:  # noqa: B023
                    schedule(index, block, batches, work, last)  # noqa: B023
                    work.solve_rest()
                else:
                    work.solve_all(known)  # noqa: B023

            reports = _settled(request, index, groups, solve, target=targets[index], evidence=evidence)
            if streams is not None and not last:
                streams.advance()
            residence.done(index, reports)
        residence.close()
    told = residence.inventory.told()
    peak = max(ranks().all(memory.peak_bytes))
    return CompressionReport(residence.layers, time.perf_counter() - started, peak, told)


def _with_twins(text: Mapping[str, Tensor], request: Request) -> dict[str, Tensor]:
    """Return the text, twice where it has to flow through the dense model too."""
    return dict(text) | (
        {f"{name} in the dense model": tokens for name, tokens in text.items()} if request.anchor else {}
    )


def _paired(streams: Streams, request: Request) -> Sequence[MicroBatch]:
    """Return the micro-batches that meet compressed blocks, each with its twin that meets dense ones.

    Raises `InputError` for a model that as a whole is run for each block: none of it stays dense.
    """
    batches = streams.batches
    if not request.anchor:
        return batches
    if streams.whole:
        raise InputError("an anchor needs a model whose blocks can be run one by one; leave it out for this one")
    here, twins = batches[: len(batches) // 2], batches[len(batches) // 2 :]
    for batch, twin in zip(here, twins, strict=True):
        batch.twin = twin
    return here


def _groups(request: Request, residence: Residence, streams: Streams | None, index: int) -> tuple[list, list | None]:
    """Return a block's layers in groups that share an input, and each group's statistics unless text will tell them."""
    layers = residence.inventory.layers[index]
    if request.statistics is not None:
        by_name = {layer.name: layer for layer in layers}
        stored = request.statistics.block(index, residence.device)
        chosen = [([by_name[name] for name in names if name in by_name], stats) for names, stats in stored]
        return [group for group, _ in chosen if group], [stats for group, stats in chosen if group]
    groups = [[layer] for layer in layers] if streams is None else streams.groups(index, residence.blocks[index])
    return groups, None if request.text else [{} for _ in groups]


def _check_finite_weights(layers: Sequence[LinearLayer]) -> None:
    """One pass and one wait for the device: a sum is finite only if every term is."""
    finite = torch.stack([layer.weight.sum(dtype=torch.float32).isfinite() for layer in layers]).tolist()
    if not all(finite):
        raise InputError(
            f"a weight of layer {layers[finite.index(False)].name} is NaN or infinite; "
            "load an undamaged copy of the model"
        )


def _evidence(request: Request, residence: Residence) -> dict[nn.Module, Evidence]:
    """Return what methods that read gradients know of each layer beside its inputs, from the dense model.

    That are the mixed gradients, or those of the last source where it is the domain, or the masks chosen by them.
    """
    solver = request.solver
    if not solver.gradients:
        return {}
    sources, shares = request.sources, request.shares
    if solver.domain_last:
        domain = list(sources)[-1]
        sources, shares = {domain: sources[domain]}, {domain: 1.0}
    options = {"term": solver.term, "parts": residence.inventory, "progress": request.progress}
    gathered = gather_gradients(residence.model, sources, **options)
    gradients = {module: mix_gradients(gathered.pop(module), shares) for module in list(gathered)}
    if solver.masks is None:
        return {module: Evidence(gradients=gradient) for module, gradient in gradients.items()}
    layers = {layer.module: layer for block in residence.inventory.layers for layer in block}
    weights = [layers[module].weight for module in gradients]
    masks = solver.masks(weights, list(gradients.values()), request.target, **request.options)
    return {module: Evidence(keep=mask) for module, mask in zip(gradients, masks, strict=True)}


def _targets(request: Request, residence: Residence) -> list[Target]:
    """Return the target of each block: the same for all, or by outliers in the dense model's scores."""
    target, allocation, blocks = request.target, request.allocation, residence.blocks
    if allocation is None:
        return [target] * len(blocks)
    pattern = target.pattern if isinstance(target, SparseGrid) else target
    if not isinstance(pattern, Unstructured):
        raise InputError(f"allocation gives blocks different sparsities, which {target} cannot have; use Unstructured")
    statistics, options = request.statistics, {"micro_batch": request.micro_batch, "progress": request.progress}
    if statistics is None:
        if not request.sources:
            raise InputError("allocation counts outliers on text; pass calibration text")
        statistics = gather_statistics(residence.model, request.sources, diagonal_only=True, **options)
    outliers, sizes = [], []
    for index, layers in enumerate(residence.inventory.layers):
        by_name = {layer.name: layer.weight for layer in layers}
        groups = statistics.groups(index, request.mixing)
        pairs = [(by_name[name], part) for names, part in groups for name in names if name in by_name]
        weights, stats = zip(*pairs, strict=True)
        outliers.append(allocation.outliers(weights, [part.mean_square for part in stats]))
        sizes.append(sum(weight.numel() for weight in by_name.values()))
    sparsities = allocation.sparsities(torch.stack(outliers).tolist(), sizes, pattern.sparsity)
    patterns: list[Target] = [Unstructured(sparsity) for sparsity in sparsities]
    return [replace(target, pattern=pattern) if isinstance(target, SparseGrid) else pattern for pattern in patterns]


@torch.no_grad()
def final_states(
    residence: Residence, texts: Mapping[str, Windows], *, micro_batch: int | None = None, progress: bool = True
) -> dict[str, Float[Tensor, "n_windows length hidden"]]:
    """Return the hidden states that enter the head, on the CPU, for the windows of each text.

    Block by block: all windows pass through one block before the next one is filled, so that a model on disk never is
    in memory as a whole. `residence.head()` then gives the logits: `head_logits(model, states)`.
    """
    sources = _token_windows(texts)
    streams, blocks = residence.streams(sources, micro_batch), residence.blocks
    for index in tqdm(range(len(blocks)), "evaluate", unit="block", leave=False, disable=not progress):
        block = residence.fill(index)
        for batch in streams.batches:
            batch.keep(batch.run(index, block))
        streams.advance()
        residence.done(index)
    states: dict[str, list[Tensor]] = {name: [] for name in sources}
    with residence.surroundings(torch.cat([tokens.flatten() for tokens in sources.values()])):
        for source, hidden in streams.final():
            states[source].append(hidden.cpu())
    return {name: torch.cat(parts) for name, parts in states.items()}
