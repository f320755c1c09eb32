"""Quantized models in the compressed-tensors format, from which the very same weights are read back.

Scales are stored in float32 and not, as is usual, in the model's dtype: readers multiply in the dtype of the scale and
round the product to the model's dtype, which is how the methods made the weights.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crosscal.errors import InputError, suggest
from crosscal.methods.registry import METHODS, find_method
from crosscal.models import LinearLayer
from crosscal.output.codes import _check_shapes, _exact_codes
from crosscal.output.float_codes import float_codes
from crosscal.types import FloatGrid, Grid, PerGroup, SparseGrid, Target


@dataclass(frozen=True)
class _Format:
    """A way to store quantized weights in other tensors; register it in `FORMATS`.

    `check(grid, widths)` raises `InputError` for what cannot be stored. `tensors(name, weight, grid, largest)` returns
    what stands for `<name>.weight`, with the largest weight of the layers beside it, `bytes(shape, grid)` its size, and
    `config(grid, ignore)` the `quantization_config` of config.json, where `ignore` names the linear modules that stay
    dense.
    """

    check: Callable[[Grid, Sequence[int]], None]
    tensors: Callable[[str, Tensor, Grid, float], dict[str, Tensor]]
    bytes: Callable[[Sequence[int], Grid], int]
    config: Callable[[Grid, Sequence[str]], dict]


def check_storage(storage: str, method: str, target: Target, widths: Sequence[int] = ()) -> Grid | None:
    """Return the grid to store layers of these input widths with, None for dense storage.

    Raises `InputError` for an unknown storage, a target without a grid, more than 8 bits, groups that do not divide a
    width, a missing package, and a method whose weights the storage cannot hold, such as AWQ: weights that are rounded
    with their columns scaled, and divided by the scales afterwards, lie on no grid.

    >>> from crosscal.types import NofM
    >>> str(check_storage("compressed-tensors", "sparsegpt", SparseGrid(NofM(2, 4), Grid(bits=4))))
    '4 bits per row'
    """
    if storage == "dense":
        return None
    packing = _find_format(storage)
    grid = target.grid if isinstance(target, SparseGrid) else target
    if not isinstance(grid, Grid):
        raise InputError(
            f"{target} does not round weights to a grid; use dense storage, or a target such as 4 bits g128"
        )
    if storage not in find_method(method).packs:
        able = ", ".join(name for name, other in METHODS.items() if storage in other.packs)
        raise InputError(f"{storage} cannot hold the weights of {method} exactly; use dense storage, or {able}")
    packing.check(grid, widths)
    return grid


def _find_format(storage: str) -> _Format:
    if storage not in FORMATS:
        known = ["dense", *FORMATS]
        raise InputError(f"storage is '{storage}'{suggest(str(storage), known)}; give one of {', '.join(known)}")
    return FORMATS[storage]


def _packable_layers(
    model: nn.Module, blocks: Sequence[Sequence[LinearLayer]], storage: str, grid: Grid
) -> dict[str, LinearLayer]:
    """Return the layers of all blocks by their full names in the model.

    Raises `InputError` for a grid that their widths do not allow, for GPT-2's kind of layer, whose weights are stored
    inputs first: the formats have scales for groups of a row's inputs only; and for experts that share a parameter.
    """
    if stacked := next((layer for block in blocks for layer in block if layer.stacked), None):
        raise InputError(
            f"{stacked.name} is part of a stack of experts, which {storage} cannot store; use dense storage"
        )
    names = {module: name for name, module in model.named_modules()}
    layers = {names[layer.module]: layer for block in blocks for layer in block}
    for name, layer in layers.items():
        if not isinstance(layer.module, nn.Linear):
            raise InputError(
                f"{name} is a {type(layer.module).__name__}, which keeps its weights transposed and which "
                f"{storage} cannot store; use dense storage"
            )
    FORMATS[storage].check(grid, [layer.weight.shape[1] for layer in layers.values()])
    return layers


def _quantization_config(model: nn.Module, storage: str, grid: Grid, packed: Mapping[str, LinearLayer]) -> dict:
    """Return the `quantization_config` of a model; all its other linear modules are named as dense."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return FORMATS[storage].config(grid, [name for name in linear if name not in packed])


def packed_tensors(
    name: str, weight: Float[Tensor, "d_out d_in"], grid: Grid, largest: float = 0.0
) -> dict[str, Tensor]:
    """Return the tensors that stand for `<name>.weight`: `weight_packed`, `weight_scale`, `weight_shape`, on the CPU.

    Asymmetric grids add `weight_zero_point`, NVFP4 `weight_global_scale`: that of layers whose largest weight is
    `largest`. What the library reads back is compared with the weight.

    Raises `InputError` for weights that do not lie on the grid, and for a library that reads them back otherwise.
    """
    _library()
    from compressed_tensors.compressors import BaseCompressor

    if isinstance(grid, FloatGrid):
        packed = _packed_floats(name, weight, grid, largest)
    else:
        packed = _packed_integers(name, weight, grid)
    reader: Any = BaseCompressor.get_value_from_registry(_layout(grid))
    read = reader.decompress(packed, _scheme(grid))["weight"]
    if not torch.equal(read.to(weight.dtype), weight.cpu()):
        raise InputError(
            f"this version of compressed-tensors reads {name} back otherwise than it was written; "
            'run pip install -U "crosscal[quantized]"'
        )
    return {f"{name}.{part}": tensor for part, tensor in packed.items()}


