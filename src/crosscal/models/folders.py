"""Model folders: fetched from the Hugging Face Hub where they are not local, and checked before any weight is read.

`HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE` and `HF_TOKEN` are honoured by the hub's library. Config, architecture and
the headers of the safetensors files are checked; what is wrong becomes one sentence that says what to do.
"""

import errno
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import transformers
from huggingface_hub import HfApi, constants, get_token, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PreTrainedConfig

from crosscal.errors import InputError

log = logging.getLogger(__name__)

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_ADAPTER = "adapter_config.json"
# Tensors of quantizers (compressed-tensors, block-wise float8, GPTQ, AWQ, bitsandbytes, MXFP4), and dtypes of codes.
_CODES = re.compile(
    r"(weight_scale|_scale_inv|weight_zero_point|weight_packed|\.qweight|\.qzeros|\.SCB|\.absmax|_proj_blocks)$"
)
_CODE_DTYPES = ("F8", "F6", "F4", "I8", "U8", "I4", "U4")
_HUB = "https://huggingface.co"
_LOGIN = "log in with `hf auth login` or set HF_TOKEN"
_DESCRIPTION = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]  # config, index of the shards, tokenizer
_ELSEWHERE = ["*/*"]  # other formats of the same weights lie in subfolders
_CONVERTER = "SFconvertbot"  # the hub's own account that offers safetensors where an author did not


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
        raise InputError(
            f"{name} brings its own code; read it and, if you trust it, say so with trust_remote_code=True "
            "(--trust-remote-code)"
        )
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


def _described_folder(name: str, revision: str | None = None, *, code: bool = False) -> Path:
    """Return the snapshot of hub id `name` with config and tokenizer, and with `code` its Python files; no weights.

    Raises `InputError` when it cannot be fetched.
    """
    wanted = _DESCRIPTION + (["*.py"] if code else [])
    with _explained(name):
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=_ELSEWHERE))


def _hub_folder(name: str, *, code: bool = False) -> Path:
    """Return the snapshot of hub id `name` with its safetensors; other weight formats are never fetched.

    Where the author gives none, those that the hub's own converter proposed are taken. Raises `InputError`.
    """
    folder = _described_folder(name, code=code)
    missing = _fetch_weights(name, folder)
    if missing == [WEIGHTS] and (converted := _converted_revision(name)):
        log.warning("%s has no safetensors of its own; reading those the hub's converter made (%s)", name, converted)
        folder = _described_folder(name, converted, code=code)
        missing = _fetch_weights(name, folder)
    if missing:
        raise InputError(_lacks(name, folder, missing))
    return folder


def _fetch_weights(name: str, folder: Path) -> list[str]:
    """Bring the weights into a snapshot and return the names of the files that are still missing."""
    wanted = weight_files(folder)
    if any(not (folder / file).exists() for file in wanted):
        with _explained(name):
            snapshot_download(name, revision=folder.name, allow_patterns=wanted)
    return [file for file in wanted if not (folder / file).exists()]


def _converted_revision(name: str) -> str | None:
    """Return the revision in which the hub's converter proposes safetensors: one in the cache, else the newest open."""
    refs = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "refs"
    if cached := sorted((refs / "refs" / "pr").glob("*")):
        return cached[-1].relative_to(refs).as_posix()
    if constants.is_offline_mode():
        return None
    with _explained(name):
        proposed = HfApi().get_repo_discussions(
            name, author=_CONVERTER, discussion_type="pull_request", discussion_status="open"
        )
        return next((one.git_reference for one in proposed if "safetensors" in one.title), None)


def _lacks(name: str, folder: Path, missing: list[str]) -> str:
    offline = constants.is_offline_mode()
    if missing != [WEIGHTS] or (offline and not any(folder.glob("*.bin"))):
        unset = "unset HF_HUB_OFFLINE" if offline else "try again"
        return f"the hub cache holds {name} only in part ({missing[0]} is missing); {unset} so that the rest is fetched"
    return (
        f"{name} has no safetensors weights, and other formats are not read; convert it at "
        f"{_HUB}/spaces/safetensors/convert, or give another model"
    )


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn any failure to fetch the files of hub id `name` into an `InputError`; one that already is passes on."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the HTTP library's own are not the same in all releases of the hub's library
        raise InputError(_sentence(name, error)) from error


def _sentence(name: str, error: Exception) -> str:
    """Return one sentence for an error: no access, no such model, a bad token, a full disk, no connection."""
    response = getattr(error, "response", None) if isinstance(error, HfHubHTTPError) else None
    status = getattr(response, "status_code", None)
    if status == 401 and get_token() and "Invalid" in str(error) and not isinstance(error, GatedRepoError):
        return f"the hub refuses your token; make a new one at {_HUB}/settings/tokens and {_LOGIN}"
    if isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError):
        private = "log in as another user if it is private" if get_token() else f"if it is private, {_LOGIN}"
        return f"the hub has no model '{name}' that you can see; check the name at {_HUB}/models, or {private}"
    if isinstance(error, GatedRepoError) or status in (401, 403):
        return _gated(name)
    if isinstance(error, HFValidationError):
        return f"'{name}' is neither asset, folder nor a hub id; write a hub id as owner/name"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk of {constants.HF_HUB_CACHE} is full; free some space there, or set HF_HOME to another disk"
    if isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled)) or _no_connection(error):
        return _not_cached(name)
    said = " ".join(str(error).split())[:200] or type(error).__name__
    return f"{name} could not be fetched from the hub ({said}); try again, or give a folder that holds the model"


def _not_cached(name: str) -> str:
    start = f"{name} is neither asset, folder nor in the hub cache ({constants.HF_HUB_CACHE})"
    if constants.is_offline_mode():
        return f"{start}, and HF_HUB_OFFLINE forbids to fetch it; unset that, or set HF_HOME to a cache that holds it"
    return f"{start}, and the hub cannot be reached; go online once, or set HF_HOME to a cache that holds it"


def _gated(name: str) -> str:
    if get_token():
        return (
            f"{name} is gated and your token has no access; accept its licence at {_HUB}/{name} with the token's own "
            "account, and let a fine-grained token read gated repositories"
        )
    return f"{name} is gated; accept its licence at {_HUB}/{name}, then {_LOGIN}"


def _no_connection(error: BaseException | None) -> bool:
    """Return whether the error or one of its causes is a lost or refused connection, of whatever HTTP library."""
    while error is not None:
        name = type(error).__name__
        if isinstance(error, (ConnectionError, TimeoutError)) or "Connect" in name or "Timeout" in name:
            return True
        error = error.__cause__ or error.__context__
    return False
