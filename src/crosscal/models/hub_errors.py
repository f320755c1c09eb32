"""What goes wrong between a hub id and its files, as one sentence that says what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from crosscal.errors import InputError

HUB = "https://huggingface.co"
LOGIN = "log in with `hf auth login` or set HF_TOKEN"


@contextmanager
def hub_errors_explained(name: str) -> Iterator[None]:
    """Turn any failure to fetch the files of hub id `name` into an `InputError`; one that already is passes on."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the HTTP library's own are not the same in all releases of the hub's library
        raise InputError(hub_sentence(name, error)) from error


def hub_sentence(name: str, error: Exception) -> str:
    """One sentence for what was raised: no access, no such model, a bad token, a full disk, no connection."""
    status = _status(error)
    if isinstance(error, GatedRepoError):
        return _gated(name)
    if status == 401 and get_token() and "Invalid" in str(error):
        return f"the hub refuses your token; make a new one at {HUB}/settings/tokens and {LOGIN}"
    if isinstance(error, RepositoryNotFoundError):
        private = "log in as another user if it is private" if get_token() else f"if it is private, {LOGIN}"
        return f"the hub has no model '{name}' that you can see; check the name at {HUB}/models, or {private}"
    if status in (401, 403):
        return _gated(name)
    if isinstance(error, HFValidationError):
        return f"'{name}' is neither asset, folder nor a hub id; write a hub id as owner/name"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk of {constants.HF_HUB_CACHE} is full; free some space there, or set HF_HOME to another disk"
    if isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled)) or _no_connection(error):
        return not_cached(name)
    said = " ".join(str(error).split())[:200] or type(error).__name__
    return f"{name} could not be fetched from the hub ({said}); try again, or give a folder that holds the model"


def not_cached(name: str) -> str:
    """The sentence for a model that is not in the hub's cache and cannot be fetched now."""
    start = f"{name} is neither asset, folder nor in the hub cache ({constants.HF_HUB_CACHE})"
    if constants.is_offline_mode():
        return f"{start}, and HF_HUB_OFFLINE forbids to fetch it; unset that, or set HF_HOME to a cache that holds it"
    return f"{start}, and the hub cannot be reached; go online once, or set HF_HOME to a cache that holds it"


def _gated(name: str) -> str:
    """What is left to do depends on whether the user has a token."""
    if get_token():
        return (
            f"{name} is gated and your token has no access; accept its licence at {HUB}/{name} with the token's own "
            "account, and let a fine-grained token read gated repositories"
        )
    return f"{name} is gated; accept its licence at {HUB}/{name}, then {LOGIN}"


def _status(error: Exception) -> int | None:
    """The HTTP status, where there was an answer."""
    return getattr(error.response, "status_code", None) if isinstance(error, HfHubHTTPError) else None


def _no_connection(error: BaseException | None) -> bool:
    """Whether the error or one of its causes is a lost or refused connection, of whatever HTTP library."""
    while error is not None:
        name = type(error).__name__
        if isinstance(error, (ConnectionError, TimeoutError)) or "Connect" in name or "Timeout" in name:
            return True
        error = error.__cause__ or error.__context__
    return False
