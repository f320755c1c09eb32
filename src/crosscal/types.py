"""The vocabulary of a study: targets, and the config and rows of a run. Standard library only."""

import math
from dataclasses import asdict, dataclass, fields

from crosscal.errors import InputError, whole_number
from crosscal.targets import (
    FloatGrid,
    Grid,
    LowRank,
    NofM,
    Pattern,
    PerGroup,
    PerRow,
    SparseGrid,
    Target,
    Unstructured,
    Width,
    _set,
    parse_pattern,
    parse_target,
    storage_bits,
)

__all__ = ["ALLOCATIONS", "ROW_FIELDS", "FloatGrid", "Grid", "LowRank", "NofM", "Pattern", "PerGroup", "PerRow", "Row"]
__all__ += ["RunConfig", "SparseGrid", "Target", "Unstructured", "Width"]
__all__ += ["parse_pattern", "parse_target", "storage_bits"]

ALLOCATIONS = ("uniform", "owl")


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides the numbers of one run; its hash, with the fingerprints, is the run's id.

    `calibration` lists (source, weight) with weights that sum to 1, and is empty for data-free methods; `n_windows`
    windows of `window` tokens are drawn from each source. `options` go to the method, but `skip`, `only`, `partial`,
    `refine`, `anchor` and `rotate` to `compress`; `allocation` is "uniform" or "owl". `texts` are the held-out sources,
    `eval_windows` windows of `eval_window` tokens each. At most `task_items` items of each task are asked, and
    `answer_items` answers written to each instruction set of `answers`. `dense` is the model that divergences are from,
    if it is not `model` before compression.
    """

    model: str
    method: str
    target: Target
    calibration: tuple[tuple[str, float], ...]
    n_windows: int
    window: int
    seed: int
    texts: tuple[str, ...]
    eval_windows: int
    eval_window: int
    tasks: tuple[str, ...]
    task_items: int
    device: str
    dtype: str
    schedule: str = "sublayer"
    allocation: str = "uniform"
    options: tuple[tuple[str, object], ...] = ()
    answers: tuple[str, ...] = ()
    answer_items: int = 1
    dense: str = ""

    def __post_init__(self):
        for name in ("n_windows", "window", "eval_windows", "eval_window", "task_items", "answer_items"):
            _set(self, **{name: whole_number(name, getattr(self, name), 1)})
        _set(self, seed=whole_number("seed", self.seed))
        if self.calibration and not math.isclose(sum(w for _, w in self.calibration), 1.0, abs_tol=1e-6):
            raise InputError(f"the calibration weights {dict(self.calibration)} do not sum to 1; make them sum to 1")
        if self.allocation not in ALLOCATIONS:
            raise InputError(f"allocation is '{self.allocation}'; give one of {', '.join(ALLOCATIONS)}")

    def to_json(self) -> dict:
        """Return a plain dictionary, the target as text."""
        lists = {name: [list(pair) for pair in getattr(self, name)] for name in ("calibration", "options")}
        plain = asdict(self) | {"target": str(self.target)} | lists
        return plain if self.dense else {name: value for name, value in plain.items() if name != "dense"}


@dataclass(frozen=True)
class Row:
    """One tidy number of a run: a metric on an evaluation set, with its interval and provenance.

    `pattern` is the target as text, `storage_bits` what a weight of it takes, masks and scales counted.
    `lo`, `hi` bound the 95 % interval (equal to `value` where none applies); `n` counts the resampled units
    (windows or items). `seconds` and `peak_bytes` are the compression's; `versions` names the packages used.
    """

    run_id: str
    preset: str
    model: str
    method: str
    pattern: str
    sparsity: float
    bits: int
    group: str
    storage_bits: float
    schedule: str
    calibration: str
    mix_weight: float
    n_windows: int
    window: int
    seed: int
    domain: str
    eval_set: str
    metric: str
    value: float
    lo: float
    hi: float
    n: int
    unit: str
    higher_is_better: bool
    seconds: float
    peak_bytes: int
    device: str
    versions: str
    commit: str


ROW_FIELDS = tuple(f.name for f in fields(Row))
