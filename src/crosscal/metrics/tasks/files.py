"""Task files for the harness, in the user's cache: items as JSON lines, and the task's configuration as YAML.

    <cache>/tasks/<name>-<version>/items.jsonl     id, query, choices, gold (and target, where not an option)
    <cache>/tasks/<name>-<version>/task.yaml       what lm-evaluation-harness reads; it works with its command line too

Files are written whole or not at all, and again when their bytes are not those the catalogue names.
"""

import glob
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from crosscal.files import write_atomically
from crosscal.metrics.tasks import held_out
from crosscal.metrics.tasks import items as benchmark
from crosscal.metrics.tasks.catalogue import TASKS, Task
from crosscal.metrics.tasks.items import _ordered, _prepared, _rephrased, _with_typos
from crosscal.paths import cache_dir

HARNESS_PREFIX = "crosscal_"
"""Keeps embedded tasks apart from the harness's own of the same name."""

_RECIPES: dict[str, Callable[[], Iterable[dict]]] = {
    "common_knowledge": partial(_prepared, "basic_skills_common_knowledge/rc_5shot", "{question}"),
    "sciq": benchmark._sciq,
    "arc_easy": benchmark._arc_easy,
    "piqa": partial(_prepared, "piqa/rc_0shot"),
    "hellaswag": partial(_prepared, "hellaswag/rc_0shot"),
    "social_iqa": partial(_prepared, "socialiqa/rc_0shot"),
    "lambada": partial(_prepared, "lambada/bpb_0shot"),
    "sciq_reading": benchmark._sciq_reading,
    "fact_recall": benchmark._fact_recall,
    "agreement": held_out._agreement,
    "word_order": held_out._word_order,
    "sciq_typos": lambda: _with_typos("sciq_typos", benchmark._sciq()),
    "arc_easy_typos": lambda: _with_typos("arc_easy_typos", benchmark._arc_easy()),
    "sciq_rephrased": lambda: _rephrased(benchmark._sciq()),
    "arc_easy_rephrased": lambda: _rephrased(benchmark._arc_easy()),
    "bioasq": held_out._bioasq,
    "pubmedqa_yesno": held_out._pubmedqa_yesno,
    "pubmed_next_section": held_out._pubmed_next_section,
    "pubmed_question": held_out._pubmed_question,
    "case_summary": held_out._case_summary,
    "case_next_sentence": held_out._case_next_sentence,
    "contract_clause": held_out._contract_clause,
}
"""What makes the items of each task from its archive, in any order."""


def build_items(name: str) -> list[dict]:
    """Return the items of an embedded task in their fixed random order: the first k are a random subset, nested in k.

    A task that is paired with another one follows the other's order.
    """
    task, items = TASKS[name], _RECIPES[name]()
    if base := task.variant_of or task.paired_with:
        by_id = {item["id"]: item for item in items}
        in_order = [by_id[item["id"]] for item in build_items(base) if item["id"] in by_id]
    else:
        in_order = _ordered(name, items, task.n_items)
    return [_in_form(item, task) for item in in_order[: task.n_items]]


def _in_form(item: dict, task: Task) -> dict:
    """An item as its form wants it: a cloze has its word as target, `contexts` its query."""
    if task.form == "cloze":
        return item | {"target": f" {item['choices'][0]}"}
    if task.form == "contexts":
        return {"id": item["id"], "choices": item["choices"], "gold": item["gold"], "target": item["query"]}
    return item


def _task_folder(name: str) -> Path:
    """The folder with the task's two files, made on first use; the first time fetches the task's archive."""
    task = TASKS[name]
    folder = cache_dir() / "tasks" / f"{name}-{task.version}"
    items = folder / "items.jsonl"
    if not items.exists() or _digest_of(items.read_bytes()) != task.digest:
        text = _items_text(name)
        if items.exists():  # other bytes than the catalogue's: what was derived from them goes too
            shutil.rmtree(folder)
        write_atomically(items, text)
    config = _config_text(task, items)
    if not (folder / "task.yaml").exists() or (folder / "task.yaml").read_text(encoding="utf-8") != config:
        write_atomically(folder / "task.yaml", config)
    return folder


def _items_text(name: str) -> str:
    """The task's file: one item a line."""
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in build_items(name))


def _digest_of(data: bytes) -> str:
    """The first hex digits of the SHA-256, as in the catalogue."""
    return hashlib.sha256(data).hexdigest()[:12]


def _config_text(task: Task, items: Path) -> str:
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
