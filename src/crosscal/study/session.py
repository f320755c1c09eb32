"""One model on which many runs are made: loaded when something is missing, compressed, measured, restored.

A run is the sum of its pieces: one text, one task, one set of instructions, and the compression. Each is kept in the
cache folder as soon as it is measured, as a record of its own, known by the contents that decide it. So `evaluate`,
`compare`, `report` and the chapters find what any of them has measured, and a killed run goes on at the next piece.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod

import torch

from crosscal.engine.driver import CompressionReport, compress
from crosscal.errors import InputError
from crosscal.methods.allocation import Owl
from crosscal.metrics.evaluate import evaluate
from crosscal.metrics.text_scores import DenseReference, dense_reference
from crosscal.models import LinearLayer, LoadedModel, decoder_blocks, linear_layers, load_model
from crosscal.models.loading import find_folder
from crosscal.paths import cache_dir
from crosscal.results.provenance import provenance
from crosscal.results.store import RunRecord, load_run, save_run
from crosscal.study.identity import DENSE, FLOAT32, GIVEN, identify, model_identity, piece_keys
from crosscal.study.rows import Facts, assemble, make_piece
from crosscal.study.texts import StudyTexts
from crosscal.text import TextWindows
from crosscal.types import RunConfig, storage_bits

EVALUATION_SEED = 0  # held-out windows are the same for every run, whatever seed draws the calibration text
LOSS_SOURCE, LOSS_WINDOWS = "c4", 4
"""Where methods that need no text have their layers' losses measured."""


