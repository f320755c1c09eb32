"""Statistics of the dense model, gathered in one pass and kept: they serve every method, sparsity and mix weight."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from crosscal.calibration.capture import InputSums, all_finite, find_groups, hooked
from crosscal.calibration.statistics import DiagonalStats, InputStats, mix
from crosscal.errors import InputError
from crosscal.models import decoder_blocks, linear_layers
from crosscal.streams import open_probe, open_streams

Group = tuple[list[str], dict[str, InputStats] | dict[str, DiagonalStats]]
"""The names of the layers that share an input, and that input's statistics by source."""


class ModelStatistics:
    """Input statistics of every block of a dense model, in memory or, block by block, in a folder of safetensors."""

    def __init__(self, sources: Sequence[str], diagonal_only: bool, folder: Path | None = None):
        self.sources, self.diagonal_only, self.folder = list(sources), diagonal_only, folder
        self._blocks: dict[int, list[Group]] = {}

    def block(self, index: int, device: torch.device | str = "cpu") -> list[Group]:
        """The groups of one block, in the order of the forward pass."""
        if self.folder is None:
            return self._blocks[index]
        return _read(self._file(index), device)

    def groups(self, index: int, shares: Mapping[str, float]) -> list[tuple[list[str], InputStats | DiagonalStats]]:
        """The groups of one block with the statistics of the sources mixed."""
        return [(names, mix(stats, {name: shares[name] for name in stats})) for names, stats in self.block(index)]

    def add(self, index: int, groups: list[Group]) -> None:
        """Keep a block's groups; in a folder they are written to a temporary file first, which is then renamed."""
        if self.folder is None:
            self._blocks[index] = groups
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self._file(index).with_suffix(".partial")
        _write(partial, groups)
        partial.replace(self._file(index))

    def _file(self, index: int) -> Path:
        return self.folder / f"block-{index:04d}.safetensors"


def load_statistics(folder: str | Path) -> ModelStatistics:
    """Statistics that `gather_statistics` wrote to a folder.

    Raises `InputError` when the folder holds none.
    """
    folder = Path(folder).expanduser()
    first = folder / "block-0000.safetensors"
    if not first.is_file():
        raise InputError(f"{folder} holds no statistics; make them with gather_statistics(..., folder='{folder}')")
    (_, stats), *_ = _read(first, "cpu")
    return ModelStatistics(list(stats), isinstance(next(iter(stats.values())), DiagonalStats), folder)


@torch.no_grad()
def gather_statistics(
    model: nn.Module,
    calibration: Mapping[str, Int[Tensor, "n_windows length"]],
    *,
    folder: str | Path | None = None,
    diagonal_only: bool = False,
    micro_batch: int | None = None,
    progress: bool = True,
) -> ModelStatistics:
    """Run every source's windows through the dense model once and keep each layer's input statistics.

    The model stays as it is. A Gram matrix of d inputs takes 4 d^2 bytes for each source; give a `folder` where they
    do not fit in memory, `load_statistics` reads them back. `diagonal_only` keeps what Wanda needs and no more.
    Hand the result to `compress(..., statistics=...)`.

    Raises `InputError` for no text, and for inputs of a layer that are not finite, naming the layer.
    """
    model = getattr(model, "model", model) if not isinstance(model, nn.Module) else model
    sources = {name: getattr(text, "tokens", text) for name, text in calibration.items()}
    if not sources:
        raise InputError("statistics need text; pass calibration={'c4': load_text('c4', tokenizer)}")
    blocks = decoder_blocks(model)
    kept = ModelStatistics(list(sources), diagonal_only, None if folder is None else Path(folder).expanduser())
    probe, batches = open_probe(model, blocks), open_streams(model, blocks, sources, micro_batch)
    scratch: dict[int, Tensor] = {}
    for index, block in enumerate(tqdm(blocks, desc="statistics", unit="block", disable=not progress)):

        def run_probe() -> None:
            probe.hidden = probe.run(index, block)  # noqa: B023

        groups = find_groups(linear_layers(block), run_probe)
        sums = {group[0].module: InputSums(diagonal_only, scratch) for group in groups}
        for batch in batches:
            with hooked(list(sums), lambda module, args: sums[module].add(batch.source, args[0])):  # noqa: B023
                batch.hidden = batch.run(index, block)
        stats = [sums[group[0].module].stats() for group in groups]
        for group, found in zip(groups, stats, strict=True):
            _check_finite(f"{index}.{group[0].name}", found)
        kept.add(index, [([layer.name for layer in group], s) for group, s in zip(groups, stats, strict=True)])
    return kept


def _check_finite(layer: str, stats: Mapping[str, InputStats | DiagonalStats]) -> None:
    for source, finite in all_finite(stats).items():
        if not finite:
            raise InputError(
                f"layer {layer} received NaN or infinite inputs on source '{source}'; "
                "load the model in float32, or check its weights"
            )


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
