"""Packed tensors and their description in config.json, made with the compressed-tensors library.

Scales are stored in float32 and not, as is usual, in the model's dtype: readers multiply in the dtype of the scale and
round the product to the model's dtype, which is how the methods made the weights.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crosscal.errors import InputError
from crosscal.output.packing.codes import exact_codes
from crosscal.output.packing.requests import library
from crosscal.types import Grid, PerGroup

FORMAT = "pack-quantized"


def packed_tensors(name: str, weight: Float[Tensor, "d_out d_in"], grid: Grid) -> dict[str, Tensor]:
    """What stands for `<name>.weight` in a file: `weight_packed`, `weight_scale`, `weight_shape`, on the CPU.

    Asymmetric grids add `weight_zero_point`. What the library reads back from them is compared with the weight.

    Raises `InputError` where `exact_codes` does.
    """
    library()
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    codes, scale, zero = (part.cpu() for part in exact_codes(weight, grid, name=name))
    middle = 2 ** (grid.bits - 1)  # the library counts codes from -middle
    packed = {
        "weight_packed": pack_to_int32((codes.short() - middle).to(torch.int8), grid.bits),
        "weight_scale": scale,
        "weight_shape": torch.tensor(weight.shape),
    }
    if not grid.symmetric:
        signed = (zero.short() - middle).to(torch.int8)
        packed["weight_zero_point"] = pack_to_int32(signed, grid.bits, packed_dim=0)
    read = BaseCompressor.get_value_from_registry(FORMAT).decompress(packed, _scheme(grid))["weight"]
    if not torch.equal(read.to(weight.dtype), weight.cpu()):
        raise InputError(
            f"this version of compressed-tensors reads {name} back otherwise than it was written; "
            'run pip install -U "crosscal[quantized]"'
        )
    return {f"{name}.{part}": tensor for part, tensor in packed.items()}


def packed_bytes(shape: tuple[int, int], grid: Grid) -> int:
    """What the packed tensors of a weight take, in bytes."""
    (d_out, d_in), size = shape, grid.group.size if isinstance(grid.group, PerGroup) else shape[1]
    n_groups = math.ceil(d_in / size)
    zeros = 0 if grid.symmetric else 4 * n_groups * math.ceil(d_out * grid.bits / 32)
    return 4 * d_out * (math.ceil(d_in * grid.bits / 32) + n_groups) + zeros + 16


def quantization_config(grid: Grid, ignore: Sequence[str]) -> dict:
    """The `quantization_config` of config.json; `ignore` names the linear modules that stay dense.

    It asks transformers to dequantize on loading, because only then are scales kept in float32.
    """
    version = library().__version__
    from compressed_tensors.quantization import QuantizationConfig

    config = QuantizationConfig(
        config_groups={"group_0": _scheme(grid)},
        format=FORMAT,
        quantization_status="compressed",
        ignore=list(ignore),
    )
    return config.model_dump(mode="json") | {"version": version, "dequantize": True}


def _scheme(grid: Grid):
    """The library's description of a grid."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    group = {"strategy": "channel"}
    if isinstance(grid.group, PerGroup):
        group = {"strategy": "group", "group_size": grid.group.size}
    weights = QuantizationArgs(num_bits=grid.bits, type="int", symmetric=grid.symmetric, dynamic=False, **group)
    return QuantizationScheme(targets=["Linear"], weights=weights, format=FORMAT)
