"""D-Pruner without training: gradients on domain text, made steeper where general text needs a weight too."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crosscal.calibration.statistics import InputStats, WeightGradient
from crosscal.errors import InputError
from crosscal.methods.linalg import _inverse_factor, _InverseFactor, _try_factor
from crosscal.methods.masks import _check_finite, drop_mask
from crosscal.methods.registry import Evidence, Method
from crosscal.types import NofM, Pattern, Unstructured

LOSS_SCALE = 1024.0


def dpruner(
    weight: Float[Tensor, "d_out d_in"],
    stats: InputStats,
    gradient: WeightGradient,
    pattern: Pattern,
    *,
    strength: float = 0.1,
    damp: float = 0.01,
) -> Float[Tensor, "d_out d_in"]:
    """Zero the weights with the smallest c_m |W_m| mean_b |g_bm + W_m^2 / 1024|; no update.

    g_b is the gradient of the mean next-token loss of one window b of domain text. The absolute value stands inside the
    mean over windows: gradients of a trained model cancel, and their mean says little. `gradient.term` is that mean, of
    `dpruner_term`, and `gradient.square` is F_m = mean_b g_bm^2. General text enters by c_m = 1 + 2 strength rel(G_m
    F_m): G_m = W_m^2 / [H^-1]_jj is the least output error per token with which the rest of the row can do without W_m
    (Hassibi et al. 1993; 0 for inputs never active), and rel divides by the mean over the matrix, so that gradients
    grow by a fraction 2 * strength on average, whatever the scale of inputs, weights or loss.

    Unstructured: weights compete across the whole matrix and exactly floor(sparsity * size) go. N:M: within each group
    of M inputs of a row. Equation eq-dpruner of the book, where G_m is I_m.
    Source: Zhang et al. 2024 (arXiv 2405.06275) and the code released with it, which adds |g W + (g W)^2 / 2000 + W^3|
    at every step of training, g still multiplied by the loss scale of about 2^10; its pruning only, on fixed weights.

    Raises `InputError` for weights that are not finite, a gradient without term or of another shape than its weight, a
    negative strength, a group that does not divide d_in, or a Hessian that no damping makes positive definite.

    >>> weight, general = torch.tensor([[1.0, 1.0, 1.0, 1.0]]), InputStats(torch.eye(4), n_tokens=1)
    >>> windows = torch.tensor([[[0.3, -0.1, 0.2, 0.0]], [[-0.3, -0.1, 0.2, 0.0]]])
    >>> term = torch.stack([dpruner_term(window, weight) for window in windows]).mean(dim=0)
    >>> moments = WeightGradient(windows.square().mean(dim=0), n_windows=2, term=term)
    >>> dpruner(weight, general, moments, Unstructured(0.5)).tolist()
    [[1.0, 0.0, 1.0, 0.0]]
    """
    _check_finite(weight)
    scores = _scores(weight, _inverse_factor(stats, damp), stats.n_tokens, gradient, strength)
    return torch.where(drop_mask(scores, pattern, per="matrix"), 0, weight)


def dpruner_term(gradient: Float[Tensor, "..."], weight: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return |g + W^2 / 1024| for one window's gradient g of a weight W, the released code's term over |W|."""
    return (gradient + weight.square() / LOSS_SCALE).abs()


def _solve(
    weights: Sequence[Tensor], evidence: Evidence, target: Pattern, *, strength: float = 0.1, damp: float = 0.01
) -> tuple[list[Tensor], dict]:
    """`dpruner` for several weights that share one input: one factorization for all; the facts say if it `failed`."""
    factor, new = _try_factor(evidence.stats, damp), []
    for weight, gradient in zip(weights, evidence.gradients, strict=True):
        scores = _scores(weight, factor, evidence.stats.n_tokens, gradient, strength)
        new.append(torch.where(drop_mask(scores, target, per="matrix"), 0, weight))
    return new, {"failed": factor.failed, "damp": damp}


def _scores(
    weight: Tensor, factor: _InverseFactor, n_tokens: int, gradient: WeightGradient, strength: float
) -> Float[Tensor, "d_out d_in"]:
    if gradient.term is None:
        raise InputError("the gradient has no term; gather it with term=dpruner_term")
    if gradient.term.shape != weight.shape:
        shapes = f"{tuple(gradient.term.shape)} and the weight {tuple(weight.shape)}"
        raise InputError(f"the gradient is {shapes}; give each weight its own gradient, as [d_out, d_in]")
    if strength < 0:
        raise InputError(f"strength is {strength:g}; give 0 (domain text alone) or more")
    weight = weight.float()
    # With H^-1 = U^T U, its diagonal is the sum of squares of each column of U.
    inverse_diagonal = factor.upper.square().sum(dim=0) * n_tokens
    general = _relative(torch.where(factor.dead, 0, weight.square() / inverse_diagonal))
    steeper = 1 + 2 * strength * _relative(general * _relative(gradient.square))
    return steeper * weight.abs() * gradient.term


def _relative(values: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "d_out d_in"]:
    """Non-negative values over their mean; all 0 stays 0."""
    mean = values.mean()
    return values / torch.where(mean > 0, mean, 1)


METHOD = Method(
    "dpruner",
    version=2,
    targets=(Unstructured, NofM),
    solve=_solve,
    reads="gram",
    gradients=True,
    term=dpruner_term,
    damped=True,
    domain_last=True,
    options={"strength": 0.1},
    cost=(4 / 3, 1.0),
    label="D-Pruner",
    source="zhang2024",
    style=("#5A5A00", "h"),
    place=70,
)
