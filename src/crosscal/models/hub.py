"""Models of the Hugging Face Hub: the files that are needed, fetched once into the hub's own cache.

`HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE` and `HF_TOKEN` are honoured by the hub's library. What goes wrong on the way
becomes one sentence that says what to do.
"""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from crosscal.errors import InputError
from crosscal.models.folders import WEIGHTS, weight_files

log = logging.getLogger(__name__)

_HUB = "https://huggingface.co"
_LOGIN = "log in with `hf auth login` or set HF_TOKEN"
_DESCRIPTION = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]  # config, index of the shards, tokenizer
_ELSEWHERE = ["*/*"]  # other formats of the same weights lie in subfolders
_CONVERTER = "SFconvertbot"  # the hub's own account that offers safetensors where an author did not


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
