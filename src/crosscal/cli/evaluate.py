"""`crosscal evaluate`: perplexity, tasks, and how far a model lies from the dense one."""

import argparse

from crosscal.cli.options import add_measuring_options, add_model_options

HELP = "perplexity, tasks, and with --dense the divergence from the dense model, with intervals"
DESCRIPTION = """
Measure a model on held-out text and, if asked, on tasks. With --dense the same is measured on the dense model, and
every window and every item is compared with it. Values come with 95 % bootstrap intervals. What was measured is kept
in the cache folder and not measured again.
"""
EXAMPLES = """
# perplexity on four built-in held-out texts
crosscal evaluate --model out/half

# what compression cost, on your own text too, and two tasks
crosscal evaluate --model out/half --dense smollm2-135m --texts pubmed,my_notes.jsonl --tasks sciq,arc_easy

# a task of your own, in a file that lm-evaluation-harness can read
crosscal evaluate --model out/half --dense smollm2-135m --tasks my_task.yaml

# the same for machines, and into the model card of the compressed folder
crosscal evaluate --model out/half --dense smollm2-135m --json --output half.json --card
"""
INTERRUPTED = "interrupted; finished texts and tasks are kept, the same command goes on with the next"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `crosscal evaluate`."""
    parser.add_argument("--model", required=True, help="what to measure: a built-in model, a folder, or a hub id")
    parser.add_argument("--dense", metavar="MODEL", help="the model it was made from, to compare with")
    add_measuring_options(parser)
    parser.add_argument("--output", metavar="FILE.json", help="write what --json prints to a file")
    parser.add_argument("--overwrite", action="store_true", help="replace that file if it exists")
    parser.add_argument("--card", action="store_true", help="add what was lost to the README.md of the model's folder")
    add_model_options(parser, "of weights and activations (%(default)s: bfloat16 where this machine is fast in it)")


def run(options: argparse.Namespace) -> dict:
    """Measure, and write what was asked for."""
    from crosscal.cli.files import as_json, check_new, write_text_file
    from crosscal.cli.measure import _check, _correct_for_many, _measure, _numbers, _place, _rehearsed
    from crosscal.cli.tables import _check_card, _write_card

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
        write_text_file(options.output, as_json(result) + "\n")
    if options.card:
        _write_card(options.model, result)
    return result


def show(result: dict) -> str:
    """Return a table of texts and one of tasks."""
    from crosscal.cli.measure import _show_rehearsal
    from crosscal.cli.tables import _aligned, _note_of, _task_table, _text_table

    if result.get("dry_run"):
        return _show_rehearsal(result)
    parts = [result["model"] + (f", compared with {result['dense']}" if result["dense"] else "")]
    parts += [_aligned(*table) for table in (_text_table(result), _task_table(result)) if table[1]]
    return "\n\n".join([*parts, _note_of(result)])
