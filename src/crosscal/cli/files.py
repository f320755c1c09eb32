"""Results and notes of commands: on standard output, on standard error and in files, whatever these can take."""

import argparse
import errno
import json
import math
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from crosscal.errors import InputError
from crosscal.files import path_kind


def _check_new(path: str | None, overwrite: bool = False) -> None:
    """Raise `InputError`, before any work, for a file that exists or cannot be written; `overwrite` lets it exist."""
    if path is None:
        return
    place = Path(os.path.expanduser(path))
    kind = path_kind(place)
    if kind == "folder":
        raise InputError(f"{path} is a folder; give the name of a file")
    if kind and not overwrite:
        raise InputError(f"{path} exists already; give another name, or remove it first")
    _check_writable(place)


def _check_writable(place: Path) -> None:
    """Raise `InputError` where nothing can be written: below a file, or in a folder that is write-protected."""
    folder = next(folder for folder in place.absolute().parents if path_kind(folder))
    if path_kind(folder) == "file":
        raise InputError(f"{place} cannot be written, because {folder} is a file; give another place")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{place} cannot be written, because {folder} is write-protected; give another place")


def _as_json(value: object, encoding: str = "utf-8") -> str:
    r"""Return JSON text for this encoding: numbers that are not finite become null, paths text.

    >>> _as_json({"a": float("nan"), "b": ("é",)}, "ascii")
    '{\n "a": null,\n "b": [\n  "\\u00e9"\n ]\n}'
    """
    text = json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False)
    return text if _written(text, encoding) == text else json.dumps(_plain(value), indent=1, allow_nan=False)


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _written(text: str, encoding: str) -> str:
    r"""The text with escapes for the characters that an encoding lacks.

    >>> _written("café 10 µs", "ascii")
    'caf\\xe9 10 \\xb5s'
    """
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _encoding_of(stream: TextIO | None) -> str:
    return getattr(stream, "encoding", None) or "utf-8"


def _print_result(text: str) -> None:
    """Print on standard output, with escapes for characters that it lacks.

    Raises `InputError` when it is closed or on a full disk, with the text on standard error, so that nothing is lost.
    """
    stream = sys.stdout
    try:
        if stream is None:
            raise OSError(errno.EBADF, "it is closed")
        stream.write(_written(text, _encoding_of(stream)) + "\n")
        stream.flush()
    except (OSError, ValueError) as error:
        with suppress(AttributeError, OSError, ValueError):  # let Python drop at its end what was not taken
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader of a pipe, such as head, has read enough
            return
        sys.stderr.write(f"{_written(text, _encoding_of(sys.stderr))}\n")
        said = getattr(error, "strerror", None) or error
        raise InputError(
            f"standard output cannot be written ({said}); the result is above, on standard error"
        ) from None


def _occupy_closed() -> None:
    """Keep files that are opened later from standing in for closed standard streams."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, this one


class _LastingError:
    """Standard error on which writing never fails: a full disk under a log must not end the work."""

    def __init__(self, stream: TextIO | None):
        self._stream: Any = stream

    def write(self, text: str) -> int:
        with suppress(AttributeError, OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(AttributeError, OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


def _note(options: argparse.Namespace, text: str) -> None:
    """Print one line for people on standard error, unless `--quiet` was given."""
    if not options.quiet:
        sys.stderr.write(f"{text}\n")


check_new = _check_new  # as outside checks know it
