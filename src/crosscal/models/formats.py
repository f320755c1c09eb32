"""Formats that are read as the dense weights that they stand for: GGUF files, and folders in compressed-tensors format.

An embedded GGUF file is dequantized once, into a safetensors folder in the cache; loading that takes a second.
"""

import os
import shutil
from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from crosscal.errors import InputError
from crosscal.models.folders import weight_files
from crosscal.paths import cache_dir

_LAYOUT = 1  # raise when the contents of a converted folder change
_FORMAT, _PACKED = "pack-quantized", ".weight_packed"
_PARTS = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape")


def _converted_folder(gguf: Path, dtype: torch.dtype) -> Path:
    """Return the safetensors copy of an embedded GGUF file, made on first use under a temporary name and renamed.

    The GGUF file's folder, whose name changes with the pinned hash, names the copy. Raises `InputError` on a full disk.
    """
    kind = str(dtype).removeprefix("torch.")
    folder = cache_dir() / "models" / f"{gguf.parent.parent.name}-{gguf.stem}-{kind}-v{_LAYOUT}"
    if folder.exists():
        return folder
    work = folder.with_name(f".{folder.name}.{os.urandom(8).hex()}")
    try:
        work.mkdir(parents=True)
        for part in _read_gguf(gguf, dtype):
            part.save_pretrained(work)
        if not folder.exists():  # another process may have been faster
            work.rename(folder)
    except OSError as error:
        if not folder.exists():
            raise InputError(f"cannot write {folder} ({error.strerror or error}); free some space there") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _read_gguf(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a GGUF file's model, dequantized so that it can be saved again, and its tokenizer."""
    options: dict = {"dtype": dtype}
    config = getattr(transformers, "GgufConfig", None)  # newer releases keep the blocks packed unless told
    if config is not None:
        options["quantization_config"] = config(dequantize=True)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, **options)
    # The weights are dense; without these marks `save_pretrained` would refuse them as quantized.
    model.hf_quantizer = None
    for mark in ("quantization_config", "is_quantized", "quantization_method"):
        for owner in (model, model.config):
            if mark in vars(owner):
                delattr(owner, mark)
    return model, tokenizer


def _packed_config(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedConfig | None:
    """Return the config of a folder whose weights are packed, all in the same way; None for any other folder.

    None, too, for a model that brings its own code: how that is built is left to transformers.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    packing = getattr(config, "quantization_config", None) or {}
    packed = packing.get("format") == _FORMAT and len(packing.get("config_groups") or {}) == 1
    return config if packed and type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else None


def _from_packed(folder: Path, name: str, config: PreTrainedConfig, **options) -> tuple[PreTrainedModel, dict]:
    """Return a dense model of a packed folder and its loading report; `options` are those of `from_pretrained`.

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
    """Return all tensors of the folder, the packed ones dense."""
    try:
        from compressed_tensors.compressors import BaseCompressor
        from compressed_tensors.quantization import QuantizationConfig
    except ImportError:
        raise InputError(f'{name} holds packed weights; run pip install "crosscal[quantized]"') from None
    (scheme,) = QuantizationConfig.model_validate(config.quantization_config).config_groups.values()
    unpacker, dtype = BaseCompressor.get_value_from_registry(_FORMAT), config.dtype or torch.float32
    state: dict[str, Tensor] = {}
    for file in weight_files(folder):
        with safe_open(folder / file, "pt") as weights:
            state |= {key: weights.get_tensor(key) for key in weights.keys()}  # noqa: SIM118
    for layer in [key.removesuffix(_PACKED) for key in state if key.endswith(_PACKED)]:
        parts = {part: state.pop(f"{layer}.{part}") for part in _PARTS if f"{layer}.{part}" in state}
        state[f"{layer}.weight"] = unpacker.decompress(parts, scheme)["weight"].to(dtype)
    return state
