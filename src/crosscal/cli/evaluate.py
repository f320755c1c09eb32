"""`crosscal evaluate`: perplexity, tasks, and how far a model lies from the dense one."""

import argparse

from crosscal.cli.files import _as_json, _write_text_file, check_new
from crosscal.cli.measure import _check, _correct_for_many, _measure, _numbers, _place, _rehearsed, _show_rehearsal
from crosscal.cli.tables import _aligned, _check_card, _note_of, _task_table, _text_table, _write_card


def _run(options: argparse.Namespace) -> dict:
    """Measure, and write what was asked for."""
    _check(options)
    check_new(options.output, options.overwrite)
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
        _write_text_file(options.output, _as_json(result) + "\n")
    if options.card:
        _write_card(options.model, result)
    return result


def _show(result: dict) -> str:
    """Return a table of texts and one of tasks."""
    if result.get("dry_run"):
        return _show_rehearsal(result)
    parts = [result["model"] + (f", compared with {result['dense']}" if result["dense"] else "")]
    parts += [_aligned(*table) for table in (_text_table(result), _task_table(result)) if table[1]]
    return "\n\n".join([*parts, _note_of(result)])
