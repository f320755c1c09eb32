"""Statistics and gradients of the dense model, gathered before anything is compressed.

Input statistics are kept, in memory or in a folder: one pass serves every method, sparsity and mix weight. Gradients
are for methods that ask what a weight does for the loss, and not only for its layer's output.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from crosscal.calibration.gram import InputSums
from crosscal.calibration.statistics import DiagonalStats, InputStats, WeightGradient, mix
from crosscal.engine.batches import _run_and_add
from crosscal.engine.ranks import ranks
from crosscal.engine.streams import Streams, open_streams
from crosscal.engine.windows import Windows, _check_windows, _token_windows
from crosscal.errors import InputError
from crosscal.models import Inventory, LinearLayer, experts_apart, inventory

CONTENTS = "statistics.json"
Group = tuple[list[str], dict[str, InputStats] | dict[str, DiagonalStats]]
"""Names of the layers that share an input, and that input's statistics by source."""


class ModelStatistics:
    """Input statistics of every block of a dense model, in memory or, block by block, in a folder of safetensors."""

    def __init__(self, sources: Sequence[str], diagonal_only: bool, n_blocks: int, folder: Path | None = None):
        self.sources, self.diagonal_only, self.n_blocks, self.folder = list(sources), diagonal_only, n_blocks, folder
        self._blocks: dict[int, list[Group]] = {}

    def block(self, index: int, device: torch.device | str = "cpu") -> list[Group]:
        """Return the groups of one block, in the order of the forward pass."""
        return self._blocks[index] if self.folder is None else _read(self._file(index), device)

    def groups(self, index: int, shares: Mapping[str, float]) -> list[tuple[list[str], InputStats | DiagonalStats]]:
        """Return the groups of one block that text reached, with the statistics of the sources mixed."""
        mixed = [(names, _mixed(stats, shares)) for names, stats in self.block(index)]
        return [(names, stats) for names, stats in mixed if stats is not None]

    def check_fits(self, layers: Sequence[Sequence[LinearLayer]]) -> None:
        """Raise `InputError` unless these are statistics of a model with such layers, whatever others it has.

        Reads the first and the last block.
        """
        wrong = InputError("the statistics are those of another model; gather them with the model to be compressed")
        if self.n_blocks != len(layers):
            raise wrong
        for index in {0, len(layers) - 1}:
            known = {name: stats.values() for names, stats in self.block(index) for name in names}
            for layer in layers[index]:
                sizes = {len(part.diagonal) for part in known.get(layer.name, ())}
                if layer.name not in known or sizes - {layer.weight.shape[1]}:
                    raise wrong

    def add(self, index: int, groups: list[Group]) -> None:
        """Keep a block's groups."""
        if self.folder is None:
            self._blocks[index] = groups
        else:
            _write(self._file(index), groups)

    def _file(self, index: int) -> Path:
        return self.folder / f"block-{index:04d}.safetensors"


def load_statistics(folder: str | Path) -> ModelStatistics:
    """Return the statistics that `gather_statistics` wrote to a folder.

    Raises `InputError` when the folder does not hold all of them, as after an interrupted gathering.
    """
    folder = Path(folder).expanduser()
    try:
        return ModelStatistics(**json.loads((folder / CONTENTS).read_text(encoding="utf-8")), folder=folder)
    except (OSError, ValueError, TypeError):
        raise InputError(
            f"{folder} holds no complete statistics; make them with gather_statistics(..., folder='{folder}')"
        ) from None


@torch.no_grad()
def gather_statistics(
    model: Any,
    calibration: Mapping[str, Windows],
    *,
    folder: str | Path | None = None,
    diagonal_only: bool = False,
    micro_batch: int | None = None,
    parts: Inventory | None = None,
    progress: bool = True,
) -> ModelStatistics:
    """Run every source's windows through the dense model once and return the input statistics of an inventory's layers.

    `model` is a module, what `load_model` returns, or a `StreamedModel`, which is read block by block; it stays as it
    is. A Gram matrix of d inputs takes 4 d^2 bytes for each source; give a `folder` where they
    do not fit in memory, `load_statistics` reads them back. `diagonal_only` keeps what Wanda needs and no more.
    Hand the result to `compress(..., statistics=...)`.

    Raises `InputError` for no text, a folder that cannot be written, and inputs of a layer that are not finite,
    naming the layer.
    """
    residence: Any = model if hasattr(model, "fill") else None
    model = getattr(model, "model", model) if not isinstance(model, nn.Module) else model
    sources = _token_windows(calibration)
    _check_windows(model, calibration)
    if not sources:
        raise InputError("statistics need text; pass calibration={'c4': load_text('c4', tokenizer)}")
    parts = parts or (residence.inventory if residence else inventory(model))
    kept = ModelStatistics(list(sources), diagonal_only, len(parts.blocks), _opened(folder))
    with experts_apart(model):
        own = ranks().share(sources)
        opened = residence.streams(own, micro_batch) if residence else open_streams(model, parts, own, micro_batch)
        _gather(kept, opened, progress, residence)
    if kept.folder is not None:
        contents = {"sources": kept.sources, "diagonal_only": diagonal_only, "n_blocks": len(parts.blocks)}
        (kept.folder / CONTENTS).write_text(json.dumps(contents), encoding="utf-8")
    return kept


