"""The methods a study can name, each with the version of its numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from crosscal.calibration.statistics import InputStats
from crosscal.errors import InputError, suggest
from crosscal.methods.magnitude import VERSION as MAGNITUDE_VERSION
from crosscal.methods.magnitude import magnitude
from crosscal.methods.sparsegpt import VERSION as SPARSEGPT_VERSION
from crosscal.methods.sparsegpt import sparsegpt_group
from crosscal.methods.wanda import VERSION as WANDA_VERSION
from crosscal.methods.wanda import wanda
from crosscal.types import Pattern

Solver = Callable[[Sequence[Tensor], InputStats | None, Pattern], tuple[list[Tensor], dict]]


@dataclass(frozen=True)
class Method:
    """How the driver calls a method: on all weights that share an input, with that input's statistics.

    `solve` returns the new weights and a dictionary of facts for the layer report. `version` is raised by hand when
    a method's numbers change, so that stored runs of the old version are not taken for new ones.
    """

    name: str
    version: int
    needs_text: bool
    solve: Solver


def _each(function: Callable[[Tensor, InputStats | None, Pattern], Tensor]) -> Solver:
    """A group solver out of a function of one weight."""
    return lambda weights, stats, pattern: ([function(weight, stats, pattern) for weight in weights], {})


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("magnitude", MAGNITUDE_VERSION, False, _each(lambda weight, _, pattern: magnitude(weight, pattern))),
        Method("wanda", WANDA_VERSION, True, _each(wanda)),
        Method("sparsegpt", SPARSEGPT_VERSION, True, sparsegpt_group),
    )
}


def find_method(name: str) -> Method:
    """The method of this name; raises `InputError` that lists the names otherwise."""
    if name not in METHODS:
        raise InputError(f"unknown method '{name}'{suggest(name, list(METHODS))}; give one of {', '.join(METHODS)}")
    return METHODS[name]
