"""Low rank: a weight becomes a product of two thin matrices; plain, joint, Fisher-weighted and activation-aware SVD.

All minimize ||(W - W') S||_F over the matrices W' of rank k and differ only in S, the cost of an error at each
input. By Eckart & Young 1936 the best W' S is U_k U_k^T W S, with U_k the first k left singular vectors of W S; so
W' = U_k U_k^T W. The textbook route, which truncates W S and multiplies by S^-1, gives the same product where
S^-1 exists; this one needs no inverse, so inputs without weight (dead, or never seen) cannot blow up.

The singular vectors come from an SVD and not from the eigenvectors of W S S^T W^T. That costs about half the time,
but squaring leaves float32 only singular values above 3e-4 of the largest: with three inputs 1,000 times louder than
the others its output error came to 1.08 to 1.62 times the least possible, the SVD's to 1 + 2e-6 at most.

A ratio of 1 is no identity: thin factors of the same size as W have rank d_out * d_in / (d_out + d_in), which is less
than its full rank.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crosscal.calibration.statistics import InputStats
from crosscal.errors import InputError
from crosscal.methods.masks import _check_finite
from crosscal.methods.registry import Evidence, Method
from crosscal.types import LowRank

_FISHER_FLOOR = 1e-4
"""Least Fisher weight of an input, relative to the mean over inputs: its square stays above float32's rounding."""
_DAMP = 1e-6
"""Damping of the Gram matrix, relative to each input's own sum of squares: about ten times float32's rounding."""


def svd(weight: Float[Tensor, "d_out d_in"], target: LowRank) -> Float[Tensor, "d_out d_in"]:
    """Return the closest matrix of rank `target.rank(d_out, d_in)`, every weight counting the same.

    Equation eq-lowrank of the book with S = I, which `fwsvd` and `asvd` replace. Source: Eckart & Young 1936.
    Raises `InputError` for weights that are not finite.

    >>> svd(torch.diag(torch.tensor([3.0, 2.0])), LowRank(1.0)).abs().tolist()
    [[3.0, 0.0], [0.0, 0.0]]
    """
    _check_finite(weight)
    left, right = _factors(weight, weight.float(), target)
    return (left @ right).to(weight.dtype)


def fwsvd(
    weight: Float[Tensor, "d_out d_in"], squared_gradient: Float[Tensor, "d_out d_in"], target: LowRank
) -> Float[Tensor, "d_out d_in"]:
    """Fisher-weighted SVD: an error at input j costs f_j = sqrt(mean over i of (dL/dW_ij)^2).

    `squared_gradient` is (dL/dW)^2 averaged over batches, in any unit: only ratios of f_j count. No f_j is taken as
    less than `_FISHER_FLOOR` of their mean; a gradient that is zero everywhere leaves the plain `svd`.
    Source: Hsu et al. 2022 (arXiv 2207.00112), where weights are input x output and f belongs to a row.

    Raises `InputError` for weights or squared gradients that are not finite, and for negative squared gradients.

    >>> loud_second_input = torch.tensor([[1.0, 100.0], [1.0, 100.0]])
    >>> fwsvd(torch.diag(torch.tensor([3.0, 2.0])), loud_second_input, LowRank(1.0)).abs().tolist()
    [[0.0, 0.0], [0.0, 2.0]]
    """
    _check_finite(weight)
    fisher = squared_gradient.float().mean(dim=0)
    if not (squared_gradient.amin() >= 0) & fisher.isfinite().all():
        raise InputError("a squared gradient is negative, NaN or infinite; average (dL/dW)^2 in float32 over batches")
    size = fisher.sqrt()
    relative = torch.where(size.any(), size / size.mean(), torch.ones_like(size)).clamp(min=_FISHER_FLOOR)
    left, right = _factors(weight, weight.float() * relative, target)
    return (left @ right).to(weight.dtype)


def asvd(weight: Float[Tensor, "d_out d_in"], stats: InputStats, target: LowRank) -> Float[Tensor, "d_out d_in"]:
    """Activation-aware SVD: the matrix of its rank whose outputs on the calibration text are closest.

    Minimizes tr((W - W') H (W - W')^T) with H = G + `_DAMP` * diag(G), where a dead input is damped like the quietest
    live one. The damping decides only where rank goes that the text leaves over (fewer tokens than inputs, dead
    inputs): to the weights themselves. Where rounding makes H indefinite the damping rises tenfold, to 0.01 at most.
    Source: the optimum is that of Wang et al. 2024 (SVD-LLM, arXiv 2403.07378), who scale by a Cholesky factor of G
    and its inverse. Yuan et al. 2023 (ASVD, arXiv 2312.05821) scale by a diagonal matrix, which is not optimal.

    Raises `InputError` for weights or a Gram matrix that are not finite, and for one that cannot be a sum of x x^T.

    >>> loud_second_input = InputStats(torch.diag(torch.tensor([1.0, 100.0])), n_tokens=1)
    >>> asvd(torch.diag(torch.tensor([3.0, 2.0])), loud_second_input, LowRank(1.0)).abs().tolist()
    [[0.0, 0.0], [0.0, 2.0]]
    """
    _check_finite(weight)
    left, right = _factors(weight, weight.float() @ _gram_root(stats), target)
    return (left @ right).to(weight.dtype)


