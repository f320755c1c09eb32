"""Low rank: a weight becomes a product of two thin matrices; plain, Fisher-weighted and activation-aware SVD.

All three minimize ||(W - W') S||_F over the matrices W' of rank k and differ only in S, what an error at each input
costs. By Eckart & Young 1936 the best W' S is U_k U_k^T W S, with U_k the first k left singular vectors of W S; so
W' = U_k U_k^T W. The textbook route, which truncates W S and multiplies by S^-1, gives the same product where
S^-1 exists; this one needs no inverse, so inputs without weight (dead, or never seen) cannot blow up.

The singular vectors come from an SVD and not from the eigenvectors of W S S^T W^T. That costs about half the time,
but squaring leaves float32 only singular values above 3e-4 of the largest: with three inputs 1,000 times louder than
the others its output error came to 1.08 to 1.62 times the least possible, the SVD's to 1 + 2e-6 at most.

A ratio of 1 is no identity: thin factors of the same size as W have rank d_out * d_in / (d_out + d_in), which is less
than its full rank.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from crosscal.calibration.statistics import InputStats
from crosscal.errors import InputError
from crosscal.methods.masks import check_finite
from crosscal.types import LowRank

VERSION = 1
FISHER_FLOOR = 1e-4
"""Least Fisher weight of an input, relative to the mean over inputs: its square stays above float32's rounding."""
DAMP = 1e-6
"""Damping of the Gram matrix, relative to each input's own sum of squares: about ten times float32's rounding."""


class Factors(NamedTuple):
    """The thin matrices of W' = left @ right, float32; the columns of `left` are orthonormal."""

    left: Float[Tensor, "d_out k"]
    right: Float[Tensor, "k d_in"]

    def dense(self, dtype: torch.dtype) -> Float[Tensor, "d_out d_in"]:
        """The product, multiplied in float32 and rounded once."""
        return (self.left @ self.right).to(dtype)


def svd_factors(weight: Float[Tensor, "d_out d_in"], target: LowRank) -> Factors:
    """The factors of `svd`."""
    check_finite(weight)
    return _project(weight.float(), weight.float(), target)


def svd(weight: Float[Tensor, "d_out d_in"], target: LowRank) -> Float[Tensor, "d_out d_in"]:
    """The closest matrix of rank `target.rank(d_out, d_in)`, every weight counting the same.

    Equation eq-lowrank of the book with S = I, which `fwsvd` and `asvd` replace. Source: Eckart & Young 1936.
    Raises `InputError` for weights that are not finite.

    >>> svd(torch.diag(torch.tensor([3.0, 2.0])), LowRank(1.0)).abs().tolist()
    [[3.0, 0.0], [0.0, 0.0]]
    """
    return svd_factors(weight, target).dense(weight.dtype)


def fwsvd_factors(
    weight: Float[Tensor, "d_out d_in"], squared_gradient: Float[Tensor, "d_out d_in"], target: LowRank
) -> Factors:
    """The factors of `fwsvd`."""
    check_finite(weight)
    fisher = squared_gradient.float().mean(dim=0)
    if not (squared_gradient.amin() >= 0) & fisher.isfinite().all():
        raise InputError("a squared gradient is negative, NaN or infinite; average (dL/dW)^2 in float32 over batches")
    size = fisher.sqrt()
    relative = torch.where(size.any(), size / size.mean(), torch.ones_like(size)).clamp(min=FISHER_FLOOR)
    return _project(weight.float(), weight.float() * relative, target)


