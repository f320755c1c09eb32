"""Magnitude, Wanda and SparseGPT as plain loops over float64 scalars and columns."""

import torch

from crosscal.types import NofM, Unstructured


def magnitude(weight, pattern):
    """Sort all weights, or each group's, by absolute value and drop the first ones."""
    weight = weight.double().clone()
    if isinstance(pattern, Unstructured):
        order = sorted(range(weight.numel()), key=lambda i: (weight.flatten()[i].abs().item(), i))
        for i in order[: int(weight.numel() * pattern.sparsity + 1e-6)]:
            weight.view(-1)[i] = 0
        return weight
    return _per_row_groups(weight, weight.abs(), pattern)


def wanda(weight, gram, n_tokens, pattern):
    """Score |W_ij| * sqrt(mean_t x_tj^2) (Sun et al. 2024, eq. 1), rows apart."""
    weight = weight.double().clone()
    scores = weight.abs() * (gram.double().diagonal() / n_tokens).sqrt()
    if isinstance(pattern, NofM):
        return _per_row_groups(weight, scores, pattern)
    for i in range(len(weight)):
        order = sorted(range(weight.shape[1]), key=lambda j: (scores[i, j].item(), j))
        for j in order[: int(weight.shape[1] * pattern.sparsity + 1e-6)]:
            weight[i, j] = 0
    return weight


def _per_row_groups(weight, scores, pattern):
    for i in range(len(weight)):
        for left in range(0, weight.shape[1], pattern.m):
            group = sorted(range(left, left + pattern.m), key=lambda j: (scores[i, j].item(), j))
            for j in group[: pattern.m - pattern.n]:
                weight[i, j] = 0
    return weight


def sparsegpt(weight, gram, pattern, damp=0.01, block=128):
    """Algorithm 1 of Frantar & Alistarh 2023, with explicit inverses: no factorization trick, no delayed update."""
    weight, hessian = weight.double().clone(), gram.double().clone()
    dead = hessian.diagonal() == 0
    mean = hessian.diagonal().mean()
    hessian += torch.diag(torch.where(dead, 1.0, damp * mean))
    weight[:, dead] = 0
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    d_in = weight.shape[1]
    for start in range(0, d_in, block):
        end = min(start + block, d_in)
        if isinstance(pattern, Unstructured):
            drop = _smallest_of_block(weight[:, start:end] ** 2 / upper.diagonal()[start:end] ** 2, pattern.sparsity)
        for j in range(start, end):
            if isinstance(pattern, NofM):
                if (j - start) % pattern.m == 0:
                    right = j + pattern.m
                    scores = weight[:, j:right] ** 2 / upper.diagonal()[j:right] ** 2
                    group = torch.zeros_like(scores, dtype=torch.bool)
                    group.scatter_(1, scores.argsort(dim=1, stable=True)[:, : pattern.m - pattern.n], True)
                column = group[:, (j - start) % pattern.m]
            else:
                column = drop[:, j - start]
            value = torch.where(column, 0.0, weight[:, j])
            error = (weight[:, j] - value) / upper[j, j]
            weight[:, j] = value
            weight[:, j + 1 :] -= error[:, None] * upper[j, j + 1 :]
    return weight


def _smallest_of_block(scores, sparsity):
    """Everything up to the score at position int(size * sparsity); nothing at 0, everything at 1."""
    if sparsity == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    ordered = scores.flatten().sort().values
    position = int(scores.numel() * sparsity)
    return scores <= ordered[position] if position < len(ordered) else torch.ones_like(scores, dtype=torch.bool)
