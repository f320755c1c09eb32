"""What a layer's output lost on a text, straight from the Gram matrix."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crosscal.calibration.gram import panels
from crosscal.calibration.statistics import InputStats

PANEL = 192


def layer_losses(before: Sequence[Tensor], after: Sequence[Tensor], stats: InputStats) -> list[tuple[Tensor, Tensor]]:
    """For each layer of a group: tr(dW G dW^T) / n and tr(W G W^T) / n, as tensors.

    The first is the squared output error per token, the second the squared output. Equation eq-layer-loss of the book.
    """
    old = torch.cat([weight.float() for weight in before])
    change = old - torch.cat([weight.float() for weight in after])
    rows = [len(weight) for weight in before]
    error, output = (row_energies(matrix, stats.gram).split(rows) for matrix in (change, old))
    return [(e.sum() / stats.n_tokens, o.sum() / stats.n_tokens) for e, o in zip(error, output, strict=True)]


def row_energies(matrix: Float[Tensor, "rows d_in"], gram: Float[Tensor, "d_in d_in"]) -> Float[Tensor, " rows"]:
    """m G m^T for each row m; G is symmetric, so the products stay on one side of its diagonal.

    >>> row_energies(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.5], [0.5, 1.0]])).tolist()
    [7.0]
    """
    total = matrix.new_zeros(len(matrix))
    for left, right in panels(len(gram), PANEL):
        product = matrix[:, left:right] @ gram[left:right, left:right]
        if left:
            product.addmm_(matrix[:, :left], gram[:left, left:right], alpha=2)
        total += torch.linalg.vecdot(product, matrix[:, left:right])
    return total