def _packed_floats(name: str, weight: Tensor, grid: FloatGrid, largest: float) -> dict[str, Tensor]:
    codes = float_codes(weight, grid, max(largest, weight.abs().max().item()), name)
    if str(grid) == "mxfp4":
        exponent = torch.frexp(codes.scale).exponent - 1  # of a power of two
        return {"weight_packed": codes.packed, "weight_scale": (exponent + 127).to(torch.uint8)}
    scale = (codes.scale / codes.tensor_scale).to(torch.float8_e4m3fn)
    return {"weight_packed": codes.packed, "weight_scale": scale, "weight_global_scale": 1 / codes.tensor_scale[None]}


def _packed_integers(name: str, weight: Tensor, grid: Grid) -> dict[str, Tensor]:
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    codes, scale, zero = (part.cpu() for part in _exact_codes(weight, grid, name=name))
    middle = 2 ** (grid.bits - 1)  # the library counts codes from -middle
    packed = {
        "weight_packed": pack_to_int32((codes.short() - middle).to(torch.int8), grid.bits),
        "weight_scale": scale,
        "weight_shape": torch.tensor(weight.shape),
    }
    if not grid.symmetric:
        signed = (zero.short() - middle).to(torch.int8)
        packed["weight_zero_point"] = pack_to_int32(signed, grid.bits, packed_dim=0)
    return packed


def _packed_bytes(shape: Sequence[int], grid: Grid) -> int:
    """Return the size of a weight's packed tensors, in bytes."""
    (d_out, d_in), size = shape, grid.group.size if isinstance(grid.group, PerGroup) else shape[1]
    n_groups = math.ceil(d_in / size)
    if isinstance(grid, FloatGrid):
        return d_out * (d_in // 2 + n_groups) + (4 if str(grid) == "nvfp4" else 0)
    zeros = 0 if grid.symmetric else 4 * n_groups * math.ceil(d_out * grid.bits / 32)
    return 4 * d_out * (math.ceil(d_in * grid.bits / 32) + n_groups) + zeros + 16


def _config(grid: Grid, ignore: Sequence[str]) -> dict:
    """Ask transformers to dequantize on loading, because only then are scales kept in float32."""
    version = _library().__version__
    from compressed_tensors.quantization import QuantizationConfig

    parts = {"config_groups": {"group_0": _scheme(grid)}, "format": _layout(grid), "quantization_status": "compressed"}
    config = QuantizationConfig.model_validate(parts | {"ignore": list(ignore)})
    return config.model_dump(mode="json") | {"version": version, "dequantize": True}


def _layout(grid: Grid) -> str:
    """The library's name for how codes are laid out."""
    return f"{grid}-pack-quantized" if isinstance(grid, FloatGrid) else "pack-quantized"


def _scheme(grid: Grid):
    """The library's description of a grid."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    group: dict[str, object] = {"strategy": "channel"}
    if isinstance(grid, FloatGrid):
        kinds = {"mxfp4": ("group", torch.uint8), "nvfp4": ("tensor_group", torch.float8_e4m3fn)}
        strategy, dtype = kinds[str(grid)]
        group = {"type": "float", "strategy": strategy, "group_size": grid.group.size, "scale_dtype": dtype}  # type: ignore[union-attr]
        group |= {"zp_dtype": dtype}
    elif isinstance(grid.group, PerGroup):
        group = {"strategy": "group", "group_size": grid.group.size}
    weights = {"num_bits": grid.bits, "type": "int", "symmetric": grid.symmetric, "dynamic": False} | group
    parts = {"targets": ["Linear"], "weights": QuantizationArgs.model_validate(weights), "format": _layout(grid)}
    return QuantizationScheme.model_validate(parts)


def _check(grid: Grid, widths: Sequence[int]) -> None:
    _check_shapes(grid, widths)
    _library()


def _library():
    """Return the package compressed-tensors; raises `InputError` with the command that installs it."""
    try:
        import compressed_tensors
    except ImportError:
        raise InputError(
            'storage="compressed-tensors" needs a package; run pip install "crosscal[quantized]"'
        ) from None
    return compressed_tensors


FORMATS: dict[str, _Format] = {"compressed-tensors": _Format(_check, packed_tensors, _packed_bytes, _config)}
