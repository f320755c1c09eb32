"""One way to load a causal language model: the embedded asset, a local folder, a GGUF file or a hub id."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from crosscal import assets
from crosscal.errors import InputError, suggest
from crosscal.models.conversion import converted_folder


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
        """Where the weights are."""
        return self.model.get_input_embeddings().weight.device


def fast_dtype(device: str | torch.device = "cpu") -> torch.dtype:
    """bfloat16 where the hardware multiplies it faster than float32, else float32: detected, never assumed."""
    if torch.device(device).type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if torch.device(device).type == "cpu":
        # Private, but the only spelling that every supported torch has; absent means "not fast".
        fast = (getattr(torch.cpu, probe, bool)() for probe in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
        return torch.bfloat16 if any(fast) else torch.float32
    return torch.float32


def resolve_device(device: str | None) -> torch.device:
    """`None` or "auto" is the first CUDA device when there is one, else the CPU.

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
    """`None` or "auto" is `fast_dtype(device)`; otherwise one of float32, bfloat16, float16."""
    if dtype in (None, "auto"):
        return fast_dtype(device)
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    name = str(dtype).removeprefix("torch.")
    if name not in known:
        raise InputError(
            f"dtype '{dtype}' is unknown; give one of auto, {', '.join(known)}{suggest(name, list(known))}"
        )
    return known[name]


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

    Raises `InputError` for an unknown name, missing files, other weight formats, a gated repository, or
    weights that are not finite.
    """
    where = resolve_device(device)
    options = {"dtype": resolve_dtype(dtype, where), "trust_remote_code": trust_remote_code}
    try:
        model, tokenizer = _read(str(name), options, accept_terms)
    except InputError:
        raise
    except SafetensorError as error:
        raise InputError(f"a file of {name} is damaged or not a safetensors file ({error}); fetch it again") from error
    except (OSError, ValueError) as error:
        raise InputError(_explain(str(name), error)) from error
    model = model.to(where).eval().requires_grad_(False)
    return LoadedModel(model, tokenizer, str(name), model_fingerprint(model))


def _read(name: str, options: dict, accept_terms: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer from wherever the name points."""
    path = Path(name).expanduser()
    if name in assets.MODEL_ASSETS:
        gguf = assets.model_gguf(name, accept_terms=accept_terms)
        path = converted_folder(gguf, options["dtype"], lambda folder: _convert(gguf, options, folder))
    elif path.is_file() and path.suffix == ".gguf":
        return _from_gguf(path, options)
    if path.is_dir():
        _check_folder(path)
        return _from_safetensors(str(path), options)
    _check_hub_id(name)
    return _from_safetensors(name, options)


def _check_hub_id(name: str) -> None:
    """Raises `InputError` for what can only be a mistyped path or asset."""
    if name.startswith((".", "~", "/")) or name.count("/") > 1 or Path(name).exists():
        raise InputError(
            f"no model at {name}; give a folder with config.json and safetensors, a .gguf file or a hub id"
        )
    known = list(assets.MODEL_ASSETS)
    if "/" not in name and (meant := suggest(name, known)):
        raise InputError(f"unknown model '{name}'{meant}; give one of {', '.join(known)}, a folder, or a hub id")


def _check_folder(path: Path) -> None:
    if not (path / "config.json").exists():
        raise InputError(f"{path} has no config.json; give the folder that a model was saved to")
    if not any(path.glob("*.safetensors")):
        raise InputError(f"{path} holds no safetensors file; only safetensors and GGUF are read, so convert it first")


def _from_safetensors(source: str, options: dict) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=options["trust_remote_code"])
    model, report = AutoModelForCausalLM.from_pretrained(
        source, use_safetensors=True, attn_implementation="sdpa", output_loading_info=True, **options
    )
    if missing := sorted(report["missing_keys"]):  # would be left random, with no more than a warning
        raise InputError(f"{source} lacks weight {missing[0]} ({len(missing)} missing in all); fetch all of its files")
    return model, tokenizer


def _from_gguf(path: Path, options: dict) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Dequantize a GGUF file into a plain dense model that can be saved again."""
    config = getattr(transformers, "GgufConfig", None)  # newer releases keep the blocks packed unless told
    if config is not None:
        options = options | {"quantization_config": config(dequantize=True)}
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, attn_implementation="sdpa", **options
    )
    # What is left is dense; without these marks `save_pretrained` would refuse it as quantized.
    model.hf_quantizer = None
    for mark in ("quantization_config", "is_quantized", "quantization_method"):
        for owner in (model, model.config):
            if mark in vars(owner):
                delattr(owner, mark)
    return model, tokenizer


def _convert(gguf: Path, options: dict, folder: Path) -> None:
    """Write a GGUF model as a safetensors folder."""
    model, tokenizer = _from_gguf(gguf, options)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _explain(name: str, error: Exception) -> str:
    """One sentence for what the hub or the files did not give."""
    text = str(error)
    if "gated" in text or "401" in text or "403" in text:
        return f"{name} is gated; accept its licence on its hub page and set HF_TOKEN, or give a local folder"
    if "safetensors" in text:
        return f"{name} has no safetensors weights; only safetensors and GGUF are read, so convert it first"
    if "trust_remote_code" in text:
        return f"{name} brings its own code; read it, then pass trust_remote_code=True if you trust it"
    if os.environ.get("HF_HUB_OFFLINE") == "1" or any(word in text for word in ("connect", "offline", "cached files")):
        return f"{name} is neither asset, folder nor in the hub cache, and the hub cannot be reached; go online once"
    first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    return f"{name} could not be loaded ({first.rstrip('.')}); check the name, or give a folder that holds the model"


@torch.no_grad()
def model_fingerprint(model: torch.nn.Module) -> str:
    """16 hex digits of SHA-256 over every parameter's name, dtype, shape and bytes.

    Raises `InputError` when a weight is NaN or infinite, naming the first such parameter.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if not parameter.sum(dtype=torch.float32).isfinite():
            raise InputError(f"weight {name} holds NaN or infinite values; load an undamaged copy of the model")
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]
