"""Calibration is a sum.

With x_t the input of a layer at token t, everything the methods need from text is the Gram matrix
G = sum_t x_t x_t^T and the number of tokens n. Sums over disjoint texts add; Wanda's input norm is the diagonal,
the Hessian of SparseGPT and GPTQ is a scaling of G; and cross-calibration is one line for all of them.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor

from crosscal.errors import InputError


class _Moments:
    diagonal: Float[Tensor, " d_in"]
    n_tokens: int

    @property
    def mean_square(self) -> Float[Tensor, " d_in"]:
        """mean_t x_tj^2 for each input j."""
        return self.diagonal / self.n_tokens


@dataclass(frozen=True)
class InputStats(_Moments):
    """Second moments of a layer's inputs: `gram` = sum_t x_t x_t^T (float32) over `n_tokens` tokens.

    `cross` is sum_t z_t x_t^T with z_t the input in the dense model, where `anchored` is to read it. Statistics of
    disjoint texts add. Raises `InputError` for a Gram matrix that is not square.

    >>> import torch
    >>> a = InputStats(torch.eye(2), n_tokens=3) + InputStats(torch.eye(2), n_tokens=1)
    >>> a.n_tokens, a.diagonal.tolist(), a.mean_square.tolist()
    (4, [2.0, 2.0], [0.5, 0.5])
    """

    gram: Float[Tensor, "d_in d_in"]
    n_tokens: int
    cross: Float[Tensor, "d_in d_in"] | None = None

    def __post_init__(self):
        if self.gram.ndim != 2 or self.gram.shape[0] != self.gram.shape[1]:
            raise InputError(f"a Gram matrix is square, this one is {tuple(self.gram.shape)}; give sum_t x_t x_t^T")

    def __add__(self, other: "InputStats") -> "InputStats":
        cross = None if self.cross is None or other.cross is None else self.cross + other.cross
        return InputStats(self.gram + other.gram, self.n_tokens + other.n_tokens, cross)

    @property
    def diagonal(self) -> Float[Tensor, " d_in"]:
        """sum_t x_tj^2 for each input j."""
        return self.gram.diagonal()

    def averaged(self, weight: float) -> "InputStats":
        """Return `weight` times the per-token average, as statistics of one token; `weight` is above 0."""
        cross = None if self.cross is None else self.cross / (self.n_tokens / weight)
        return InputStats(self.gram / (self.n_tokens / weight), n_tokens=1, cross=cross)


@dataclass(frozen=True)
class DiagonalStats(_Moments):
    """The diagonal of the Gram matrix alone, sum_t x_tj^2 over `n_tokens` tokens: all that Wanda reads.

    It adds and mixes as `InputStats` does, at a fraction of the cost.

    >>> import torch
    >>> (DiagonalStats(torch.ones(2), n_tokens=1) + DiagonalStats(torch.ones(2), n_tokens=3)).mean_square.tolist()
    [0.5, 0.5]
    """

    diagonal: Float[Tensor, " d_in"]
    n_tokens: int

    def __add__(self, other: "DiagonalStats") -> "DiagonalStats":
        return DiagonalStats(self.diagonal + other.diagonal, self.n_tokens + other.n_tokens)

    def averaged(self, weight: float) -> "DiagonalStats":
        """Return `weight` times the per-token average, as statistics of one token; `weight` is above 0."""
        return DiagonalStats(self.diagonal / (self.n_tokens / weight), n_tokens=1)


Stats = TypeVar("Stats", InputStats, DiagonalStats)
_Part = TypeVar("_Part")


def mix(stats: Mapping[str, Stats], weights: Mapping[str, float]) -> Stats:
    """Return the weighted average of per-token statistics, sum_s w_s G_s / n_s, over sources: cross-calibration.

    Each source counts by its weight and not by its length; two sources of equal length at 1/2 each are the same
    as their pooled text. The result is an average, so its `n_tokens` is 1.
    Equation eq-mix of the book. Source: Williams et al. 2025 (arXiv 2502.18424), with w the weight of the in-domain
    part.

    Raises `InputError` unless both mappings name the same sources, weights are >= 0 and sum to 1, and every
    source with a positive weight has tokens.

    >>> import torch
    >>> general, domain = InputStats(2 * torch.eye(2), n_tokens=2), InputStats(30 * torch.eye(2), n_tokens=10)
    >>> mix({"c4": general, "pubmed": domain}, {"c4": 0.5, "pubmed": 0.5}).diagonal.tolist()
    [2.0, 2.0]
    """
    parts = [part.averaged(share) for share, part in _used(stats, weights, "n_tokens", "tokens for this layer")]
    return replace(sum(parts[1:], start=parts[0]), n_tokens=1)


def _used(parts: Mapping[str, _Part], weights: Mapping[str, float], count: str, what: str) -> list[tuple[float, _Part]]:
    """The share and the part of each source that counts; raises `InputError` for one that holds nothing."""
    check_weights(parts, weights)
    for name, part in parts.items():
        if weights[name] > 0 and getattr(part, count) < 1:
            raise InputError(f"source '{name}' has no {what}; give it more text")
    return [(weights[name], part) for name, part in parts.items() if weights[name] > 0]


def check_weights(sources: Collection[str], weights: Mapping[str, float]) -> None:
    """Raise `InputError` unless there is one weight for each source, all are >= 0 and they sum to 1."""
    if not sources or set(sources) != set(weights):
        raise InputError(
            f"weights are for {sorted(weights)}, statistics for {sorted(sources)}; give one weight for each source"
        )
    if min(weights.values()) < 0 or not math.isclose(sum(weights.values()), 1.0, abs_tol=1e-6):
        raise InputError(f"mix weights {dict(weights)} must be at least 0 and sum to 1")


@dataclass(frozen=True)
class WeightGradient:
    """Means over `n_windows` windows of text of functions of one weight's loss gradient g = dL/dW; float32.

    `square` is the mean of g^2, the diagonal of the empirical Fisher information; `term` the mean of the function that
    the method declares, if it does. L is the mean cross-entropy in nats of one window's next tokens.
    """

    square: Float[Tensor, "d_out d_in"]
    n_windows: int
    term: Float[Tensor, "d_out d_in"] | None = None


def mix_gradients(parts: Mapping[str, WeightGradient], weights: Mapping[str, float]) -> WeightGradient:
    """Return the weighted average over sources of both means; `n_windows` counts the windows of sources that count.

    Raises `InputError` unless both mappings name the same sources, weights are >= 0 and sum to 1, and every source
    with a positive weight has windows, as `mix` does.

    >>> import torch
    >>> general, domain = WeightGradient(torch.ones(1, 2), n_windows=4), WeightGradient(torch.full((1, 2), 9.0), 2)
    >>> mixed = mix_gradients({"c4": general, "pubmed": domain}, {"c4": 0.5, "pubmed": 0.5})
    >>> mixed.square.tolist(), mixed.n_windows
    ([[5.0, 5.0]], 6)
    """
    used = _used(parts, weights, "n_windows", "windows")
    squares = [share * part.square for share, part in used]
    terms = [share * part.term for share, part in used if part.term is not None]
    term = sum(terms[1:], start=terms[0]) if terms else None
    return WeightGradient(sum(squares[1:], start=squares[0]), sum(part.n_windows for _, part in used), term)
