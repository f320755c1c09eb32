"""A model folder, checked before any weight is read: config, architecture, and whole, dense safetensors files."""

import json
import re
from pathlib import Path

import transformers
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PreTrainedConfig

from crosscal.errors import InputError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_ADAPTER = "adapter_config.json"
# Tensors of quantizers (compressed-tensors, block-wise float8, GPTQ, AWQ, bitsandbytes, MXFP4), and dtypes of codes.
_CODES = re.compile(
    r"(weight_scale|_scale_inv|weight_zero_point|weight_packed|\.qweight|\.qzeros|\.SCB|\.absmax|_proj_blocks)$"
)
_CODE_DTYPES = ("F8", "F6", "F4", "I8", "U8", "I4", "U4")


def weight_files(folder: Path) -> list[str]:
    """Return the names of the files that hold the weights: those the index names, else `model.safetensors`.

    Raises `InputError` for an index that cannot be read.
    """
    if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
        return [WEIGHTS]
    try:
        return sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{folder / INDEX} is damaged; fetch or save it again") from error


def _check_weights(folder: Path, name: str, config: PreTrainedConfig) -> None:
    """Raise `InputError` for weights that are missing, damaged, in another format, or quantized without the config
    saying so; only headers are read.
    """
    files = weight_files(folder)
    missing = [file for file in files if not (folder / file).exists()]
    if missing == [WEIGHTS]:
        raise InputError(f"{name} holds no {WEIGHTS}; only safetensors and GGUF are read, so convert it first")
    if missing:
        raise InputError(f"{name} lacks {missing[0]} ({len(missing)} of {len(files)} files missing); fetch all of them")
    for file in files:
        try:
            with safe_open(folder / file, "pt") as weights:
                codes = [key for key in weights.keys() if _holds_codes(weights, key)]  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            is_hub = "snapshots" in folder.parts
            again = f"run `hf download {name} {file} --force-download`" if is_hub else "copy or save it again"
            raise InputError(f"{file} of {name} is damaged or not a safetensors file ({error}); {again}") from error
        if codes and not getattr(config, "quantization_config", None):
            raise InputError(
                f"{name} holds quantized weights ({codes[0]}) without a quantization_config in its config.json; give "
                "the dense model that it was made from"
            )


def _holds_codes(weights, key: str) -> bool:
    if _CODES.search(key):
        return True
    return key.endswith("weight") and weights.get_slice(key).get_dtype().startswith(_CODE_DTYPES)


def read_config(folder: Path, name: str, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """Return the config of a model folder; `name` is how the user called it.

    Raises `InputError` for a config that is missing or damaged, an architecture that this transformers does not know,
    one that brings its own code unless that is trusted, one that is no causal language model, and an adapter.
    """
    written = _parsed(folder, name)
    kind, own = written.get("model_type"), "AutoModelForCausalLM" in (written.get("auto_map") or {})
    known = kind in CONFIG_MAPPING
    if "compression_config" in written:
        raise InputError(f"{name} is quantized already; give the dense model that it was made from")
    if own and not known and not trust_remote_code:
        raise InputError(f"{name} brings its own code; read it, then pass trust_remote_code=True if you trust it")
    if not known and not own:
        raise InputError(
            f"{name} is of type '{kind}', which transformers {transformers.__version__} does not know; upgrade "
            "transformers, or give another model"
        )
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # what a config's own checks raise differs between releases
        raise InputError(f"the config.json of {name} cannot be used ({_first_line(error)}); fetch it again") from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not (own and trust_remote_code):
        raise InputError(f"{name} is of type '{kind}', which is no causal language model; give a decoder-only model")
    return config


def attention_of(config: PreTrainedConfig) -> str:
    """Return the attention implementation for a config: "sdpa", or "eager" where that is not supported (Gemma 2)."""
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return "sdpa" if getattr(kind, "_supports_sdpa", True) else "eager"


def _parsed(folder: Path, name: str) -> dict:
    """Return config.json as written; raises `InputError` for a damaged one, and for the folder of an adapter."""
    path = folder / "config.json"
    if (folder / _ADAPTER).exists():
        kind = "a model and an adapter" if path.exists() else "an adapter, which is no whole model"
        raise InputError(
            f"{name} holds {kind} ({_ADAPTER}); merge it into the model (peft: merge_and_unload, then save_pretrained) "
            "and give that folder"
        )
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{name} has no config.json; give the folder or hub id that a model was saved to") from None
    except OSError as error:
        raise InputError(f"the config.json of {name} cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise InputError(f"the config.json of {name} is damaged ({error}); fetch or save it again") from error
    if not isinstance(written, dict):
        raise InputError(f"the config.json of {name} is damaged (it holds no object); fetch or save it again")
    return written


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:200]