def joint_rank(weights: Sequence[Float[Tensor, "_ d_in"]], target: LowRank) -> list[Tensor]:
    """Truncated SVD of linked weights, stacked to [sum of d_out, d_in], at rank `target.rank(sum of d_out, d_in)`.

    Each keeps its own left factor, and the right factor, the directions of the input that are read at all, is stored
    once: at equal storage the rank is higher than that of two factorizations. The source links W_Q with W_K and W_gate
    with W_up. One weight alone gets the plain `svd`.
    Source: Peng et al. 2024 (arXiv 2402.16319), joint rank-k approximation.

    Raises `InputError` for weights that are not finite.

    >>> query, key = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    >>> [new.abs().tolist() for new in joint_rank([query, key], LowRank(1.0))]
    [[[3.0, 0.0]], [[0.0, 0.0]]]
    """
    stacked = torch.cat([weight.float() for weight in weights])
    _check_finite(stacked)
    left, right = _factors(stacked, stacked, target)
    parts = left.split([len(weight) for weight in weights])
    return [(own @ right).to(weight.dtype) for own, weight in zip(parts, weights, strict=True)]


def _factors(
    weight: Float[Tensor, "d_out d_in"], weighted: Float[Tensor, "d_out d_in"], target: LowRank
) -> tuple[Float[Tensor, "d_out k"], Float[Tensor, "k d_in"]]:
    """W on the span of the first left singular vectors of W S, as thin matrices in float32: U_k and U_k^T W."""
    left = torch.linalg.svd(weighted, full_matrices=False).U[:, : target.rank(*weight.shape)].contiguous()
    return left, left.T @ weight.float()


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
            damping = torch.full_like(size, _DAMP * 10**attempt).diag()
            lower, info = torch.linalg.cholesky_ex(correlation + damping)
            if info.item() == 0:
                return size[:, None] * lower
    raise InputError("the Gram matrix is NaN, infinite or far from a sum of x x^T; collect the statistics again")


def _solve_svd(weights: list[Tensor], evidence: Evidence, target: LowRank) -> tuple[list[Tensor], dict]:
    return [svd(weight, target) for weight in weights], {}


def _solve_fwsvd(weights: list[Tensor], evidence: Evidence, target: LowRank) -> tuple[list[Tensor], dict]:
    pairs = zip(weights, evidence.gradients, strict=True)
    return [fwsvd(weight, gradient.square, target) for weight, gradient in pairs], {}


def _solve_asvd(weights: list[Tensor], evidence: Evidence, target: LowRank) -> tuple[list[Tensor], dict]:
    return [asvd(weight, evidence.stats, target) for weight in weights], {}


def _solve_joint(weights: list[Tensor], evidence: Evidence, target: LowRank) -> tuple[list[Tensor], dict]:
    """`joint_rank` of weights that share an input, two by two in call order; an odd last one is alone.

    By structure and not by name: query, key, value give (query, key) and value; gate and up give one pair. In
    blocks where attention and MLP read the same input, value is paired with whatever is called next.
    """
    pairs = [weights[first : first + 2] for first in range(0, len(weights), 2)]
    return [new for pair in pairs for new in joint_rank(pair, target)], {}


SVD = Method(
    "svd",
    version=1,
    targets=(LowRank,),
    solve=_solve_svd,
    label="SVD",
    source="eckart1936",
    style=("#9A6324", "<"),
    place=80,
)
FWSVD = Method(
    "fwsvd",
    version=1,
    targets=(LowRank,),
    solve=_solve_fwsvd,
    gradients=True,
    label="FWSVD",
    source="hsu2022",
    style=("#3B5B6D", "d"),
    place=90,
)
ASVD = Method(
    "asvd",
    version=1,
    targets=(LowRank,),
    solve=_solve_asvd,
    reads="gram",
    label="ASVD",
    source="wang2025",
    style=("#1A237E", ">"),
    place=100,
)
JOINT_RANK = Method(
    "joint_rank",
    version=1,
    targets=(LowRank,),
    solve=_solve_joint,
    linked=True,
    label="joint rank-k",
    source="peng2024",
    style=("#6D4C41", "H"),
    place=110,
)
