"""Task files for the harness, in the user's cache: items as JSON lines, and the task's configuration as YAML.

    <cache>/tasks/<name>-<version>/items.jsonl     id, query, choices, gold (and target, where not an option)
    <cache>/tasks/<name>-<version>/task.yaml       what lm-evaluation-harness reads; it works with its command line too

Files are written whole or not at all, and again when their bytes are not those the registry names.
"""

import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from crosscal.errors import InputError
from crosscal.metrics.tasks import biomedical, general, language, legal, skills, variants
from crosscal.metrics.tasks.recipes import ordered
from crosscal.metrics.tasks.registry import TASKS, Task
from crosscal.paths import cache_dir

HARNESS_PREFIX = "crosscal_"
"""Keeps embedded tasks apart from the harness's own of the same name."""

DIGEST_LENGTH = 12

_ROOMS = (general, skills, language, variants, biomedical, legal)


def task_folder(name: str) -> Path:
    """The folder with the task's two files, made on first use; the first time fetches the task's archive."""
    task = TASKS[name]
    folder = cache_dir() / "tasks" / f"{name}-{task.version}"
    items = folder / "items.jsonl"
    if not items.exists() or digest_of(items.read_bytes()) != task.digest:
        text = items_text(name)
        if items.exists():  # other bytes than the registry's: what was derived from them goes too
            shutil.rmtree(folder)
        _write(items, text)
    config = config_text(task, items)
    if not (folder / "task.yaml").exists() or (folder / "task.yaml").read_text(encoding="utf-8") != config:
        _write(folder / "task.yaml", config)
    return folder


def build_items(name: str) -> list[dict]:
    """The items of a task, in their fixed random order: the first k are a random subset, nested for growing k.

    A task that is paired with another one follows the other's order.
    """
    task = TASKS[name]
    recipe: Callable[[], list[dict]] = next(getattr(room, name) for room in _ROOMS if hasattr(room, name))
    items = recipe()
    if base := task.variant_of or task.paired_with:
        found = {it["id"]: it for it in items}
        in_order = [found[it["id"]] for it in build_items(base) if it["id"] in found]
    else:
        in_order = ordered(name, items, task.n_items)
    return [_in_form(it, task) for it in in_order[: task.n_items]]


def _in_form(it: dict, task: Task) -> dict:
    """An item as its form wants it: a cloze has its word as target, `contexts` its query."""
    if task.form == "cloze":
        return it | {"target": f" {it['choices'][0]}"}
    if task.form == "contexts":
        return {"id": it["id"], "choices": it["choices"], "gold": it["gold"], "target": it["query"]}
    return it


def items_text(name: str) -> str:
    """The task's file: one item a line."""
    return "".join(json.dumps(it, ensure_ascii=False) + "\n" for it in build_items(name))


def digest_of(data: bytes) -> str:
    """The first hex digits of the SHA-256, as in the registry."""
    return hashlib.sha256(data).hexdigest()[:DIGEST_LENGTH]


def config_text(task: Task, items: Path) -> str:
    """The task's harness configuration. One space goes between context and option, and neither brings its own."""
    fields = {
        "options": ("multiple_choice", "query", "choices", "gold"),
        "contexts": ("multiple_choice", "gold", "choices", "target"),
        "cloze": ("loglikelihood", "query", None, "target"),
    }
    output, text, choice, target = fields[task.form]
    metric = "acc_norm" if task.metric == "accuracy_per_char" else "acc"
    lines = [
        f"# {task.title}: {task.source}. {task.built}.",
        f"task: {HARNESS_PREFIX}{task.name}",
        "dataset_path: json",
        "dataset_kwargs:",
        f"  cache_dir: {json.dumps(str(items.parent / 'arrow'), ensure_ascii=False)}",
        # Brackets in the path of the cache are no pattern.
        f"  data_files: {{test: {json.dumps(glob.escape(str(items)), ensure_ascii=False)}}}",
        "test_split: test",
        f"output_type: {output}",
        f"doc_to_text: {text}",
        *([f"doc_to_choice: {choice}"] if choice else []),
        f"doc_to_target: {target}",
        'target_delimiter: " "',
        "num_fewshot: 0",
        "metric_list:",
        f"  - {{metric: {metric}, aggregation: mean, higher_is_better: true}}",
        f"metadata: {{version: {task.version}}}",
    ]
    return "\n".join(lines) + "\n"


def _write(path: Path, text: str) -> None:
    """Write under a temporary name, then rename into place."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(f"cannot write {path} ({error.strerror}); free some space or set CROSSCAL_CACHE") from error
