"""The parsers of all commands: options, help and worked examples. Showing them loads the standard library only."""

import argparse
import textwrap
import tomllib
from collections.abc import Sequence
from importlib.resources import files
from typing import NoReturn

from crosscal.cli.files import _print_result
from crosscal.errors import suggest
from crosscal.methods.registry import METHODS

_COMMANDS = tomllib.loads(files("crosscal.cli").joinpath("commands.toml").read_text(encoding="utf-8"))
_GROUPS = _COMMANDS.pop("groups")


class _CommandParser(argparse.ArgumentParser):
    """An `argparse` parser that takes no abbreviations, so that a script keeps its meaning when options are added."""

    def __init__(self, name: str):
        super().__init__(
            prog=f"crosscal {name}",
            description=_COMMANDS[name]["description"],
            epilog="examples:\n" + textwrap.indent(_COMMANDS[name]["examples"], "  "),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._add(self, [*_COMMANDS[name]["options"], "every"])

    def _add(self, group: argparse._ActionsContainer, options: Sequence[dict | str]) -> argparse._ActionsContainer:
        """Add options; those that follow a group with a title are in it."""
        for option in options:
            if isinstance(option, str):
                titled = "title" in _GROUPS[option]
                inner = self.add_argument_group(_GROUPS[option]["title"]) if titled else group
                group = self._add(inner, _GROUPS[option]["options"])
                continue
            told, default = dict(option), option.get("default")
            told["help"] = told["help"].replace("METHODS", ", ".join(METHODS))
            if default is False:
                told["action"] = "store_true"
            elif default is not None or "type" in told:
                told["type"] = int if "type" in told else type(default)
                told["help"] += " (default: %(default)s)" if default not in (None, "") else ""
            group.add_argument(told.pop("name"), **told)
        return group

    def check_known(self, arguments: Sequence[str]) -> None:
        """Exit with status 2 for an unknown option, naming the one that may have been meant."""
        known = list(self._option_string_actions)
        for argument in arguments:
            option = argument.partition("=")[0]
            if option == "--":
                return
            if option.startswith("--") and option not in known:
                self.error(f"there is no option {option}{suggest(option, known).removesuffix('?')}")

    def error(self, message: str) -> NoReturn:
        """Exit with status 2 and one sentence."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")

    def print_help(self, file=None) -> None:
        """Print the help on standard output, whatever characters that can take."""
        _print_result(self.format_help().rstrip())


def _front_page() -> str:
    lines = [f"  {name:<10} {command['summary']}" for name, command in _COMMANDS.items()]
    return (
        "usage: crosscal COMMAND [options]\n\n"
        "Compress a language model, calibrated on your own text, and measure the loss.\n\n"
        "commands:\n" + "\n".join(lines) + "\n\ncrosscal COMMAND --help describes a command, with examples;\n"
        "crosscal --version prints the version"
    )
