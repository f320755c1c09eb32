"""`crosscal compare`: the dense model against compressed ones, in one table with paired intervals."""

import argparse

from crosscal.cli.files import _as_json, _write_text_file, check_new
from crosscal.cli.measure import (
    _check,
    _correct_for_many,
    _mean_change,
    _measure,
    _numbers,
    _place,
    _rehearsed,
    _show_rehearsal,
)
from crosscal.cli.tables import _NOTE, _aligned, _comparison_table, _markdown
from crosscal.errors import InputError
from crosscal.results.store import RunRecord


def _run(options: argparse.Namespace) -> dict:
    """Measure every model and compare; write what was asked for."""
    _check(options)
    for path in (options.output, options.markdown):
        check_new(path, options.overwrite)
    if len(set(options.models)) < len(options.models):
        raise InputError("a model is named twice in --models; name each once")
    models = [options.dense, *options.models]
    if options.dry_run:
        return _rehearsed(options, models)
    result = _compared(options, *_measure(options, models))
    if options.output:
        _write_text_file(options.output, _as_json(result) + "\n")
    if options.markdown:
        _write_text_file(options.markdown, f"{_markdown(*_comparison_table(result))}\n\n{_NOTE}\n")
    return result


def _compared(options: argparse.Namespace, dense: RunRecord, *others: RunRecord) -> dict:
    models = [_numbers(other, dense) for other in others]
    _correct_for_many(models)
    for model, other in zip(models, others, strict=True):
        model["mean_change"] = _mean_change(other, dense, model["tasks"])
    own = _numbers(dense)
    place = _place(options)
    return {"dense": options.dense, "texts": own["texts"], "tasks": own["tasks"], "models": models, **place}


def _show(result: dict) -> str:
    """Return the table, and what its brackets mean."""
    if result.get("dry_run"):
        return _show_rehearsal(result)
    return f"{_aligned(*_comparison_table(result))}\n\n{_NOTE}"
