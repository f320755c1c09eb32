"""The input statistics of a block's linear layers, one sum for each distinct input and each text source.

Query, key and value projections read the same tensor, and so do gate and up projections. Which layers share is
seen at run time, by the identity of the tensor that enters them, so no architecture is known here by name.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from crosscal.calibration.gram import GramSum
from crosscal.calibration.statistics import DiagonalStats, InputStats
from crosscal.errors import InputError
from crosscal.models.structure import LinearLayer


@contextmanager
def hooked(modules: Sequence[nn.Module], hook: Callable[[nn.Module, tuple], None]) -> Iterator[None]:
    """Have `hook(module, args)` called before each of the modules runs."""
    handles = [module.register_forward_pre_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def find_groups(layers: Sequence[LinearLayer], run: Callable[[], object]) -> list[list[LinearLayer]]:
    """The layers that `run` reaches, those that read the same tensor together, in the order of the forward pass."""
    seen: list[tuple[Tensor, list[nn.Module]]] = []  # holding the tensors keeps their identities apart

    def note(module: nn.Module, args: tuple) -> None:
        if any(module in members for _, members in seen):
            return
        same = next((members for tensor, members in seen if tensor is args[0]), None)
        if same is None:
            seen.append((args[0], [module]))
        else:
            same.append(module)

    by_module = {layer.module: layer for layer in layers}
    with hooked(list(by_module), note):
        run()
    return [[by_module[module] for module in members] for _, members in seen]


class InputSums:
    """Sums over the shared input of one group of layers, by source; the diagonal alone where that is all one needs."""

    def __init__(self, diagonal_only: bool, scratch: dict[int, Tensor]):
        self.diagonal_only, self.scratch = diagonal_only, scratch
        self._sums: dict[str, GramSum | Tensor] = {}
        self._tokens: dict[str, int] = {}

    def add(self, source: str, inputs: Tensor) -> None:
        """Add a micro-batch of a source's inputs, [..., d_in]."""
        flat = inputs.reshape(-1, inputs.shape[-1])
        self._tokens[source] = self._tokens.get(source, 0) + len(flat)
        if self.diagonal_only:
            squares = torch.linalg.vector_norm(flat, dim=0, dtype=torch.float32).square_()
            self._sums[source] = squares.add_(self._sums[source]) if source in self._sums else squares
        else:
            self._sums.setdefault(source, GramSum(self.scratch)).add(flat)

    def stats(self) -> dict[str, InputStats] | dict[str, DiagonalStats]:
        """The statistics of each source."""
        if self.diagonal_only:
            return {name: DiagonalStats(part, self._tokens[name]) for name, part in self._sums.items()}
        return {name: InputStats(part.mirror(), self._tokens[name]) for name, part in self._sums.items()}


def check_inputs(layer: str, finite: Mapping[str, float | Bool[Tensor, ""]]) -> None:
    """Raises `InputError` naming the layer and the first source that `all_finite` found wanting (0 or False)."""
    for source, good in finite.items():
        if not good:
            raise InputError(
                f"layer {layer} received NaN or infinite inputs on source '{source}'; "
                "load the model in float32, or check its weights"
            )


def all_finite(stats: Mapping[str, InputStats | DiagonalStats]) -> dict[str, Bool[Tensor, ""]]:
    """Whether each source's sums are finite, as tensors, so that asking does not wait for a GPU."""
    return {name: part.diagonal.sum().isfinite() for name, part in stats.items()}
