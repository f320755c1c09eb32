"""Batches of windows that a model wrote: each drawn from a random stream of its own, once, and kept on disk."""

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from crosscal.errors import InputError
from crosscal.paths import cache_dir
from crosscal.text.sampling import Sampling, own_nll, sample

VERSION = 1  # raise when the same settings would give other windows
BATCH = 16  # part of what decides a draw, so no parameter


def written_batch(
    loaded, prompt: Int[Tensor, "batch prompt"], sampling: Sampling, seed: int, index: int, bar: tqdm
) -> tuple[Int[Tensor, "batch length"], Float[Tensor, " batch"]]:
    """Tokens (int32) and mean negative log-likelihoods of batch `index`, from the cache folder if they are there.

    `bar` advances by the batch's tokens, prompts included. Raises `InputError` when the folder cannot be written.
    """
    forbidden = _special_tokens(loaded)
    path = cache_dir() / "written" / f"{_key(loaded, prompt, sampling, seed, index, forbidden)}.safetensors"
    before = bar.n
    kept = _read(path)
    if kept is None:
        stream = int.from_bytes(hashlib.sha256(f"{seed} {index}".encode()).digest()[:8], "big") >> 1
        tokens = sample(loaded.model, prompt.to(loaded.device), sampling, stream, forbidden, bar.update)
        nll = own_nll(loaded.model, tokens, prompt.shape[1])
        kept = {"tokens": tokens.cpu().int(), "nll": nll.cpu()}
        _write(path, kept)
    bar.update(before + len(prompt) * sampling.length - bar.n)
    return kept["tokens"], kept["nll"]


def _special_tokens(loaded) -> list[int]:
    """The ids that are no text: the tokenizer's special tokens and whatever ends a text for this model."""
    ends = getattr(getattr(loaded.model, "generation_config", None), "eos_token_id", None)
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    return sorted({*loaded.tokenizer.all_special_ids, *ends})


def _key(loaded, prompt: Tensor, sampling: Sampling, seed: int, index: int, forbidden: list[int]) -> str:
    """SHA-256 of everything that decides a batch."""
    decides = {
        "version": VERSION,
        "model": loaded.fingerprint,
        "device": loaded.device.type,
        "seed": seed,
        "index": index,
        "prompt": prompt.tolist(),
        "forbidden": forbidden,
    } | asdict(sampling)
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:32]


def _read(path: Path) -> dict[str, Tensor] | None:
    """A batch kept earlier; None when there is none or its file is damaged, and it is drawn again."""
    try:
        return load_file(path)
    except (OSError, SafetensorError):
        return None


def _write(path: Path, batch: dict[str, Tensor]) -> None:
    """Keep a batch: written under a temporary name, then renamed, so that a kill leaves nothing half-written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(save(batch))
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}); free some space or set CROSSCAL_CACHE") from error
    finally:
        with suppress(OSError):  # nothing there, or not even a folder
            temporary.unlink()
