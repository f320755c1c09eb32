"""The one hot line of calibration, G += X^T X: bfloat16 products where hardware has them, float32 sums everywhere.

G is symmetric. Where that pays only the blocks on and above its diagonal are summed, and `mirror` fills the rest in.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from crosscal.calibration.statistics import DiagonalStats, InputStats
from crosscal.models.loading import fast_dtype

# Widths of the column panels of a half sum. Narrower panels leave out more and multiply less well: with a CPU's
# bfloat16 units 4 panels of 384 take three quarters of the time of one product and panels of 144 take longer, while
# plain float32 products are slow enough for narrower ones.
_CPU_PANEL, _CPU_FLOAT32_PANEL, _CUDA_PANEL = 384, 192, 2048


@contextmanager
def _bf16_products() -> Iterator[None]:
    """Let CPU float32 matrix products round their factors to bfloat16, and restore the caller's setting after.

    For factors that hold bfloat16 values already the rounding changes nothing, and the products run on the CPU's
    bfloat16 units with float32 sums.
    """
    settings: Any = getattr(getattr(torch.backends, "mkldnn", None), "matmul", None)
    if not hasattr(settings, "fp32_precision"):
        yield
        return
    before = settings.fp32_precision
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before


class _GramSum:
    """A running sum of x x^T; `scratch` keeps one float32 buffer per input width, shared by all sums of a block."""

    def __init__(self, scratch: dict[int, Tensor]):
        self.gram: Any = None  # float32 [d_in, d_in] from the first inputs on
        self.scratch = scratch

    def add(self, inputs: Float[Tensor, "tokens d_in"]) -> None:
        """gram += inputs^T inputs, summed in float32 whatever the inputs' dtype."""
        if self.gram is None:
            self.gram = torch.zeros(inputs.shape[1], inputs.shape[1], device=inputs.device)
        if inputs.is_cuda and inputs.dtype in (torch.bfloat16, torch.float16):
            for left, right in panels(inputs.shape[1], _CUDA_PANEL):
                part = self.gram[left:right, left:]
                part += torch.mm(inputs[:, left:right].T, inputs[:, left:], out_dtype=torch.float32)
        elif inputs.dtype == torch.bfloat16 and fast_dtype(inputs.device.type) == torch.bfloat16:
            with _bf16_products():
                self._add_wide(self._widen(inputs), _CPU_PANEL)
        else:
            wide = inputs if inputs.dtype == torch.float32 else self._widen(inputs)
            self._add_wide(wide, _CUDA_PANEL if inputs.is_cuda else _CPU_FLOAT32_PANEL)

    def _add_wide(self, inputs: Float[Tensor, "tokens d_in"], panel: int) -> None:
        for left, right in panels(inputs.shape[1], panel):
            self.gram[left:right, left:].addmm_(inputs[:, left:right].T, inputs[:, left:])

    def _widen(self, inputs: Tensor) -> Tensor:
        """A float32 copy in the shared buffer: fresh memory of this size would cost more than the copy."""
        tokens, width = inputs.shape
        if width not in self.scratch or len(self.scratch[width]) < tokens:
            self.scratch[width] = torch.empty(tokens, width, device=inputs.device)
        return self.scratch[width][:tokens].copy_(inputs)


def mirror(gram: Float[Tensor, "d_in d_in"]) -> Float[Tensor, "d_in d_in"]:
    """Complete a sum in place, whose blocks on and above the diagonal are known, and return it."""
    width = _CUDA_PANEL if gram.is_cuda else _CPU_FLOAT32_PANEL
    for left, right in panels(len(gram), width):  # blocks on the diagonal are whole, of whatever width
        gram[right:, left:right] = gram[left:right, right:].T
    return gram


def panels(size: int, width: int) -> list[tuple[int, int]]:
    """Cut 0..size into near-equal panels of about `width`, or into one if there would not be three.

    >>> panels(1536, 384), panels(576, 384)
    ([(0, 384), (384, 768), (768, 1152), (1152, 1536)], [(0, 576)])
    """
    count = size // width if size >= 3 * width else 1
    edges = [size * i // count for i in range(count + 1)]
    return list(pairwise(edges))


class InputSums:
    """Sums over the shared input of one group of layers, by source; only the diagonal where that is all one needs."""

    def __init__(self, diagonal_only: bool, scratch: dict[int, Tensor]):
        self.diagonal_only, self.scratch = diagonal_only, scratch
        self._sums: dict[str, Any] = {}
        self._cross: dict[str, Tensor] = {}
        self._tokens: dict[str, int] = {}

    def add(self, source: str, inputs: Tensor, dense: Tensor | None = None) -> None:
        """Add a micro-batch of a source's inputs, [..., d_in], and their products with those of the `dense` model."""
        flat = inputs.reshape(-1, inputs.shape[-1])
        if dense is not None:
            self._cross[source] = _add_product(self._cross.get(source), dense.reshape(flat.shape), flat)
        self._tokens[source] = self._tokens.get(source, 0) + len(flat)
        if self.diagonal_only:
            squares = torch.linalg.vector_norm(flat, dim=0, dtype=torch.float32).square_()
            self._sums[source] = squares.add_(self._sums[source]) if source in self._sums else squares
        else:
            self._sums.setdefault(source, _GramSum(self.scratch)).add(flat)

    def stats(self) -> dict[str, InputStats] | dict[str, DiagonalStats]:
        """Return the statistics of each source."""
        if self.diagonal_only:
            return {name: DiagonalStats(part, self._tokens[name]) for name, part in self._sums.items()}
        return {
            name: InputStats(mirror(part.gram), self._tokens[name], self._cross.get(name))
            for name, part in self._sums.items()
        }


def _add_product(total: Tensor | None, left: Tensor, right: Tensor) -> Float[Tensor, "d_in d_in"]:
    """total + left^T right, summed in float32, with factors in bfloat16 where that is what they hold and fast."""
    if left.is_cuda and left.dtype in (torch.bfloat16, torch.float16):
        product = torch.mm(left.T, right, out_dtype=torch.float32)
        return product if total is None else total.add_(product)
    total = torch.zeros(left.shape[1], right.shape[1], device=left.device) if total is None else total
    fast = left.dtype == torch.bfloat16 and fast_dtype(left.device.type) == torch.bfloat16
    with _bf16_products() if fast else nullcontext():
        return total.addmm_(left.float().T, right.float())
