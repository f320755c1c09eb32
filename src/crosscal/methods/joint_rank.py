"""Joint rank-k: weights that read the same input share one thin matrix; no data.

Two weights stacked on top of each other have one truncated SVD: each keeps its own left factor, and the right factor,
the directions of the input that are read at all, is stored once. At equal storage the rank is therefore higher
than that of two factorizations.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crosscal.methods.lowrank import Factors, svd_factors
from crosscal.types import LowRank

VERSION = 1


def joint_rank_factors(weights: Sequence[Float[Tensor, "_ d_in"]], target: LowRank) -> list[Factors]:
    """The factors of `joint_rank`: one left factor for each weight, and the same right factor in all."""
    left, right = svd_factors(torch.cat([weight.float() for weight in weights]), target)
    return [Factors(part, right) for part in left.split([len(weight) for weight in weights])]


def joint_rank(weights: Sequence[Float[Tensor, "_ d_in"]], target: LowRank) -> list[Tensor]:
    """Truncated SVD of linked weights, stacked to [sum of d_out, d_in], at rank `target.rank(sum of d_out, d_in)`.

    The source links W_Q with W_K and W_gate with W_up. One weight alone gets the plain `svd`.
    Source: Peng et al. 2024 (arXiv 2402.16319), joint rank-k approximation.

    Raises `InputError` for weights that are not finite.

    >>> query, key = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    >>> [new.abs().tolist() for new in joint_rank([query, key], LowRank(1.0))]
    [[[3.0, 0.0]], [[0.0, 0.0]]]
    """
    factors = joint_rank_factors(weights, target)
    return [own.dense(weight.dtype) for own, weight in zip(factors, weights, strict=True)]


def linked_pairs(n: int) -> list[slice]:
    """Which of n weights that share an input are linked: two by two in call order, an odd last one alone.

    Found by structure and not by name: query, key, value give (query, key) and value; gate and up give one pair. In
    blocks where attention and MLP read the same input, value is paired with whatever is called next.

    >>> ["q k v".split()[pair] for pair in linked_pairs(3)]
    [['q', 'k'], ['v']]
    """
    return [slice(first, min(first + 2, n)) for first in range(0, n, 2)]


def joint_rank_group(weights: Sequence[Float[Tensor, "_ d_in"]], target: LowRank) -> list[Tensor]:
    """`joint_rank` of each pair of `linked_pairs`, for the weights that share one input, given in call order."""
    return [new for pair in linked_pairs(len(weights)) for new in joint_rank(weights[pair], target)]
