"""`crosscal report`: the report card of a model, a method and your text, as one HTML file to keep or to send."""

import argparse
import shlex
from importlib.util import find_spec

from crosscal.cli.compress import _expected
from crosscal.cli.files import _check_new, _note
from crosscal.cli.request import _check_text, _names_in, _with_fields
from crosscal.engine.request import Request
from crosscal.errors import InputError
from crosscal.files import write_atomically
from crosscal.methods.registry import check_request
from crosscal.metrics.tasks import check_tasks
from crosscal.models import find_config
from crosscal.paths import results_dir
from crosscal.plan.chapters import CHAPTERS, Maker
from crosscal.plan.parameters import ReportCardSettings
from crosscal.study.grid import find_stored
from crosscal.types import parse_target

_NEEDED = ("papermill", "ipykernel", "nbformat", "markdown_it", "mdit_py_plugins", "pandas", "matplotlib", "jupytext")


def _run_report(options: argparse.Namespace) -> dict:
    """Make the missing runs and write the page, or say how many are missing."""
    _check_new(options.output, options.overwrite)
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise InputError(f"report needs the package {missing[0]}; run pip install 'crosscal[study,book]'")
    settings = _settings(options)
    names = ("model", "method", "target", "general", "domain", "weights", "preset")
    asked = {name: getattr(settings, name) for name in names}
    asked |= {"output": options.output, "dry_run": options.dry_run}
    if options.dry_run:
        configs = CHAPTERS["report_card"].configs(Maker(settings))
        return asked | {
            "runs": len(configs),
            "stored": len(find_stored(configs, results_dir(settings.preset), partial=True)),
        }
    return asked | _made(options, settings)


def _settings(options: argparse.Namespace) -> ReportCardSettings:
    """What was asked for, checked as the notebook checks it, and the texts and the method by name."""
    general, domain = _with_fields([options.general, options.domain], options)
    same = (
        "preset",
        "model",
        "seed",
        "device",
        "accept_terms",
        "method",
        "target",
        "tasks",
        "partial",
        "anchor",
        "rotate",
    )
    settings = ReportCardSettings(
        **{name: getattr(options, name) for name in same},
        general=general,
        domain=domain,
        mix_weights=options.weights,
        skip=",".join(options.skip or ()),
        only=",".join(options.only or ()),
        refine=options.refine or "",
    )
    check_tasks([] if options.tasks == "all" else _names_in(options.tasks))
    asked = {"method": settings.method, "target": parse_target(settings.target), **dict(settings.options)}
    request = Request(model=options.model, **asked)
    check_request(request.solver, request.target, {}, [])
    for source in (general, domain):
        if line := _check_text(source):
            _note(options, f"read {line}")
    _expected(request, find_config(settings.model, accept_terms=options.accept_terms))
    return settings


def _made(options: argparse.Namespace, settings: ReportCardSettings) -> dict:
    """Execute the notebook, which makes the missing runs, and write what it shows."""
    from crosscal.results.frame import read_results
    from crosscal_book.chapters.report_card import CHAPTER as CARD
    from crosscal_book.chapters.report_card import recommend
    from crosscal_book.pages.notebooks import executed_copy
    from crosscal_book.pages.standalone import card_notebook, standalone_page

    executed = executed_copy(card_notebook(), vars(settings))
    run_ids = list(executed.metadata["run_ids"])
    title = f"Report card: {settings.model}, {settings.method} to {settings.target}"
    facts = {
        "Model": settings.model,
        "Method": ", ".join([f"{settings.method} to {settings.target}", *(f"{k} {v}" for k, v in settings.options)]),
        "Your text": settings.domain,
        "General text": settings.general,
        "Weights of your text": settings.mix_weights,
        "Size of the study": settings.preset,
    }
    page = standalone_page(executed, title, facts, _command(options))
    write_atomically(options.output, page)
    choice = recommend(CARD.page(read_results(results_dir(settings.preset), run_ids), settings))
    return {"runs": len(run_ids), "weight": choice.weight, "answer": choice.sentence, "bytes": len(page.encode())}


def _command(options: argparse.Namespace) -> str:
    """A command line that makes the same page again."""
    words = ["crosscal", "report"]
    for name, value in options.reproducing.items():
        if isinstance(value, bool):
            words += [f"--{name}"] * value
        elif name not in ("command", "output"):
            for one in value if isinstance(value, list) else [value]:
                words += [f"--{name}", str(one)]
    return shlex.join([*words, "--output", options.output, "--overwrite"])


def _show_report(found: dict) -> str:
    """Where the page is and its answer, or how many runs are to be made."""
    if found["dry_run"]:
        missing = found["runs"] - found["stored"]
        return (
            f"would make {missing} of {found['runs']} runs ({found['stored']} are stored) and write {found['output']}\n"
            f"how long one takes: crosscal doctor --model {found['model']} --method {found['method']} "
            f"--target {shlex.quote(found['target'])}\nnothing was done: this was a dry run"
        )
    return f"written to {found['output']} ({found['bytes'] / 1024:,.0f} KiB, {found['runs']} runs)\n{found['answer']}"
