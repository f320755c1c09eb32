"""The methods a study can name: what each compresses to, what it reads, and the version of its numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from crosscal.calibration.gradients import WeightGradient
from crosscal.calibration.statistics import DiagonalStats, InputStats
from crosscal.errors import InputError, suggest
from crosscal.methods.awq import VERSION as AWQ_VERSION
from crosscal.methods.awq import awq_group
from crosscal.methods.dpruner import VERSION as DPRUNER_VERSION
from crosscal.methods.dpruner import dpruner_group
from crosscal.methods.gptq import VERSION as GPTQ_VERSION
from crosscal.methods.gptq import gptq_group
from crosscal.methods.joint_rank import VERSION as JOINT_RANK_VERSION
from crosscal.methods.joint_rank import joint_rank_group
from crosscal.methods.lowrank import VERSION as LOWRANK_VERSION
from crosscal.methods.lowrank import asvd, fwsvd, svd
from crosscal.methods.magnitude import VERSION as MAGNITUDE_VERSION
from crosscal.methods.magnitude import prune_by_magnitude
from crosscal.methods.masks import check_divides
from crosscal.methods.rtn import VERSION as RTN_VERSION
from crosscal.methods.rtn import round_to_grid
from crosscal.methods.sparsegpt import VERSION as SPARSEGPT_VERSION
from crosscal.methods.sparsegpt import check_blocks, sparsegpt_group
from crosscal.methods.sweep import BLOCK
from crosscal.methods.wanda import VERSION as WANDA_VERSION
from crosscal.methods.wanda import prune_by_wanda
from crosscal.types import Grid, LowRank, NofM, Pattern, SparseGrid, Target, Unstructured


class Evidence(NamedTuple):
    """What calibration text tells about the layers of a group: statistics of their input, a gradient for each."""

    stats: InputStats | DiagonalStats | None
    gradients: Sequence[WeightGradient] | None


Solver = Callable[..., tuple[list[Tensor], dict]]
"""(weights that share an input, evidence, target, **options) -> new weights, facts for the layer report."""


Check = Callable[[int, Target, Mapping[str, object]], None]
"""(inputs of a layer, target, options): raises `InputError` where the method could not go through with them."""


def _check_groups(width: int, target: Target, options: Mapping[str, object]) -> None:
    if isinstance(target, NofM):
        check_divides(width, target)


def _check_sweep(width: int, target: Target, options: Mapping[str, object]) -> None:
    check_blocks(width, *_pattern_and_grid(target), options.get("block", BLOCK))


def _pattern_and_grid(target: Target) -> tuple[Pattern | None, Grid | None]:
    if isinstance(target, SparseGrid):
        return target.pattern, target.grid
    return (None, target) if isinstance(target, Grid) else (target, None)


@dataclass(frozen=True)
class Method:
    """How the driver calls a method.

    `reads` is what it needs of the Gram matrix and `gradients` whether it needs gradients too; `linked` methods
    compress layers that share an input together. `damped` methods factorize a Hessian: they take `damp`, and tell in
    the fact `failed` whether that sufficed. `domain_last` methods take statistics from all sources but the last, and
    gradients from the last. `options` names what else a caller may set. `version` is raised by hand when a method's
    numbers change, so that stored runs of the old version are not taken for new ones. `check` is asked for every
    width of input before anything changes.
    """

    name: str
    version: int
    targets: tuple[type, ...]
    solve: Solver
    reads: Literal["nothing", "diagonal", "gram"] = "nothing"
    gradients: bool = False
    linked: bool = False
    damped: bool = False
    domain_last: bool = False
    options: tuple[str, ...] = ()
    check: Check = _check_groups

    @property
    def needs_text(self) -> bool:
        """Whether it can do nothing without calibration text."""
        return self.reads != "nothing" or self.gradients


PRUNING = (Unstructured, NofM)


def _each(function: Callable[..., Tensor]) -> Solver:
    """A group solver out of `function(weight, evidence, target)`."""
    return lambda weights, evidence, target: ([function(weight, evidence, target) for weight in weights], {})


def _sparsegpt(weights, evidence, target, **options):
    pattern, grid = _pattern_and_grid(target)
    return sparsegpt_group(weights, evidence.stats, pattern, grid=grid, **options)


def _fwsvd(weights, evidence, target):
    pairs = zip(weights, evidence.gradients, strict=True)
    return [fwsvd(weight, gradient.square, target) for weight, gradient in pairs], {}


_ALL = (
    Method(
        "magnitude", MAGNITUDE_VERSION, PRUNING, _each(lambda weight, _, target: prune_by_magnitude(weight, target))
    ),
    Method(
        "wanda",
        WANDA_VERSION,
        PRUNING,
        _each(lambda weight, evidence, target: prune_by_wanda(weight, evidence.stats, target)),
        reads="diagonal",
    ),
    Method(
        "sparsegpt",
        SPARSEGPT_VERSION,
        (*PRUNING, SparseGrid),
        _sparsegpt,
        reads="gram",
        damped=True,
        options=("block",),
        check=_check_sweep,
    ),
    Method(
        "dpruner",
        DPRUNER_VERSION,
        PRUNING,
        lambda weights, evidence, target, **o: dpruner_group(weights, *evidence, target, **o),
        reads="gram",
        gradients=True,
        damped=True,
        domain_last=True,
        options=("strength",),
    ),
    Method(
        "rtn",
        RTN_VERSION,
        (Grid,),
        _each(lambda weight, _, target: round_to_grid(weight.float(), target).to(weight.dtype)),
    ),
    Method(
        "gptq",
        GPTQ_VERSION,
        (Grid,),
        lambda weights, evidence, target, **o: gptq_group(weights, evidence.stats, target, **o),
        reads="gram",
        damped=True,
        options=("act_order", "block"),
        check=_check_sweep,
    ),
    Method(
        "awq",
        AWQ_VERSION,
        (Grid,),
        lambda weights, evidence, target: awq_group(weights, evidence.stats, target),
        reads="gram",
        linked=True,
    ),
    Method("svd", LOWRANK_VERSION, (LowRank,), _each(lambda weight, _, target: svd(weight, target))),
    Method("fwsvd", LOWRANK_VERSION, (LowRank,), _fwsvd, gradients=True),
    Method(
        "asvd",
        LOWRANK_VERSION,
        (LowRank,),
        _each(lambda weight, evidence, target: asvd(weight, evidence.stats, target)),
        reads="gram",
    ),
    Method(
        "joint_rank",
        JOINT_RANK_VERSION,
        (LowRank,),
        lambda weights, _, target: (joint_rank_group(weights, target), {}),
        linked=True,
    ),
)
METHODS: dict[str, Method] = {method.name: method for method in _ALL}


def register_method(method: Method) -> None:
    """Make a method of your own known by its name, to `compress`, the command line and studies of this process.

    Raises `InputError` when another method has that name.
    """
    if method.name in METHODS:
        raise InputError(f"there is a method '{method.name}' already; give yours another name")
    METHODS[method.name] = method


_EXAMPLES = {
    Unstructured: "Unstructured(0.5)",
    NofM: "NofM(2, 4)",
    Grid: "Grid(bits=4)",
    SparseGrid: "SparseGrid(NofM(2, 4), Grid(bits=4))",
    LowRank: "LowRank(0.5)",
}


def find_method(name: str) -> Method:
    """The method of this name; raises `InputError` that lists the names otherwise."""
    if name not in METHODS:
        raise InputError(f"unknown method '{name}'{suggest(name, list(METHODS))}; give one of {', '.join(METHODS)}")
    return METHODS[name]


def check_request(method: Method, target: Target, options: Mapping[str, object], widths: Sequence[int]) -> None:
    """Raises `InputError` for a target or option that the method does not know, or that layers of these widths refuse.

    `widths` are the numbers of inputs of the layers to be compressed.
    """
    if not isinstance(target, method.targets):
        examples = " or ".join(_EXAMPLES[kind] for kind in method.targets)
        raise InputError(f"{method.name} does not compress to {target}; give {examples}")
    for option in options:
        if option not in method.options:
            known = ", ".join(method.options) or "none"
            raise InputError(f"{method.name} has no option '{option}'{suggest(option, list(method.options))} ({known})")
    for width in set(widths):
        method.check(width, target, options)