def fwsvd(
    weight: Float[Tensor, "d_out d_in"], squared_gradient: Float[Tensor, "d_out d_in"], target: LowRank
) -> Float[Tensor, "d_out d_in"]:
    """Fisher-weighted SVD: an error at input j costs f_j = sqrt(mean over i of (dL/dW_ij)^2).

    `squared_gradient` is (dL/dW)^2 averaged over batches, in any unit: only ratios of f_j count. No f_j is taken as
    less than `FISHER_FLOOR` of their mean; a gradient that is zero everywhere leaves the plain `svd`.
    Source: Hsu et al. 2022 (arXiv 2207.00112), where weights are input x output and f belongs to a row.

    Raises `InputError` for weights or squared gradients that are not finite, and for negative squared gradients.

    >>> loud_second_input = torch.tensor([[1.0, 100.0], [1.0, 100.0]])
    >>> fwsvd(torch.diag(torch.tensor([3.0, 2.0])), loud_second_input, LowRank(1.0)).abs().tolist()
    [[0.0, 0.0], [0.0, 2.0]]
    """
    return fwsvd_factors(weight, squared_gradient, target).dense(weight.dtype)


def asvd_factors(weight: Float[Tensor, "d_out d_in"], stats: InputStats, target: LowRank) -> Factors:
    """The factors of `asvd`."""
    check_finite(weight)
    return _project(weight.float(), weight.float() @ _gram_root(stats), target)


def asvd(weight: Float[Tensor, "d_out d_in"], stats: InputStats, target: LowRank) -> Float[Tensor, "d_out d_in"]:
    """Activation-aware SVD: the matrix of its rank whose outputs on the calibration text are closest.

    Minimizes tr((W - W') H (W - W')^T) with H = G + `DAMP` * diag(G), where a dead input is damped like the quietest
    live one. The damping decides only where rank goes that the text leaves over (fewer tokens than inputs, dead
    inputs): to the weights themselves. Where rounding makes H indefinite the damping rises tenfold, to 0.01 at most.
    Source: the optimum is that of Wang et al. 2024 (SVD-LLM, arXiv 2403.07378), who scale by a Cholesky factor of G
    and its inverse. Yuan et al. 2023 (ASVD, arXiv 2312.05821) scale by a diagonal matrix, which is not optimal.

    Raises `InputError` for weights or a Gram matrix that are not finite, and for one that cannot be a sum of x x^T.

    >>> loud_second_input = InputStats(torch.diag(torch.tensor([1.0, 100.0])), n_tokens=1)
    >>> asvd(torch.diag(torch.tensor([3.0, 2.0])), loud_second_input, LowRank(1.0)).abs().tolist()
    [[0.0, 0.0], [0.0, 2.0]]
    """
    return asvd_factors(weight, stats, target).dense(weight.dtype)


def _project(weight: Float[Tensor, "d_out d_in"], weighted: Float[Tensor, "d_out d_in"], target: LowRank) -> Factors:
    """W on the span of the first left singular vectors of W S: left = U_k, right = U_k^T W."""
    left = torch.linalg.svd(weighted, full_matrices=False).U[:, : target.rank(*weight.shape)].contiguous()
    return Factors(left, left.T @ weight)


def _gram_root(stats: InputStats) -> Float[Tensor, "d_in d_in"]:
    """S with S S^T = G + damp * diag(G), lower triangular: D L with G = D R D, unit diagonal, R + damp * I = L L^T.

    On the inputs' own scale, and by Cholesky: its rounding is small in every entry of R, while that of eigenvectors is
    relative to the largest eigenvalue and drowns the quiet directions of inputs that share a large common part.
    """
    gram = stats.gram.float()
    squares = gram.diagonal()
    if gram.sum().isfinite():
        live = squares > 0
        quietest = torch.where(live, squares, torch.inf).amin()
        size = torch.where(live, squares, torch.where(live.any(), quietest, 1.0)).sqrt()
        correlation = gram / size[:, None] / size
        for attempt in range(5):
            damping = torch.full_like(size, DAMP * 10**attempt).diag()
            lower, info = torch.linalg.cholesky_ex(correlation + damping)
            if info.item() == 0:
                return size[:, None] * lower
    raise InputError("the Gram matrix is NaN, infinite or far from a sum of x x^T; collect the statistics again")
