"""`crosscal report`: the report card of a model, a method and your text, as one HTML file to keep or to send."""

import argparse
import shlex
from importlib.util import find_spec
from typing import TYPE_CHECKING

from crosscal.cli.notes import note
from crosscal.cli.options import names_in
from crosscal.cli.sources import add_text_options, check_own, with_fields
from crosscal.errors import InputError

if TYPE_CHECKING:
    from crosscal.plan.parameters import ReportCardSettings

HELP = "the report card of a model, a method and your text, as one HTML file"
DESCRIPTION = """
Compress a model with one method, calibrated on general text, on your own text and on mixtures of both, measure each
against the dense model, and write one HTML page that says what was lost, what calibration saved, and which mixture to
use. The page needs no other file and no connection. A part of your text is held out for measuring. Finished runs are
stored; the same call, or one with more weights, only makes what is missing.
"""
EXAMPLES = """
# what does pruning half of the weights cost on my notes, and how much of them belongs into the calibration text?
crosscal report --model smollm2-135m --domain my_notes.jsonl --target 50% --output card.html

# 4-bit GPTQ, five mixtures, two tasks
crosscal report --model my-model --domain my_notes.jsonl --method gptq --target "4 bits g128" \\
    --weights 0,0.25,0.5,0.75,1 --tasks sciq,piqa --output card.html

# how many runs would that be?
crosscal report --model smollm2-135m --domain pubmed --preset smoke --output card.html --dry-run
"""
INTERRUPTED = "interrupted; finished runs are stored, the same command goes on with the next and then writes the page"
NEEDED = ("papermill", "ipykernel", "nbformat", "markdown_it", "mdit_py_plugins", "pandas", "matplotlib", "jupytext")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `crosscal report`."""
    parser.add_argument("--model", required=True, help="a built-in model, a folder, or a hub id")
    parser.add_argument("--domain", required=True, metavar="TEXT", help="your text: .txt or .jsonl, built-in or hub:ID")
    add_text_options(parser)
    parser.add_argument("--output", required=True, metavar="FILE.html", help="where the page goes")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier page")
    parser.add_argument("--general", default="c4", metavar="TEXT", help="general text (default: %(default)s)")
    parser.add_argument("--method", default="sparsegpt", help="wanda, sparsegpt, gptq, awq, ... (default: %(default)s)")
    parser.add_argument("--target", default="50%", help='50%%, 2:4, "3 bits g128", "low rank 50%%" (default: 50%%)')
    parser.add_argument("--weights", default="0,0.5,1", help="weights of your text to compare (default: %(default)s)")
    parser.add_argument("--tasks", default="all", help='names with commas, or "" for none (default: the preset\'s)')
    parser.add_argument("--preset", default="quick", help="smoke, quick or full: how much is measured (default: quick)")
    parser.add_argument("--seed", type=int, default=0, help="draw of the calibration windows (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--accept-terms", action="store_true", help="accept the terms of use that a model comes under")


def run(options: argparse.Namespace) -> dict:
    """Make the missing runs and write the page, or say how many are missing."""
    from crosscal.cli.files import check_new

    check_new(options.output, options.overwrite)
    _check_packages()
    settings = _settings(options)
    if options.dry_run:
        return _asked(options, settings) | _plan(settings)
    return _asked(options, settings) | _made(options, settings)


def _check_packages() -> None:
    """Raises `InputError` before any work for packages that the page would lack in the end."""
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise InputError(f"report needs the package {missing[0]}; run pip install 'crosscal[study,book]'")


def _settings(options: argparse.Namespace) -> "ReportCardSettings":
    """What was asked for, checked as the notebook checks it, and the texts and the method by name."""
    from crosscal.cli.targets import check_method
    from crosscal.methods.registry import find_method
    from crosscal.metrics.tasks import check_tasks
    from crosscal.plan.parameters import ReportCardSettings
    from crosscal.types import parse_target

    general, domain = with_fields([options.general, options.domain], options)
    settings = ReportCardSettings(
        preset=options.preset,
        model=options.model,
        seed=options.seed,
        device=options.device,
        accept_terms=options.accept_terms,
        method=options.method,
        target=options.target,
        general=general,
        domain=domain,
        mix_weights=options.weights,
        tasks=options.tasks,
    )
    check_tasks([] if options.tasks == "all" else names_in(options.tasks))
    check_method(find_method(settings.method), parse_target(settings.target), {}, "uniform")
    for source in (settings.general, settings.domain):
        if line := check_own(source, may_be_written=False):
            note(options, f"read {line}")
    return settings


def _asked(options: argparse.Namespace, settings: "ReportCardSettings") -> dict:
    return {
        "model": settings.model,
        "method": settings.method,
        "target": settings.target,
        "general": settings.general,
        "domain": settings.domain,
        "weights": settings.weights,
        "preset": settings.preset,
        "output": options.output,
        "dry_run": options.dry_run,
    }


def _plan(settings: "ReportCardSettings") -> dict:
    from crosscal.paths import results_dir
    from crosscal.plan.chapters import CHAPTERS, Maker
    from crosscal.study.grid import count_stored

    configs = CHAPTERS["report_card"].configs(Maker(settings))
    return {"runs": len(configs), "stored": count_stored(configs, results_dir(settings.preset))}


def _made(options: argparse.Namespace, settings: "ReportCardSettings") -> dict:
    """Execute the notebook, which makes the missing runs, and write what it shows."""
    from crosscal.cli.files import write_text_file
    from crosscal.paths import results_dir
    from crosscal.results.frame import read_results
    from crosscal_book.chapters.report_card import CHAPTER as CARD
    from crosscal_book.chapters.report_card import recommend
    from crosscal_book.pages.notebooks import executed_copy
    from crosscal_book.pages.standalone import card_notebook, standalone_page

    executed = executed_copy(card_notebook(), vars(settings))
    run_ids = list(executed.metadata["run_ids"])
    title = f"Report card: {settings.model}, {settings.method} to {settings.target}"
    page = standalone_page(executed, title, _facts(settings), _command(options))
    write_text_file(options.output, page)
    choice = recommend(CARD.page(read_results(results_dir(settings.preset), run_ids), settings))
    return {"runs": len(run_ids), "weight": choice.weight, "answer": choice.sentence, "bytes": len(page.encode())}


def _facts(settings: "ReportCardSettings") -> dict[str, str]:
    """What a reader of the page should know was asked."""
    return {
        "Model": settings.model,
        "Method": f"{settings.method} to {settings.target}",
        "Your text": settings.domain,
        "General text": settings.general,
        "Weights of your text": settings.mix_weights,
        "Size of the study": settings.preset,
    }


def _command(options: argparse.Namespace) -> str:
    """A command line that makes the same page again."""
    words = ["crosscal", "report"]
    for name in ("model", "domain", "general", "method", "target", "weights", "tasks", "preset", "seed", "device"):
        words += [f"--{name}", str(getattr(options, name))]
    words += ["--field", options.field] if options.field else []
    words += ["--chat"] if options.chat else []
    words += ["--accept-terms"] if options.accept_terms else []
    return shlex.join([*words, "--output", options.output, "--overwrite"])


def show(found: dict) -> str:
    """Where the page is and its answer, or how many runs are to be made."""
    if found["dry_run"]:
        missing = found["runs"] - found["stored"]
        return (
            f"would make {missing} of {found['runs']} runs ({found['stored']} are stored) and write {found['output']}\n"
            f"how long one takes: crosscal doctor --model {found['model']} --method {found['method']} "
            f"--target {shlex.quote(found['target'])}\nnothing was done: this was a dry run"
        )
    return f"written to {found['output']} ({found['bytes'] / 1024:,.0f} KiB, {found['runs']} runs)\n{found['answer']}"
