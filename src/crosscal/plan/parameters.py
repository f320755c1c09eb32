"""Presets, and the parameters of a chapter, read from its notebook and checked before anything is computed.

papermill only warns about a parameter the notebook does not know; a study run with a mistyped parameter would then
answer another question than the one asked. So the notebook hands its own namespace to `read_parameters`, which looks
at what the parameters cell and papermill's cell below it set, and at nothing else that a notebook or a startup file
may have put there.
"""

import ast
import filecmp
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from crosscal.errors import InputError, real_number, suggest, whole_number
from crosscal.types import Unstructured, parse_target

TASK_PROMPTS = "task_prompts"
TEXTS = ("pubmed", "legal", "wikipedia", "news", TASK_PROMPTS)
_SHORT_TASKS = ("common_knowledge", "sciq", "arc_easy", "piqa")
TASKS = (*_SHORT_TASKS, "pubmed_next_section", "pubmed_question", "case_summary", "contract_clause")
_OF_IPYTHON = {"In", "Out", "exit", "quit", "get_ipython", "open"}
_INJECTED = "# Parameters"  # how the cell begins in which papermill sets parameters

S = TypeVar("S", bound="Settings")


@dataclass(frozen=True)
class _Preset:
    """The sizes of a study: calibration windows, held-out windows, task items, and answers to instructions.

    `short_tasks` cost a third of all tasks' time: grids with many runs ask only these.
    """

    n_windows: int
    window: int
    eval_windows: int
    eval_window: int
    task_items: int
    answer_items: int
    texts: tuple[str, ...] = TEXTS
    tasks: tuple[str, ...] = TASKS
    short_tasks: tuple[str, ...] = _SHORT_TASKS


_FULL = _Preset(16, 1024, 8, 512, 100, 60)
PRESETS = {
    "smoke": _Preset(2, 64, 2, 64, 4, 2, ("pubmed", "news", TASK_PROMPTS), ("sciq", "contract_clause"), ("sciq",)),
    "quick": replace(_FULL, window=512, eval_windows=4, task_items=40, answer_items=16),
    "full": _FULL,
}
"""How big a study is. `quick` answers in minutes on two cores; `full` is what the committed book shows."""


def _checked(default: Any, check: Callable[[str, Any], object]) -> Any:
    """A parameter whose value `check(name, value)` refuses with `InputError` where it makes no sense."""
    return field(default=default, metadata={"check": check})


def _one_source(name: str, value: str) -> None:
    if not value.strip() or "=" in value or ("," in value and not value.startswith("hub:")):
        raise InputError(f"{name} is '{value}'; give one text source, such as c4 or a path to a .txt or .jsonl file")


@dataclass(frozen=True)
class Settings:
    """The parameters that all chapters have; every field may be given with `papermill -p NAME VALUE`.

    Raises `InputError` for a value that makes no sense, naming it.
    """

    preset: str = "quick"
    model: str = "smollm2-135m"
    seed: int = _checked(0, whole_number)
    device: str = "auto"
    accept_terms: bool = False
    compute: str = "missing"

    def __post_init__(self):
        for known in fields(self):
            kind, value = type(known.default), getattr(self, known.name)
            fits = isinstance(value, (int, float) if kind is float else kind)
            if not fits or isinstance(value, bool) != (kind is bool):
                raise InputError(f"{known.name} is {value!r}; give a {kind.__name__}, such as {known.default!r}")
            if check := known.metadata.get("check"):
                check(known.name, value)
        if self.preset not in PRESETS:
            near = suggest(self.preset, list(PRESETS))
            raise InputError(f"unknown preset '{self.preset}'{near}; give one of {', '.join(PRESETS)}")
        if self.compute not in ("missing", "never"):
            raise InputError(f"compute is '{self.compute}'; give 'missing' to run what is not stored, or 'never'")


@dataclass(frozen=True)
class PruningSettings(Settings):
    """Chapter 1: the sparsity that tables look at, and the calibration text."""

    sparsity: float = _checked(0.5, lambda _, value: Unstructured(value))
    calibration: str = _checked("c4", lambda _, value: parse_shares(value))


@dataclass(frozen=True)
class CalibrationSettings(PruningSettings):
    """Chapter 3: the sparsity, and the general text that others are compared with."""

    calibration: str = _checked("c4", _one_source)


