"""What touches lm-evaluation-harness: its tasks by name, its noise, its random state."""

import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

from crosscal.errors import InputError, suggest
from crosscal.metrics.tasks.catalogue import TASKS
from crosscal.metrics.tasks.files import HARNESS_PREFIX, _is_own, _read_own, _task_folder
from crosscal.metrics.tasks.items import SEED, _generator

_OWN_PREFIX = "harness:"  # asks for the harness's own task where an embedded one has the same name


def _load_tasks(names: Sequence[str]) -> dict[str, Any]:
    """The harness's task objects by the name to report; a group of the harness gives several for its name."""
    from lm_eval.tasks import TaskManager

    own = {name: _read_own(name) for name in names if _is_own(name)}
    folders: list[str | Path] = [task.folder() for task in own.values()]
    folders += [_task_folder(name) for name in names if name in TASKS]
    manager = TaskManager(include_path=folders, include_defaults=False)
    loaded: dict[str, Any] = {}
    for name in names:
        if name in TASKS:
            loaded[name] = manager.load([HARNESS_PREFIX + name])["tasks"][HARNESS_PREFIX + name]
        elif name in own:
            loaded[name] = _load_own(name, HARNESS_PREFIX + own[name].digest, manager)
        else:
            loaded |= _load_from_harness(name)
    for task in loaded.values():  # what the harness's own front does: no examples unless the task says so, a seed
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=SEED)
    return loaded


def _load_own(name: str, known_as: str, manager):
    """A task of one's own, tried on its items."""
    try:
        task = manager.load([known_as])["tasks"][known_as]
        items = list(task.eval_docs)
        for item in items:
            _check_item(task, item)
    except Exception as error:  # whatever the harness, its data library and a task's own code may raise
        said = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        raise InputError(f"the task {name} cannot be asked ({_short(said)}); correct the file or its data") from error
    if not items:
        raise InputError(f"the task {name} has no items; name the split that holds them (test_split)")
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        raise InputError(f"the task {name} scores whole texts and has no items to compare; give the text to --texts")
    return _of_text_alone(name, task)


def _check_item(task, item: dict) -> None:
    """Raise `InputError` for an item of options that are empty, or whose right one is not among them."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return
    options = task.doc_to_choice(item)
    gold = task.doc_to_text(item) if task.multiple_input else task.doc_to_target(item)
    golds = gold if isinstance(gold, list) else [gold]
    if not all(options):
        raise InputError(f"an option is empty among {options}")
    if any(options.count(g) != 1 if isinstance(g, str) else not 0 <= int(g) < len(options) for g in golds):
        raise InputError(f"the right option, {gold!r}, is not one of {options}")


def _load_from_harness(name: str) -> dict[str, Any]:
    """A task of the harness's own, or each task of a group."""
    wanted = name.removeprefix(_OWN_PREFIX)
    manager = _default_manager()
    if wanted not in manager.task_index:
        raise InputError(
            f"there is no task '{name}'{suggest(wanted, [*TASKS, *manager.all_tasks])} (embedded: {', '.join(TASKS)}; "
            "`lm-eval ls tasks` lists the harness's own, which need the hub; a YAML file of your own works too)"
        )
    try:
        tasks = manager.load([wanted])["tasks"]
    except Exception as error:  # whatever the hub's libraries and a task's own code may raise
        raise InputError(
            f"the data of the harness's task '{wanted}' cannot be had ({type(error).__name__}: {_short(error)}); "
            f"connect to the hub once, or use an embedded task: {', '.join(TASKS)}"
        ) from error
    prefix = _OWN_PREFIX if name != wanted else ""
    return {prefix + leaf: _of_text_alone(wanted, task) for leaf, task in tasks.items()}


def _of_text_alone(name: str, task):
    if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
        raise InputError(f"task '{name}' runs generated code or needs images; choose one of text alone")
    return task


@lru_cache(maxsize=1)
def _default_manager():
    """The index of the harness's thousands of tasks: some seconds, once per process."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _short(error: Exception | str) -> str:
    return " ".join(str(error).split())[:160]


def _selection(tasks: dict, max_items: int) -> dict:
    """Which documents the harness asks: all, or a random subset of each task that grows with `max_items`.

    Embedded files are shuffled already, so their first documents are such a subset.
    """
    if all(name in TASKS for name in tasks):
        return {"limit": max_items}
    chosen = {}
    for name, task in tasks.items():
        order = list(range(len(task.eval_docs)))
        if name not in TASKS:
            _generator(Path(name).name if _is_own(name) else name, "order").shuffle(order)
        chosen[name] = sorted(order[:max_items])
    return {"samples": chosen}


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no information messages from the harness and its data library; warnings still show."""
    import datasets
    import lm_eval.api.task

    with ExitStack() as stack:
        for logger in map(logging.getLogger, ("lm_eval", "datasets")):
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(max(logger.level, logging.WARNING))
        if not datasets.utils.are_progress_bars_disabled():
            datasets.utils.disable_progress_bars()
            stack.callback(datasets.utils.enable_progress_bars)
        silent = partial(lm_eval.api.task.tqdm, disable=True)
        stack.enter_context(mock.patch.object(lm_eval.api.task, "tqdm", silent))
        yield


@contextmanager
def _own_random_state() -> Iterator[None]:
    """Seeded generators inside, the caller's states untouched: tasks may shuffle with the global ones."""
    import numpy as np
    import torch

    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(SEED)
            np.random.seed(SEED)
            torch.manual_seed(SEED)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def __getattr__(name: str):
    """Names of version 0.1."""
    if name == "load_harness_tasks":
        return lambda names: {one: _load_tasks([one]) for one in names}
    if name == "quiet":
        return _quiet
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
