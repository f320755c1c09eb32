"""Models measured on the same texts and tasks: one in memory at a time, and nothing measured twice.

What was measured is kept in the cache folder, by the bytes of the model and of the texts, so that an interrupted call
continues, and another one repeats nothing.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from crosscal.cli.identity import model_identity, packages
from crosscal.cli.notes import note
from crosscal.cli.options import loading
from crosscal.errors import InputError
from crosscal.paths import cache_dir

if TYPE_CHECKING:
    from crosscal.metrics.text_scores import DenseReference
    from crosscal.models import LoadedModel
    from crosscal.text import TextWindows


@dataclass(frozen=True)
class Asked:
    """What every model is measured on, and how models are loaded."""

    texts: "dict[str, TextWindows]"
    tasks: list[str]
    items: int
    options: argparse.Namespace

    @property
    def place(self) -> dict[str, str]:
        """Where and in which numbers models run."""
        from crosscal.models.loading import resolve_device, resolve_dtype

        device = resolve_device(self.options.device)
        return {"device": device.type, "dtype": str(resolve_dtype(self.options.dtype, device))}

    def load(self, name: str) -> "LoadedModel":
        """A model in memory."""
        from crosscal.models import load_model

        note(self.options, f"loading {name}")
        return load_model(name, device=self.options.device, dtype=self.options.dtype, **loading(self.options))


@dataclass
class Measured:
    """One model's numbers: for each text the mean of every metric over each window, for each task its items."""

    name: str
    texts: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    tasks: dict[str, dict] = field(default_factory=dict)


def measure(asked: Asked, models: Sequence[str], dense: str | None) -> tuple[Measured | None, list[Measured]]:
    """The dense model, if one is named, and every model, with divergences from the dense one."""
    dense_id = model_identity(dense, asked.options) if dense else ""
    wanted = [_Work(asked, name, dense_id) for name in models]
    own, reference = None, None
    if dense:
        own = _Work(asked, dense, "")
        needs_reference = any(work.texts_missing for work in wanted)
        if own.missing or needs_reference:
            loaded = asked.load(dense)
            own.fill(loaded, None)
            reference = _reference(asked, loaded) if needs_reference else None
            del loaded
    for work in wanted:
        if work.missing:
            work.fill(asked.load(work.found.name), reference)
    return own and own.found, [work.found for work in wanted]


def _reference(asked: Asked, loaded: "LoadedModel") -> "DenseReference":
    """The dense model's hidden states; of the model itself only embeddings and head stay in memory."""
    from crosscal.metrics.text_scores import dense_reference
    from crosscal.models import decoder_blocks

    texts = {name: windows.tokens for name, windows in asked.texts.items()}
    reference = dense_reference(loaded.model, texts, progress=not asked.options.quiet)
    del decoder_blocks(loaded.model)[:]
    return reference


class _Work:
    """What is known of one model, and what is still to be measured."""

    def __init__(self, asked: Asked, name: str, dense_id: str):
        self.asked, self.found = asked, Measured(name)
        self.about = {"model": model_identity(name, asked.options), "dense": dense_id, **asked.place, **packages()}
        self.texts_missing = [text for text in asked.texts if not _known(self.found.texts, text, self._text_file(text))]
        self.tasks_missing = [task for task in asked.tasks if not _known(self.found.tasks, task, self._task_file(task))]

    @property
    def missing(self) -> bool:
        """Whether the model has to be loaded."""
        return bool(self.texts_missing or self.tasks_missing)

    def fill(self, loaded: "LoadedModel", reference: "DenseReference | None") -> None:
        """Measure what is missing, each piece kept as soon as it is there."""
        from crosscal.metrics.evaluate import evaluate

        progress = not self.asked.options.quiet
        for source in self.texts_missing:
            scores = evaluate(loaded, {source: self.asked.texts[source]}, dense=reference, progress=progress).texts
            per_token = scores[source].per_token
            self.found.texts[source] = {metric: scores[source].per_window(metric) for metric in per_token}
            _keep(self._text_file(source), self.found.texts[source])
        for task in self.tasks_missing:
            results = evaluate(loaded, tasks=[task], max_items=self.asked.items, progress=progress).tasks
            self.found.tasks[task] = {name: vars(result) for name, result in results.items()}
            _keep(self._task_file(task), self.found.tasks[task])

    def _text_file(self, source: str) -> Path:
        return _file(self.about | {"text": self.asked.texts[source].fingerprint})

    def _task_file(self, task: str) -> Path:
        from crosscal.metrics.tasks import task_version

        asked = {"task": task, "version": task_version(task), "items": self.asked.items}
        return _file(self.about | asked | {"dense": ""})  # a task's score is the same whatever it is compared with


def _file(decides: dict) -> Path:
    from crosscal.files import hash_json

    return cache_dir() / "evaluations" / f"{hash_json(decides, 32)}.json"


def _known(into: dict, part: str, path: Path) -> bool:
    """Read a piece that was measured before; a damaged file counts as none."""
    try:
        into[part] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def _keep(path: Path, value: dict) -> None:
    from crosscal.files import write_atomically

    write_atomically(path, json.dumps(value))


def check_same_tokens(options: argparse.Namespace, names: Sequence[str]):
    """The tokenizer that all models share; raises `InputError` when one of them reads text differently."""
    from crosscal.models.loading import load_tokenizer

    first, *others = [load_tokenizer(name, **loading(options)) for name in names]
    for name, other in zip(names[1:], others, strict=True):
        same = first.get_vocab() == other.get_vocab() and first("a b")["input_ids"] == other("a b")["input_ids"]
        if not same:
            raise InputError(f"{name} and {names[0]} have different tokenizers; compare models that share one")
    return first
