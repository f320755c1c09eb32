"""Files that are written whole or not at all, and hashes of what is in them. Standard library only."""

import hashlib
import json
import os
import secrets
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from crosscal.errors import InputError


def write_atomically(path: str | os.PathLike, data: str | bytes, *, optional: bool = False) -> bool:
    """Write a file under a temporary name, flush it to disk and rename it into place; return whether it was written.

    The temporary name is random, so that processes of several machines may write the same file at the same moment.
    An earlier file stays as it was when writing fails. Then `InputError` is raised, or, for an `optional` file such as
    one of the cache, a line goes to standard error and the result is False.
    """
    path = Path(path).expanduser()
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data if isinstance(data, bytes) else data.encode())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        return True
    except (OSError, UnicodeEncodeError) as error:
        said = getattr(error, "strerror", None) or "the text holds half of a surrogate pair"
        if not optional:
            raise InputError(f"cannot write {path} ({said}); free some space or choose another folder") from error
        sys.stderr.write(f"not kept: cannot write {path} ({said})\n")
        return False
    finally:
        with suppress(OSError):  # renamed, or never made
            temporary.unlink()


def hash_json(value: object, length: int = 16) -> str:
    """Return the first hex digits of SHA-256 over canonical JSON: equal content, equal hash.

    >>> hash_json({"b": 1, "a": 2}) == hash_json({"a": 2, "b": 1})
    True
    """
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:length]


def hash_files(files: Mapping[str, Path], length: int = 16) -> str:
    """Return the first hex digits of SHA-256 over files, each under its name, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(files):
        with open(files[name], "rb") as file:
            digest.update(f"{name}\n".encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:length]


def path_kind(path: str | os.PathLike) -> Literal["", "file", "folder"]:
    """Return what is at a path, "" for nothing; raise `InputError` where the system refuses to answer.

    It refuses for folders that may not be entered, names that are too long, and loops of links.
    """
    try:
        return "folder" if stat.S_ISDIR(os.stat(path).st_mode) else "file"
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except (OSError, ValueError) as error:
        shown = os.fspath(path) if len(os.fspath(path)) < 100 else f"{os.fspath(path)[:80]}..."
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot look for {shown} ({reason}); give another name or place") from None
