"""What all commands share: reading the command line, where output goes, and the exit status."""

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from crosscal import __version__
from crosscal.cli import COMMANDS
from crosscal.cli.config import apply_config, config_text, config_values, read_config
from crosscal.cli.files import as_json, check_new, write_text_file
from crosscal.cli.parser import CommandParser, add_shared
from crosscal.errors import InputError, exit_status, suggest

USAGE = 2
AS_OPTIONS = {
    "accept_terms=True": "--accept-terms",
    "trust_remote_code=True": "--trust-remote-code",
    "n_windows": "--windows",
    "max_items": "--items",
    "storage='dense'": "--storage dense",
    "Grid(4)": "--bits 4",
}
"""Python's way to say something -> the command line's, in the sentences of errors."""


def run_line(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (that of the process when none is given); returns the exit status."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        if name not in COMMANDS:
            return _front(name)
        command = find_command(name)
        return exit_status(lambda: _run(command, name, rest), command.INTERRUPTED)
    except SystemExit as stop:  # argparse has shown its help, or said what is wrong
        return int(stop.code or 0)
    except BrokenPipeError:  # the reader of a pipe, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def find_command(name: str) -> ModuleType:
    """The module of a command; see `crosscal.cli` for what it consists of."""
    return import_module(f"crosscal.cli.{name}")


def _front(name: str) -> int:
    """`crosscal --help`, `crosscal --version`, and what is no command."""
    if name == "--version":
        sys.stdout.write(f"crosscal {__version__}\n")
        return 0
    if name not in ("--help", "-h", "help"):
        sys.stderr.write(
            f"crosscal: there is no command '{name}'{suggest(name, list(COMMANDS))} (give {', '.join(COMMANDS)})\n"
        )
        return USAGE
    lines = [f"  {command:<10} {find_command(command).HELP}" for command in COMMANDS]
    sys.stdout.write(
        "usage: crosscal COMMAND [options]\n\n"
        "Compress a language model with your own text, and measure what that costs.\n\n"
        "commands:\n" + "\n".join(lines) + "\n\ncrosscal COMMAND --help explains a command, with examples;\n"
        "crosscal --version tells the version\n"
    )
    return 0


def make_parser(command: ModuleType, name: str) -> CommandParser:
    """The parser of a command, shared options included."""
    parser = CommandParser(f"crosscal {name}", command.DESCRIPTION, command.EXAMPLES)
    command.add_options(parser)
    add_shared(parser)
    return parser


def _run(command: ModuleType, name: str, arguments: list[str]) -> None:
    parser = make_parser(command, name)
    parser.check_known(arguments)
    first = argparse.ArgumentParser(prog=parser.prog, add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    if path := first.parse_known_args(arguments)[0].config:
        apply_config(parser, name, read_config(Path(path).expanduser()), path)
    options = parser.parse_args(arguments)
    options.reproducing = config_values(parser, name, options)
    check_new(options.save_config)
    with _silence(options.quiet), contextlib.redirect_stdout(sys.stderr):
        found = _explained(command, options)
    if options.save_config:
        write_text_file(options.save_config, config_text(parser, name, options))
    text = as_json(found) if options.json else command.show(found)
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _explained(command: ModuleType, options: argparse.Namespace) -> dict:
    """Run a command; errors speak of options, and memory that does not suffice is one that options put right."""
    try:
        return command.run(options)
    except InputError as error:
        sentence = str(error)
        for python, option in AS_OPTIONS.items():
            sentence = sentence.replace(python, option)
        raise InputError(sentence) from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
            raise InputError(
                "memory did not suffice; give fewer --windows or a shorter --length, --device cpu, or --dtype bfloat16"
            ) from error
        raise


@contextlib.contextmanager
def _silence(quiet: bool) -> Iterator[None]:
    """Ask the libraries that show progress bars for none."""
    wanted = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"} if quiet else {}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
