"""One model on which many runs are made: loaded when something is missing, compressed, measured, restored.

A run is the sum of its pieces: one text, one task, one set of instructions, and the compression. Each is kept in the
cache folder as soon as it is measured, as a record of its own, known by the contents that decide it. So `evaluate`,
`compare`, `report` and the chapters find what any of them has measured, and a killed run goes on at the next piece.

A model that does not fit into memory is read from disk block by block. Then a run compresses it into a folder beside
the pieces, which goes when the run is done, and all texts are measured in one reading, and so are all tasks.
"""

import copy
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch

from crosscal.disk import StreamedModel, carry_out
from crosscal.engine.driver import CompressionReport, compress
from crosscal.engine.ranks import ranks
from crosscal.engine.request import Request
from crosscal.errors import InputError
from crosscal.machine.facts import free_bytes
from crosscal.methods.allocation import Owl
from crosscal.metrics.evaluate import Evaluation, evaluate
from crosscal.metrics.tasks import TASKS
from crosscal.metrics.text_scores import DenseReference, dense_reference
from crosscal.models import LinearLayer, LoadedModel, decoder_blocks, inventory, linear_layers, load_model
from crosscal.models.channels import narrow_inventory
from crosscal.models.loading import find_folder, is_gguf
from crosscal.paths import cache_dir
from crosscal.results.provenance import provenance
from crosscal.results.store import RunRecord, load_run, save_run
from crosscal.study.identity import DENSE, FLOAT32, GIVEN, identify, piece_keys
from crosscal.study.rows import assemble, make_piece
from crosscal.study.texts import draw_text
from crosscal.text import SOURCES, TextWindows
from crosscal.types import RunConfig, Width, storage_bits

_EVALUATION_SEED = 0  # held-out windows are the same for every run, whatever seed draws the calibration text
LOSS_SOURCE, _LOSS_WINDOWS = "c4", 4
"""Where methods that need no text have their layers' losses measured."""
_PARTS = (
    "skip",
    "only",
    "partial",
    "refine",
    "anchor",
    "rotate",
    "balance",
)  # options of `compress`; others are the method's
_COPIES = 2.25  # a model that is compressed in place, its dense weights beside it, and what runs through it


@dataclass(frozen=True)
class _Ready:
    """A model as a run wants it: what is evaluated, against what, and what compressing it took."""

    loaded: LoadedModel | StreamedModel
    reference: DenseReference | None
    report: CompressionReport = field(default_factory=CompressionReport)


