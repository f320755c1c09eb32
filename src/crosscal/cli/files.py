"""Files that commands write: never over another one unless asked, whole or not at all."""

import json
import math
from pathlib import Path

from crosscal.errors import InputError


def check_new(path: str | None, overwrite: bool = False) -> None:
    """Raises `InputError` for a file that exists, unless it may be overwritten, a folder, and a hidden place."""
    if path is None:
        return
    place = Path(path).expanduser()
    try:
        is_folder, exists = place.is_dir(), place.exists()
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); give another place or name") from None
    if is_folder:
        raise InputError(f"{path} is a folder; give the name of a file")
    if exists and not overwrite:
        raise InputError(f"{path} exists already; give another name, or remove it first")


def write_text_file(path: str | Path, text: str) -> None:
    """Write a text file under a temporary name, then rename it into place; raises `InputError` when that fails."""
    from crosscal.files import write_atomically

    write_atomically(Path(path).expanduser(), text)


def as_json(value: object) -> str:
    """A value as JSON text: numbers that are not finite become null, paths text.

    >>> as_json({"a": float("nan"), "b": (1,)})
    '{\\n "a": null,\\n "b": [\\n  1\\n ]\\n}'
    """
    return json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False)


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)
