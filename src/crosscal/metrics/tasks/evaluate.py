"""Score a model on tasks through lm-evaluation-harness: from its logged samples to scores and per-item outcomes.

Importing this needs neither torch nor the harness.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from crosscal.errors import InputError, whole_number
from crosscal.metrics.tasks.catalogue import TASKS
from crosscal.metrics.tasks.files import _is_own, task_version
from crosscal.results.quantities import task_quantity

if TYPE_CHECKING:
    from crosscal.engine.driver import Residence
    from crosscal.models import LoadedModel

_DECIMALS = 4
# The harness's name of an accuracy -> ours, the one to report first.
_ACCURACIES = {"acc_norm": "accuracy_per_char", "acc_bytes": "accuracy_per_byte", "acc": "accuracy"}
_DOMAIN_WORDS = {
    "biomedical": "pubmed med bioasq anatomy clinical virology nutrition genetics health usmle careqa mediqa",
    "legal": "law legal jurisprudence casehold lex cuad contract",
}


@dataclass(frozen=True)
class TaskResult:
    """Hold the score of a model on one task, and each item's outcome for paired tests.

    `value` is a fraction of items, or the area under the ROC curve if `metric` is "auc". `items` holds equally
    long lists: "id" and, for "auc", "score" (log p(yes) - log p(no), nats) and "gold" (1 for yes); else "correct"
    (0 or 1) and "margin" where log-probabilities were compared (that of the right option less the best other one,
    in nats, per character if the metric is; of a cloze, the log-probability of its word). `version` changes when the
    items do.
    """

    name: str
    domain: str
    metric: str
    value: float
    items: dict[str, list]
    version: str
    n: int


def evaluate_tasks(
    loaded: "LoadedModel | Residence", names: Sequence[str], *, max_items: int, progress: bool = True
) -> dict[str, TaskResult]:
    """Return each task's score on at most `max_items` items, the same random ones for every model.

    `names` are embedded tasks (`TASKS`), the harness's own (`lm-eval ls tasks`), or YAML files of the harness's kind;
    "harness:piqa" asks for the harness's where both have the name, and a group of the harness gives a result for each
    of its tasks. Paths in a YAML file are relative to it; functions that it names are run. The caller's
    random state is left alone. `loaded` may be a `crosscal.disk.StreamedModel`; all items pass through it block by
    block. Raises `InputError` for an unknown task, data that cannot be had, sizes that make no sense, outputs that are
    not finite, and text that a streamed model would have to write.
    """
    names = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    whole_number("max_items", max_items, least=1)
    if not names:
        return {}
    try:
        from lm_eval.evaluator import evaluate
    except ImportError as error:
        raise InputError(f"tasks need the package '{error.name}'; run pip install 'crosscal[study]'") from error
    from crosscal.engine.driver import Residence
    from crosscal.metrics.tasks import harness
    from crosscal.metrics.tasks.adapter import _InMemoryLM, _StreamedLM

    with harness._quiet(), harness._own_random_state():
        tasks = harness._load_tasks(names)
        if isinstance(loaded, Residence):
            if writing := [name for name, task in tasks.items() if task.OUTPUT_TYPE == "generate_until"]:
                raise InputError(
                    f"task '{writing[0]}' asks for written text, which a model that is read block by block cannot "
                    "give; leave it out, or use a machine whose memory holds the model"
                )
            lm = _StreamedLM(loaded, progress=progress)
        else:
            lm = _InMemoryLM(loaded.model, loaded.tokenizer, progress=progress)
        results: Any = evaluate(
            lm=lm,
            task_dict={"tasks": tasks, "groups": {}, "group_map": {}},
            **harness._selection(tasks, max_items),
            bootstrap_iters=0,
            log_samples=True,
        )
    return {name: _result(name, task, results["samples"][name]) for name, task in tasks.items()}


def check_tasks(names: Sequence[str]) -> None:
    """Raise `InputError` for a task that is unknown or cannot be read; no model is needed.

    The harness's own tasks are looked up in its index, which takes some seconds; embedded ones need none. A task of
    one's own is tried on all of its items.
    """
    if others := [name for name in names if name not in TASKS]:
        from crosscal.metrics.tasks import harness

        with harness._quiet(), harness._own_random_state():
            harness._load_tasks(others)


def _result(name: str, task, samples: list[dict]) -> TaskResult:
    """A task's score from the harness's samples, those of its first filter."""
    version = task_version(name)
    samples = sorted((s for s in samples if s["filter"] == samples[0]["filter"]), key=lambda s: s["doc_id"])
    if name in TASKS:
        domain, metric = TASKS[name].domain, TASKS[name].metric
        items = _embedded_items(samples, metric, task)
    else:
        domain = _harness_domain(name)
        version += "" if domain == "own" else f", task {task.VERSION}"
        metric, items = _harness_items(name, samples, task)
    return TaskResult(name, domain, metric, task_quantity(metric).value(items), items, version, len(samples))


def _embedded_items(samples: list[dict], metric: str, task) -> dict[str, list]:
    """Outcomes of embedded items and margins; of options that are yes and no, in this order, scores and golds."""
    ids, golds = ([sample["doc"][name] for sample in samples] for name in ("id", "gold"))
    if metric == "auc":
        pairs = map(_logprobs, samples)
        scores = [round(yes - no, _DECIMALS) for yes, no in pairs]
        return {"id": ids, "score": scores, "gold": [int(gold == 0) for gold in golds]}
    theirs = next(theirs for theirs, ours in _ACCURACIES.items() if ours == metric)
    margins = [_margin(_scores(sample, theirs, task), gold) for sample, gold in zip(samples, golds, strict=True)]
    return {"id": ids, "correct": [int(_outcome(sample, theirs, task)) for sample in samples], "margin": margins}


def _harness_items(name: str, samples: list[dict], task) -> tuple[str, dict[str, list]]:
    """`(metric, outcomes)` of one of the harness's own tasks: its accuracy, else its first metric that is a number."""
    numbers = [m for m in samples[0]["metrics"] if isinstance(samples[0][m], int | float)]
    if not numbers:
        raise InputError(
            f"task '{name}' has no score per item ({', '.join(samples[0]['metrics'])}); choose one scored by accuracy"
        )
    metric = next((m for m in _ACCURACIES if m in numbers), numbers[0])
    values = [round(float(_outcome(sample, metric, task)), _DECIMALS) for sample in samples]
    return _ACCURACIES.get(metric, metric), {"id": [str(sample["doc_id"]) for sample in samples], "correct": values}


