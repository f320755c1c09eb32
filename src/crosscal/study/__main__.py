"""Make the missing runs of chapters, in the order given; interrupt it at any time and start it again.

python -m crosscal.study --preset full perplexity cross_calibration
python -m crosscal.study --preset full --plan        what is stored and what is missing, nothing computed
"""

import argparse
import sys
from collections.abc import Sequence

from crosscal.errors import InputError, exit_status
from crosscal.paths import results_dir
from crosscal.plan.chapters import CHAPTERS, Maker
from crosscal.plan.parameters import PRESETS
from crosscal.study.grid import find_stored, run_chapter


def _main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m crosscal.study", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("chapters", nargs="*", metavar="CHAPTER", help=f"{', '.join(CHAPTERS)} (default: all)")
    parser.add_argument("--preset", default="quick", choices=list(PRESETS))
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--accept-terms", action="store_true", help="of models that have terms of use")
    parser.add_argument(
        "--runs", type=_slice, default=slice(None), metavar="A:B", help="only these, such as :20 or 20:40"
    )
    parser.add_argument("--plan", action="store_true", help="only say what is stored and what is missing")
    options = parser.parse_args(arguments)
    return exit_status(lambda: _run(options), "interrupted; finished runs are stored, start again to continue")


def _run(options: argparse.Namespace) -> None:
    """Make each chapter's runs, or say how many are stored."""
    for name in options.chapters or CHAPTERS:
        if name not in CHAPTERS:
            raise InputError(f"there is no chapter '{name}'; give one of {', '.join(CHAPTERS)}")
        settings = CHAPTERS[name].settings(
            preset=options.preset, model=options.model, device=options.device, accept_terms=options.accept_terms
        )
        if options.plan:
            configs = CHAPTERS[name].configs(Maker(settings))
            stored = len(find_stored(configs, results_dir(options.preset), partial=True))
            sys.stdout.write(f"{name}: {stored} of {len(configs)} runs stored\n")
        else:
            run_chapter(name, settings, chosen=options.runs)


def _slice(text: str) -> slice:
    """`A:B` as a slice; argparse turns the errors into its own message."""
    first, last = text.split(":")
    return slice(int(first) if first else None, int(last) if last else None)


if __name__ == "__main__":
    sys.exit(_main())
