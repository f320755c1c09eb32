"""Four-bit floating point: values of E2M1 on a power-of-two scale (MXFP4) or an E4M3 scale (NVFP4).

E2M1 has one sign, two exponent and one mantissa bit: 0, 1/2, 1, 3/2, 2, 3, 4, 6 and their negatives. The formats differ
in the scale of a group: MXFP4 (OCP Microscaling 1.0) gives 32 inputs a power of two, 4.25 bits a weight; NVFP4 gives 16
inputs an E4M3 number and the tensor one float32, 4.5 bits a weight. Weights that share an input share that number, as
programs that run them as one product need it; here it is a power of two, so that no product of value and scales needs
more than six significant bits and weights stay exact in bfloat16. E4M3 numbers lose nothing by it but reach.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from crosscal.types import FloatGrid

_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_LARGEST, _E4M3_LARGEST = 6.0, 448.0


def _round_e2m1(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return the nearest value of E2M1, ties to an even mantissa; beyond 6 it is 6.

    Between 0 and 2 values lie 1/2 apart, to 4 they lie 1 apart, to 6 they lie 2 apart; half to even within each is the
    even mantissa, because the steps meet at even ones.

    >>> _round_e2m1(torch.tensor([0.25, 0.75, 1.25, 2.5, -3.5, 5.0, 9.0])).tolist()
    [0.0, 1.0, 1.0, 2.0, -4.0, 4.0, 6.0]
    """
    size = values.abs().clamp(max=_LARGEST)
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return torch.round(size / step).mul_(step).copysign_(values)


def _scales(
    weights: Float[Tensor, "*groups size"], grid: FloatGrid, tensor_scale: Float[Tensor, ""] | None
) -> Float[Tensor, "*groups 1"]:
    """The scale of each group (the last axis); a group of zeros gets one that is not 0.

    Equation eq-fp4 of the book. MXFP4: 2^(floor(log2 max|w|) - 2), so that values between 6 and 8 scales are cut to 6.
    NVFP4: max|w| / 6 as an E4M3 multiple of the tensor's scale.

    >>> _scales(torch.tensor([[0.5, 7.0], [0.0, 0.0]]), FloatGrid("mxfp4"), None).tolist()
    [[1.0], [1.0]]
    """
    largest = weights.abs().amax(dim=-1, keepdim=True).float()
    if tensor_scale is None:
        exponent = torch.frexp(largest).exponent - 1  # exact, where a logarithm might round up
        scale = torch.ldexp(torch.ones_like(largest), (exponent - 2).clamp(min=-127))
        return torch.where(largest > 0, scale, torch.ones_like(scale))
    wanted = (largest / _LARGEST / tensor_scale).clamp(max=_E4M3_LARGEST)
    scale = wanted.to(torch.float8_e4m3fn).float() * tensor_scale
    return torch.where(scale > 0, scale, tensor_scale)


def _tensor_scale(weight: Float[Tensor, "..."], grid: object) -> Float[Tensor, ""] | None:
    """NVFP4's scale of a tensor, max|W| / (6 * 448) or the next power of two, 1 for zeros; None for other grids."""
    if not isinstance(grid, FloatGrid) or str(grid) != "nvfp4":
        return None
    largest = weight.abs().amax().float()
    wanted = largest / (_LARGEST * _E4M3_LARGEST)
    mantissa, exponent = torch.frexp(wanted)
    power = torch.ldexp(torch.ones_like(wanted), exponent - (mantissa == 0.5).to(exponent.dtype))
    return torch.where(largest > 0, power, torch.ones_like(largest))


def _hadamard(size: int) -> Float[Tensor, "size size"]:
    """Return the orthonormal Hadamard matrix of a power of two; it is symmetric, so its own inverse.

    >>> _hadamard(2).mul(2**0.5).round().tolist()
    [[1.0, 1.0], [1.0, -1.0]]
    """
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / size**0.5


def _rotate_inputs(matrix: Float[Tensor, "rows d_in"], size: int) -> Float[Tensor, "rows d_in"]:
    """Return the rows with each `size` consecutive inputs rotated by the Hadamard matrix; twice is the identity.

    >>> _rotate_inputs(_rotate_inputs(torch.tensor([[1.0, 2.0]]), 2), 2).round(decimals=5).tolist()
    [[1.0, 2.0]]
    """
    rotation = _hadamard(size).to(matrix.device, torch.float32)
    return (matrix.float().unflatten(1, (-1, size)) @ rotation).flatten(1)
