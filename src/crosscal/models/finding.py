"""From what a user names (asset, folder, hub id) to a checked local folder, its config and its tokenizer.

Nothing here reads weights into memory, except that an embedded model is dequantized once, on first use.
"""

import os
from pathlib import Path

import torch
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from crosscal import assets
from crosscal.errors import InputError, suggest
from crosscal.models.conversion import converted_folder
from crosscal.models.devices import resolve_device, resolve_dtype
from crosscal.models.folders import check_weights, read_config
from crosscal.models.hub import described_folder, hub_folder


def find_folder(
    name: str | os.PathLike,
    *,
    accept_terms: bool = False,
    dtype: str | torch.dtype | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """The local folder with config.json, tokenizer and safetensors of an asset, a folder or a hub id.

    A hub id is taken from the hub's cache or downloaded into it; only safetensors, JSON and tokenizer files are.
    `dtype` is that of an asset's dequantized copy (default: this machine's fast one) and changes nothing else.

    Raises `InputError` for an unknown name, a gated or missing repository, no connection, missing or damaged files,
    other weight formats, and anything that is no causal language model or brings its own code.
    """
    name = str(name)
    folder = _embedded_or_local(name, accept_terms, dtype)
    found = hub_folder(name, code=trust_remote_code) if folder is None else folder
    read_config(found, name, trust_remote_code=trust_remote_code)
    check_weights(found, name)
    return found


def find_config(
    name: str | os.PathLike, *, accept_terms: bool = False, trust_remote_code: bool = False
) -> PreTrainedConfig:
    """The config of an asset, a folder or a hub id, of which no weights are downloaded; raises as `find_folder`."""
    folder = _described(str(name), accept_terms, trust_remote_code)
    return read_config(folder, str(name), trust_remote_code=trust_remote_code)


def load_tokenizer(
    name: str | os.PathLike, *, accept_terms: bool = False, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of an asset, a folder, a `.gguf` file or a hub id, of which no weights are downloaded.

    Raises `InputError` as `find_folder` does, and when there is no tokenizer or a package that it needs is missing.
    """
    name = str(name)
    if is_gguf(name):
        path = Path(name).expanduser()
        return tokenizer_in(path.parent, name, gguf_file=path.name)
    return tokenizer_in(_described(name, accept_terms, trust_remote_code), name, trust_remote_code=trust_remote_code)


def is_gguf(name: str) -> bool:
    """Whether the name is that of an existing GGUF file."""
    path = Path(name).expanduser()
    return path.suffix == ".gguf" and path.is_file()


def _described(name: str, accept_terms: bool, code: bool) -> Path:
    """The folder with at least config and tokenizer."""
    folder = _embedded_or_local(name, accept_terms, None)
    return described_folder(name, code=code) if folder is None else folder


def _embedded_or_local(name: str, accept_terms: bool, dtype: str | torch.dtype | None) -> Path | None:
    """The folder of an asset's copy or the one named; None for what looks like a hub id. Raises `InputError`."""
    if name in assets.MODEL_ASSETS:
        gguf = assets.model_gguf(name, accept_terms=accept_terms)
        return converted_folder(gguf, resolve_dtype(dtype, resolve_device(None)))
    if is_gguf(name):
        raise InputError(f"{name} is one GGUF file; load it with load_model, save it with save_model, give that folder")
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if name.startswith((".", "~", "/")) or name.count("/") > 1 or path.exists():
        raise InputError(
            f"no model at {name}; give a folder with config.json and safetensors, a .gguf file or a hub id"
        )
    known = list(assets.MODEL_ASSETS)
    if "/" not in name and (meant := suggest(name, known)):
        raise InputError(f"unknown model '{name}'{meant}; give one of {', '.join(known)}, a folder, or a hub id")
    return None


def tokenizer_in(folder: Path, name: str, **options) -> PreTrainedTokenizerBase:
    """What transformers makes of a folder's tokenizer files; raises `InputError`, calling the model `name`."""
    try:
        return AutoTokenizer.from_pretrained(folder, **options)
    except ImportError as error:
        needed = "sentencepiece protobuf tiktoken"
        raise InputError(f"the tokenizer of {name} needs a package; run pip install {needed}") from error
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:160]
        raise InputError(f"no tokenizer can be loaded from {name} ({said}); put its tokenizer files there") from error
