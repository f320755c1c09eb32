"""One model, loaded once, on which many runs are made: compress, evaluate, restore the dense weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from crosscal.driver import CompressionReport, compress
from crosscal.methods.registry import find_method
from crosscal.metrics.evaluate import Evaluation, evaluate
from crosscal.metrics.tasks.registry import task_version
from crosscal.metrics.text_scores import DenseReference, dense_reference
from crosscal.models import LoadedModel, decoder_blocks, linear_layers
from crosscal.study.store import hash_json
from crosscal.text import SELF, TextWindows, load_text, write_text
from crosscal.types import RunConfig

DENSE = "dense"
EVALUATION_VERSION = 1  # raised by hand when a metric's numbers change
SCHEDULE = "block"  # one forward pass more than "sublayer", and what the published runs were made with
EVALUATION_SEED = 0  # held-out windows are the same for every run, whatever seed draws the calibration text


@dataclass(frozen=True)
class Outcome:
    """What a run produced, before it is made into rows."""

    config: RunConfig
    compression: CompressionReport
    evaluation: Evaluation


class Session:
    """Runs configurations on one loaded model; texts, the dense reference and the dense weights are kept between them.

    Not for several threads: a run changes the model in place and restores it afterwards.
    """

    def __init__(self, loaded: LoadedModel):
        self.loaded = loaded
        self._texts: dict[tuple, TextWindows] = {}
        self._references: dict[tuple, DenseReference] = {}

    def calibration(self, config: RunConfig) -> dict[str, TextWindows]:
        """The calibration windows of each source, drawn with the run's seed."""
        return {
            source: self._text(source, config.n_windows, config.window, config.seed, "calibration")
            for source, _ in config.calibration
        }

    def held_out(self, config: RunConfig) -> dict[str, TextWindows]:
        """The held-out windows of each evaluation text."""
        return {
            source: self._text(source, config.eval_windows, config.eval_window, EVALUATION_SEED, "held_out")
            for source in config.texts
        }

    def _text(self, source: str, n_windows: int, length: int, seed: int, split: str) -> TextWindows:
        key = (source, n_windows, length, seed, split)
        if key not in self._texts and source == SELF and split == "calibration":
            self._texts[key] = write_text(self.loaded, n_windows=n_windows, length=length, seed=seed)
        elif key not in self._texts:
            self._texts[key] = load_text(
                source, self.loaded.tokenizer, n_windows=n_windows, length=length, seed=seed, split=split
            )
        return self._texts[key]

    def run_id(self, config: RunConfig) -> str:
        """The hash of everything that decides the run's numbers: config, fingerprints, versions of method and tasks."""
        texts = [*self.calibration(config).values(), *self.held_out(config).values()]
        return hash_json(
            {
                "config": config.to_json(),
                "model": self.loaded.fingerprint,
                "texts": [text.fingerprint for text in texts],
                "method": 0 if config.method == DENSE else find_method(config.method).version,
                "tasks": [task_version(name) for name in config.tasks],
                "evaluation": EVALUATION_VERSION,
            }
        )

    def run(self, config: RunConfig) -> Outcome:
        """Compress (unless dense), evaluate against the dense model, and restore the dense weights."""
        texts = {name: text.tokens for name, text in self.held_out(config).items()}
        reference = self._reference(config, texts)
        report = CompressionReport()
        try:
            if config.method != DENSE:
                self._dense_weights  # noqa: B018  keep a copy before the first change
                report = compress(
                    self.loaded.model,
                    config.method,
                    config.pattern,
                    calibration=self.calibration(config),
                    weights=dict(config.calibration),
                    schedule=SCHEDULE,
                )
            against = None if config.method == DENSE else reference
            evaluation = evaluate(self.loaded, texts, dense=against, tasks=config.tasks, max_items=config.task_items)
        finally:
            if config.method != DENSE:
                self._restore()
        return Outcome(config, report, evaluation)

    def _reference(self, config: RunConfig, texts: dict[str, torch.Tensor]) -> DenseReference:
        key = (config.texts, config.eval_windows, config.eval_window)
        if key not in self._references:
            self._references[key] = dense_reference(self.loaded.model, texts)
        return self._references[key]

    @cached_property
    def _dense_weights(self) -> Sequence[tuple]:
        layers = [layer for block in decoder_blocks(self.loaded.model) for layer in linear_layers(block)]
        return [(layer, layer.weight.to("cpu", copy=True)) for layer in layers]

    def _restore(self) -> None:
        for layer, weight in self._dense_weights:
            layer.write(weight)
