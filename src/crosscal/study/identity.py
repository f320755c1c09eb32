"""Identities by contents: what stands behind the names of a model and of texts, and what a run's numbers depend on.

A name is no identity: a text is edited, a config corrected, a model saved again under the same name. So a run is looked
up by the contents of all files that decide its numbers. Embedded models and texts are known by the hashes that pin
them, so that stored runs are found on machines that have neither. Needs no torch.
"""

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from crosscal.assets import ARCHIVES, MODEL_ASSETS
from crosscal.errors import InputError
from crosscal.files import hash_files, hash_json
from crosscal.methods.registry import find_method
from crosscal.metrics.instructions import _instructions_version
from crosscal.metrics.tasks import SCORING_VERSION, TASKS, task_version
from crosscal.plan.parameters import TASK_PROMPTS
from crosscal.text import SELF, SOURCES, documents
from crosscal.types import RunConfig

DENSE = "dense"
FLOAT32 = "float32"
"""The dense weights computed with in float32: what rounding alone does to the numbers, the floor of all divergences."""
GIVEN = "given"
"""A model that was compressed elsewhere, measured as it is."""
_UNCOMPRESSED = (DENSE, FLOAT32, GIVEN)
RANDOM = "random"
_EVALUATION_VERSION = 2  # raised by hand when a metric's numbers change
_SIZES_OF = {
    "n_windows": "calibration",
    "eval_windows": "texts",
    "eval_window": "texts",
    "task_items": "tasks",
    "answer_items": "answers",
    "dense": "dense",
}
"""What a run depends on only where it has calibration text, held-out texts, tasks, ..."""
_DECIDING = (".safetensors", ".json", ".txt", ".model", ".jinja", ".py", ".tiktoken", ".spm", ".v3")
_BESIDE = ("crosscal.json", "masks.safetensors")
"""What compression leaves beside a model and no evaluation reads."""


def _model_identity(name: str) -> str | None:
    """Return the hash of a model's contents: weights, config, generation settings, tokenizer, and its own code.

    `name` is an embedded model, a folder, a `.gguf` file or a hub id in the hub's cache; None when it is none of these.
    """
    if name in MODEL_ASSETS:
        return hash_json([package.sha256 for package in ARCHIVES[name].packages])
    path = Path(name).expanduser()
    try:
        if path.suffix == ".gguf" and path.is_file():
            return _hash_of({"gguf": path})
        folder = path if path.is_dir() else _in_hub_cache(name)
        files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*")} if folder else {}
    except OSError:
        return None
    deciding = {name: file for name, file in files.items() if file.suffix in _DECIDING and name not in _BESIDE}
    return _hash_of(deciding) if deciding else None


def _in_hub_cache(name: str) -> Path | None:
    """The snapshot of a hub id in the hub's own cache."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError:
        return None
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _hash_of(files: Mapping[str, Path]) -> str:
    """Hash files by name and bytes, each state of them once a process."""
    states = {name: (file.stat().st_mtime_ns, file.stat().st_size) for name, file in files.items()}
    return _hash_once(tuple(sorted((name, os.fspath(file), states[name]) for name, file in files.items())))


@lru_cache(maxsize=64)
def _hash_once(files: tuple[tuple[str, str, tuple[int, int]], ...]) -> str:
    return hash_files({name: Path(path) for name, path, _ in files})


def _text_identity(source: str, split: str, fetch: bool = True) -> str | None:
    """Return the hash of the documents of one part of a source.

    Text that follows from the model and the tasks (self-written, random, task prompts) is identified by its name. None
    when the documents are not at hand: a file that is gone, or, without `fetch`, a data set of the hub.
    """
    if source in (SELF, RANDOM, TASK_PROMPTS):
        return source
    if source in SOURCES:
        found = SOURCES[source]
        return hash_json([source, split, [p.sha256 for p in ARCHIVES[found.archive].packages], found.tokens])
    if source.startswith("hub:") and not fetch:
        return None
    try:
        return hash_json(documents(source, split))
    except InputError:
        if fetch:
            raise
        return None


def identify(config: RunConfig, fetch: bool = True) -> dict:
    """Return the contents and versions that decide a run's numbers, beside its config.

    Without `fetch`, what is not at hand is None, and nothing loads torch or asks the network.
    """
    plain = config.method in _UNCOMPRESSED
    known: dict[str, object] = {"model": _model_identity(config.model), "evaluation": _EVALUATION_VERSION}
    if config.dense:
        known["dense"] = _model_identity(config.dense)
    known["calibration"] = {s: _text_identity(s, "calibration", fetch) for s, _ in config.calibration}
    known["held_out"] = {s: _text_identity(s, "held_out", fetch) for s in config.texts}
    known["tasks"] = {name: _task_version(name) for name in config.tasks}
    known["answers"] = {name: _instructions_version(name) if fetch else None for name in config.answers}
    known["method"] = None if not fetch else 0 if plain else find_method(config.method).version
    return known


def _task_version(name: str) -> str | None:
    try:
        version = task_version(name)
    except InputError:  # a file that is gone
        return None
    return version if name in TASKS or not version.endswith("absent") else None


def run_key(config: Mapping, identity: Mapping) -> str:
    """Return the hash of a run's config and identity, which is the id of a new run.

    Sizes that decide nothing are left out, so that every road to the same numbers leads to the same run.
    """
    idle = {name for name, sizes in _SIZES_OF.items() if not config.get(sizes)}
    idle |= {"window", "seed", "schedule", "allocation"} if config["method"] in _UNCOMPRESSED else set()
    return hash_json({"config": {k: v for k, v in config.items() if k not in idle}, "identity": identity})


def piece_keys(config: RunConfig, identity: Mapping) -> dict[tuple[str, str], str]:
    """Return the key of each piece of a run: (kind, name) -> hash of the contents that decide the piece.

    Pieces are one text, one task, one set of instructions, and the compression itself. They are known by contents
    alone, so that a run of more tasks, or of the same model under another name, measures only what is new.
    """
    plain = config.method in (DENSE, GIVEN)
    about: dict[str, object] = {"model": identity["model"], "device": config.device, "dtype": config.dtype}
    about |= {"evaluation": identity["evaluation"], "method": [DENSE if plain else config.method, identity["method"]]}
    if config.method not in _UNCOMPRESSED:
        drawn = [config.n_windows, config.window, config.seed] if config.calibration else []
        about["calibration"] = [[identity["calibration"][source], share] for source, share in config.calibration]
        about |= {"drawn": drawn, "target": str(config.target), "schedule": config.schedule}
        about |= {"allocation": config.allocation, "options": config.options}
    reference = identity.get("dense") or (None if config.method == DENSE else identity["model"])
    asked = {name: [identity["tasks"][name], config.task_items] for name in config.tasks}
    pieces: dict[tuple[str, str], object] = {}
    for name in config.texts:
        prompts = asked if name == TASK_PROMPTS else None
        windows = [config.eval_windows, config.eval_window, reference, prompts]
        pieces["text", name] = [identity["held_out"][name], *windows]
    pieces |= {("task", name): [name, *entry, SCORING_VERSION] for name, entry in asked.items()}
    for name in config.answers:
        pieces["answers", name] = [name, identity["answers"][name], config.answer_items]
    if config.method not in _UNCOMPRESSED:
        pieces["compression", ""] = config.window
    return {(kind, name): hash_json([about, kind, piece], 32) for (kind, name), piece in pieces.items()}
