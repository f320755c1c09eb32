"""Task files for the harness, in the user's cache: items as JSON lines, and the task's configuration as YAML.

    <cache>/tasks/<name>-<version>/items.jsonl     id, query, choices, gold (and target, where not an option)
    <cache>/tasks/<name>-<version>/task.yaml       what lm-evaluation-harness reads; it works with its command line too
    <cache>/tasks/own-<digest>/task.yaml           includes a YAML file of one's own; paths of its data are absolute

Files are written whole or not at all, and again when their bytes are not those the catalogue names.
"""

import glob
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from crosscal.errors import InputError
from crosscal.files import hash_files, write_atomically
from crosscal.metrics.tasks import held_out
from crosscal.metrics.tasks import items as benchmark
from crosscal.metrics.tasks.catalogue import TASKS, Task
from crosscal.metrics.tasks.items import _ordered, _prepared, _rephrased, _with_typos
from crosscal.paths import cache_dir

HARNESS_PREFIX = "crosscal_"
"""Keeps embedded tasks apart from the harness's own of the same name."""

_arc_easy = partial(_prepared, "arc_easy/test_rc_5shot")  # test questions of elementary science

_RECIPES: dict[str, Callable[[], Iterable[dict]]] = {
    "common_knowledge": partial(_prepared, "basic_skills_common_knowledge/rc_5shot", "{question}"),
    "sciq": benchmark._sciq,
    "arc_easy": _arc_easy,
    "piqa": partial(_prepared, "piqa/rc_0shot"),
    "hellaswag": partial(_prepared, "hellaswag/rc_0shot"),
    "social_iqa": partial(_prepared, "socialiqa/rc_0shot"),
    "lambada": partial(_prepared, "lambada/bpb_0shot"),
    # The questions of sciq after their support paragraph, with the same options in the same order.
    "sciq_reading": partial(benchmark._sciq, "{support}\nQuestion: {question}\nAnswer:", needs="support"),
    "fact_recall": benchmark._fact_recall,
    "agreement": partial(held_out._pairs, "agreement", held_out._wrong_numbers),
    "word_order": partial(held_out._pairs, "word_order", held_out._wrong_orders),
    "sciq_typos": lambda: _with_typos("sciq_typos", benchmark._sciq()),
    "arc_easy_typos": lambda: _with_typos("arc_easy_typos", _arc_easy()),
    "sciq_rephrased": lambda: _rephrased(benchmark._sciq()),
    "arc_easy_rephrased": lambda: _rephrased(_arc_easy()),
    "bioasq": held_out._bioasq,
    "pubmedqa_yesno": held_out._pubmedqa_yesno,
    "pubmed_next_section": held_out._pubmed_next_section,
    "pubmed_question": held_out._pubmed_question,
    "case_summary": held_out._case_summary,
    "case_next_sentence": held_out._case_next_sentence,
    "contract_clause": held_out._contract_clause,
}
"""What makes the items of each task from its archive, in any order."""


def _build_items(name: str) -> list[dict]:
    """Return the items of an embedded task in their fixed random order: the first k are a random subset, nested in k.

    A task that is paired with another one follows the other's order.
    """
    task, items = TASKS[name], _RECIPES[name]()
    if base := task.variant_of or task.paired_with:
        by_id = {item["id"]: item for item in items}
        in_order = [by_id[item["id"]] for item in _build_items(base) if item["id"] in by_id]
    else:
        in_order = _ordered(name, items, task.n_items)
    chosen = in_order[: task.n_items]
    if task.form == "cloze":
        return [item | {"target": f" {item['choices'][0]}"} for item in chosen]
    if task.form == "contexts":
        return [{name: item[name] for name in ("id", "choices", "gold")} | {"target": item["query"]} for item in chosen]
    return chosen


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
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in _build_items(name))


def _digest_of(data: bytes) -> str:
    """The first hex digits of the SHA-256, as in the catalogue."""
    return hashlib.sha256(data).hexdigest()[:12]


def _config_text(task: Task, items: Path) -> str:
    """The task's harness configuration. One space goes between context and option, and neither brings its own."""
    import yaml

    fields = {
        "options": ("multiple_choice", "query", "choices", "gold"),
        "contexts": ("multiple_choice", "gold", "choices", "target"),
        "cloze": ("loglikelihood", "query", None, "target"),
    }
    output, text, choice, target = fields[task.form]
    metric = "acc_norm" if task.metric == "accuracy_per_char" else "acc"
    config = {
        "task": HARNESS_PREFIX + task.name,
        "dataset_path": "json",
        # Brackets in the path of the cache are no pattern.
        "dataset_kwargs": {"cache_dir": str(items.parent / "arrow"), "data_files": {"test": glob.escape(str(items))}},
        "test_split": "test",
        "output_type": output,
        "doc_to_text": text,
        **({"doc_to_choice": choice} if choice else {}),
        "doc_to_target": target,
        "target_delimiter": " ",
        "num_fewshot": 0,
        "metric_list": [{"metric": metric, "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": task.version},
    }
    head = f"# {task.title}: {task.source}. {task.built}.\n"
    return head + yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=1000)


