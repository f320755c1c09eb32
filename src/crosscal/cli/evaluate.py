"""`crosscal evaluate`: perplexity, tasks, and how far a model lies from the dense one."""

import argparse

from crosscal.cli.measuring import add_measuring_options, check_measuring, make_asked, rehearsed
from crosscal.cli.options import add_model_options

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
    from crosscal.cli.card import check_card, write_card
    from crosscal.cli.files import as_json, check_new, write_text_file

    texts = check_measuring(options)
    check_new(options.output, options.overwrite)
    if options.card:
        check_card(options.model)
    models = [options.dense, options.model] if options.dense else [options.model]
    if options.dry_run:
        return rehearsed(options, models, texts)
    found = _measured(options, make_asked(options, models, texts))
    if options.output:
        write_text_file(options.output, as_json(found) + "\n")
    if options.card:
        write_card(options.model, found)
    return found


def _measured(options: argparse.Namespace, asked) -> dict:
    from crosscal.cli.findings import correct_for_many, findings
    from crosscal.cli.measure import measure

    dense, (found,) = measure(asked, [options.model], options.dense)
    result = findings(found, dense)
    if dense is not None:
        correct_for_many([result])
    return {"dense": options.dense, **result, **asked.place}


def show(found: dict) -> str:
    """A table of texts and one of tasks."""
    from crosscal.cli.measuring import show_rehearsal
    from crosscal.cli.rows import note_of, task_table, text_table_of
    from crosscal.cli.tables import text_table

    if found.get("dry_run"):
        return show_rehearsal(found)
    parts = [found["model"] + (f", compared with {found['dense']}" if found["dense"] else "")]
    parts += [text_table(*table) for table in (text_table_of(found), task_table(found)) if table[1]]
    return "\n\n".join([*parts, note_of(found)])
