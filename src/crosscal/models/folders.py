"""A model folder, checked before any weight is read: config, architecture, and whole safetensors files."""

import json
from pathlib import Path

import transformers
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PreTrainedConfig

from crosscal.errors import InputError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def weight_files(folder: Path) -> list[str]:
    """The names of the files that hold the weights: those the index names, else `model.safetensors`.

    Raises `InputError` for an index that cannot be read.
    """
    if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
        return [WEIGHTS]
    try:
        return sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{folder / INDEX} is damaged; fetch or save it again") from error


def check_weights(folder: Path, name: str) -> None:
    """Raises `InputError` for weights that are missing, damaged, or in another format; reads only their headers."""
    files = weight_files(folder)
    missing = [file for file in files if not (folder / file).exists()]
    if missing == [WEIGHTS]:
        raise InputError(f"{name} holds no {WEIGHTS}; only safetensors and GGUF are read, so convert it first")
    if missing:
        raise InputError(f"{name} lacks {missing[0]} ({len(missing)} of {len(files)} files missing); fetch all of them")
    for file in files:
        try:
            with safe_open(folder / file, "pt") as weights:
                weights.keys()
        except (SafetensorError, OSError) as error:
            is_hub = "snapshots" in folder.parts
            again = f"run `hf download {name} {file} --force-download`" if is_hub else "copy or save it again"
            raise InputError(f"{file} of {name} is damaged or not a safetensors file ({error}); {again}") from error


def read_config(folder: Path, name: str, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The config of a model folder; `name` is what the user called it.

    Raises `InputError` for a config that is not there or damaged, an architecture that this transformers does not
    know, one that brings its own code unless that is trusted, and one that is no causal language model.
    """
    found = _parsed(folder / "config.json", name)
    kind, own = found.get("model_type"), "AutoModelForCausalLM" in (found.get("auto_map") or {})
    known = kind in CONFIG_MAPPING
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
    """How a model of this config computes attention: "sdpa", or "eager" where that is not supported (Gemma 2)."""
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return "sdpa" if getattr(kind, "_supports_sdpa", True) else "eager"


def _parsed(path: Path, name: str) -> dict:
    """The config as it stands in the file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{name} has no config.json; give the folder or hub id that a model was saved to") from None
    except ValueError as error:
        raise InputError(f"the config.json of {name} is damaged ({error}); fetch or save it again") from error
    if not isinstance(found, dict):
        raise InputError(f"the config.json of {name} is damaged (it holds no object); fetch or save it again")
    return found


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:200]
