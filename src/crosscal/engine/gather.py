"""Statistics of the dense model, gathered in one pass and kept: they serve every method, sparsity and mix weight."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from crosscal.calibration.statistics import DiagonalStats, InputStats, mix
from crosscal.engine.capture import InputSums, all_finite, check_inputs
from crosscal.engine.streams import Windows, input_groups, open_probe, open_streams, run_and_add, token_windows
from crosscal.errors import InputError
from crosscal.models import LoadedModel, decoder_blocks, linear_layers

CONTENTS = "statistics.json"
Group = tuple[list[str], dict[str, InputStats] | dict[str, DiagonalStats]]
"""The names of the layers that share an input, and that input's statistics by source."""


class ModelStatistics:
    """Input statistics of every block of a dense model, in memory or, block by block, in a folder of safetensors."""

    def __init__(self, sources: Sequence[str], diagonal_only: bool, n_blocks: int, folder: Path | None = None):
        self.sources, self.diagonal_only, self.n_blocks, self.folder = list(sources), diagonal_only, n_blocks, folder
        self._blocks: dict[int, list[Group]] = {}

    def block(self, index: int, device: torch.device | str = "cpu") -> list[Group]:
        """The groups of one block, in the order of the forward pass."""
        if self.folder is None:
            return self._blocks[index]
        return _read(self._file(index), device)

    def groups(self, index: int, shares: Mapping[str, float]) -> list[tuple[list[str], InputStats | DiagonalStats]]:
        """The groups of one block with the statistics of the sources mixed."""
        return [(names, mix(stats, {name: shares[name] for name in stats})) for names, stats in self.block(index)]

    def check_fits(self, blocks: nn.ModuleList) -> None:
        """Raises `InputError` unless these are statistics of a model with such blocks; reads the first and the last."""
        wrong = InputError("the statistics are those of another model; gather them with the model to be compressed")
        if self.n_blocks != len(blocks):
            raise wrong
        for index in {0, len(blocks) - 1}:
            widths = {layer.name: layer.weight.shape[1] for layer in linear_layers(blocks[index])}
            for names, stats in self.block(index):
                if any(widths.get(name) != len(part.diagonal) for name in names for part in stats.values()):
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
    """Statistics that `gather_statistics` wrote to a folder.

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
    model: nn.Module | LoadedModel,
    calibration: Mapping[str, Windows],
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

    Raises `InputError` for no text, a folder that cannot be written, and inputs of a layer that are not finite,
    naming the layer.
    """
    model = getattr(model, "model", model) if not isinstance(model, nn.Module) else model
    sources = token_windows(calibration)
    if not sources:
        raise InputError("statistics need text; pass calibration={'c4': load_text('c4', tokenizer)}")
    blocks = decoder_blocks(model)
    kept = ModelStatistics(list(sources), diagonal_only, len(blocks), _opened(folder))
    probe, batches = open_probe(model, blocks), open_streams(model, blocks, sources, micro_batch)
    scratch: dict[int, Tensor] = {}
    for index, block in enumerate(tqdm(blocks, desc="statistics", unit="block", disable=not progress)):
        groups = input_groups(index, block, probe)
        sums = [InputSums(diagonal_only, scratch) for _ in groups]
        outputs = run_and_add(index, block, batches, groups, lambda group, *found: sums[group].add(*found))  # noqa: B023
        for batch, output in zip(batches, outputs, strict=True):
            batch.hidden = output
        stats = [part.stats() for part in sums]
        for group, found in zip(groups, stats, strict=True):
            check_inputs(f"{index}.{group[0].name}", all_finite(found))
        kept.add(index, [([layer.name for layer in group], s) for group, s in zip(groups, stats, strict=True)])
    if kept.folder is not None:
        contents = {"sources": kept.sources, "diagonal_only": diagonal_only, "n_blocks": len(blocks)}
        (kept.folder / CONTENTS).write_text(json.dumps(contents), encoding="utf-8")
    return kept


def _opened(folder: str | Path | None) -> Path | None:
    """The folder, there and without a table of contents: what it holds is incomplete until the last block is in."""
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
