"""What `evaluate` and `compare` share: on which texts and tasks models are measured."""

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from crosscal.cli.options import config_of, names_in
from crosscal.cli.sources import add_text_options, note_reading, read_texts
from crosscal.errors import InputError

if TYPE_CHECKING:
    from crosscal.cli.measure import Asked

TEXTS = "pubmed,legal,wikipedia,news"
ALL = "all"
"""Asks for the tasks that the study asks."""


def add_measuring_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what is measured."""
    group = parser.add_argument_group("what is measured")
    group.add_argument(
        "--texts",
        default=TEXTS,
        metavar="TEXT,...",
        help="held-out texts: built-in names, .txt or .jsonl files, hub:<data set> (%(default)s)",
    )
    add_text_options(group)
    group.add_argument("--windows", type=int, default=8, help="windows of each text (%(default)s)")
    group.add_argument("--length", type=int, default=512, help="tokens of a window (%(default)s)")
    group.add_argument(
        "--tasks",
        default="",
        metavar="TASK,...",
        help="tasks by name, harness files such as my_task.yaml, or 'all' for eight built-in ones (default: none)",
    )
    group.add_argument("--items", type=int, default=100, help="at most so many items of each task (%(default)s)")


def check_measuring(options: argparse.Namespace) -> list[str]:
    """The held-out texts; raises `InputError` for unknown ones, for unknown tasks and for senseless sizes."""
    from crosscal.metrics.tasks import check_tasks

    texts, tasks = read_texts(options), asked_tasks(options)
    if not texts and not tasks:
        raise InputError("nothing is to be measured; give --texts, --tasks, or both")
    for name, least in (("windows", 1), ("length", 2), ("items", 1)):
        if getattr(options, name) < least:
            raise InputError(f"--{name} is {getattr(options, name)}; give a whole number of at least {least}")
    if tasks and find_spec("lm_eval") is None:
        raise InputError("tasks need the package 'lm-eval'; run pip install 'crosscal[study]', or leave --tasks out")
    check_tasks(tasks)
    return texts


def asked_tasks(options: argparse.Namespace) -> list[str]:
    """The tasks by name."""
    from crosscal.plan.presets import TASKS

    return list(TASKS) if options.tasks.strip() == ALL else names_in(options.tasks)


def make_asked(options: argparse.Namespace, models: Sequence[str], texts: Sequence[str]) -> "Asked":
    """The texts drawn, with the tokenizer that all models share."""
    from crosscal.cli.measure import Asked, check_same_tokens
    from crosscal.text import load_text

    tokenizer = check_same_tokens(options, models)
    sizes = {"n_windows": options.windows, "length": options.length, "seed": 0, "split": "held_out"}
    drawn = {name: load_text(name, tokenizer, **sizes) for name in texts}
    for windows in drawn.values():
        note_reading(options, windows)
    return Asked(drawn, asked_tasks(options), options.items, options)


def rehearsed(options: argparse.Namespace, models: Sequence[str], texts: Sequence[str]) -> dict:
    """What would be measured; of the models only the configs are read."""
    for name in models:
        config_of(name, options)
    sizes = {"windows": options.windows, "length": options.length, "items": options.items}
    return {"dry_run": True, "models": list(models), "texts": list(texts), "tasks": asked_tasks(options), **sizes}


def show_rehearsal(found: dict) -> str:
    """That as text."""
    windows = f"{found['windows']} windows of {found['length']} tokens"
    lines = [f"would measure {', '.join(found['models'])}"]
    lines += [f"on the held-out texts {', '.join(found['texts'])}: {windows} each"] if found["texts"] else []
    lines += [f"on the tasks {', '.join(found['tasks'])}: up to {found['items']} items each"] if found["tasks"] else []
    return "\n".join([*lines, "nothing was done: this was a dry run"])
