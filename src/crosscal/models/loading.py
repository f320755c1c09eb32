"""One way to load a causal language model: the embedded asset, a local folder, a GGUF file or a hub id."""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from crosscal.errors import InputError
from crosscal.models.conversion import read_gguf
from crosscal.models.devices import fast_dtype, resolve_device, resolve_dtype
from crosscal.models.finding import find_config, find_folder, is_gguf, load_tokenizer, tokenizer_in
from crosscal.models.folders import attention_of, read_config
from crosscal.models.packed import from_packed, packed_config

__all__ = [
    "LoadedModel",
    "fast_dtype",
    "find_config",
    "find_folder",
    "load_model",
    "load_tokenizer",
    "model_fingerprint",
    "resolve_device",
    "resolve_dtype",
]


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
            model, tokenizer = read_gguf(Path(name).expanduser(), kind)
        else:
            folder = find_folder(name, accept_terms=accept_terms, dtype=kind, trust_remote_code=trust_remote_code)
            tokenizer = tokenizer_in(folder, name, trust_remote_code=trust_remote_code)
            model = _from_safetensors(name, folder, kind, trust_remote_code)
    except InputError:
        raise
    except (SafetensorError, OSError, ValueError, ImportError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(f"{name} could not be loaded ({said}); fetch it again, or give another model") from error
    model = model.to(where).eval().requires_grad_(False)
    return LoadedModel(model, tokenizer, name, model_fingerprint(model))


def _from_safetensors(name: str, folder: Path, dtype: torch.dtype, trust_remote_code: bool) -> PreTrainedModel:
    attention = attention_of(read_config(folder, name, trust_remote_code=trust_remote_code))
    options = {"dtype": dtype, "trust_remote_code": trust_remote_code, "attn_implementation": attention}
    options |= {"use_safetensors": True, "output_loading_info": True}
    if (packed := packed_config(folder, trust_remote_code=trust_remote_code)) is not None:
        model, report = from_packed(folder, name, packed, **options)
    else:
        model, report = AutoModelForCausalLM.from_pretrained(folder, **options)
    if missing := sorted(report["missing_keys"]):  # would be left random, with no more than a warning
        raise InputError(f"{name} lacks weight {missing[0]} ({len(missing)} missing in all); fetch all of its files")
    return model


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
