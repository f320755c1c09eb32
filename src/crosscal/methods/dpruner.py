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


def dpruner(
    weight: Float[Tensor, "d_out d_in"],
    stats: InputStats,
    gradient: WeightGradient,
    pattern: Pattern,
    *,
    strength: float = 0.1,
    damp: float = 0.01,
) -> Float[Tensor, "d_out d_in"]:
    """Zero the weights whose removal should change the regularized domain loss least; no update.

    `stats` are of general text and `gradient` of domain text. Unstructured: weights compete across the whole matrix
    and exactly floor(sparsity * size) go. N:M: within each group of M inputs of a row.
    Source: Zhang et al. 2024 (arXiv 2405.06275), its pruning only, without the training that goes with it there.

    Raises `InputError` for weights that are not finite, a gradient of another shape than its weight, a negative
    strength, a group that does not divide d_in, or a Hessian that no damping makes positive definite.

    >>> weight, general = torch.tensor([[1.0, 1.0, 1.0, 1.0]]), InputStats(torch.eye(4), n_tokens=1)
    >>> slope = torch.tensor([[0.3, -0.1, 0.2, 0.0]])
    >>> dpruner(weight, general, WeightGradient(slope.square(), n_windows=1, term=slope), Unstructured(0.5)).tolist()
    [[1.0, 0.0, 1.0, 0.0]]
    """
    _check_finite(weight)
    scores = _scores(weight, _inverse_factor(stats, damp), stats.n_tokens, gradient, strength)
    return torch.where(drop_mask(scores, pattern, per="matrix"), 0, weight)


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
    weight: Float[Tensor, "d_out d_in"],
    factor: _InverseFactor,
    n_tokens: int,
    gradient: WeightGradient,
    strength: float,
) -> Float[Tensor, "d_out d_in"]:
    """|L(W) - L(W with W_m = 0)| in nats for each weight m, to second order, with L the regularized domain loss.

    For weight m, at row i and input j, g_m is the mean over windows of domain text of dL_next/dW_m, F_m of its square.
    Equation eq-dpruner of the book, where G_m is I_m.

    1. General importance, by optimal brain surgeon (Hassibi et al. 1993): G_m = W_m^2 / [H^-1]_jj, the least mean
       squared output error per token with which the rest of the row can do without W_m. H = 2 E[x x^T] and the
       factor 1/2 of that expansion cancel, so H here is E[x x^T] plus damping. 0 for inputs never active.
    2. Regularized loss: L = L_next + strength * sum_m G_m (W'_m - W_m)^2, with W' = W - alpha * g one gradient step
       away, so the second term is strength * alpha^2 * sum_m G_m g_m^2. With G constant and the second derivative
       dg_m/dW_m taken as the diagonal Fisher information F_m, its gradient is 2 strength alpha^2 G_m F_m g_m: the
       domain's gradient, c_m times as steep, with c_m = 1 + 2 strength alpha^2 G_m F_m.
    3. Score: the Taylor expansion |c_m g_m W_m - c_m^2 F_m W_m^2 / 2|, with c_m^2 F_m, the mean square over windows
       of the regularized gradient, for the second derivative.

    `alpha` is such that sum_m G_m E[(alpha dL/dW_m)^2] averages 1 per weight of the matrix. `strength` is thus free
    of units: gradients grow by a fraction 2 * strength on average, whatever the scale of inputs, weights or loss.
    At strength 0 the general text has no say, and the score is that of LLM-Pruner for single weights (Ma et al.
    2023, arXiv 2305.11627).

    Where this differs from the paper (arXiv 2405.06275) and the code released with it, and why:
    - The code takes G while SparseGPT prunes, w^2 / U_jj^2: on updated weights, with only the inputs to the right to
      make up for the loss, summed over a window. Here it is the formula, on the weights as they are, per token.
    - Its alpha is the learning rate of training, 0.03 by default, and it adds 2 strength alpha^2 G g^2 / 1000 to g:
      even in g, so slopes of either sign fare differently, and 1.8e-7 G |g| of g, which leaves general text next to
      no say. Here the term is odd in g, as a derivative of g^2 must be, and alpha needs no training.
    - The second-order term there is +(g W)^2 / 2 (in the code / 2000), from the same gradient. The expansion at
      W_m = 0 has a minus, and the Fisher information is a mean of squares and not the square of a mean.
    - The code adds W^3 inside the absolute value, where the expansion only leaves a rest of that order. Not here.
    - It sums the scores of batches while training moves the weights. Here both moments are of the fixed weights.

    F is of window gradients; token by token it would be larger, so the second-order term is on the low side.
    The product form is the paper's: a weight without domain gradient scores 0 however much general text needs it.
    """
    if gradient.term is None:
        raise InputError("the gradient has no term; gather it with METHOD.term of crosscal.methods.dpruner")
    if gradient.term.shape != weight.shape:
        shapes = f"{tuple(gradient.term.shape)} and the weight {tuple(weight.shape)}"
        raise InputError(f"the gradient is {shapes}; give each weight its own gradient, as [d_out, d_in]")
    if strength < 0:
        raise InputError(f"strength is {strength:g}; give 0 (domain text alone) or more")
    weight = weight.float()
    # H^-1 = U^T U: its diagonal is the sum of squares of each column of U.
    inverse_diagonal = factor.upper.square().sum(dim=0) * n_tokens
    general = _relative(torch.where(factor.dead, 0, weight.square() / inverse_diagonal))
    slope = 1 + 2 * strength * _relative(general * _relative(gradient.square))
    return (slope * gradient.term * weight - (slope * weight).square() * gradient.square / 2).abs()


def _gradient_itself(gradient: Tensor, weight: Tensor) -> Tensor:
    return gradient


def _relative(values: Float[Tensor, "d_out d_in"]) -> Float[Tensor, "d_out d_in"]:
    """Non-negative values over their mean; all 0 stays 0."""
    mean = values.mean()
    return values / torch.where(mean > 0, mean, 1)


METHOD = Method(
    "dpruner",
    version=1,
    targets=(Unstructured, NofM),
    solve=_solve,
    reads="gram",
    gradients=True,
    term=_gradient_itself,
    damped=True,
    domain_last=True,
    options={"strength": 0.1},
    cost=(4 / 3, 1.0),
    label="D-Pruner",
    source="zhang2024",
    style=("#5A5A00", "h"),
    place=70,
)
