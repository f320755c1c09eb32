"""Tasks through lm-evaluation-harness on a model in memory; the registry needs the standard library only."""

from crosscal.metrics.tasks.registry import TASKS, Task, describe, task_version
from crosscal.metrics.tasks.result import TaskResult

__all__ = ["TASKS", "Task", "TaskResult", "describe", "evaluate_tasks", "task_version"]


def __getattr__(name: str):
    if name != "evaluate_tasks":
        raise AttributeError(f"module 'crosscal.metrics.tasks' has no attribute '{name}'")
    from crosscal.metrics.tasks.evaluate import evaluate_tasks

    return evaluate_tasks
