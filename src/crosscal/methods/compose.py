"""Methods put together: what comes before and after a solver, for every method alike.

A solver is a function from weights and evidence to new weights, so what refines its result (`refine`) and what moves
its aim (`anchored`) wrap around it and make a method of a method. The engine and the reports see one method.
"""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from crosscal.calibration.statistics import InputStats
from crosscal.errors import InputError, suggest
from crosscal.methods.anchor import check_strength, dense_aims
from crosscal.methods.fp4 import _rotate_inputs
from crosscal.methods.refine import REFINEMENTS, refine
from crosscal.methods.registry import Evidence, Method
from crosscal.types import Grid, NofM, Pattern, PerGroup, Target, Unstructured

_COST = {"lsq": 24.0, "swaps": 100.0}  # operations, times rows d_in^2


def composed(method: Method, refine: str = "", anchor: float = 0.0, rotate: bool = False) -> Method:
    """Return a method with its rotation, its refinement and its anchor, where there are any; raises as these do."""
    return anchored(refined(rotated(method) if rotate else method, refine), anchor)


def rotated(method: Method) -> Method:
    """Return a method that rounds in a rotated basis: the inputs of each group turned by a Hadamard matrix.

    W -> W R and G -> R^T G R, rounded, and turned back, so that the layer takes the inputs it took. Outliers of a group
    are spread over it. What is stored lies on no grid: a program that stores the rounded weights has to rotate the
    inputs. Source: QuIP# (Tseng et al. 2024, arXiv 2402.04396), with the rotation inside of groups.

    Raises `InputError` for a method that does not round to grids alone.
    """
    if Grid not in method.targets:
        raise InputError(f"{method.name} does not round weights to a grid; leave rotate out")

    def solve(weights: list[Tensor], evidence: Evidence, target: Grid, **options):
        size, stats = _turned(target), evidence.stats
        if isinstance(stats, InputStats):
            stats = replace(stats, gram=_rotate_inputs(_rotate_inputs(stats.gram, size).T, size), cross=None)
        turned = [_rotate_inputs(weight, size) for weight in weights]
        new, facts = method.solve(turned, evidence._replace(stats=stats), target, **options)
        back = [_rotate_inputs(part, size).to(weight.dtype) for part, weight in zip(new, weights, strict=True)]
        return back, facts

    def check(d_in: int, target: Target, options: Mapping[str, object]) -> None:
        if isinstance(target, Grid) and (d_in % (size := _turned(target)) or size & (size - 1)):
            raise InputError(
                f"a rotation of {size} inputs needs a power of 2 that divides {d_in}; choose other groups, or leave "
                "rotate out"
            )
        method.check(d_in, target, options)

    return replace(method, targets=(Grid,), solve=solve, check=check, packs=())


def _turned(grid: Grid) -> int:
    """How many inputs are rotated together: a group, or 32 of a row."""
    return grid.group.size if isinstance(grid.group, PerGroup) else 32


def refined(method: Method, how: str) -> Method:
    """Return a method that refines what `method` leaves: "lsq" or "swaps", as `refine` describes; "" is the method.

    Raises `InputError` for an unknown refinement and a method that does not prune.
    """
    if not how:
        return method
    if how not in REFINEMENTS:
        raise InputError(
            f"unknown refinement '{how}'{suggest(how, list(REFINEMENTS))}; give one of {', '.join(REFINEMENTS)}"
        )
    targets = tuple(kind for kind in method.targets if kind in (Unstructured, NofM))
    if not targets:
        raise InputError(f"{method.name} does not prune, so there is no support to refine; leave refine out")

    def solve(weights: list[Tensor], evidence: Evidence, target: Pattern, *, damp: float = 0.01, **options):
        new, facts = method.solve(weights, evidence, target, **options | ({"damp": damp} if method.damped else {}))
        new = refine(weights, new, evidence.stats, target, how, damp=damp)
        return new, {"failed": False, "damp": damp} | facts

    a, b = method.cost
    return replace(method, targets=targets, solve=solve, reads="gram", damped=True, cost=(a, b + _COST[how]))


def anchored(method: Method, strength: float) -> Method:
    """Return a method that aims `strength` of the way at the dense model's outputs, by `dense_aims`; 0 is the method.

    Layers whose statistics have no `cross` part, as those of experts, aim at their own. Raises `InputError` for a
    strength outside 0..0.5 and a method that reads no text.
    """
    check_strength(strength)
    if not strength:
        return method
    if method.reads == "nothing":
        raise InputError(f"{method.name} reads no inputs that an anchor could correct; leave anchor out")

    def solve(weights: list[Tensor], evidence: Evidence, target: Target, *, damp: float = 0.01, **options):
        options |= {"damp": damp} if method.damped else {}
        if getattr(evidence.stats, "cross", None) is None:
            new, facts = method.solve(weights, evidence, target, **options)
            return new, {"failed": False, "anchor": 0.0} | facts
        aims, failed = dense_aims(weights, evidence.stats, strength=strength)
        new, facts = method.solve(aims, evidence, target, **options)
        new = [part.to(weight.dtype) for part, weight in zip(new, weights, strict=True)]
        return new, facts | {"failed": failed | facts.get("failed", False), "anchor": strength}

    a, b = method.cost
    return replace(method, solve=solve, reads="gram", damped=True, cost=(a + 1 / 3, b + 4))
