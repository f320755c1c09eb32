"""The command line: `crosscal compress`, `evaluate`, `compare`, `report`, ...: `cli/commands.toml` lists them.

`crosscal.cli.parser` holds the options and help of all commands, and this file everything that they share. The module
of a command is loaded when it runs, and has

    _run_NAME(options) -> dict    does it and returns what `--json` prints: plain values that JSON knows
    _show_NAME(result) -> str     this dictionary as text for people

`_run_NAME` never prints: standard output belongs to the result, and what libraries print there meanwhile goes to
standard error, as do notes for people. With `--dry-run` it returns what would be done, and writes nothing. Errors that
a user can correct are raised as `InputError`.

Exit status: 0 done, 1 an error that the user can correct (one sentence on standard error), 2 usage, 130 interrupted.
A command whose status is an answer returns it as `exit_status`, and has an `error_status` of its own for errors.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from unittest import mock

from crosscal import __version__
from crosscal.cli.config import _as_toml, _config_values, _parse
from crosscal.cli.files import _as_json, _check_new, _encoding_of, _LastingError, _occupy_closed, _print_result
from crosscal.cli.parser import _COMMANDS, _CommandParser, _front_page
from crosscal.errors import InputError, exit_status, suggest
from crosscal.files import write_atomically
from crosscal.paths import started_by_torchrun

__all__ = ["main"]

_SILENT = {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
_DIVIDED = ("compress", "evaluate", "compare", "verify")
_SMALLER = {
    "windows": "fewer --windows",
    "length": "a shorter --length",
    "preset": "a smaller --preset",
    "device": "--device cpu",
    "dtype": "--dtype bfloat16",
}
"""Options that save memory, and how."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, by default that of the process, and return the exit status."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    interrupted = f"interrupted; {_COMMANDS[name]['interrupted']}" if name in _COMMANDS else "interrupted"
    _occupy_closed()
    with contextlib.redirect_stderr(_LastingError(sys.stderr)):
        try:
            run = partial(_run, name, rest) if name in _COMMANDS else partial(_front, name)
            error = _COMMANDS.get(name, {}).get("error_status", 1)
            return exit_status(partial(_with_one_voice, run) if started_by_torchrun() else run, interrupted, error)
        except SystemExit as stop:  # argparse has printed its help, or what is wrong
            return int(stop.code or 0)


def _with_one_voice(run: Callable[[], int]) -> int:
    """Run as one of the processes that torchrun started: the first alone prints, and whoever fails first says why."""
    from crosscal.engine.ranks import leave, ranks

    with contextlib.ExitStack() as silent:
        if int(os.environ["RANK"]):
            nowhere = silent.enter_context(open(os.devnull, "w"))
            silent.enter_context(contextlib.redirect_stdout(nowhere))
            silent.enter_context(contextlib.redirect_stderr(nowhere))
        try:
            status = run()
            leave()
            return status
        except (InputError, KeyboardInterrupt):
            if not ranks().speaks():
                raise SystemExit(1) from None
            raise


def _front(name: str) -> int:
    """`crosscal --help`, `crosscal --version`, and what is no command."""
    if name in ("--help", "-h", "help", "--version"):
        _print_result(f"crosscal {__version__}" if name == "--version" else _front_page())
        return 0
    meant = suggest(name, list(_COMMANDS))
    sys.stderr.write(f"crosscal: there is no command '{name}'{meant} (give {', '.join(_COMMANDS)})\n")
    return 2


def _run(name: str, arguments: Sequence[str]) -> int:
    """Run a command and print its result, then save its options; return its exit status."""
    parser = _CommandParser(name)
    parser.check_known(arguments)
    options = _parse(parser, name, arguments)
    options.reproducing = _config_values(parser, name, options)
    first = not started_by_torchrun() or _joined(name, options)
    _check_new(options.save_config if first else None)
    module = import_module(f"crosscal.cli.{_COMMANDS[name]['module']}")
    with mock.patch.dict(os.environ, _SILENT if options.quiet else {}), contextlib.redirect_stdout(sys.stderr):
        result = _within_memory(getattr(module, f"_run_{name}"), options)
    if not first:
        return 0
    _print_result(
        _as_json(result, _encoding_of(sys.stdout)) if options.json else getattr(module, f"_show_{name}")(result)
    )
    if options.save_config:
        write_atomically(options.save_config, _as_toml(options.reproducing))
    return result.get("exit_status", 0)


def _joined(name: str, options: argparse.Namespace) -> bool:
    """Meet the other processes; returns whether this one prints and writes."""
    from crosscal.engine.ranks import join

    first = join(getattr(options, "device", None)).first
    if name not in _DIVIDED:
        raise InputError(f"torchrun divides the work of {', '.join(_DIVIDED)}; start crosscal {name} without it")
    return first


def _within_memory(run: Callable[[argparse.Namespace], dict], options: argparse.Namespace) -> dict:
    """Run a command; raises `InputError` when memory does not suffice, naming the options that need less."""
    try:
        return run(options)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "out of memory" not in str(error).lower():
            raise
        advice = ", ".join(text for name, text in _SMALLER.items() if hasattr(options, name))
        raise InputError(f"not enough memory{'; give ' * bool(advice)}{advice}") from error
