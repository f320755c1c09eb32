"""`crosscal evaluate` and `crosscal compare`: models measured on texts and tasks, and the numbers that come of it.

Each model is a run as the study's are: the same record, of pieces that are kept in the cache folder, so that nothing
is measured twice and an interrupted call goes on with the next piece. One model is in memory at a time.
"""

import argparse
import math
from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np

from crosscal.cli.files import _as_json, _check_new, _note
from crosscal.cli.request import _names_in, _permissions, _read_texts
from crosscal.cli.tables import (
    _NOTE,
    _aligned,
    _check_card,
    _comparison_table,
    _markdown,
    _note_of,
    _task_table,
    _text_table,
    _write_card,
)
from crosscal.engine.ranks import ranks
from crosscal.errors import InputError, whole_number
from crosscal.files import write_atomically
from crosscal.metrics.tasks import check_tasks
from crosscal.models import find_config, load_tokenizer, resolve_device, resolve_dtype
from crosscal.plan.parameters import TASKS as STUDY_TASKS
from crosscal.results.quantities import quantities_over
from crosscal.results.store import RunRecord
from crosscal.stats import auc_difference, bootstrap_mean, holm, sign_flip_p, sign_test_p
from crosscal.study.identity import DENSE, GIVEN
from crosscal.study.session import Session
from crosscal.types import RunConfig, Unstructured


def _run_evaluate(options: argparse.Namespace) -> dict:
    """Measure one model, against the dense one if it is named."""
    _check(options)
    _check_new(options.output, options.overwrite)
    if options.card:
        _check_card(options.model)
    models = [options.dense, options.model] if options.dense else [options.model]
    if options.dry_run:
        return _rehearsed(options, models)
    *dense, run = _measure(options, models)
    numbers = _numbers(run, *dense)
    if dense:
        _correct_for_many([numbers])
    result = {"dense": options.dense, **numbers, **_place(options)}
    if options.output:
        write_atomically(options.output, _as_json(result) + "\n")
    if options.card:
        _write_card(options.model, result)
    return result


def _show_evaluate(result: dict) -> str:
    """Return a table of texts and one of tasks."""
    if result.get("dry_run"):
        return _show_rehearsal(result)
    parts = [result["model"] + (f", compared with {result['dense']}" if result["dense"] else "")]
    parts += [_aligned(*table) for table in (_text_table(result), _task_table(result)) if table[1]]
    return "\n\n".join([*parts, *filter(None, [_note_of(result)])])


def _run_compare(options: argparse.Namespace) -> dict:
    """Measure every model and compare them with the dense one."""
    _check(options)
    for path in (options.output, options.markdown):
        _check_new(path, options.overwrite)
    if len(set(options.models)) < len(options.models):
        raise InputError("a model is named twice in --models; name each once")
    models = [options.dense, *options.models]
    if options.dry_run:
        return _rehearsed(options, models)
    dense, *others = _measure(options, models)
    compared = [_numbers(other, dense) for other in others]
    _correct_for_many(compared)
    for model, other in zip(compared, others, strict=True):
        model["mean_change"] = _mean_change(other, dense, model["tasks"])
    result = _numbers(dense) | {"models": compared, "dense": options.dense} | _place(options)
    del result["model"]
    if options.output:
        write_atomically(options.output, _as_json(result) + "\n")
    if options.markdown:
        write_atomically(options.markdown, f"{_markdown(*_comparison_table(result))}\n\n{_NOTE}\n")
    return result


def _show_compare(result: dict) -> str:
    """Return the table, and what its brackets mean."""
    return _show_rehearsal(result) if result.get("dry_run") else f"{_aligned(*_comparison_table(result))}\n\n{_NOTE}"


