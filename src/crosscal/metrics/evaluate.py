"""Evaluate a model on held-out texts and tasks, alone or against the dense model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crosscal.engine.driver import Residence
from crosscal.engine.windows import Windows
from crosscal.metrics.text_scores import DenseReference, TextScores, _score_texts
from crosscal.models import LoadedModel

if TYPE_CHECKING:
    from crosscal.metrics.tasks import TaskResult
    from crosscal.metrics.writing import GenerationResult


@dataclass(frozen=True)
class Evaluation:
    """Hold scores by text source, results by task name, and written answers' scores by instruction set."""

    texts: dict[str, TextScores] = field(default_factory=dict)
    tasks: "dict[str, TaskResult]" = field(default_factory=dict)
    answers: "dict[str, GenerationResult]" = field(default_factory=dict)


def evaluate(
    loaded: LoadedModel | Residence,
    texts: Mapping[str, Windows] | None = None,
    *,
    dense: DenseReference | None = None,
    tasks: Sequence[str] = (),
    max_items: int = 200,
    answers: Sequence[str] = (),
    answer_items: int = 60,
    progress: bool = True,
) -> Evaluation:
    """Score a model on token windows by text source, and on tasks by name; return an `Evaluation`.

    `texts` maps a source to its windows, or to what `load_text` or a tokenizer returns. With `dense`, made by
    `dense_reference` on the same texts before compression, divergences come too. At most `max_items` items of each task
    are asked. `answers` names instruction sets ("alpaca", "squad", "dialogues"): `answer_items` answers are written and
    scored.

    `loaded` is what `load_model` returns, or a `crosscal.disk.StreamedModel`: its weights pass through memory block by
    block, once for all texts and once for all tasks, so that it may be larger than memory; it cannot write.
    """
    model = loaded if isinstance(loaded, Residence) else loaded.model
    scores = _score_texts(model, texts, dense, progress=progress) if texts else {}
    results = {}
    if tasks:
        from crosscal.metrics.tasks import evaluate_tasks  # brings in the evaluation harness

        results = evaluate_tasks(loaded, tasks, max_items=max_items, progress=progress)
    written = {}
    if answers:
        from crosscal.metrics.writing import score_answers

        written = {name: score_answers(loaded, name, answer_items, progress=progress) for name in answers}
    return Evaluation(scores, results, written)
