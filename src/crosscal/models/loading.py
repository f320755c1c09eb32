"""From a name (asset, folder, GGUF file, hub id) to a checked local folder, its config and tokenizer, or the model.

Everything but `load_model` reads no weights, except that an embedded model is dequantized once, on first use.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from crosscal import assets
from crosscal.errors import InputError, suggest
from crosscal.files import path_kind
from crosscal.models.folders import (
    _check_weights,
    _described_folder,
    _first_line,
    _hub_folder,
    attention_of,
    read_config,
)
from crosscal.models.formats import _converted_folder, _from_packed, _packed_config, _read_gguf


def fast_dtype(device: str | torch.device = "cpu") -> torch.dtype:
    """Return bfloat16 where the hardware multiplies it faster than float32, else float32."""
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if torch.device(device).type == "cpu":
        # Private, but the only spelling that every supported torch has; absent means "not fast".
        fast = (getattr(torch.cpu, probe, bool)() for probe in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
        return torch.bfloat16 if any(fast) else torch.float32
    return torch.float32


def resolve_device(device: str | None) -> torch.device:
    """Return the device of a name; `None` or "auto" is the first CUDA device when there is one, else the CPU.

    Raises `InputError` for a device this machine does not have.
    """
    if device in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(1, device=resolved)
    except (RuntimeError, AssertionError):
        raise InputError(
            f"device '{device}' is not available here; use 'auto', 'cpu' or an existing 'cuda:N'"
        ) from None
    return resolved


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """Return one of float32, bfloat16, float16; `None` or "auto" is `fast_dtype(device)`. Raises `InputError`."""
    if dtype in (None, "auto"):
        return fast_dtype(device)
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    name = str(dtype).removeprefix("torch.")
    if name not in known:
        raise InputError(
            f"dtype '{dtype}' is unknown; give one of auto, {', '.join(known)}{suggest(name, list(known))}"
        )
    return known[name]


def find_folder(
    name: str | os.PathLike,
    *,
    accept_terms: bool = False,
    dtype: str | torch.dtype | None = None,
    trust_remote_code: bool = False,
) -> Path:
    """Return the local folder with config.json, tokenizer and safetensors of an asset, a folder or a hub id.

    A hub id is taken from the hub's cache or downloaded into it; only safetensors, JSON and tokenizer files are.
    `dtype` is that of an asset's dequantized copy (default: this machine's fast one) and changes nothing else.

    Raises `InputError` for an unknown name, a gated or missing repository, no connection, missing or damaged files,
    other weight formats, an adapter, and anything that is no causal language model or brings its own code.
    """
    name = str(name)
    folder = _local_folder(name, accept_terms, dtype) or _hub_folder(name, code=trust_remote_code)
    _check_weights(folder, name, read_config(folder, name, trust_remote_code=trust_remote_code))
    return folder


def find_config(
    name: str | os.PathLike, *, accept_terms: bool = False, trust_remote_code: bool = False
) -> PreTrainedConfig:
    """Return the config of an asset, a folder, a `.gguf` file or a hub id; raises as `find_folder`."""
    name = str(name)
    if is_gguf(name):
        path = _expanded(name)
        return AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    return read_config(_described(name, accept_terms, trust_remote_code), name, trust_remote_code=trust_remote_code)


def load_tokenizer(
    name: str | os.PathLike, *, accept_terms: bool = False, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Return the tokenizer of an asset, a folder, a `.gguf` file or a hub id, without the model's weights.

    Raises `InputError` as `find_folder` does, and when there is no tokenizer or a package that it needs is missing.
    """
    name = str(name)
    if is_gguf(name):
        path = _expanded(name)
        return _tokenizer_in(path.parent, name, gguf_file=path.name)
    return _tokenizer_in(_described(name, accept_terms, trust_remote_code), name, trust_remote_code=trust_remote_code)


def is_gguf(name: str) -> bool:
    """Return whether this is the name of an existing GGUF file."""
    path = _expanded(name)
    return path.suffix == ".gguf" and path_kind(path) == "file"


def _expanded(name: str) -> Path:
    return Path(os.path.expanduser(name))


def _described(name: str, accept_terms: bool, code: bool) -> Path:
    """Return the folder with at least config and tokenizer."""
    return _local_folder(name, accept_terms, None) or _described_folder(name, code=code)


