"""D-Pruner as loops over float64 scalars, from least squares and single windows: no inverse, no moments."""

import torch

from crosscal.types import Unstructured


def general_importance(weight, gram, n_tokens, damp=0.01):
    """The least squared output error per token when W_ij becomes 0 and the rest of the row makes up for it.

    The other weights' best answer solves the normal equations for W_ij x_j as the target; inputs never active give 0.
    """
    weight, moment = weight.double(), gram.double() / n_tokens
    moment = moment + damp * moment.diagonal().mean() * torch.diag((moment.diagonal() != 0).double())
    importance = torch.zeros_like(weight)
    alive = [j for j in range(len(moment)) if moment[j, j] != 0]
    for j in alive:
        others = [k for k in alive if k != j]
        answer = torch.linalg.solve(moment[others][:, others], moment[others, j])
        residual = moment[j, j] - moment[others, j] @ answer
        for i in range(len(weight)):
            importance[i, j] = weight[i, j] ** 2 * residual
    return importance


def scores(weight, gram, n_tokens, window_gradients, strength=0.1, damp=0.01):
    """|L(W) - L(W_m = 0)| to second order; `window_gradients` is [n_windows, d_out, d_in]."""
    weight, gradients = weight.double(), window_gradients.double()
    general = general_importance(weight, gram, n_tokens, damp)
    d_out, d_in = weight.shape
    fisher = torch.zeros_like(weight)
    for window in gradients:
        fisher += window**2 / len(gradients)
    size = sum((general[i, j] * fisher[i, j]).item() for i in range(d_out) for j in range(d_in)) / weight.numel()
    alpha_squared = 1 / size if size > 0 else 0.0
    result = torch.zeros_like(weight)
    for i in range(d_out):
        for j in range(d_in):
            first = second = 0.0
            for window in gradients:
                g = window[i, j].item()
                g += 2 * strength * alpha_squared * general[i, j].item() * fisher[i, j].item() * g
                first += g / len(gradients)
                second += g**2 / len(gradients)
            w = weight[i, j].item()
            result[i, j] = abs(first * w - second * w**2 / 2)
    return result


def dpruner(weight, gram, n_tokens, window_gradients, pattern, strength=0.1, damp=0.01):
    """Sort the whole matrix, or each group of a row, by score and drop the first ones."""
    found = scores(weight, gram, n_tokens, window_gradients, strength, damp)
    weight = weight.double().clone()
    d_out, d_in = weight.shape
    if isinstance(pattern, Unstructured):
        pools, drop = [[(i, j) for i in range(d_out) for j in range(d_in)]], int(weight.numel() * pattern.sparsity)
    else:
        starts = range(0, d_in, pattern.m)
        pools = [[(i, j) for j in range(left, left + pattern.m)] for i in range(d_out) for left in starts]
        drop = pattern.m - pattern.n
    for pool in pools:
        for i, j in sorted(pool, key=lambda place: (found[place].item(), place))[:drop]:
            weight[i, j] = 0
    return weight
