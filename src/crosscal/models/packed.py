"""Folders in the compressed-tensors format: packed tensors are read as the dense weights that they stand for."""

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from crosscal.errors import InputError
from crosscal.models.folders import weight_files

FORMAT, PACKED = "pack-quantized", ".weight_packed"
PARTS = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape")


def packed_config(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedConfig | None:
    """The config of a folder whose weights are packed, all in the same way; None for any other folder.

    None, too, for a model that brings its own code: how that is built is left to transformers.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    packing = getattr(config, "quantization_config", None) or {}
    packed = packing.get("format") == FORMAT and len(packing.get("config_groups") or {}) == 1
    return config if packed and type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else None


def from_packed(folder: Path, name: str, config: PreTrainedConfig, **options) -> tuple[PreTrainedModel, dict]:
    """A dense model of a packed folder and what loading tells; `options` are those of `from_pretrained`.

    Weights are made in the dtype the folder was written for, and only then cast. Left to itself, transformers does so
    in no release where another dtype is asked for, and multiplies with scales in the model's dtype in older ones.

    Raises `InputError`, calling the model `name`, when the package compressed-tensors is missing.
    """
    state = _unpacked(folder, name, config)
    del config.quantization_config
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model, report = kind.from_pretrained(None, config=config, state_dict=state, **options)
    if (folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model, report


def _unpacked(folder: Path, name: str, config: PreTrainedConfig) -> dict[str, Tensor]:
    """All tensors of the folder, the packed ones dense."""
    try:
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationConfig
    except ImportError:
        raise InputError(f'{name} holds packed weights; run pip install "crosscal[quantized]"') from None
    (scheme,) = QuantizationConfig.model_validate(config.quantization_config).config_groups.values()
    unpacker, dtype = BaseCompressor.get_value_from_registry(FORMAT), config.dtype or torch.float32
    state = _tensors(folder)
    for layer in [key.removesuffix(PACKED) for key in state if key.endswith(PACKED)]:
        parts = {part: state.pop(f"{layer}.{part}") for part in PARTS if f"{layer}.{part}" in state}
        state[f"{layer}.weight"] = unpacker.decompress(parts, scheme)["weight"].to(dtype)
    return state


def _tensors(folder: Path) -> dict[str, Tensor]:
    state = {}
    for file in weight_files(folder):
        with safe_open(folder / file, "pt") as weights:
            state |= {key: weights.get_tensor(key) for key in weights.keys()}  # noqa: SIM118
    return state
