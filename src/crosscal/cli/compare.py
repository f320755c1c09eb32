"""`crosscal compare`: the dense model against compressed ones, in one table with paired intervals."""

import argparse
from typing import TYPE_CHECKING

from crosscal.cli.options import add_measuring_options, add_model_options
from crosscal.errors import InputError

if TYPE_CHECKING:
    from crosscal.results.store import RunRecord

HELP = "the dense model against one or more compressed ones, a table with paired intervals"
DESCRIPTION = """
Measure the dense model and every compressed one on the same windows of held-out text and the same task items, one model
in memory at a time, and show what each lost. Intervals and tests are paired with the dense model; p-values of all tasks
and models in the table are corrected together (Holm). What was measured before is read from the cache folder.
"""
EXAMPLES = """
# which of two settings lost less?
crosscal compare --dense smollm2-135m --models out/half out/24

# with tasks, as Markdown for a report
crosscal compare --dense smollm2-135m --models out/half out/4bit --tasks all --markdown comparison.md

# for machines
crosscal compare --dense my-model --models out/half --texts my_notes.jsonl --json --output comparison.json
"""
INTERRUPTED = "interrupted; finished texts and tasks are kept, the same command goes on with the next"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `crosscal compare`."""
    parser.add_argument("--dense", required=True, metavar="MODEL", help="the model as it was")
    parser.add_argument("--models", required=True, nargs="+", metavar="MODEL", help="compressed models")
    add_measuring_options(parser)
    parser.add_argument("--output", metavar="FILE.json", help="write what --json prints to a file")
    parser.add_argument("--markdown", metavar="FILE.md", help="write the table as Markdown")
    parser.add_argument("--overwrite", action="store_true", help="replace those files if they exist")
    add_model_options(parser, "of weights and activations (%(default)s: bfloat16 where this machine is fast in it)")


def run(options: argparse.Namespace) -> dict:
    """Measure every model and compare; write what was asked for."""
    from crosscal.cli.files import as_json, check_new, write_text_file
    from crosscal.cli.measure import _check, _measure, _rehearsed
    from crosscal.cli.tables import _NOTE, _comparison_table, _markdown

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
        write_text_file(options.output, as_json(result) + "\n")
    if options.markdown:
        write_text_file(options.markdown, f"{_markdown(*_comparison_table(result))}\n\n{_NOTE}\n")
    return result


def _compared(options: argparse.Namespace, dense: "RunRecord", *others: "RunRecord") -> dict:
    from crosscal.cli.measure import _correct_for_many, _mean_change, _numbers, _place

    models = [_numbers(other, dense) for other in others]
    _correct_for_many(models)
    for model, other in zip(models, others, strict=True):
        model["mean_change"] = _mean_change(other, dense, model["tasks"])
    own = _numbers(dense)
    place = _place(options)
    return {"dense": options.dense, "texts": own["texts"], "tasks": own["tasks"], "models": models, **place}


def show(result: dict) -> str:
    """Return the table, and what its brackets mean."""
    from crosscal.cli.measure import _show_rehearsal
    from crosscal.cli.tables import _NOTE, _aligned, _comparison_table

    if result.get("dry_run"):
        return _show_rehearsal(result)
    return f"{_aligned(*_comparison_table(result))}\n\n{_NOTE}"