def _check(options: argparse.Namespace) -> None:
    """Read `options.texts` and `options.tasks` as lists; raise `InputError` for unknown ones and senseless sizes."""
    if not ranks().first:  # which has the same numbers, and writes nothing
        vars(options).update(output=None, markdown=None, card=False)
    options.texts = _read_texts(options)
    options.tasks = list(STUDY_TASKS) if options.tasks.strip() == "all" else _names_in(options.tasks)
    if not options.texts and not options.tasks:
        raise InputError("nothing is to be measured; give --texts, --tasks, or both")
    for name, least in (("windows", 1), ("length", 2), ("items", 1)):
        whole_number(f"--{name}", getattr(options, name), least)
    if options.tasks and find_spec("lm_eval") is None:
        raise InputError("tasks need the package 'lm-eval'; run pip install 'crosscal[study]', or leave --tasks out")
    check_tasks(options.tasks)


def _rehearsed(options: argparse.Namespace, models: Sequence[str]) -> dict:
    """Return what would be measured; of the models only the configs are read."""
    for name in models:
        find_config(name, **_permissions(options))
    told = {name: getattr(options, name) for name in ("texts", "tasks", "windows", "length", "items")}
    return {"dry_run": True, "models": list(models), **told}


def _show_rehearsal(result: dict) -> str:
    lines, windows = [f"would measure {', '.join(result['models'])}"], f"{result['windows']} windows"
    if result["texts"]:
        texts = ", ".join(result["texts"])
        lines += [f"on the held-out texts {texts}: {windows} of {result['length']} tokens each"]
    if result["tasks"]:
        lines += [f"on the tasks {', '.join(result['tasks'])}: up to {result['items']} items each"]
    return "\n".join([*lines, "nothing was done: this was a dry run"])


def _place(options: argparse.Namespace) -> dict[str, str]:
    """Return where and in which numbers models run."""
    device = resolve_device(options.device)
    return {"device": device.type, "dtype": str(resolve_dtype(options.dtype, device))}


def _measure(options: argparse.Namespace, models: Sequence[str]) -> list[RunRecord]:
    """Return the runs of these models, the first of which is the dense one where `options.dense` names it.

    Raises `InputError` for a model that reads text differently from the first, or ends it with a token it has not.
    """
    tokenizers = [load_tokenizer(name, **_permissions(options)) for name in models]
    for name, tokenizer in zip(models, tokenizers, strict=True):
        ways = [(one.get_vocab(), one("a b")["input_ids"]) for one in (tokenizers[0], tokenizer)]
        if ways[0] != ways[1]:
            raise InputError(f"{name} and {models[0]} have different tokenizers; compare models that share one")
        size = getattr(find_config(name, **_permissions(options)).get_text_config(), "vocab_size", math.inf)
        if isinstance(end := tokenizer.eos_token_id, int) and end >= size:
            raise InputError(f"end token {end} of {name} is outside its vocabulary of {size}; correct the tokenizer")
    how = {"device": options.device, "dtype": options.dtype, "progress": not options.quiet, **_permissions(options)}
    how["note"] = lambda text: _note(options, text)
    first, others = Session(models[0], **how), models[1:]
    asked = _config(options, models[0])
    runs = [first.record(asked)]
    configs = {name: _config(options, name, dense=models[0]) for name in others}
    missing = [piece for name in others for piece in Session(name, **how).missing(configs[name])]
    if any(kind == "text" for kind, _ in missing):
        first.reference(asked)
    first.drop_blocks()
    return runs + [Session(name, dense=first, **how).record(configs[name]) for name in others]


def _config(options: argparse.Namespace, model: str, dense: str = "") -> RunConfig:
    """Return what is asked of one model, as a study asks it."""
    place = _place(options)
    return RunConfig(
        model=model,
        method=GIVEN if dense else DENSE,
        target=Unstructured(0.0),
        calibration=(),
        n_windows=1,
        window=1,
        seed=0,
        texts=tuple(options.texts),
        eval_windows=options.windows,
        eval_window=options.length,
        tasks=tuple(options.tasks),
        task_items=options.items,
        device=place["device"],
        dtype=place["dtype"].removeprefix("torch."),
        dense=dense,
    )


