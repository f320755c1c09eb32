"""The one factorization that second-order methods need."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosscal.calibration.statistics import InputStats
from crosscal.errors import InputError


class InverseFactor(NamedTuple):
    """`upper` is U with H^-1 = U^T U; `dead` marks inputs that were never active; `damp` is what was needed."""

    upper: Float[Tensor, "d_in d_in"]
    dead: Bool[Tensor, " d_in"]
    damp: float


def inverse_factor(stats: InputStats, damp: float = 0.01, attempts: int = 4) -> InverseFactor:
    """The upper Cholesky factor U of H^-1, with H = G + damp * mean(diag G) * I.

    One factorization and one triangular solve: with J the flip of both axes and J H J = L L^T,
    R = J L J is upper triangular and H = R R^T, so H^-1 = (R^-1)^T R^-1 and U = R^-1.
    A dead input (G_jj = 0) gets H_jj = 1. When H is not positive definite the damping rises tenfold, up to
    `attempts` tries in all.

    Raises `InputError` when every try fails.

    >>> inverse_factor(InputStats(4 * torch.eye(2), n_tokens=1), damp=0.0).upper.tolist()
    [[0.5, 0.0], [0.0, 0.5]]
    """
    gram = stats.gram.float()
    diagonal = gram.diagonal()
    dead = diagonal == 0
    mean = diagonal.mean()
    eye = torch.eye(len(gram), device=gram.device)
    for attempt in range(attempts):
        used = damp * 10**attempt
        hessian = gram + torch.diag(torch.where(dead, torch.ones_like(diagonal), used * mean))
        lower, info = torch.linalg.cholesky_ex(hessian.flip(0, 1))
        if info.item() == 0:
            upper = torch.linalg.solve_triangular(lower.flip(0, 1), eye, upper=True)
            if upper.sum().isfinite():
                return InverseFactor(upper, dead, used)
    raise InputError(
        f"the Hessian is not positive definite even with damping {used:g}; use more calibration text or a larger damp"
    )
