"""The parameters of a chapter, read from its notebook and checked before anything is computed.

papermill only warns about a parameter the notebook does not know; a study run with a mistyped parameter would then
answer another question than the one asked. So the notebook hands its own namespace to `read_parameters`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import ModuleType

from crosscal.errors import InputError, suggest
from crosscal.study.presets import find_preset
from crosscal.types import Unstructured

# Names that IPython or a notebook's imports put there; anything else that holds a plain value was injected.
_OF_IPYTHON = {"In", "Out", "exit", "quit", "get_ipython", "open"}
COMPUTE = ("missing", "never")


@dataclass(frozen=True)
class Settings:
    """The parameters of a chapter; every field may be given with `papermill -p NAME VALUE`.

    Raises `InputError` for a value that makes no sense, naming it.
    """

    preset: str = "quick"
    model: str = "smollm2-135m"
    sparsity: float = 0.5
    calibration: str = "c4"
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
        Unstructured(self.sparsity)
        parse_shares(self.calibration)
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}; give a whole number of at least 0")
        if self.compute not in COMPUTE:
            raise InputError(f"compute is '{self.compute}'; give 'missing' to run what is not stored, or 'never'")


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


def read_parameters(namespace: Mapping[str, object], kind: type[Settings] = Settings) -> Settings:
    """The settings among a notebook's global names.

    Raises `InputError` for a name that is no parameter of the chapter, which is how a mistyped
    `papermill -p NAME VALUE` arrives, and for values that make no sense.

    >>> read_parameters({"sparsity": 0.6}).sparsity
    0.6
    >>> read_parameters({"sparsty": 0.6})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    crosscal.errors.InputError: unknown parameter 'sparsty'; did you mean 'sparsity'?; known: preset, model, ...
    """
    known = [field.name for field in fields(kind)]
    for name, value in namespace.items():
        skipped = name.startswith("_") or name in _OF_IPYTHON or callable(value) or isinstance(value, ModuleType)
        if not skipped and name not in known:
            raise InputError(f"unknown parameter '{name}'{suggest(name, known)}; known: {', '.join(known)}")
    return kind(**{name: namespace[name] for name in known if name in namespace})
