"""The registry of methods, readable without torch.

A method describes itself: its file ends with `METHOD = Method(...)`, made of plain values, the types of
`crosscal.types`, and functions of that file. The registry evaluates these statements and nothing else of the file, and
loads the file, and torch with it, when a function of the method is first called. So command lines and pages can list
labels, targets and options of all methods, and a new file in this folder is a new method everywhere.
"""

import ast
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from crosscal import types
from crosscal.errors import InputError, real_number, suggest, whole_number
from crosscal.types import Grid, LowRank, NofM, SparseGrid, Target, Unstructured, Width

if TYPE_CHECKING:
    from torch import Tensor


_PACKAGE = __name__.rpartition(".")[0]


class Evidence(NamedTuple):
    """What calibration text says about layers that share an input, as far as a method reads it; None where not.

    `stats` of the input are `InputStats` or `DiagonalStats`, `gradients` a sequence of `WeightGradient`, one a layer;
    `keep` the masks of the weights that stay, where the method chose them for the whole model.
    """

    stats: Any = None
    gradients: Any = None
    keep: Any = None


Solver = Callable[..., "tuple[list[Tensor], dict]"]
"""(weights that share an input, evidence, target, **options) -> new weights, facts for the layer report."""

Check = Callable[[int, Any, Mapping[str, object]], None]
"""(inputs of a layer, target, options): raises `InputError` where the method cannot compress such a layer."""


def _check_divides(d_in: int, target: Target, options: Mapping[str, object] | None = None) -> None:
    """Raise `InputError` unless the groups of an N:M pattern divide the number of inputs."""
    pattern = target.pattern if isinstance(target, SparseGrid) else target
    if isinstance(pattern, NofM) and d_in % pattern.m:
        raise InputError(
            f"groups of {pattern.m} do not divide {d_in} inputs; choose a pattern whose group divides {d_in}"
        )


@dataclass(frozen=True)
class Method:
    """A compression method: how the engine calls it, and how command line and pages describe it.

    - `version` is raised by hand when the numbers change, so that stored runs of the old version are made again.
    - `targets` are the types it compresses to, `options` the defaults of the options a caller may set.
    - `solve` compresses the weights that share an input; `check` is asked for every width of input before anything
      changes.
    - `reads` is the part of the inputs' Gram matrix that it needs, `gradients` whether it needs squared gradients of
      the loss too; with them comes the average of `term(gradient, weight)` over single windows, where it is given.
    - `masks` chooses, from all weights and gradients of the model, the target and the options, which weights stay. It
      is called before anything is compressed; `solve` then gets its masks instead of gradients.
    - `linked` methods compress layers that share an input together. `damped` methods factorize a Hessian: they take
      `damp` and report in the fact `failed` whether it sufficed. `domain_last` methods take statistics from all sources
      but the last and gradients from the last.
    - `packs` names the storage formats that hold its weights exactly. `cost` = (a, b) are the operations of its matrix
      products, a d_in^3 + b rows d_in^2.
    - For showing: `label`, `source` (a key of the book's bibliography), `style` (colour and marker), `place` (in tables
      and legends) and `page` (of the book; files of this package are named like theirs).
    """

    name: str
    version: int
    targets: tuple[type, ...]
    solve: Solver
    reads: Literal["nothing", "diagonal", "gram"] = "nothing"
    gradients: bool = False
    term: "Callable[[Tensor, Tensor], Tensor] | None" = None
    masks: "Callable[..., list[Tensor]] | None" = None
    linked: bool = False
    damped: bool = False
    domain_last: bool = False
    options: Mapping[str, bool | int | float] = field(default_factory=dict, hash=False)
    check: Check = _check_divides
    packs: tuple[str, ...] = ()
    cost: tuple[float, float] = (0.0, 0.0)
    label: str = ""
    source: str = ""
    style: tuple[str, str] = ("#555555", "*")
    place: int = 1000
    page: str = ""

    def __post_init__(self):
        object.__setattr__(self, "label", self.label or self.name)

    @property
    def needs_text(self) -> bool:
        """Whether it cannot do without calibration text."""
        return self.reads != "nothing" or self.gradients


@dataclass(frozen=True)
class _Later:
    """A function of a module that is not loaded before the first call."""

    module: str
    name: str

    def __call__(self, *args, **kwargs):
        return getattr(import_module(self.module), self.name)(*args, **kwargs)


class _Names(dict):
    """What a `METHOD` statement may refer to: target types, and functions of its own file."""

    def __init__(self, module: str):
        super().__init__({"Method": Method} | {name: v for name, v in vars(types).items() if isinstance(v, type)})
        self.module = module

    def __missing__(self, name: str) -> _Later:
        return _Later(self.module, name)


def _declared(path: Path) -> Iterator[Method]:
    """The methods that a file of this package declares; their page has the file's name."""
    text = path.read_text(encoding="utf-8")
    for node in ast.parse(text).body if " = Method(" in text else ():
        if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("Method("):
            code = compile(ast.Expression(node.value), str(path), "eval")
            yield replace(eval(code, {}, _Names(f"{_PACKAGE}.{path.stem}")), page=path.stem)


def _discover() -> dict[str, Method]:
    """The methods that the files of `crosscal.methods` declare, by name, in the order of tables and legends."""
    folders = sys.modules[_PACKAGE].__path__
    declared = [method for folder in folders for path in Path(folder).glob("*.py") for method in _declared(path)]
    return {method.name: method for method in sorted(declared, key=lambda method: (method.place, method.name))}


METHODS: dict[str, Method] = _discover()


def register_method(method: Method) -> None:
    """Make a method known by its name to `compress`, the command line and studies of this process.

    Raises `InputError` when another method has that name.
    """
    if method.name in METHODS:
        raise InputError(f"there is a method '{method.name}' already; give yours another name")
    METHODS[method.name] = method


def find_method(name: str) -> Method:
    """Return the method of this name; raises `InputError` that lists the names otherwise."""
    if name not in METHODS:
        raise InputError(f"unknown method '{name}'{suggest(name, list(METHODS))}; give one of {', '.join(METHODS)}")
    return METHODS[name]


_EXAMPLES = {
    Unstructured: "50%",
    NofM: "2:4",
    Grid: "4 bits g128",
    SparseGrid: "2:4 + 4 bits g128",
    LowRank: "low rank 50%",
    Width: "width 80%",
}


def check_request(method: Method, target: Target, options: Mapping[str, object], widths: Sequence[int]) -> None:
    """Raise `InputError` for a target, an option or a width of input that the method cannot do.

    `widths` are the numbers of inputs of the layers to be compressed.
    """
    if not isinstance(target, method.targets):
        examples = " or ".join(f"{_EXAMPLES[kind]} ({kind.__name__})" for kind in method.targets)
        raise InputError(f"{method.name} does not compress to {target}; give a target such as {examples}")
    for option, value in options.items():
        if option not in method.options:
            known = ", ".join(method.options) or "none"
            raise InputError(f"{method.name} has no option '{option}'{suggest(option, list(method.options))} ({known})")
        _check_type(option, value, method.options[option])
    for width in set(widths):
        method.check(width, target, options)


def _check_type(option: str, value: object, default: bool | int | float) -> None:
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise InputError(f"{option} is {value!r}; give True or False")
    elif isinstance(default, int):
        whole_number(option, value)
    else:
        real_number(option, value)