def _gather(kept: ModelStatistics, streams: Streams, progress: bool, residence: Any = None) -> None:
    """Add the statistics of every block."""
    blocks, scratch = streams.blocks, {}
    for index, block in enumerate(tqdm(blocks, desc="statistics", unit="block", disable=not progress)):
        if residence is not None:
            block = residence.fill(index)
        groups = streams.groups(index, block)
        sums = [InputSums(kept.diagonal_only, scratch) for _ in groups]
        add = [part.add for part in sums]
        for batch, output in _run_and_add(
            index,
            block,
            streams.batches,
            groups,
            lambda n, batch, inputs: add[n](batch.source, inputs),  # noqa: B023
        ):
            batch.keep(output)
        streams.advance()
        if residence is not None:
            residence.done(index)
        pairs = zip(sums, groups, strict=True)
        stats = [ranks().collect_everywhere(part.stats(), kept.sources, group[0].weight) for part, group in pairs]
        for group, by_source in zip(groups, stats, strict=True):
            _check_inputs(f"{index}.{group[0].name}", _all_finite(by_source))
        kept.add(index, [([layer.name for layer in group], part) for group, part in zip(groups, stats, strict=True)])


def _mixed(
    stats: Mapping[str, InputStats] | Mapping[str, DiagonalStats], shares: Mapping[str, float]
) -> InputStats | DiagonalStats | None:
    """Return the mixed statistics of a layer, of those sources that reached it; None where none that counts did."""
    present = {name: shares[name] for name in stats}
    if len(present) < len(shares):  # an expert that some text never uses
        total = sum(present.values())
        present = {name: share / total for name, share in present.items()} if total else {}
    return mix(stats, present) if present else None


def _check_inputs(layer: str, finite: Mapping[str, float | Bool[Tensor, ""]]) -> None:
    """Raise `InputError` naming the layer and the first source for which `_all_finite` returned 0 or False."""
    for source, good in finite.items():
        if not good:
            raise InputError(
                f"layer {layer} received NaN or infinite inputs on source '{source}'; "
                "load the model in float32, or check its weights"
            )


def _all_finite(stats: Mapping[str, InputStats | DiagonalStats]) -> dict[str, Bool[Tensor, ""]]:
    """Return whether each source's sums are finite, as tensors, so that asking does not wait for a GPU."""
    return {name: part.diagonal.sum().isfinite() for name, part in stats.items()}


def _opened(folder: str | Path | None) -> Path | None:
    """Return the folder without its table of contents: it is incomplete until the last block is in."""
    if folder is None:
        return None
    folder = Path(folder).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONTENTS).unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"statistics cannot be written to {folder} ({error}); give another folder") from None
    return folder


def _write(path: Path, groups: list[Group]) -> None:
    tensors, heads = {}, []
    for number, (names, stats) in enumerate(groups):
        for source, part in stats.items():
            tensors[f"{number}/{source}"] = part.diagonal if isinstance(part, DiagonalStats) else part.gram
        heads.append({"layers": names, "n_tokens": {source: part.n_tokens for source, part in stats.items()}})
    try:
        save_file({name: tensor.cpu() for name, tensor in tensors.items()}, path, {"groups": json.dumps(heads)})
    except (OSError, SafetensorError) as error:
        path.unlink(missing_ok=True)
        raise InputError(f"statistics could not be written to {path.parent} ({error}); free some space there") from None


def _read(path: Path, device: torch.device | str) -> list[Group]:
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            heads = json.loads(file.metadata()["groups"])
            return [
                (head["layers"], {s: _as_stats(file.get_tensor(f"{n}/{s}"), t) for s, t in head["n_tokens"].items()})
                for n, head in enumerate(heads)
            ]
    except (OSError, SafetensorError) as error:
        raise InputError(f"the statistics in {path} cannot be read ({error}); gather them again") from None


def _as_stats(tensor: Tensor, n_tokens: int) -> InputStats | DiagonalStats:
    return InputStats(tensor, n_tokens) if tensor.ndim == 2 else DiagonalStats(tensor, n_tokens)


