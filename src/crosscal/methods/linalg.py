"""The one factorization that second-order methods need."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosscal.calibration.statistics import InputStats
from crosscal.errors import InputError

DAMP_STEP = 10.0
ATTEMPTS = 4


class InverseFactor(NamedTuple):
    """`upper` is U with H^-1 = U^T U; `dead` marks inputs that were never active; `damp` is what was used.

    `failed` is true where H was not positive definite, and then `upper` means nothing.
    """

    upper: Float[Tensor, "d_in d_in"]
    dead: Bool[Tensor, " d_in"]
    damp: float
    failed: Bool[Tensor, ""]


def try_factor(stats: InputStats, damp: float = 0.01) -> InverseFactor:
    """The upper Cholesky factor U of H^-1, with H = G + damp * mean(diag G) * I, or `failed`; never waits for a GPU.

    One factorization and one triangular solve: with J the flip of both axes and J H J = L L^T,
    R = J L J is upper triangular and H = R R^T, so H^-1 = (R^-1)^T R^-1 and U = R^-1.
    A dead input (G_jj = 0) gets H_jj = 1.

    >>> try_factor(InputStats(4 * torch.eye(2), n_tokens=1), damp=0.0).upper.tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    hessian = stats.gram.float().flip(0, 1)  # a copy, which the next lines change
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    diagonal += torch.where(dead, torch.ones_like(diagonal), damp * diagonal.mean())
    lower, info = torch.linalg.cholesky_ex(hessian)
    upper = invert_upper(lower.flip(0, 1))
    return InverseFactor(upper, dead.flip(0), damp, (info != 0) | ~upper.sum().isfinite())


def inverse_factor(stats: InputStats, damp: float = 0.01, attempts: int = ATTEMPTS) -> InverseFactor:
    """`try_factor`, with the damping raised tenfold after each failure, up to `attempts` tries in all.

    Raises `InputError` when every try fails.

    >>> inverse_factor(InputStats(torch.ones(2, 2), n_tokens=1), damp=0.01).damp
    0.01
    """
    for attempt in range(attempts):
        factor = try_factor(stats, damp * DAMP_STEP**attempt)
        if not factor.failed:
            return factor
    raise InputError(
        f"the Hessian is not positive definite even with damping {factor.damp:g}; use more calibration text or a "
        "larger damp"
    )


def invert_upper(matrix: Float[Tensor, "n n"], leaf: int = 256) -> Float[Tensor, "n n"]:
    """The inverse of an upper triangular matrix, by halves: [[A, B], [0, C]] -> [[A^-1, -A^-1 B C^-1], [0, C^-1]].

    A third of the work of solving against the identity, and nearly all of it matrix products.

    >>> invert_upper(torch.tensor([[1.0, 1.0], [0.0, 2.0]]), leaf=1).tolist()
    [[1.0, -0.5], [0.0, 0.5]]
    """
    inverse = torch.zeros_like(matrix)
    _invert_into(inverse, matrix, leaf)
    return inverse


def _invert_into(inverse: Tensor, matrix: Tensor, leaf: int) -> None:
    size = len(matrix)
    if size <= leaf:
        eye = torch.eye(size, device=matrix.device, dtype=matrix.dtype)
        inverse.copy_(torch.linalg.solve_triangular(matrix, eye, upper=True))
        return
    half = size // 2
    _invert_into(inverse[:half, :half], matrix[:half, :half], leaf)
    _invert_into(inverse[half:, half:], matrix[half:, half:], leaf)
    inverse[:half, half:] = -(inverse[:half, :half] @ matrix[:half, half:]) @ inverse[half:, half:]