class Session:
    """Runs configurations on one model; it is loaded at the first piece that is missing, and kept.

    `dense` is the session of the model that divergences are from, for one that was compressed elsewhere; `note` takes
    sentences for people. Not for several threads: a run changes the model in place and restores it afterwards.
    """

    def __init__(
        self,
        name: str,
        *,
        device: str = "auto",
        dtype: str = "auto",
        accept_terms: bool = False,
        trust_remote_code: bool = False,
        progress: bool = True,
        dense: "Session | None" = None,
        note: Callable[[str], None] = lambda _: None,
    ):
        self.name, self._dense, self._progress, self._note = name, dense, progress, note
        self._how: dict[str, Any] = {"device": device, "dtype": dtype}
        self._how |= {"accept_terms": accept_terms, "trust_remote_code": trust_remote_code}
        self._drawn: dict[tuple, TextWindows] = {}
        self._hidden: dict[str, torch.Tensor] = {}

    @cached_property
    def loaded(self) -> LoadedModel | StreamedModel:
        """The model in memory, or on disk where it does not fit."""
        if streamed := self._streamed():
            self._note(f"{self.name} does not fit into memory and is read from disk block by block")
            return streamed
        self._note(f"loading {self.name}")
        return load_model(self.name, **self._how)

    def _streamed(self) -> StreamedModel | None:
        """The model on disk, if it has to and can be read block by block."""
        if is_gguf(self.name):
            return None
        try:
            model = StreamedModel(self.name, progress=self._progress, **self._how)
        except InputError:
            return None  # loading it works, or says why not
        size = sum(parameter.numel() for parameter in model.model.parameters()) * model.dtype.itemsize
        return model if any(ranks().all(_COPIES * size > free_bytes(model.device))) else None

    def identify(self, config: RunConfig) -> dict:
        """Return the contents and versions that decide a run's numbers; raise `InputError` for a model there is not."""
        known = identify(config)
        if known["model"] is None:  # of the hub: fetch it, or say why not
            find_folder(self.name, **{name: value for name, value in self._how.items() if name != "device"})
            known = identify(config)
        return known

    def record(self, config: RunConfig, preset: str = "") -> RunRecord:
        """Return a run, of which only the pieces that are not in the cache folder yet are measured."""
        known = self.identify(config)
        keys = piece_keys(config, known)
        pieces = ranks().all({piece: kept for piece, key in keys.items() if (kept := _kept(key))})[0]
        missing = [piece for piece in keys if piece not in pieces]
        if missing:
            new = replace(config, texts=tuple(name for kind, name in missing if kind == "text"))
            with self._ready(new, keys) as ready:
                for group in _groups(missing, isinstance(ready.loaded, StreamedModel)):
                    for piece, found in self._evaluated(new, ready, group).items():
                        about = ready.report, self._storage_bits(config), provenance(ready.loaded.device)
                        pieces[piece] = make_piece(keys[piece], config, piece, found, *about)
                        if ranks().first:
                            save_run(_folder(), pieces[piece], optional=True)
        return assemble(config, known, preset, {piece: pieces[piece] for piece in keys})

    def missing(self, config: RunConfig) -> list[tuple[str, str]]:
        """Return the pieces, as (kind, name), that are not in the cache folder."""
        keys = piece_keys(config, self.identify(config))
        return ranks().all([piece for piece, key in keys.items() if _kept(key) is None])[0]

    def _evaluated(
        self, config: RunConfig, ready: _Ready, group: list[tuple[str, str]]
    ) -> dict[tuple[str, str], Evaluation | None]:
        """Measure some pieces together; of the compression nothing is measured."""
        names = {kind: [name for of, name in group if of == kind] for kind in ("text", "task", "answers")}
        if not any(names.values()):
            return dict.fromkeys(group)
        texts = self._held_out(config)
        found = evaluate(
            ready.loaded,
            {name: texts[name] for name in names["text"]},
            dense=ready.reference,
            tasks=names["task"],
            max_items=config.task_items,
            answers=names["answers"],
            answer_items=config.answer_items,
            progress=self._progress,
        )
        if len(group) == 1:  # a task of the harness may be a group of several
            return {group[0]: found}
        parts: dict[tuple[str, str], Evaluation | None] = {}
        parts |= {("text", name): Evaluation(texts={name: scores}) for name, scores in found.texts.items()}
        return parts | {("task", name): Evaluation(tasks={name: result}) for name, result in found.tasks.items()}

    @contextmanager
    def _ready(self, config: RunConfig, keys: Mapping[tuple[str, str], str]) -> Iterator[_Ready]:
        """Bring the model into the state that a run measures, and back."""
        if config.method == DENSE:
            yield _Ready(self.loaded, None)
        elif config.method == GIVEN:
            reference = self._dense.reference(config) if self._dense else None
            yield _Ready(self.loaded, reference)
        elif isinstance(config.target, Width) and not isinstance(self.loaded, StreamedModel):
            reference = self.reference(config)
            copied = replace(self.loaded, model=copy.deepcopy(self.loaded.model))  # it is cut, which no one can undo
            yield _Ready(copied, reference, compress(copied.model, **self._asked(config), **_of_method(config)))
        elif config.method == FLOAT32:
            if isinstance(self.loaded, StreamedModel):
                raise InputError(f"{self.name} does not fit into memory, which a run in float32 needs; leave it out")
            reference = self.reference(config)
            yield _Ready(replace(self.loaded, model=copy.deepcopy(self.loaded.model).float()), reference)
        elif isinstance(self.loaded, StreamedModel):
            folder, reference = _folder() / keys["compression", ""], self.reference(config)
            report = self._compress_folder(config, folder)
            yield _Ready(StreamedModel(str(folder), progress=self._progress, **self._how), reference, report)
            shutil.rmtree(folder, ignore_errors=True)
        else:
            reference = self.reference(config)
            self._dense_weights  # noqa: B018  keep a copy before the first change
            try:
                yield _Ready(self.loaded, reference, self._compress(config))
            finally:
                self._restore()

    def reference(self, config: RunConfig) -> DenseReference | None:
        """Return the model's final hidden states on the texts of a run, computed while its weights are dense."""
        if not config.texts:
            return None
        texts = self._held_out(config)
        if new := {text.fingerprint: text for text in texts.values() if text.fingerprint not in self._hidden}:
            model = self.loaded if isinstance(self.loaded, StreamedModel) else self.loaded.model
            made = dense_reference(model, new, progress=self._progress)
            self._hidden, self._logits = self._hidden | dict(made.hidden), made.logits
        return DenseReference({name: self._hidden[text.fingerprint] for name, text in texts.items()}, self._logits)

    def drop_blocks(self) -> None:
        """Free the decoder blocks: of a dense model whose reference is taken only embeddings and head are needed."""
        if "loaded" in vars(self) and not isinstance(self.loaded, StreamedModel):
            del decoder_blocks(self.loaded.model)[:]

    def _calibration(self, config: RunConfig) -> dict[str, TextWindows]:
        """The calibration windows of each source, drawn with the run's seed."""
        sizes = config.n_windows, config.window, config.seed, "calibration"
        return {source: self._draw(config, source, *sizes) for source, _ in config.calibration}

    def _held_out(self, config: RunConfig) -> dict[str, TextWindows]:
        """The held-out windows of each evaluation text."""
        sizes = config.eval_windows, config.eval_window, _EVALUATION_SEED, "held_out"
        return {source: self._draw(config, source, *sizes) for source in config.texts}

    def _draw(self, config: RunConfig, source: str, n: int, length: int, seed: int, split: str) -> TextWindows:
        """Windows of a text, drawn once for as long as the session lives."""
        key = source, n, length, seed, split, config.tasks, config.task_items
        if key not in self._drawn:
            windows = self._drawn[key] = draw_text(self.loaded, *key)
            if windows.report is not None and source not in SOURCES:
                self._note(f"read {windows.report}")
        return self._drawn[key]

    def _asked(self, config: RunConfig) -> dict[str, Any]:
        """What compression is asked for, in memory and on disk."""
        calibration = self._calibration(config)
        if not calibration:
            windows = self._draw(config, LOSS_SOURCE, _LOSS_WINDOWS, config.window, 0, "calibration")
            calibration = {LOSS_SOURCE: windows}
        return {
            "method": config.method,
            "target": config.target,
            "calibration": calibration,
            "weights": dict(config.calibration) or None,
            "schedule": config.schedule,
            "allocation": Owl() if config.allocation == "owl" else None,
            **{name: value for name, value in config.options if name in _PARTS},
        }

    def _compress(self, config: RunConfig) -> CompressionReport:
        return compress(self.loaded.model, **self._asked(config), **_of_method(config))

    def _compress_folder(self, config: RunConfig, folder: Path) -> CompressionReport:
        """Compress block by block into a folder, or go on where an earlier call was interrupted."""
        more = {"options": _of_method(config), "progress": self._progress, "output": folder}
        return carry_out(Request(model=self.name, **self._asked(config), **more, **self._how))

    def _storage_bits(self, config: RunConfig) -> float:
        """Bits of a weight, averaged over all weights of all compressed layers."""
        if config.method == FLOAT32:
            return 32.0
        dense_bits = 8 * next(self.loaded.model.parameters()).element_size()
        if config.method in (DENSE, GIVEN):
            return float(dense_bits)
        asked: dict[str, Any] = {name: value for name, value in config.options if name in ("skip", "only")}
        model, width = self.loaded.model, config.target if isinstance(config.target, Width) else None
        layers = (inventory(model, **asked) if width is None else narrow_inventory(model, width)).layers
        shapes = [(layer.weight.shape[0], layer.weight.shape[1]) for block in layers for layer in block]
        bits = [storage_bits(config.target, dense_bits, shape) * prod(shape) for shape in shapes]
        return sum(bits) / sum(prod(shape) for shape in shapes)

    @cached_property
    def _dense_weights(self) -> list[tuple[LinearLayer, torch.Tensor]]:
        layers = [layer for block in decoder_blocks(self.loaded.model) for layer in linear_layers(block)]
        return [(layer, layer.weight.to("cpu", copy=True)) for layer in layers]

    def _restore(self) -> None:
        for layer, weight in self._dense_weights:
            layer.write(weight)


def _of_method(config: RunConfig) -> dict[str, Any]:
    return {name: value for name, value in config.options if name not in _PARTS}


def _folder() -> Path:
    return cache_dir() / "measured"


def _groups(pieces: list[tuple[str, str]], together: bool) -> list[list[tuple[str, str]]]:
    """Pieces that are measured in one reading of the model: each alone, or all texts, and all embedded tasks."""
    shared = {"text": [], "task": []}
    alone = []
    for kind, name in pieces:
        grouped = together and (kind == "text" or (kind == "task" and name in TASKS))
        shared[kind].append((kind, name)) if grouped else alone.append([(kind, name)])
    return [*filter(None, shared.values()), *alone]


def _kept(key: str) -> RunRecord | None:
    """A piece that was measured before; a damaged one counts as none."""
    try:
        return load_run(_folder(), key, with_items=True)
    except InputError:
        return None
