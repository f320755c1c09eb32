"""Score a model that is in memory on tasks, through lm-evaluation-harness."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from crosscal.errors import InputError
from crosscal.metrics.tasks.domains import harness_domain
from crosscal.metrics.tasks.registry import TASKS, task_version
from crosscal.metrics.tasks.result import TaskResult
from crosscal.metrics.tasks.scoring import auc, harness_items, option_items, yes_no_items

if TYPE_CHECKING:
    from crosscal.models import LoadedModel


def evaluate_tasks(
    loaded: "LoadedModel", names: Sequence[str], *, max_items: int, progress: bool = True
) -> dict[str, TaskResult]:
    """Each task's score on at most `max_items` items, the same random ones for every model.

    `names` are embedded tasks (`TASKS`) or the harness's own (`lm-eval ls tasks`); "harness:piqa" asks for the
    harness's where both have the name, and a group of the harness gives a result for each of its tasks. The caller's
    random state is left alone. Raises `InputError` for an unknown task, data that cannot be had, or sizes that make no
    sense.
    """
    names = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    if not isinstance(max_items, int) or max_items < 1:
        raise InputError(f"max_items is {max_items!r}; give a whole number of at least 1")
    if not names:
        return {}
    samples, versions = _run(loaded, names, max_items, progress)
    return {name: _result(name, samples[name], versions[name]) for name in samples}


def _run(loaded, names: list[str], max_items: int, progress: bool) -> tuple[dict[str, list[dict]], dict[str, str]]:
    """The harness's logged samples of each task, and each task's version."""
    try:
        from lm_eval.evaluator import evaluate
    except ImportError as error:
        raise InputError(f"tasks need the package '{error.name}'; run pip install 'crosscal[study]'") from error
    from crosscal.metrics.tasks import harness
    from crosscal.metrics.tasks.adapter import InMemoryLM

    model, tokenizer = loaded
    with harness.quiet(), harness.own_random_state():
        tasks = {k: task for found in harness.load_harness_tasks(names).values() for k, task in found.items()}
        for task in tasks.values():
            harness.prepare(task)
        results = evaluate(
            lm=InMemoryLM(model, tokenizer, progress=progress),
            task_dict={"tasks": tasks, "groups": {}, "group_map": {}},
            **harness.selection(tasks, max_items),
            bootstrap_iters=0,
            log_samples=True,
        )
    versions = {
        name: task_version(name) if name in TASKS else f"{task_version(name)}, task {task.VERSION}"
        for name, task in tasks.items()
    }
    return results["samples"], versions


def _result(name: str, samples: list[dict], version: str) -> TaskResult:
    samples = sorted(samples, key=lambda sample: sample["doc_id"])
    if name not in TASKS:
        metric, items = harness_items(name, samples)
        return _mean_result(name, harness_domain(name), metric, items, version)
    task = TASKS[name]
    if task.metric == "auc":
        items = yes_no_items(samples)
        value = auc(items["score"], items["gold"])
        return TaskResult(name, task.domain, task.metric, value, items, version, len(samples))
    items = option_items(samples, "acc_norm" if task.metric == "accuracy_per_char" else "acc")
    return _mean_result(name, task.domain, task.metric, items, version)


def _mean_result(name: str, domain: str, metric: str, items: dict[str, list], version: str) -> TaskResult:
    n = len(items["correct"])
    return TaskResult(name, domain, metric, sum(items["correct"]) / n, items, version, n)
