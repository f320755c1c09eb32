"""The embedded GGUF models, dequantized once into a safetensors folder in the cache, where loading takes a second."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from crosscal.errors import InputError
from crosscal.paths import cache_dir

LAYOUT = 1  # raise when what is written below changes


def converted_folder(gguf: Path, dtype: torch.dtype, convert: Callable[[Path], None]) -> Path:
    """The safetensors copy of a GGUF file, made by `convert(folder)` when it is not there yet.

    It is made under a temporary name and renamed when whole, so that a kill leaves nothing half-made. The copy is
    known by the GGUF file's own folder, whose name changes with its pinned hash. Raises `InputError` on a full disk.
    """
    kind = str(dtype).removeprefix("torch.")
    folder = cache_dir() / "models" / f"{gguf.parent.parent.name}-{gguf.stem}-{kind}-v{LAYOUT}"
    if folder.exists():
        return folder
    work = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        convert(work)
        if not folder.exists():  # another process may have been faster
            work.rename(folder)
    except OSError as error:
        if not folder.exists():
            raise InputError(f"cannot write {folder} ({error.strerror or error}); free some space there") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder
