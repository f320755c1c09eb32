"""The one factorization that second-order methods need: the upper Cholesky factor of an inverse, by halves.

SparseGPT and GPTQ need U with H^-1 = U^T U. The textbook takes three steps of about n^3 each: Cholesky of H, inverse,
Cholesky of that. But with H = R R^T and R *upper* triangular, U is just R^-1. By halves, H = [[A, B], [B^T, C]] and
C = S S^T: with V = S^-1 the corner of R is B V^T, the rest to factorize is A - (B V^T)(B V^T)^T = Q Q^T, and
R^-1 = [[Q^-1, -Q^-1 (B V^T) V], [0, V]]. One recursion in place of three steps, and nearly all of it matrix products;
blocks of `_LEAF` are left to the library.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosscal.calibration.statistics import InputStats
from crosscal.errors import InputError

DAMP_STEP = 10.0
ATTEMPTS = 4
_LEAF = 256  # size up to which a library's factorization is faster than halving


class _InverseFactor(NamedTuple):
    """`upper` is U with H^-1 = U^T U; `dead` marks inputs that were never active; `damp` is the damping used.

    `failed` is true where H was not positive definite, and then `upper` means nothing.
    """

    upper: Float[Tensor, "d_in d_in"]
    dead: Bool[Tensor, " d_in"]
    damp: float
    failed: Bool[Tensor, ""]


def _try_factor(stats: InputStats, damp: float = 0.01) -> _InverseFactor:
    """The upper Cholesky factor U of H^-1, with H = G + damp * mean(diag G) * I, or `failed`; never waits for a GPU.

    A dead input (G_jj = 0) gets H_jj = 1.

    >>> _try_factor(InputStats(4 * torch.eye(2), n_tokens=1), damp=0.0).upper.tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    hessian = stats.gram.to(torch.float32, copy=True)
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    diagonal += torch.where(dead, torch.ones_like(diagonal), damp * diagonal.mean())
    upper = torch.zeros_like(hessian)
    failed = _invert_factor(hessian, upper)
    return _InverseFactor(upper, dead, damp, failed | ~upper.sum().isfinite())


def _inverse_factor(stats: InputStats, damp: float = 0.01, attempts: int = ATTEMPTS) -> _InverseFactor:
    """`_try_factor`, with the damping raised tenfold after each failure, up to `attempts` tries in all.

    Raises `InputError` when every try fails.
    """
    for attempt in range(attempts):
        factor = _try_factor(stats, damp * DAMP_STEP**attempt)
        if not factor.failed:
            return factor
    raise InputError(
        f"the Hessian is not positive definite even with damping {factor.damp:g}; use more calibration text or a "
        "larger damp"
    )


def _invert_factor(hessian: Float[Tensor, "n n"], upper: Float[Tensor, "n n"], leaf: int = _LEAF) -> Bool[Tensor, ""]:
    """Write U = R^-1 into `upper`, which comes in as zeros, and return whether a leaf was not positive definite.

    `hessian` is overwritten.

    >>> upper = torch.zeros(2, 2)
    >>> _invert_factor(torch.tensor([[2.0, 2.0], [2.0, 4.0]]), upper, leaf=1).item(), upper.tolist()
    (False, [[1.0, -0.5], [0.0, 0.5]])
    """
    size = len(hessian)
    if size <= leaf:
        # With J the flip of both axes, J H J = L L^T gives R = J L J.
        lower, info = torch.linalg.cholesky_ex(hessian.flip(0, 1))
        eye = torch.eye(size, device=hessian.device, dtype=hessian.dtype)
        upper.copy_(torch.linalg.solve_triangular(lower.flip(0, 1), eye, upper=True))
        return info != 0
    half = size // 2
    first, second = upper[:half, :half], upper[half:, half:]
    failed = _invert_factor(hessian[half:, half:], second, leaf)
    corner = hessian[:half, half:] @ second.T
    rest = hessian[:half, :half].addmm_(corner, corner.T, alpha=-1)
    failed = failed | _invert_factor(rest, first, leaf)
    torch.mm(-(first @ corner), second, out=upper[:half, half:])
    return failed
