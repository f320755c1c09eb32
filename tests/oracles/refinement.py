"""Least squares, swaps, anchors, and Fisher masks as plain float64 loops from the formulas."""

import itertools

import torch

from crosscal.types import NofM


def damped(gram, damp):
    """G + damp * mean(diag G) * I, 1 in the place of dead inputs."""
    gram = gram.double()
    dead = gram.diagonal() == 0
    return gram + torch.diag(torch.where(dead, 1.0, damp * gram.diagonal().mean()))


def least_squares(dense, keep, gram, damp):
    """Row by row: w_K + (H_KK)^-1 H_KP w_P, with K kept and P pruned."""
    hessian, result = damped(gram, damp), torch.zeros_like(dense, dtype=torch.float64)
    for i, row in enumerate(dense.double()):
        k, p = keep[i].nonzero()[:, 0], (~keep[i]).nonzero()[:, 0]
        if len(k):
            result[i, k] = row[k] + torch.linalg.solve(hessian[k][:, k], hessian[k][:, p] @ row[p])
    return result


def loss(dense, keep, gram):
    """e G e^T of each row, e its pruned weights."""
    pruned = dense.double() * ~keep
    return ((pruned @ gram.double()) * pruned).sum(dim=1)


def best_swap(dense, keep, gram, pattern=None):
    """The least loss that one exchange can reach, row by row, by trying all."""
    least = loss(dense, keep, gram)
    for i in range(len(dense)):
        for p, k in itertools.product((~keep[i]).nonzero()[:, 0].tolist(), keep[i].nonzero()[:, 0].tolist()):
            if isinstance(pattern, NofM) and p // pattern.m != k // pattern.m:
                continue
            other = keep[i : i + 1].clone()
            other[0, p], other[0, k] = True, False
            least[i] = min(least[i], loss(dense[i : i + 1], other, gram)[0])
    return least


def anchored(weight, dense_inputs, compressed_inputs, strength, damp):
    """W + a (W* - W), with W* the ridge regression of W x on y that is drawn to W."""
    x, y = dense_inputs.double(), compressed_inputs.double()
    hessian, cross = y.T @ y, x.T @ y
    ridge = damp * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    best = weight.double() @ (cross + ridge) @ torch.linalg.inv(hessian + ridge)
    return weight.double() + strength * (best - weight.double())


def smallest(parts, count):
    """Sort all values of all parts, the first of equal ones first, and mark `count` of them."""
    order = sorted((value.item(), n, i) for n, part in enumerate(parts) for i, value in enumerate(part.flatten()))
    drop = [torch.zeros(part.numel(), dtype=torch.bool) for part in parts]
    for _, n, i in order[:count]:
        drop[n][i] = True
    return [mask.view_as(part) for mask, part in zip(drop, parts, strict=True)]


def sweep_on_mask(weight, keep, gram, damp):
    """Column after column: set what goes to zero, send (w - q) / U_jj * U_jk to each later column k."""
    weight, hessian = weight.double().clone(), damped(gram, damp)
    weight[:, gram.diagonal() == 0] = 0
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    for j in range(weight.shape[1]):
        lost = weight[:, j] * ~keep[:, j] / upper[j, j]
        weight[:, j:] -= lost[:, None] * upper[j, j:]
        weight[~keep[:, j], j] = 0
    return weight


def loss_of(dense, new, gram):
    """tr(dW G dW^T)."""
    change = (dense - new).double()
    return ((change @ gram.double()) * change).sum().item()


def narrowed(down, inputs, count, damp):
    """The channels with the most output energy, made up for: min ||W h - Q h_K||^2 + R ||Q - W_K||^2, row by row."""
    h, w = inputs.double(), down.double()
    energy = [(h[:, j].square().sum() * w[:, j].square().sum()).item() for j in range(w.shape[1])]
    kept = sorted(sorted(range(len(energy)), key=lambda j: (-energy[j], j))[:count])
    pull = (damp * (h.T @ h).diagonal().mean()).sqrt() * torch.eye(count, dtype=torch.float64)
    left = torch.cat([h[:, kept], pull])
    right = torch.cat([h @ w.T, pull @ w[:, kept].T])
    result = torch.zeros_like(w)
    result[:, kept] = torch.linalg.lstsq(left, right).solution.T
    return result
