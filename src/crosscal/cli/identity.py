"""What decides the numbers of an evaluation, as far as the model and the packages do."""

import argparse
import hashlib
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from crosscal.cli.options import loading

VERSION = 1  # raised by hand when the numbers of an evaluation change
DECIDING = (".safetensors", ".json", ".txt", ".model", ".jinja", ".py")
BESIDE = ("crosscal.json", "masks.safetensors")
"""What compression leaves beside a model and no evaluation reads."""


def model_identity(name: str, options: argparse.Namespace) -> str:
    """SHA-256 of a model's files: weights, config, tokenizer; raises `InputError` when the model cannot be found."""
    from crosscal.models.loading import find_folder

    path = Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return _hash_of((path,), _times((path,)))
    folder = find_folder(name, dtype=options.dtype, **loading(options))
    paths = tuple(p for p in sorted(folder.iterdir()) if p.suffix in DECIDING and p.name not in BESIDE)
    return _hash_of(paths, _times(paths))


def packages() -> dict[str, object]:
    """The versions of what computes."""
    found: dict[str, object] = {"version": VERSION}
    for package in ("torch", "transformers", "lm-eval"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _times(paths: tuple[Path, ...]) -> tuple[int, ...]:
    return tuple(path.stat().st_mtime_ns for path in paths)


@lru_cache(maxsize=64)
def _hash_of(paths: tuple[Path, ...], times: tuple[int, ...]) -> str:
    """Each file's name and bytes; `times` makes a changed file be read again."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            digest.update(f"{path.name} ".encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:32]
