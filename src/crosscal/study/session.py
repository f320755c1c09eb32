"""One model, loaded once, on which many runs are made: compress, evaluate, restore the dense weights."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

import torch

from crosscal.engine.driver import CompressionReport, compress
from crosscal.files import hash_json
from crosscal.methods.allocation import Owl
from crosscal.methods.registry import find_method
from crosscal.metrics.evaluate import Evaluation, evaluate
from crosscal.metrics.instructions import instructions_version
from crosscal.metrics.tasks.registry import task_version
from crosscal.metrics.text_scores import DenseReference, dense_reference
from crosscal.models import LinearLayer, LoadedModel, decoder_blocks, linear_layers
from crosscal.study.texts import StudyTexts
from crosscal.text import TextWindows
from crosscal.types import RunConfig, storage_bits

DENSE = "dense"
FLOAT32 = "float32"
"""The dense weights computed with in float32: what rounding alone does to the numbers, the floor of all divergences."""
UNCOMPRESSED = (DENSE, FLOAT32)
EVALUATION_VERSION = 2  # raised by hand when a metric's numbers change
EVALUATION_SEED = 0  # held-out windows are the same for every run, whatever seed draws the calibration text
LOSS_SOURCE, LOSS_WINDOWS = "c4", 4
"""Where methods that need no text have their layers' losses measured."""


@dataclass(frozen=True)
class Outcome:
    """What a run produced, before it is made into rows; `storage_bits` is what a weight takes, on average."""

    config: RunConfig
    compression: CompressionReport
    evaluation: Evaluation
    storage_bits: float


class Session:
    """Runs configurations on one loaded model; texts, the dense reference and the dense weights are kept between them.

    Not for several threads: a run changes the model in place and restores it afterwards.
    """

    def __init__(self, loaded: LoadedModel):
        self.loaded = loaded
        self._texts: dict[tuple, StudyTexts] = {}
        self._references: dict[tuple, DenseReference] = {}

    def calibration(self, config: RunConfig) -> dict[str, TextWindows]:
        """The calibration windows of each source, drawn with the run's seed."""
        texts = self._room(config)
        return {
            source: texts.draw(source, config.n_windows, config.window, config.seed, "calibration")
            for source, _ in config.calibration
        }

    def held_out(self, config: RunConfig) -> dict[str, TextWindows]:
        """The held-out windows of each evaluation text."""
        texts = self._room(config)
        return {
            source: texts.draw(source, config.eval_windows, config.eval_window, EVALUATION_SEED, "held_out")
            for source in config.texts
        }

    def _room(self, config: RunConfig) -> StudyTexts:
        key = (config.tasks, config.task_items)
        return self._texts.setdefault(key, StudyTexts(self.loaded, *key))

    def run_id(self, config: RunConfig) -> str:
        """The hash of everything that decides the run's numbers: config, fingerprints, versions of method and tasks."""
        texts = [*self.calibration(config).values(), *self.held_out(config).values()]
        return hash_json(
            {
                "config": config.to_json(),
                "model": self.loaded.fingerprint,
                "texts": [text.fingerprint for text in texts],
                "method": 0 if config.method in UNCOMPRESSED else find_method(config.method).version,
                "tasks": [task_version(name) for name in config.tasks],
                "answers": [instructions_version(name) for name in config.answers],
                "evaluation": EVALUATION_VERSION,
            }
        )

    def run(self, config: RunConfig) -> Outcome:
        """Compress (unless dense), evaluate against the dense model, and restore the dense weights."""
        texts = {name: text.tokens for name, text in self.held_out(config).items()}
        reference = self._reference(config, texts)
        if config.method == FLOAT32:
            exact = replace(self.loaded, model=copy.deepcopy(self.loaded.model).float())
            return Outcome(config, CompressionReport(), _evaluate(exact, config, texts, reference), 32.0)
        if config.method == DENSE:
            return Outcome(config, CompressionReport(), _evaluate(self.loaded, config, texts, None), self._dense_bits)
        try:
            self._dense_weights  # noqa: B018  keep a copy before the first change
            report = self._compress(config)
            evaluation = _evaluate(self.loaded, config, texts, reference)
        finally:
            self._restore()
        return Outcome(config, report, evaluation, self._storage_bits(config))

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

    def _reference(self, config: RunConfig, texts: dict[str, torch.Tensor]) -> DenseReference:
        key = (config.texts, config.eval_windows, config.eval_window, config.tasks, config.task_items)
        if key not in self._references:
            self._references[key] = dense_reference(self.loaded.model, texts)
        return self._references[key]

    @property
    def _dense_bits(self) -> float:
        return 8.0 * next(self.loaded.model.parameters()).element_size()

    def _storage_bits(self, config: RunConfig) -> float:
        """Bits of a weight, averaged over all weights of all compressed layers."""
        shapes = [tuple(layer.weight.shape) for layer in self._layers]
        bits = [storage_bits(config.target, int(self._dense_bits), shape) * prod(shape) for shape in shapes]
        return sum(bits) / sum(prod(shape) for shape in shapes)

    @property
    def _layers(self) -> list[LinearLayer]:
        return [layer for block in decoder_blocks(self.loaded.model) for layer in linear_layers(block)]

    @cached_property
    def _dense_weights(self) -> Sequence[tuple]:
        return [(layer, layer.weight.to("cpu", copy=True)) for layer in self._layers]

    def _restore(self) -> None:
        for layer, weight in self._dense_weights:
            layer.write(weight)


def _evaluate(loaded: LoadedModel, config: RunConfig, texts: dict, reference: DenseReference | None) -> Evaluation:
    return evaluate(
        loaded,
        texts,
        dense=reference,
        tasks=config.tasks,
        max_items=config.task_items,
        answers=config.answers,
        answer_items=config.answer_items,
    )