@dataclass(frozen=True)
class _Ready:
    """A model as a run wants it: what is evaluated, against what, and what compressing it took."""

    loaded: LoadedModel
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
        self._loading = {"accept_terms": accept_terms, "trust_remote_code": trust_remote_code}
        self._device, self._dtype = device, dtype
        self._texts: dict[tuple, StudyTexts] = {}
        self._hidden: dict[str, torch.Tensor] = {}

    @cached_property
    def loaded(self) -> LoadedModel:
        """The model in memory."""
        self._note(f"loading {self.name}")
        return load_model(self.name, device=self._device, dtype=self._dtype, **self._loading)

    def identify(self, config: RunConfig) -> dict:
        """Return the contents and versions that decide a run's numbers; raise `InputError` for a model there is not."""
        if model_identity(self.name) is None:  # of the hub: fetch it, or say why not
            find_folder(self.name, dtype=self._dtype, **self._loading)
        return identify(config)

    def record(self, config: RunConfig, preset: str = "") -> RunRecord:
        """Return a run, of which only the pieces that are not in the cache folder yet are measured."""
        known = self.identify(config)
        keys = piece_keys(config, known)
        pieces = {piece: _kept(key) for piece, key in keys.items()}
        missing = [piece for piece, kept in pieces.items() if kept is None]
        if missing:
            with self._ready(replace(config, texts=tuple(name for kind, name in missing if kind == "text"))) as ready:
                for piece in missing:
                    pieces[piece] = self._measure(config, ready, piece, keys[piece])
                    save_run(_folder(), pieces[piece], optional=True)
        return assemble(config, known, preset, pieces)

    def missing(self, config: RunConfig) -> list[tuple[str, str]]:
        """Return the pieces, as (kind, name), that are not in the cache folder."""
        return [piece for piece, key in piece_keys(config, self.identify(config)).items() if _kept(key) is None]

    def _measure(self, config: RunConfig, ready: _Ready, piece: tuple[str, str], key: str) -> RunRecord:
        """Measure one piece."""
        kind, name = piece
        told = {"progress": self._progress}
        found = None
        if kind == "text":
            found = evaluate(ready.loaded, {name: self.held_out(config)[name].tokens}, dense=ready.reference, **told)
        elif kind == "task":
            found = evaluate(ready.loaded, tasks=[name], max_items=config.task_items, **told)
        elif kind == "answers":
            found = evaluate(ready.loaded, answers=[name], answer_items=config.answer_items, **told)
        facts = Facts.of(ready.report, self._storage_bits(config))
        return make_piece(key, config, piece, found, ready.report, facts, provenance(ready.loaded.device))

    @contextmanager
    def _ready(self, config: RunConfig) -> Iterator[_Ready]:
        """Bring the model into the state that a run measures, and back."""
        if config.method == DENSE:
            yield _Ready(self.loaded, None)
        elif config.method == GIVEN:
            reference = self._dense.reference(config) if self._dense else None
            yield _Ready(self.loaded, reference)
        elif config.method == FLOAT32:
            reference = self.reference(config)
            yield _Ready(replace(self.loaded, model=copy.deepcopy(self.loaded.model).float()), reference)
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
        texts = self.held_out(config)
        if new := {text.fingerprint: text.tokens for text in texts.values() if text.fingerprint not in self._hidden}:
            made = dense_reference(self.loaded.model, new, progress=self._progress)
            self._hidden, self._logits = self._hidden | dict(made.hidden), made.logits
        return DenseReference({name: self._hidden[text.fingerprint] for name, text in texts.items()}, self._logits)

    def drop_blocks(self) -> None:
        """Free the decoder blocks: of a dense model whose reference is taken only embeddings and head are needed."""
        if "loaded" in vars(self):
            del decoder_blocks(self.loaded.model)[:]

    def calibration(self, config: RunConfig) -> dict[str, TextWindows]:
        """Return the calibration windows of each source, drawn with the run's seed."""
        room = self._room(config)
        return {
            source: room.draw(source, config.n_windows, config.window, config.seed, "calibration")
            for source, _ in config.calibration
        }

    def held_out(self, config: RunConfig) -> dict[str, TextWindows]:
        """Return the held-out windows of each evaluation text."""
        room = self._room(config)
        return {
            source: room.draw(source, config.eval_windows, config.eval_window, EVALUATION_SEED, "held_out")
            for source in config.texts
        }

    def _room(self, config: RunConfig) -> StudyTexts:
        key = (config.tasks, config.task_items)
        return self._texts.setdefault(key, StudyTexts(self.loaded, *key, self._note))

    def _compress(self, config: RunConfig) -> CompressionReport:
        calibration = self.calibration(config)
        weights = dict(config.calibration) or None
        if not calibration:
            windows = self._room(config).draw(LOSS_SOURCE, LOSS_WINDOWS, config.window, 0, "calibration")
            calibration = {LOSS_SOURCE: windows}
        return compress(
            self.loaded.model,
            config.method,
            config.target,
            calibration=calibration,
            weights=weights,
            schedule=config.schedule,
            allocation=Owl() if config.allocation == "owl" else None,
            **dict(config.options),
        )

    def _storage_bits(self, config: RunConfig) -> float:
        """Bits of a weight, averaged over all weights of all compressed layers."""
        if config.method == FLOAT32:
            return 32.0
        dense_bits = 8 * next(self.loaded.model.parameters()).element_size()
        if config.method in (DENSE, GIVEN):
            return float(dense_bits)
        shapes = [tuple(layer.weight.shape) for layer in self._layers]
        bits = [storage_bits(config.target, dense_bits, shape) * prod(shape) for shape in shapes]
        return sum(bits) / sum(prod(shape) for shape in shapes)

    @property
    def _layers(self) -> list[LinearLayer]:
        return [layer for block in decoder_blocks(self.loaded.model) for layer in linear_layers(block)]

    @cached_property
    def _dense_weights(self) -> list[tuple[LinearLayer, torch.Tensor]]:
        return [(layer, layer.weight.to("cpu", copy=True)) for layer in self._layers]

    def _restore(self) -> None:
        for layer, weight in self._dense_weights:
            layer.write(weight)


def _folder():
    return cache_dir() / "measured"


def _kept(key: str) -> RunRecord | None:
    """A piece that was measured before; a damaged one counts as none."""
    try:
        return load_run(_folder(), key, with_items=True)
    except InputError:
        return None
