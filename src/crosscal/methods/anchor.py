"""Anchored calibration: aim at the dense model's outputs, not at the layer's own on drifted inputs.

A layer of a half-compressed model sees inputs y that have drifted from the x it saw in the dense one. Keeping W y is
then the wrong aim: what the next layer should get is W x. The regression of W x on y,

    W* = W (C + R) (H + R)^-1,   C = E[x y^T],  H = E[y y^T],  R = damp * mean(diag H) * I,

is the weight that reaches it best, and every solver that works on (weight, H) can be given W + a (W* - W) instead of W.
The whole way, a = 1, diverges: regression on a noisy input shrinks, W* lies 30 to 50 % of its norm away from W, and
over the blocks the shrinking feeds on itself, whatever the ridge. A quarter of the way keeps most of the gain.
After GPTAQ (arXiv 2504.02692), which folds the same asymmetry into GPTQ's sweep; here it is apart from the solver, so
that pruning has it too, and C mixes over sources as H does.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosscal.calibration.statistics import InputStats
from crosscal.errors import real_number

MOST = 0.5  # beyond it the compressed model diverges
_DAMP = 0.1  # of the mean of diag H; less lets the regression shrink weights along directions with little input


def dense_aims(
    weights: Sequence[Float[Tensor, "_ d_in"]], stats: InputStats, *, strength: float = 0.25, damp: float = _DAMP
) -> tuple[list[Float[Tensor, "_ d_in"]], Bool[Tensor, ""]]:
    """Return W + strength * W (C - H)(H + R)^-1 of weights that share an input: what a solver should aim at; float32.

    C is `stats.cross`, the sum over tokens of x y^T, and H `stats.gram`, of y y^T. Where x = y the weights come back as
    they were, as do those of inputs that are dead in the compressed model. The second value is whether H + R is not
    positive definite, and then the aims mean nothing. Equation eq-anchor of the book.

    >>> gram, cross = torch.diag(torch.tensor([2.0, 2.0])), torch.diag(torch.tensor([4.0, 2.0]))
    >>> stats = InputStats(gram, n_tokens=1, cross=cross)
    >>> dense_aims([torch.tensor([[1.0, 1.0]])], stats, strength=0.5, damp=0.0)[0][0].tolist()
    [[1.5, 1.0]]
    """
    check_strength(strength)
    cross = stats.gram if stats.cross is None else stats.cross  # without it nothing has drifted
    hessian = stats.gram.to(torch.float32, copy=True)
    diagonal = hessian.diagonal()
    dead = diagonal == 0
    drift = (cross.float() - hessian).masked_fill_(dead, 0)
    diagonal += torch.where(dead, torch.ones_like(diagonal), damp * diagonal.mean())
    factor, info = torch.linalg.cholesky_ex(hessian)
    stacked = torch.cat([weight.float() for weight in weights])
    step = torch.cholesky_solve((stacked @ drift).T, factor).T
    aims = torch.add(stacked, step, alpha=strength)
    return list(aims.split([len(weight) for weight in weights])), info != 0


def check_strength(strength: object) -> None:
    """Raise `InputError` unless an anchor is a number from 0 to 0.5, where it stays stable."""
    real_number("anchor", strength, 0, MOST)
