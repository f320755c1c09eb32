"""D-Pruner as loops over float64 scalars, from least squares and single windows: no inverse, no means kept."""

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
    """S_m = c_m |W_m| mean_b |g_bm + W_m^2 / 1024|; `window_gradients` is [n_windows, d_out, d_in]."""
    weight, gradients = weight.double(), window_gradients.double()
    general = general_importance(weight, gram, n_tokens, damp)
    d_out, d_in = weight.shape
    product, term = torch.zeros_like(weight), torch.zeros_like(weight)
    for i in range(d_out):
        for j in range(d_in):
            for window in gradients:
                g, w = window[i, j].item(), weight[i, j].item()
                product[i, j] += general[i, j] * g**2 / len(gradients)
                term[i, j] += abs(g + w * w / 1024) / len(gradients)
    mean = sum(value.item() for value in product.flatten()) / weight.numel()
    result = torch.zeros_like(weight)
    for i in range(d_out):
        for j in range(d_in):
            relative = product[i, j].item() / mean if mean > 0 else 0.0
            result[i, j] = (1 + 2 * strength * relative) * abs(weight[i, j].item()) * term[i, j].item()
    return result


def dpruner(weight, gram, n_tokens, window_gradients, pattern, strength=0.1, damp=0.01):
    """Sort the whole matrix, or each group of a row, by score and drop the first ones."""
    score = scores(weight, gram, n_tokens, window_gradients, strength, damp)
    weight = weight.double().clone()
    d_out, d_in = weight.shape
    if isinstance(pattern, Unstructured):
        pools, drop = [[(i, j) for i in range(d_out) for j in range(d_in)]], int(weight.numel() * pattern.sparsity)
    else:
        starts = range(0, d_in, pattern.m)
        pools = [[(i, j) for j in range(left, left + pattern.m)] for i in range(d_out) for left in starts]
        drop = pattern.m - pattern.n
    for pool in pools:
        for i, j in sorted(pool, key=lambda place: (score[place].item(), place))[:drop]:
            weight[i, j] = 0
    return weight
