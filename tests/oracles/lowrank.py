"""Low-rank methods in float64 numpy by the textbook: truncate the weighted matrix, then undo the weights.

The weights are undone by explicit division or inverse; the bases are right ones, of W^T W. src does neither.
"""

import numpy as np


def rank(ratio, d_out, d_in):
    """The most columns k for which k * (d_out + d_in) numbers fit into ratio * d_out * d_in, by counting up."""
    k = 1
    while (k + 1) * (d_out + d_in) <= ratio * d_out * d_in * (1 + 1e-12):
        k += 1
    return k


def truncate(matrix, k):
    """Best rank-k approximation: project the rows on the k leading eigenvectors of M^T M."""
    _, vectors = np.linalg.eigh(matrix.T @ matrix)
    leading = vectors[:, ::-1][:, :k]
    return matrix @ leading @ leading.T


def svd(weight, ratio):
    weight = weight.double().numpy()
    return truncate(weight, rank(ratio, *weight.shape))


def fwsvd(weight, squared_gradient, ratio, floor=1e-4):
    """Hsu et al. 2022, with one importance for each input: W diag(f) truncated, then divided by f."""
    weight, squared = weight.double().numpy(), squared_gradient.double().numpy()
    d_out, d_in = weight.shape
    importance = np.array([np.sqrt(sum(squared[i, j] for i in range(d_out)) / d_out) for j in range(d_in)])
    if not importance.any():
        return svd_of(weight, ratio)
    importance = np.maximum(importance, floor * importance.mean())
    return svd_of(weight * importance, ratio) / importance


def svd_of(matrix, ratio):
    """Truncated SVD by singular triples, added one by one."""
    left, values, right = np.linalg.svd(matrix)
    return sum(values[i] * np.outer(left[:, i], right[i]) for i in range(rank(ratio, *matrix.shape)))


def damped(gram, damp=1e-6):
    """G + damp * diag(G), a dead input damped like the quietest live one; the identity when nothing was seen."""
    gram = gram.double().numpy().copy()
    squares = gram.diagonal().copy()
    if not squares.any():
        return np.eye(len(gram))
    for j, square in enumerate(squares):
        gram[j, j] += damp * (square if square > 0 else min(s for s in squares if s > 0))
    return gram


def asvd(weight, gram, ratio):
    """W H^(1/2) truncated, times the explicit inverse of the symmetric root."""
    values, vectors = np.linalg.eigh(damped(gram))
    root = vectors @ np.diag(np.sqrt(values)) @ vectors.T
    return svd_of(weight.double().numpy() @ root, ratio) @ np.linalg.inv(root)


def least_output_error(weight, gram, k):
    """Eckart-Young: sum of the squared singular values of W G^(1/2) beyond the k-th, from inputs' own scale."""
    weight, gram = weight.double().numpy(), gram.double().numpy()
    size = np.sqrt(np.where(gram.diagonal() > 0, gram.diagonal(), 1))
    values, vectors = np.linalg.eigh(gram / np.outer(size, size))
    root = size[:, None] * vectors * np.sqrt(np.maximum(values, 0))
    return (np.linalg.svd(weight @ root, compute_uv=False)[k:] ** 2).sum()


def output_error(weight, new, gram):
    """tr((W - W') G (W - W')^T)."""
    change = weight.double().numpy() - new.double().numpy()
    return float(np.trace(change @ gram.double().numpy() @ change.T))


def joint_rank(weights, ratio):
    """Stack, find one shared right basis from the sum of the W_i^T W_i, project each weight on it."""
    weights = [weight.double().numpy() for weight in weights]
    d_in = weights[0].shape[1]
    k = rank(ratio, sum(len(weight) for weight in weights), d_in)
    _, vectors = np.linalg.eigh(sum(weight.T @ weight for weight in weights))
    shared = vectors[:, ::-1][:, :k]
    return [weight @ shared @ shared.T for weight in weights]
