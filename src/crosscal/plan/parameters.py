"""The parameters of a chapter, read from its notebook and checked before anything is computed.

papermill only warns about a parameter the notebook does not know; a study run with a mistyped parameter would then
answer another question than the one asked. So the notebook hands its own namespace to `read_parameters`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import ModuleType
from typing import TypeVar

from crosscal.errors import InputError, suggest
from crosscal.plan.presets import TASK_PROMPTS, find_preset
from crosscal.targets import parse_target
from crosscal.types import Unstructured

# Names that IPython or a notebook's imports put there; anything else that holds a plain value was injected.
_OF_IPYTHON = {"In", "Out", "exit", "quit", "get_ipython", "open"}
COMPUTE = ("missing", "never")

S = TypeVar("S", bound="Settings")


@dataclass(frozen=True)
class Settings:
    """The parameters that all chapters have; every field may be given with `papermill -p NAME VALUE`.

    Raises `InputError` for a value that makes no sense, naming it.
    """

    preset: str = "quick"
    model: str = "smollm2-135m"
    seed: int = 0
    device: str = "auto"
    accept_terms: bool = False
    compute: str = "missing"

    def __post_init__(self):
        for field in fields(self):
            kind, value = type(field.default), getattr(self, field.name)
            fits = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (
                kind is bool
            )
            if not fits:
                raise InputError(f"{field.name} is {value!r}; give a {kind.__name__}, such as {field.default!r}")
        find_preset(self.preset)
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}; give a whole number of at least 0")
        if self.compute not in COMPUTE:
            raise InputError(f"compute is '{self.compute}'; give 'missing' to run what is not stored, or 'never'")
        self.check()

    def check(self) -> None:
        """Raises `InputError` for values of a chapter's own parameters that make no sense."""


@dataclass(frozen=True)
class PruningSettings(Settings):
    """Chapter 1: the sparsity that tables look at, and the calibration text."""

    sparsity: float = 0.5
    calibration: str = "c4"

    def check(self) -> None:
        """Raises `InputError` for a sparsity outside 0..1 and unclear calibration text."""
        Unstructured(self.sparsity)
        parse_shares(self.calibration)


@dataclass(frozen=True)
class CalibrationSettings(PruningSettings):
    """Chapter 3: the sparsity, and the general text that others are compared with."""

    def check(self) -> None:
        """Raises `InputError` for a sparsity outside 0..1 and for more than one text."""
        Unstructured(self.sparsity)
        _check_source("calibration", self.calibration)


@dataclass(frozen=True)
class CrossSettings(Settings):
    """Chapter 4: the sparsity, the general text, the domains, and the second model ("" for none)."""

    sparsity: float = 0.5
    general: str = "c4"
    domains: str = "pubmed,legal"
    second_model: str = "gemma3-270m"

    def check(self) -> None:
        """Raises `InputError` for a sparsity outside 0..1, no domain, and a domain that is the general text."""
        Unstructured(self.sparsity)
        _check_source("general", self.general)
        domains = [name.strip() for name in self.domains.split(",")]
        if not all(domains) or self.general in domains or len(set(domains)) < len(domains):
            raise InputError(f"domains is '{self.domains}'; give different sources, none of them {self.general}")


@dataclass(frozen=True)
class QuantizationSettings(Settings):
    """Chapter 5: the calibration text."""

    calibration: str = "c4"

    def check(self) -> None:
        """Raises `InputError` for unclear calibration text."""
        parse_shares(self.calibration)


@dataclass(frozen=True)
class ReportCardSettings(Settings):
    """Chapter 8: a method, what to compress to, general and domain text, the domain's weights, and the tasks."""

    method: str = "sparsegpt"
    target: str = "50%"
    general: str = "c4"
    domain: str = "pubmed"
    mix_weights: str = "0,0.5,1"
    tasks: str = "all"

    def check(self) -> None:
        """Raises `InputError` for an unclear target, weights outside 0..1 and equal texts."""
        parse_target(self.target)
        _check_source("general", self.general)
        _check_source("domain", self.domain)
        if self.general == self.domain:
            raise InputError(f"general and domain are both '{self.general}'; give two different texts")
        if not self.weights:
            raise InputError("mix_weights is empty; give weights of the domain, such as 0,0.5,1")

    @property
    def weights(self) -> list[float]:
        """The weights of the domain, each from 0 to 1; raises `InputError` otherwise."""
        try:
            weights = [float(part) for part in self.mix_weights.split(",") if part.strip()]
        except ValueError:
            weights = [-1.0]
        if not all(0 <= weight <= 1 for weight in weights):
            raise InputError(f"mix_weights is '{self.mix_weights}'; give numbers from 0 to 1, such as 0,0.5,1")
        return weights

    def changes(self, texts: Sequence[str], tasks: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """The evaluation texts and tasks: the preset's, the domain's held-out part, and the tasks asked for."""
        asked = tuple(tasks) if self.tasks == "all" else tuple(t.strip() for t in self.tasks.split(",") if t.strip())
        kept = [text for text in texts if asked or text != TASK_PROMPTS]
        return {"texts": tuple(dict.fromkeys([*kept, self.domain])), "tasks": asked}


def _check_source(name: str, source: str) -> None:
    if not source.strip() or "=" in source or ("," in source and not source.startswith("hub:")):
        raise InputError(f"{name} is '{source}'; give one text source, such as c4 or a path to a .txt or .jsonl file")


def parse_shares(text: str) -> tuple[tuple[str, float], ...]:
    """Text sources and their weights: one source, or several with weights that sum to 1.

    >>> parse_shares("c4"), parse_shares("c4=0.5,pubmed=0.5")
    ((('c4', 1.0),), (('c4', 0.5), ('pubmed', 0.5)))
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if len(parts) == 1 and "=" not in parts[0]:
        return ((parts[0], 1.0),)
    shares = []
    for part in parts:
        source, separator, weight = part.rpartition("=")
        try:
            share = float(weight)
        except ValueError:
            separator = ""
        if not separator or not share >= 0:
            raise InputError(f"calibration part '{part}' is unclear; write source=weight, as in c4=0.5,pubmed=0.5")
        shares.append((source, share))
    if not shares or abs(sum(share for _, share in shares) - 1) > 1e-6:
        raise InputError(f"the weights in calibration '{text}' do not sum to 1; write for example c4=0.5,pubmed=0.5")
    return tuple(shares)


def read_parameters(namespace: Mapping[str, object], kind: type[S] = Settings) -> S:
    """The settings among a notebook's global names.

    Raises `InputError` for a name that is no parameter of the chapter, which is how a mistyped
    `papermill -p NAME VALUE` arrives, and for values that make no sense.

    >>> read_parameters({"seed": 1}).seed
    1
    >>> read_parameters({"sede": 1})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    crosscal.errors.InputError: unknown parameter 'sede'; did you mean 'seed'?; known: preset, model, ...
    """
    known = [field.name for field in fields(kind)]
    for name, value in namespace.items():
        skipped = name.startswith("_") or name in _OF_IPYTHON or callable(value) or isinstance(value, ModuleType)
        if not skipped and name not in known:
            raise InputError(f"unknown parameter '{name}'{suggest(name, known)}; known: {', '.join(known)}")
    texts = {field.name for field in fields(kind) if isinstance(field.default, str)}
    return kind(
        **{name: _text(namespace[name]) if name in texts else namespace[name] for name in known if name in namespace}
    )


def _text(value: object) -> object:
    """`-p mix_weights 0.5` arrives as a number and `0,0.5` as several: what was meant is the text that was written."""
    if isinstance(value, (tuple, list)):
        return ",".join(str(part) for part in value)
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