@dataclass(frozen=True)
class CrossSettings(Settings):
    """Chapter 4: the sparsity, the general text, the domains, and the second model ("" for none)."""

    sparsity: float = _checked(0.5, lambda _, value: Unstructured(value))
    general: str = _checked("c4", _one_source)
    domains: str = "pubmed,legal"
    second_model: str = "gemma3-270m"

    def __post_init__(self):
        super().__post_init__()
        texts = [self.general, *(name.strip() for name in self.domains.split(","))]
        if not all(texts) or any(_same_text(a, b) for i, a in enumerate(texts) for b in texts[:i]):
            raise InputError(f"domains is '{self.domains}'; give different sources, none of them {self.general}")


@dataclass(frozen=True)
class QuantizationSettings(Settings):
    """Chapter 5: the calibration text."""

    calibration: str = _checked("c4", lambda _, value: parse_shares(value))


@dataclass(frozen=True)
class ReportCardSettings(Settings):
    """Chapter 8: a method, what to compress to, general and domain text, the domain's weights, and the tasks.

    `skip` and `only` are names of layers with `*`, with commas between; `refine`, `anchor` and
    `rotate` are those of `compress`.
    """

    method: str = "sparsegpt"
    target: str = _checked("50%", lambda _, value: parse_target(value))
    general: str = _checked("c4", _one_source)
    domain: str = _checked("pubmed", _one_source)
    mix_weights: str = "0,0.5,1"
    tasks: str = "all"
    skip: str = ""
    only: str = ""
    partial: bool = False
    refine: str = ""
    anchor: float = _checked(0.0, lambda name, value: real_number(name, value, 0, 0.5))
    rotate: bool = False

    def __post_init__(self):
        super().__post_init__()
        if _same_text(self.general, self.domain):
            raise InputError(f"general and domain are both '{self.domain}'; give two different texts")
        if not self.weights:
            raise InputError("mix_weights is empty; give weights of the domain, such as 0,0.5,1")

    @property
    def weights(self) -> list[float]:
        """The weights of the domain, each from 0 to 1; raises `InputError` otherwise."""
        try:
            weights = [float(part) for part in _parts(self.mix_weights)]
        except ValueError:
            weights = [-1.0]
        if not all(0 <= weight <= 1 for weight in weights):
            raise InputError(f"mix_weights is '{self.mix_weights}'; give numbers from 0 to 1, such as 0,0.5,1")
        return weights

    def changes(self, texts: Sequence[str], tasks: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """The evaluation texts and tasks: the preset's, the domain's held-out part, and the tasks asked for.

        Task prompts are the text of embedded tasks.
        """
        from crosscal.metrics.tasks import TASKS as EMBEDDED

        asked = tuple(tasks) if self.tasks == "all" else _parts(self.tasks)
        kept = [text for text in texts if text != TASK_PROMPTS or not EMBEDDED.keys().isdisjoint(asked)]
        return {"texts": tuple(dict.fromkeys([*kept, self.domain])), "tasks": asked}

    @property
    def options(self) -> tuple[tuple[str, object], ...]:
        """Which layers are compressed, and what is added to the method, as options of a run; none by default."""
        asked = {"skip": _parts(self.skip), "only": _parts(self.only), "partial": self.partial}
        asked |= {"refine": self.refine, "anchor": self.anchor, "rotate": self.rotate}
        return tuple((name, value) for name, value in asked.items() if value)


@dataclass(frozen=True)
class LossAwareSettings(Settings):
    """Chapter 9: general and domain text, mixed in halves, the strength of the anchor, and the second model."""

    general: str = _checked("c4", _one_source)
    domain: str = _checked("pubmed", _one_source)
    anchor: float = _checked(0.25, lambda name, value: real_number(name, value, 0, 0.5))
    second_model: str = "gemma3-270m"


def _parts(text: str) -> tuple[str, ...]:
    """The parts of a text with commas between."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _same_text(one: str, other: str) -> bool:
    """Whether two sources are one: the same name, or files with the same content."""
    files = [Path(source).expanduser() for source in (one, other)]
    try:
        return one == other or (all(file.is_file() for file in files) and filecmp.cmp(*files, shallow=False))
    except OSError:
        return False  # a name that the system refuses to answer for


def parse_shares(text: str) -> tuple[tuple[str, float], ...]:
    """Text sources and their weights: one source, or several with weights that sum to 1.

    >>> parse_shares("c4"), parse_shares("c4=0.5,pubmed=0.5")
    ((('c4', 1.0),), (('c4', 0.5), ('pubmed', 0.5)))
    """
    parts = _parts(text)
    if len(parts) == 1 and "=" not in parts[0]:
        return ((parts[0], 1.0),)
    shares = []
    for part in parts:
        source, _, weight = part.rpartition("=")
        try:
            shares.append((source, float(weight) if source else -1.0))
        except ValueError:
            shares.append((source, -1.0))
        if not shares[-1][1] >= 0:
            raise InputError(f"calibration part '{part}' is unclear; write source=weight, as in c4=0.5,pubmed=0.5")
    if not shares or abs(sum(share for _, share in shares) - 1) > 1e-6:
        raise InputError(f"the weights in calibration '{text}' do not sum to 1; write for example c4=0.5,pubmed=0.5")
    return tuple(shares)


def read_parameters(namespace: Mapping[str, object], kind: type[S] = Settings) -> S:
    """Return the settings that a notebook's parameters cell declares, or those in a mapping of parameters alone.

    Raises `InputError` for a declared name that is no parameter of the chapter, which is how a mistyped
    `papermill -p NAME VALUE` arrives, and for values that make no sense.

    >>> read_parameters({"seed": 1}).seed
    1
    >>> read_parameters({"sede": 1})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    crosscal.errors.InputError: unknown parameter 'sede'; did you mean 'seed'?; known: preset, model, ...
    """
    known = {field.name: field.default for field in fields(kind)}
    for name in _declared(namespace, known):
        if name not in known:
            raise InputError(f"unknown parameter '{name}'{suggest(name, list(known))}; known: {', '.join(known)}")
    return kind(**{name: _typed(name, namespace[name], known[name]) for name in known if name in namespace})


def _declared(namespace: Mapping[str, Any], known: Mapping[str, object]) -> list[str]:
    """The names set by the last parameters cell that ran, and by papermill's cell below it.

    IPython keeps the text of all cells in `In`. A script has no cells but annotations; what has neither is a mapping
    that holds parameters and nothing else.
    """
    if history := namespace.get("In"):
        declared: list[str] = []
        for source in history:
            if not known.keys().isdisjoint(_assigned(source, annotated=True)):
                declared = list(_assigned(source))
            elif source.startswith(_INJECTED):
                declared += (name for name in _assigned(source) if not name.startswith("PAPERMILL_"))
        return declared
    if annotated := namespace.get("__annotations__"):
        return list(annotated)
    return [
        name
        for name, value in namespace.items()
        if not (name.startswith("_") or name in _OF_IPYTHON or callable(value) or isinstance(value, ModuleType))
    ]


def _assigned(source: str, annotated: bool = False) -> Iterator[str]:
    """The names that the statements of a cell assign to, or only those with an annotation."""
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError):
        return
    for statement in statements:
        targets = [statement.target] if isinstance(statement, ast.AnnAssign) else []
        if isinstance(statement, ast.Assign) and not annotated:
            targets = statement.targets
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def _typed(name: str, value: object, default: object) -> Any:
    """A value in the type of its default: texts that papermill or YAML read as another type are not guessed at.

    Numbers stand for texts where the text is one of numbers, as in `-p mix_weights 0.5`.
    """
    if isinstance(default, float) and isinstance(value, str):
        try:
            return float(value)  # YAML takes 5e-1 for a text
        except ValueError:
            return value
    if not isinstance(default, str) or isinstance(value, str):
        return value
    if isinstance(value, (tuple, list)):
        return ",".join(str(_typed(name, part, default)) for part in value)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and set(default) <= set("0123456789.,"):
        return str(value)
    written = _spellings(value)
    raise InputError(
        f"{name} is {value!r} (written {' or '.join(written)}?); a text that looks like a value needs papermill's -r "
        f"in place of -p, as in -r {name} {written[0]}, or quotes in YAML"
    )


def _spellings(value: object) -> list[str]:
    """Texts that papermill or YAML 1.1 turn into this value.

    >>> _spellings(124), _spellings(202401), _spellings(1.1)
    (['2:4', '124', '00124', '0174'], ['2024_01', '202401', '00202401', '0613241'], ['1.10', '1.1', '1.1e0'])
    """
    if value is None or isinstance(value, bool):
        return {None: ["None", "null", "~"], True: ["yes", "on", "true"], False: ["no", "off", "false"]}[value]
    if isinstance(value, int):
        parts = [f"{value // 60}:{value % 60}"] if 60 <= value < 3600 else []
        parts += [f"{value // 100}_{value % 100:02}"] if value >= 10_000 else []
        return [*parts, str(value), f"00{value}", f"0{value:o}"]
    if isinstance(value, float) and value - value == 0:
        mantissa, exponent = f"{value:e}".split("e")
        return [f"{value}0", str(value), f"{float(mantissa):g}e{int(exponent)}"]
    return [str(value)]
