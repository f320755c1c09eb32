"""Tasks through lm-evaluation-harness on a model in memory; the catalogue needs the standard library only."""

from importlib import import_module

from crosscal.metrics.tasks.catalogue import TASKS, Task, describe, task_version

__all__ = ["TASKS", "Task", "TaskResult", "check_tasks", "describe", "evaluate_tasks", "task_version"]


def __getattr__(name: str):
    if name not in ("TaskResult", "check_tasks", "evaluate_tasks"):
        raise AttributeError(f"module 'crosscal.metrics.tasks' has no attribute '{name}'")
    return getattr(import_module("crosscal.metrics.tasks.evaluate"), name)
