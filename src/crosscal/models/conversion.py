"""GGUF files: dequantized into a plain model; the embedded ones once, into a safetensors folder in the cache."""

import os
import shutil
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from crosscal.errors import InputError
from crosscal.paths import cache_dir

LAYOUT = 1  # raise when what is written below changes


def converted_folder(gguf: Path, dtype: torch.dtype) -> Path:
    """The safetensors copy of an embedded GGUF file, made when it is not there yet; loading it takes a second.

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
        for part in read_gguf(gguf, dtype):
            part.save_pretrained(work)
        if not folder.exists():  # another process may have been faster
            work.rename(folder)
    except OSError as error:
        if not folder.exists():
            raise InputError(f"cannot write {folder} ({error.strerror or error}); free some space there") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def read_gguf(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Dequantize a GGUF file into a plain dense model that can be saved again, with its tokenizer."""
    options: dict = {"dtype": dtype}
    config = getattr(transformers, "GgufConfig", None)  # newer releases keep the blocks packed unless told
    if config is not None:
        options["quantization_config"] = config(dequantize=True)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, **options)
    # What is left is dense; without these marks `save_pretrained` would refuse it as quantized.
    model.hf_quantizer = None
    for mark in ("quantization_config", "is_quantized", "quantization_method"):
        for owner in (model, model.config):
            if mark in vars(owner):
                delattr(owner, mark)
    return model, tokenizer
