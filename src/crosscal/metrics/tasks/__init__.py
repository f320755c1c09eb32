"""Tasks through lm-evaluation-harness on a model in memory; the catalogue needs the standard library only."""

from importlib import import_module

from crosscal.metrics.tasks.catalogue import SCORING_VERSION, TASKS, Task, describe

_HOME = {"TaskResult": "evaluate", "check_tasks": "evaluate", "evaluate_tasks": "evaluate", "task_version": "files"}

__all__ = [
    "SCORING_VERSION",
    "TASKS",
    "Task",
    "TaskResult",
    "check_tasks",
    "describe",
    "evaluate_tasks",
    "task_version",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'crosscal.metrics.tasks' has no attribute '{name}'")
    return getattr(import_module(f"crosscal.metrics.tasks.{_HOME[name]}"), name)
