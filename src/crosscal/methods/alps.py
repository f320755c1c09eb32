"""ALPS: the mask and the weights of a layer from one optimization, by alternating directions.

    minimize tr((Q - W) H (Q - W)^T)   over Q with k weights that are not zero

is split into a quadratic part, solved for all weights at once in the eigenbasis of H, and a projection onto the k
largest; a penalty rho that grows ties the two together. When the support no longer changes, the kept weights are the
least squares solution on it. Meng et al. 2024 (arXiv 2406.07831); the strongest published one-shot pruner of its kind,
and about twenty times as dear as SparseGPT.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosscal.calibration.statistics import InputStats
from crosscal.methods.masks import _check_finite, drop_mask
from crosscal.methods.refine import _damped, least_squares
from crosscal.methods.registry import Evidence, Method
from crosscal.types import NofM, Pattern, Unstructured

_RHO, _EVERY, _STEPS = 0.1, 3, 90
_GROWTH = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))
"""Share of the kept weights whose support changed since the last look -> factor of rho."""


def alps(
    weight: Float[Tensor, "d_out d_in"], stats: InputStats, pattern: Pattern, *, damp: float = 0.01
) -> Float[Tensor, "d_out d_in"]:
    """Prune to `pattern` by ADMM on H scaled to a unit diagonal, then least squares on the support.

    H = G + damp * mean(diag G) * I; unstructured patterns zero floor(s * size) weights of the whole matrix. Dead
    inputs lose their weights. Equation eq-alps of the book.
    Source: Meng et al. 2024 (arXiv 2406.07831), algorithm 1, with its constants.

    Raises `InputError` for weights that are not finite and a group that does not divide d_in.

    >>> stats = InputStats(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), n_tokens=2)
    >>> alps(torch.tensor([[0.5, 2.0]]), stats, NofM(1, 2), damp=0.0).round(decimals=2).tolist()
    [[0.0, 2.25]]
    """
    _check_finite(weight)
    return _solve([weight], Evidence(stats), pattern, damp=damp)[0][0]


def _solve(
    weights: list[Tensor], evidence: Evidence, target: Pattern, *, damp: float = 0.01
) -> tuple[list[Tensor], dict]:
    """`alps` for weights that share one input: one eigendecomposition for all of them."""
    stats = evidence.stats
    hessian, dead = _damped(stats, damp), stats.diagonal == 0
    size = hessian.diagonal().sqrt()
    scaled = hessian / size / size[:, None]
    values, vectors = torch.linalg.eigh(scaled)
    new, steps = [], []
    for weight in weights:
        dense = weight.float().masked_fill(dead, 0)
        keep, taken = _support(dense * size, scaled, values, vectors, target)
        new.append(least_squares(dense, dense, keep & ~dead, stats, damp=damp).to(weight.dtype))
        steps.append(taken)
    return new, {"failed": ~values.sum().isfinite(), "damp": damp, "steps": max(steps)}


def _support(
    weight: Tensor, hessian: Tensor, values: Tensor, vectors: Tensor, pattern: Pattern
) -> tuple[Bool[Tensor, "rows d_in"], int]:
    """The weights that stay once the penalty has made both parts agree, and how many steps that took."""
    aim, solution, dual, rho = weight @ hessian, weight.clone(), torch.zeros_like(weight), _RHO
    keep = seen = torch.ones_like(weight, dtype=torch.bool)
    for step in range(1, _STEPS + 1):
        smooth = ((aim - dual + rho * solution) @ vectors / (values + rho)) @ vectors.T
        keep = ~drop_mask((smooth + dual / rho).square_(), pattern, per="matrix")
        solution = (smooth + dual / rho) * keep
        dual += rho * (smooth - solution)
        if step % _EVERY == 0:
            share = (keep ^ seen).sum().item() / max(1, keep.sum().item())
            if share == 0:
                break
            seen, rho = keep, rho * next(factor for least, factor in _GROWTH if share >= least)
    return keep, step


METHOD = Method(
    "alps",
    version=1,
    targets=(Unstructured, NofM),
    solve=_solve,
    reads="gram",
    damped=True,
    cost=(10.0, 200.0),
    label="ALPS",
    source="meng2024",
    style=("#9A5B00", "p"),
    place=35,
)
