"""One exception for everything a user can put right, whose text says what to do, and the exit status it gives."""

import sys
from collections.abc import Callable


class InputError(ValueError):
    """A wrong value, file, name or asset; the message is one sentence that says what to do.

    Command line, notebooks and papermill show that sentence alone, without a traceback.

    >>> raise InputError("sparsity is 1.5; give a number from 0 to 1")
    Traceback (most recent call last):
    crosscal.errors.InputError: sparsity is 1.5; give a number from 0 to 1
    """

    def _render_traceback_(self) -> list[str]:
        """What IPython, and so Jupyter and papermill, shows in place of the traceback."""
        return [f"InputError: {self}"]


def suggest(name: str, known: list[str]) -> str:
    """`"; did you mean 'wanda'?"` for a near miss, else an empty string.

    >>> suggest("wnda", ["wanda", "magnitude"])
    "; did you mean 'wanda'?"
    >>> suggest("xyz", ["wanda"])
    ''
    """
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def whole_number(name: str, value: object, least: int = 0, most: int = 2**63 - 1) -> int:
    """Return a value that is a whole number from `least` to `most`; raise `InputError` with its name otherwise.

    >>> whole_number("seed", -1)
    Traceback (most recent call last):
    crosscal.errors.InputError: seed is -1; give a whole number of at least 0
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} is {value!r}; give a whole number of at least {least}")
    if value > most:
        raise InputError(f"{name} is {value}; give a whole number from {least} to {most}")
    return value


def exit_status(work: Callable[[], int | None], interrupted: str) -> int:
    """Do the work of a command line: its own status (0 for None), 1 after an `InputError`, 130 after Ctrl-C.

    The error's sentence, or `interrupted`, which says how to continue, goes to standard error.

    >>> exit_status(lambda: None, "interrupted")
    0
    """
    try:
        return work() or 0
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"\n{interrupted}\n")
        return 130