def task_version(name: str) -> str:
    """Return what identifies the numbers of a task: version and digest of an embedded one, else the harness's version.

    Of a YAML file it is the hash of that file, all it includes and names, and its data. Raises `InputError` for a file
    that cannot be read.

    >>> task_version("sciq").split(".")[0]
    '1'
    """
    if name in TASKS:
        return f"{TASKS[name].version}.{TASKS[name].digest}"
    if _is_own(name):
        return f"own {_read_own(name).digest}"
    try:
        return f"lm-eval {version('lm_eval')}"
    except PackageNotFoundError:
        return "lm-eval absent"


class _OwnTask(NamedTuple):
    """A task of one's own: what its YAML file says, includes merged, and the hash of all files behind its items."""

    path: Path
    config: dict
    digest: str

    def folder(self) -> Path:
        """The folder with a task.yaml that the harness reads from anywhere, made on first use."""
        folder = cache_dir() / "tasks" / f"own-{self.digest}"
        arguments = dict(self.config.get("dataset_kwargs") or {})
        if "data_files" in arguments:
            arguments["cache_dir"] = str(folder / "arrow")
        wrapper = {"include": str(self.path), "task": HARNESS_PREFIX + self.digest, "dataset_kwargs": arguments}
        wrapper |= {name: value for name, value in self.config.items() if name == "dataset_path"}
        write_atomically(folder / "task.yaml", json.dumps(wrapper, ensure_ascii=False, indent=1) + "\n")
        return folder


def _is_own(name: str) -> bool:
    """Whether a task's name is the path of a YAML file."""
    return name.lower().endswith((".yaml", ".yml"))


def _read_own(name: str) -> _OwnTask:
    """Read a task of one's own; raises `InputError` for files that are missing or hold something else."""
    path = Path(name).expanduser().resolve()
    files: dict[str, Path] = {}
    config = _read_yaml(path, files)
    if "group" in config or isinstance(config.get("task"), list):
        raise InputError(f"{name} is a group of tasks; give the file of each task")
    arguments = config.get("dataset_kwargs")
    if isinstance(arguments, dict) and "data_files" in arguments:
        config["dataset_kwargs"] = arguments | {"data_files": _data_files(arguments["data_files"], path, files)}
    data = path.parent / str(config.get("dataset_path", ""))
    if data != path.parent and data.is_dir():  # a folder of data beside the YAML file
        config["dataset_path"] = str(data)
        files |= {file.relative_to(data).as_posix(): file for file in data.rglob("*") if file.is_file()}
    try:
        return _OwnTask(path, config, hash_files(files))
    except OSError as error:
        raise InputError(f"cannot read {error.filename} ({error.strerror}), which {path.name} names") from error


def _read_yaml(path: Path, files: dict[str, Path]) -> dict:
    """A YAML file of the harness's kind, with what it includes; the files it needs are added to `files`."""
    import yaml

    class Loader(yaml.SafeLoader):
        """Notes the files of functions and does not run them."""

    def function(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
        named = str(loader.construct_scalar(node))
        code = path.parent / f"{named.rpartition('.')[0].replace('.', '/')}.py"
        if code.is_file():
            files[str(len(files))] = code
        return named

    Loader.add_constructor("!function", function)
    if path in files.values():
        raise InputError(f"{path} includes itself; take that line out")
    files[str(len(files))] = path
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader)  # a safe loader
    except OSError as error:
        raise InputError(f"cannot read the task {path} ({error.strerror}); give a harness YAML file") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())[:160]
        raise InputError(f"{path} is no YAML file ({said}); give a task of lm-evaluation-harness") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} holds no settings of a task; give a task of lm-evaluation-harness")
    included = config.pop("include", None) or []
    merged: dict = {}
    for other in included if isinstance(included, list) else [included]:
        merged |= _read_yaml((path.parent / str(other)).resolve(), files)
    return merged | config


def _data_files(named: object, path: Path, files: dict[str, Path]) -> object:
    """The data files of a task as absolute paths; relative ones are looked up beside the YAML file."""
    if isinstance(named, dict):
        return {split: _data_files(part, path, files) for split, part in named.items()}
    patterns = named if isinstance(named, list) else [named]
    return [file for pattern in patterns for file in _matches(str(pattern), path, files)]


def _matches(pattern: str, path: Path, files: dict[str, Path]) -> list[str]:
    if "://" in pattern:
        return [pattern]
    place = path.parent / Path(pattern).expanduser()
    named = [place] if place.is_file() else sorted(glob.glob(pattern, root_dir=path.parent, recursive=True))
    matches = [path.parent / match for match in named if (path.parent / match).is_file()]
    if not matches:
        raise InputError(f"{path.name} names the data file {pattern}, which is not in {path.parent}; correct the path")
    files |= {str(len(files) + n): file for n, file in enumerate(matches)}
    return [glob.escape(str(file)) for file in matches]
