"""The argument parser of one command: worked examples below its options, and a suggestion for a mistyped option."""

import argparse
import textwrap
from collections.abc import Sequence

from crosscal.errors import suggest


class CommandParser(argparse.ArgumentParser):
    """An `argparse` parser that takes no abbreviations, so that a script keeps its meaning when options are added."""

    def __init__(self, prog: str, description: str, examples: str = ""):
        epilog = f"examples:\n{textwrap.indent(textwrap.dedent(examples).strip(), '  ')}" if examples else None
        super().__init__(
            prog=prog,
            description="\n".join(textwrap.wrap(" ".join(description.split()), 78)),
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def check_known(self, arguments: Sequence[str]) -> None:
        """Exit with status 2 for an option there is not, with the one that may have been meant."""
        known = list(self._option_string_actions)
        for argument in arguments:
            option = argument.partition("=")[0]
            if option == "--":
                return
            if option.startswith("--") and option not in known:
                self.error(f"there is no option {option}{suggest(option, known).removesuffix('?')}")

    def error(self, message: str):
        """Exit with status 2: one sentence, and where to read more."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def add_shared(parser: CommandParser) -> None:
    """The options that every command has."""
    group = parser.add_argument_group("every command")
    group.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    group.add_argument("--quiet", action="store_true", help="no progress bars and no notes; errors and the result only")
    group.add_argument(
        "--config",
        metavar="FILE",
        help="read options from a TOML file, or from a folder that compress made; the command line goes first",
    )
    group.add_argument("--save-config", metavar="FILE", help="write a TOML file with which --config repeats this call")
    group.add_argument(
        "--dry-run", action="store_true", help="check what can be checked and say what would be done; do nothing"
    )