def gather_gradients(
    model: nn.Module,
    windows: Mapping[str, Int[Tensor, "n length"]],
    *,
    term: Callable[[Tensor, Tensor], Tensor] | None = None,
    parts: Inventory | None = None,
    progress: bool = True,
) -> dict[nn.Module, dict[str, WeightGradient]]:
    """Return `{module: {source: WeightGradient}}` for every layer of an inventory, by default of all.

    Gradients are those of the next-token loss. `windows` maps each text source to its token windows [n, length]; they
    run one at a time, so that squares, and `term(gradient, weight)` where it is given, are per window. The model keeps
    its mode, its `requires_grad` flags and its `.grad`s, also when this raises, and may be in bfloat16. Beyond the
    activations of one window, one float32 number per weight is held for each source, and one for its term. `square` is
    the diagonal of the windows' empirical Fisher information (Kunstner et al. 2019, arXiv 1905.12558).

    Raises `InputError` for a source without windows, windows shorter than 2 tokens, and, naming the source, a loss
    or gradient that is not finite.
    """
    for source, tokens in windows.items():
        if tokens.ndim != 2 or tokens.shape[0] < 1 or tokens.shape[1] < 2:
            raise InputError(
                f"windows of source '{source}' are {tuple(tokens.shape)}; give at least one window of at least 2 tokens"
            )
    layers = [
        replace(layer, name=f"{index}.{layer.name}")
        for index, block in enumerate((inventory(model) if parts is None else parts).layers)
        for layer in block
    ]
    weights = list({id(layer.parameter): layer.parameter for layer in layers}.values())  # experts share some
    gradients: dict[nn.Module, dict[str, WeightGradient]] = {layer.module: {} for layer in layers}
    # enable_grad alone does not lift a caller's inference mode.
    with torch.inference_mode(False), torch.enable_grad(), _only_these_learn(model, weights):
        for source, tokens in windows.items():
            sums = _sum_over_windows(model, weights, source, tokens, term, progress)
            for layer in layers:
                gradients[layer.module][source] = _average(layer, source, sums[id(layer.parameter)], len(tokens))
    return gradients


@contextmanager
def _only_these_learn(model: nn.Module, weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let autograd see these weights and no other parameter, and put flags and gradients back after."""
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _, _ in before:
            parameter.requires_grad_(False).grad = None
        for weight in weights:
            weight.requires_grad_(True)
        yield
    finally:
        for parameter, flag, grad in before:
            parameter.requires_grad_(flag).grad = grad


def _sum_over_windows(
    model: nn.Module,
    weights: Sequence[nn.Parameter],
    source: str,
    tokens: Tensor,
    term: Callable[[Tensor, Tensor], Tensor] | None,
    progress: bool,
) -> dict[int, list[Tensor]]:
    """Return means over windows of each weight gradient's square, and of its term, by the weight's `id`."""
    n_sums = 1 if term is None else 2
    sums = {id(weight): [torch.zeros_like(weight, dtype=torch.float32) for _ in range(n_sums)] for weight in weights}
    handles = [weight.register_post_accumulate_grad_hook(_adder(term, *sums[id(weight)])) for weight in weights]
    device = model.get_input_embeddings().weight.device
    try:
        rows = [row[row >= 0] for row in ranks().share({source: tokens})[source]]
        for window in tqdm(rows, desc=f"gradients {source}", unit="window", leave=False, disable=not progress):
            # A copy, because tokens made in inference mode cannot be kept for the backward pass.
            loss = _next_token_loss(model, window[None].to(device, copy=True))
            if not loss.isfinite():
                raise InputError(
                    f"the loss on source '{source}' is NaN or infinite; load the model in float32, or check its weights"
                )
            loss.backward()
    finally:
        for handle in handles:
            handle.remove()
    for number, total in enumerate(total for parts in sums.values() for total in parts):
        owner = number % ranks().world
        ranks().add_up(total, owner)
        total.copy_(ranks().spread(total, owner)).div_(len(tokens))
    return sums


def _adder(term: Callable[[Tensor, Tensor], Tensor] | None, squares: Tensor, terms: Tensor | None = None):
    """Return a hook that adds a finished gradient to the sums and drops it, so gradients never exist all at once."""

    def add(weight: nn.Parameter) -> None:
        grad, weight.grad = weight.grad.float(), None
        squares.addcmul_(grad, grad)
        if terms is not None:
            terms.add_(term(grad, weight.detach().float()))

    return add


def _next_token_loss(model: nn.Module, ids: Int[Tensor, "1 length"]) -> Float[Tensor, ""]:
    logits = model(input_ids=ids, use_cache=False).logits
    return cross_entropy(logits[0, :-1].float(), ids[0, 1:])


def _average(layer: LinearLayer, source: str, means: list[Tensor], n_windows: int) -> WeightGradient:
    """Return a layer's part of the means over windows, [d_out, d_in]."""
    seen = [layer.seen(mean).contiguous() for mean in means]
    if not seen[0].sum().isfinite():
        raise InputError(
            f"the gradient of layer {layer.name} on source '{source}' is NaN or infinite; load the model in float32"
        )
    return WeightGradient(seen[0], n_windows, *seen[1:])
