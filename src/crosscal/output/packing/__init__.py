"""Quantized models in the compressed-tensors format, from which the very same weights are read back.

Methods hand out weights, not codes. The codes are recovered here from the weights and their grid, and each is
checked to be exact, so that any model whose weights lie on a grid can be stored, wherever it comes from.
"""

from crosscal.output.packing.codes import Codes, exact_codes
from crosscal.output.packing.format import packed_bytes, packed_tensors, quantization_config
from crosscal.output.packing.model import bytes_saved, model_quantization_config, packable_layers, packed_state
from crosscal.output.packing.requests import STORAGES, check_storage, grid_of

__all__ = [
    "STORAGES",
    "Codes",
    "bytes_saved",
    "check_storage",
    "exact_codes",
    "grid_of",
    "model_quantization_config",
    "packable_layers",
    "packed_bytes",
    "packed_state",
    "packed_tensors",
    "quantization_config",
]