def _numbers(run: RunRecord, dense: RunRecord | None = None) -> dict:
    """Return a model's texts and tasks as plain numbers: `value`, its 95 % interval `lo`, `hi`, and `n` resampled.

    With the dense model's run, texts get the ratio of perplexities and tasks the paired change, with `p` of no change.
    """
    texts, tasks = _texts(run), _tasks(run)
    if dense is not None:
        for name, before in _texts(dense).items():
            gaps = np.array(run.items[name]["nll"]) - np.array(dense.items[name]["nll"])
            ratio = bootstrap_mean([gaps]).map(math.exp)
            perplexity = texts[name].pop("perplexity")
            paired = {"perplexity_dense": before["perplexity"], "perplexity_ratio": _cell(ratio)}
            texts[name] = {"perplexity": perplexity} | paired | texts[name]
        known = _tasks(dense)
        for name, task in tasks.items():
            task["dense"] = {key: known[name][key] for key in ("value", "lo", "hi", "n")}
            task["change"] = _change(run, dense, name, task["metric"])
            task["usable"] = task["chance"] is None or known[name]["lo"] > task["chance"]
    return {"model": run.config["model"], "texts": texts, "tasks": tasks}


def _texts(run: RunRecord) -> dict[str, dict]:
    kept = [quantity.name for quantity in quantities_over("windows")]
    return {
        name: {row.metric: _cell(row) for row in run.rows if row.eval_set == name and row.metric in kept}
        for name in run.config["texts"]
    }


def _tasks(run: RunRecord) -> dict[str, dict]:
    """The score of each task; a group of the harness brings several."""
    chances = {name: facts.get("chance") for name, facts in run.provenance["tasks"].items()}
    return {
        row.eval_set: {"metric": row.metric, "domain": row.domain, "chance": chances.get(row.eval_set), **_cell(row)}
        for row in run.rows
        if row.eval_set not in run.config["texts"]
    }


def _change(run: RunRecord, dense: RunRecord, task: str, metric: str) -> dict:
    """The paired change: the exact sign test's p on the items that changed, for AUC the bootstrap's."""
    if metric == "auc":
        after, before = run.items[task], dense.items[task]
        change = auc_difference(np.array(before["score"]), np.array(after["score"]), np.array(before["gold"]))
        return _cell(change) | {"p": change.p}
    gaps = _gaps(run, dense, task)
    return _cell(bootstrap_mean([gaps])) | {"p": sign_test_p(int((gaps > 0).sum()), int((gaps < 0).sum()))}


def _gaps(run: RunRecord, dense: RunRecord, task: str) -> np.ndarray:
    """Correct after minus correct before, item by item, whatever their order."""
    after = dict(zip(run.items[task]["id"], run.items[task]["correct"], strict=True))
    before = zip(dense.items[task]["id"], dense.items[task]["correct"], strict=True)
    return np.array([after[item] - correct for item, correct in before], dtype=float)


def _mean_change(run: RunRecord, dense: RunRecord, tasks: dict[str, dict]) -> dict | None:
    """Return the mean change over usable tasks scored by accuracy, each the same; `p` is the sign-flip test's."""
    gaps = [_gaps(run, dense, name) for name, task in tasks.items() if task["usable"] and task["metric"] != "auc"]
    return _cell(bootstrap_mean(gaps)) | {"p": sign_flip_p(gaps), "tasks": len(gaps)} if gaps else None


def _correct_for_many(models: list[dict]) -> None:
    """Add `p_holm` to every usable task's change: Holm's correction over all of them, the comparisons in one table."""
    changes = [task["change"] for model in models for task in model["tasks"].values() if task["usable"]]
    for change, adjusted in zip(changes, holm([change["p"] for change in changes]), strict=True):
        change["p_holm"] = float(adjusted)


def _cell(estimate) -> dict:
    """A row or an estimate as plain numbers."""
    return {"value": float(estimate.value), "lo": float(estimate.lo), "hi": float(estimate.hi), "n": int(estimate.n)}
