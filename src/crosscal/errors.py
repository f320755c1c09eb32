"""One exception for everything a user can put right, whose text says what to do, and the exit status it gives."""

import math
import operator
import sys
from collections.abc import Callable
from numbers import Real


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
    """Return a whole number from `least` to `most` as `int`, numpy's too; raise `InputError` with its name otherwise.

    >>> whole_number("seed", -1)
    Traceback (most recent call last):
    crosscal.errors.InputError: seed is -1; give a whole number of at least 0
    """
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = least - 1
    if number < least:
        raise InputError(f"{name} is {value!r}; give a whole number of at least {least}")
    if number > most:
        raise InputError(f"{name} is {number}; give a whole number from {least} to {most}")
    return number


def real_number(name: str, value: object, least: float = 0.0, most: float = math.inf, *, above: bool = False) -> float:
    """Return a number from `least` to `most` as `float`, numpy's too; raise `InputError` with its name otherwise.

    Infinity and NaN are refused. With `above` the number must exceed `least`.

    >>> real_number("ratio", 0, 0, 1, above=True)
    Traceback (most recent call last):
    crosscal.errors.InputError: ratio is 0; give a number above 0 and at most 1
    """
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    if math.isfinite(number) and (least < number if above else least <= number) and number <= most:
        return number
    bound = f"above {least:g}" if above else f"of at least {least:g}"
    if most < math.inf:
        bound = f"above {least:g} and at most {most:g}" if above else f"from {least:g} to {most:g}"
    raise InputError(f"{name} is {value!r}; give a number {bound}")


def exit_status(work: Callable[[], int | None], interrupted: str, error_status: int = 1) -> int:
    """Do the work of a command line: its own status (0 for None), 1 or another after an `InputError`, 130 after Ctrl-C.

    The error's sentence, or `interrupted`, which says how to continue, goes to standard error.

    >>> exit_status(lambda: None, "interrupted")
    0
    """
    try:
        return work() or 0
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return error_status
    except KeyboardInterrupt:
        sys.stderr.write(f"\n{interrupted}\n")
        return 130
