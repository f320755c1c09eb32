"""The command line: `crosscal compress`, `evaluate`, `compare`, `report`, `assets`, `doctor`.

Each command is a module of this package with the command's name, and consists of

    HELP: str                     one line for the list of commands
    DESCRIPTION: str              what it does, a paragraph at the head of its own `--help`
    EXAMPLES: str                 two or three worked examples, shown below the options: `# why`, then the command
    INTERRUPTED: str              one sentence for Ctrl-C: what is kept and how to continue
    add_options(parser)           declares its options on an `argparse` parser; `crosscal.cli.options` has shared ones
    run(options) -> dict          does it and returns what `--json` prints: plain values that JSON knows
    show(found) -> str            that dictionary as text for people, without a newline at its end

The shared machinery (`crosscal.cli.runner`) adds to every command

    --json, --quiet, --config FILE, --save-config FILE, --dry-run

and `options.json`, `.quiet`, `.dry_run` say so to `run`. With `--dry-run`, `run` returns what would be done and an
estimate of time and memory, and writes nothing. `run` never prints: standard output belongs to its result, and what is
printed on it meanwhile goes to standard error; notes for people go through `crosscal.cli.notes.note(options, text)`,
which `--quiet` silences. What a user can put right is raised as `InputError`.

Modules import only the standard library, `crosscal.errors` and `crosscal.paths` at the top, and the rest inside
functions, so that `crosscal --help` is there at once, without torch. Options have long names only, defaults that
`%(default)s` can show, and `required=True` where they are needed (a config file may give those too).

Exit status: 0 done, 1 something the user can put right (one sentence on standard error), 2 usage, 130 interrupted.
"""

from collections.abc import Sequence

COMMANDS = ("compress", "evaluate", "compare", "report", "assets", "doctor")
"""The commands, in the order `crosscal --help` lists them."""

__all__ = ["COMMANDS", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (that of the process when none is given); returns the exit status."""
    from crosscal.cli.runner import run_line

    return run_line(arguments)
