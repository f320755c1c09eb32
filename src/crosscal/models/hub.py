"""Models of the Hugging Face Hub: the files that are needed, fetched once into the hub's own cache.

`HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE` and `HF_TOKEN` are honoured by the hub's library.
"""

import logging
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download

from crosscal.errors import InputError
from crosscal.models.folders import weight_files
from crosscal.models.hub_errors import HUB, hub_errors_explained

log = logging.getLogger(__name__)

DESCRIPTION = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]  # config, index of the shards, tokenizer
CODE = ["*.py"]
ELSEWHERE = ["*/*"]  # other formats of the same weights lie in subfolders
CONVERTER = "SFconvertbot"  # the hub's own account that offers safetensors where an author did not


def described_folder(name: str, revision: str | None = None, *, code: bool = False) -> Path:
    """The snapshot of hub id `name` with all but its weights: config and tokenizer; with `code`, its own code too.

    Raises `InputError` when it cannot be had, with what to do.
    """
    wanted = DESCRIPTION + (CODE if code else [])
    with hub_errors_explained(name):
        found = snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=ELSEWHERE)
    return Path(found)


def hub_folder(name: str, *, code: bool = False) -> Path:
    """The snapshot of hub id `name` with its safetensors; other weight formats are never fetched.

    Where the author gives none, those that the hub's own converter proposed are taken. Raises `InputError`.
    """
    folder = described_folder(name, code=code)
    missing = _fetch_weights(name, folder)
    if missing == ["model.safetensors"] and (converted := _converted_revision(name)):
        log.warning("%s has no safetensors of its own; reading those the hub's converter made (%s)", name, converted)
        folder = described_folder(name, converted, code=code)
        missing = _fetch_weights(name, folder)
    if missing:
        raise InputError(_lacks(name, folder, missing))
    return folder


def _fetch_weights(name: str, folder: Path) -> list[str]:
    """Bring the weights into a snapshot; the names of those that could not be had."""
    wanted = weight_files(folder)
    if any(not (folder / file).exists() for file in wanted):
        with hub_errors_explained(name):
            snapshot_download(name, revision=folder.name, allow_patterns=wanted)
    return [file for file in wanted if not (folder / file).exists()]


def _converted_revision(name: str) -> str | None:
    """The revision in which the hub's converter proposes safetensors: one in the cache, else the newest open one."""
    refs = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}" / "refs"
    if cached := sorted((refs / "refs" / "pr").glob("*")):
        return cached[-1].relative_to(refs).as_posix()
    if constants.is_offline_mode():
        return None
    with hub_errors_explained(name):
        proposed = HfApi().get_repo_discussions(
            name, author=CONVERTER, discussion_type="pull_request", discussion_status="open"
        )
        return next((found.git_reference for found in proposed if "safetensors" in found.title), None)


def _lacks(name: str, folder: Path, missing: list[str]) -> str:
    """The sentence for weights that are not there."""
    offline = constants.is_offline_mode()
    if missing != ["model.safetensors"] or (offline and not any(folder.glob("*.bin"))):
        unset = "unset HF_HUB_OFFLINE" if offline else "try again"
        return f"the hub cache holds {name} only in part ({missing[0]} is missing); {unset} so that the rest is fetched"
    return (
        f"{name} has no safetensors weights, and other formats are not read; convert it at "
        f"{HUB}/spaces/safetensors/convert, or give another model"
    )