def _local_folder(name: str, accept_terms: bool, dtype: str | torch.dtype | None) -> Path | None:
    """Return the folder of an asset's copy or the one named; None for what may be a hub id. Raises `InputError`."""
    if name in assets.MODEL_ASSETS:
        gguf = assets.model_gguf(name, accept_terms=accept_terms)
        return _converted_folder(gguf, resolve_dtype(dtype, resolve_device(None)))
    if is_gguf(name):
        raise InputError(f"{name} is one GGUF file; load it with load_model, save it with save_model, give that folder")
    path = _expanded(name)
    if (kind := path_kind(path)) == "folder":
        return path
    if kind or name.startswith((".", "~", "/")) or name.count("/") > 1:
        raise InputError(
            f"no model at {name}; give a folder with config.json and safetensors, a .gguf file or a hub id"
        )
    known = list(assets.MODEL_ASSETS)
    if "/" not in name and (meant := suggest(name, known)):
        raise InputError(f"unknown model '{name}'{meant}; give one of {', '.join(known)}, a folder, or a hub id")
    return None


def _tokenizer_in(folder: Path, name: str, **options) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(folder, **options)
    except ImportError as error:
        needed = "sentencepiece protobuf tiktoken"
        raise InputError(f"the tokenizer of {name} needs a package; run pip install {needed}") from error
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        said = _first_line(error)[:160]
        raise InputError(f"no tokenizer can be loaded from {name} ({said}); put its tokenizer files there") from error


@dataclass(frozen=True)
class LoadedModel:
    """A model with its tokenizer (None for a model used on tokens alone); `fingerprint` identifies the weights.

    It unpacks: `model, tokenizer = load_model("smollm2-135m")`.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    name: str
    fingerprint: str

    def __iter__(self) -> Iterator:
        return iter((self.model, self.tokenizer))

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.model.get_input_embeddings().weight.device


def load_model(
    name: str | os.PathLike,
    *,
    device: str | None = None,
    dtype: str | torch.dtype | None = None,
    accept_terms: bool = False,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load a causal language model for inference.

    `name` is an embedded asset ("smollm2-135m", "gemma3-270m"), a local folder or `.gguf` file, or a hub id.
    Only safetensors and GGUF are read. `accept_terms` is needed for assets that come with terms of use.

    Raises `InputError` as `find_folder` does, and for weights that are missing or not finite.
    """
    name, where = str(name), resolve_device(device)
    kind = resolve_dtype(dtype, where)
    try:
        if is_gguf(name):
            model, tokenizer = _read_gguf(_expanded(name), kind)
        else:
            folder = find_folder(name, accept_terms=accept_terms, dtype=kind, trust_remote_code=trust_remote_code)
            tokenizer = _tokenizer_in(folder, name, trust_remote_code=trust_remote_code)
            model = _from_safetensors(name, folder, kind, trust_remote_code)
    except InputError:
        raise
    except (SafetensorError, OSError, ValueError, ImportError) as error:
        raise InputError(
            f"{name} could not be loaded ({_first_line(error)}); fetch it again, or give another model"
        ) from error
    model = model.to(where).eval().requires_grad_(False)
    return LoadedModel(model, tokenizer, name, model_fingerprint(model))


def _from_safetensors(name: str, folder: Path, dtype: torch.dtype, trust_remote_code: bool) -> PreTrainedModel:
    attention = attention_of(read_config(folder, name, trust_remote_code=trust_remote_code))
    options = {"dtype": dtype, "trust_remote_code": trust_remote_code, "attn_implementation": attention}
    options |= {"use_safetensors": True, "output_loading_info": True}
    if (packed := _packed_config(folder, trust_remote_code=trust_remote_code)) is not None:
        model, report = _from_packed(folder, name, packed, **options)
    else:
        model, report = AutoModelForCausalLM.from_pretrained(folder, **options)
    if missing := sorted(report["missing_keys"]):  # would be left random, with no more than a warning
        raise InputError(f"{name} lacks weight {missing[0]} ({len(missing)} missing in all); fetch all of its files")
    return model


@torch.no_grad()
def model_fingerprint(model: torch.nn.Module) -> str:
    """Return 16 hex digits of SHA-256 over every parameter's name, dtype, shape and bytes.

    Raises `InputError` when a weight is NaN or infinite, naming the first such parameter.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if not parameter.sum(dtype=torch.float32).isfinite():
            raise InputError(f"weight {name} holds NaN or infinite values; load an undamaged copy of the model")
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