def _outcome(sample: dict, metric: str, task) -> float:
    """The harness's score of an item, but a tie is no hit: the harness takes the first of equally likely options."""
    if metric in _ACCURACIES and task.OUTPUT_TYPE == "multiple_choice":
        scores = _scores(sample, metric, task)
        if scores.count(max(scores)) > 1:
            return 0
    return sample[metric]


def _scores(sample: dict, metric: str, task) -> list[float]:
    """The options' log-probabilities, per character or byte if the accuracy is; of a cloze, its word's alone."""
    logprobs = _logprobs(sample)
    if task.OUTPUT_TYPE != "multiple_choice":
        return logprobs
    choices = task.doc_to_choice(sample["doc"])  # where the harness asks for more than these, the others come last
    lengths = {"acc_norm": map(len, choices), "acc_bytes": (len(c.encode()) for c in choices)}
    return [p / n for p, n in zip(logprobs, lengths.get(metric, [1] * len(choices)), strict=False)]


def _logprobs(sample: dict) -> list[float]:
    return [logprob for logprob, _ in sample["filtered_resps"]]


def _margin(scores: Sequence[float], gold: int) -> float:
    """The right option's score less the best other one's; alone, its score."""
    others = [score for i, score in enumerate(scores) if i != gold]
    return round(scores[gold] - max(others) if others else scores[gold], _DECIMALS)


def _harness_domain(name: str) -> str:
    """The domain of one of the harness's own tasks, from the parts of its name; "own" for one's own."""
    if _is_own(name):
        return "own"
    parts = name.lower().removeprefix("harness:").replace("-", "_").split("_")
    for domain, words in _DOMAIN_WORDS.items():
        if any(part.startswith(tuple(words.split())) for part in parts):
            return domain
    return "general"
