"""Everything asked of one compression: it goes whole from the caller to the loop."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from crosscal.calibration.statistics import check_weights
from crosscal.engine.gather import ModelStatistics
from crosscal.engine.ranks import ranks
from crosscal.engine.windows import Windows, _token_windows
from crosscal.errors import InputError, suggest
from crosscal.methods.allocation import Owl
from crosscal.methods.balance import BALANCES
from crosscal.methods.compose import composed
from crosscal.methods.registry import Method, check_request, find_method
from crosscal.models import Inventory
from crosscal.models.structure import ASKED
from crosscal.types import Target, Width

SCHEDULES = ("sublayer", "block", "parallel")
LEAST_SHARE = 0.95  # of the decoder's weights: less is only compressed by a request for a part of the model


@dataclass(frozen=True, kw_only=True)
class Request:
    """A method, a target, the text to calibrate on, and where the model comes from and goes to.

    `model` is a loaded model, or, with an `output` folder, the name of one. The fields are the arguments of
    `crosscal.compress` and `crosscal.disk.compress_folder`, which describe them.

    Raises `InputError` for an unknown method or schedule; `check` judges the rest, given the model's blocks.
    """

    model: Any
    method: str
    target: Target
    calibration: Mapping[str, Windows] | None = None
    weights: Mapping[str, float] | None = None
    statistics: ModelStatistics | None = None
    schedule: Literal["sublayer", "block", "parallel"] | str = "sublayer"
    allocation: Owl | None = None
    refine: str = ""
    anchor: float = 0.0
    rotate: bool = False
    balance: str = ""
    damp: float = 0.01
    measure_loss: bool = True
    micro_batch: int | None = None
    progress: bool = True
    skip: Sequence[str] = ()
    only: Sequence[str] = ()
    partial: bool = False
    options: Mapping[str, object] = field(default_factory=dict)
    output: str | Path = ""
    device: str | None = None
    dtype: str | None = None
    storage: str = "dense"
    made: Mapping[str, object] | None = None
    overwrite: bool = False
    accept_terms: bool = False
    trust_remote_code: bool = False

    def __post_init__(self):
        _ = self.solver
        if self.schedule not in SCHEDULES:
            meant = suggest(self.schedule, list(SCHEDULES))
            raise InputError(f"unknown schedule '{self.schedule}'{meant}; give one of {', '.join(SCHEDULES)}")

    @cached_property
    def solver(self) -> Method:
        """Method of this name, refined and anchored as asked."""
        return composed(find_method(self.method), self.refine, self.anchor, self.rotate)

    @cached_property
    def sources(self) -> dict[str, Tensor]:
        """Token windows of each source, [n_windows, length]."""
        return _token_windows(self.calibration)

    @cached_property
    def shares(self) -> dict[str, float]:
        """Share of each source, equal ones where none were given."""
        names = list(self.sources) if self.statistics is None else self.statistics.sources
        return dict(self.weights) if self.weights is not None else {name: 1.0 / len(names) for name in names}

    @cached_property
    def mixing(self) -> dict[str, float]:
        """Share of each source in the mixed statistics; D-Pruner's come from all sources but the last, the domain's.

        Raises `InputError` where nothing would be left.
        """
        if not self.solver.domain_last or len(self.shares) < 2:
            return self.shares
        *general, domain = self.shares
        total = sum(self.shares[name] for name in general)
        if total == 0:
            raise InputError(
                f"{self.method} needs general text beside the domain's; give a source before the last a weight"
            )
        return {name: self.shares[name] / total for name in general} | {domain: 0.0}

    @property
    def width(self) -> Width | None:
        """The width to which the model is cut, for a target of that kind."""
        return self.target if isinstance(self.target, Width) else None

    @property
    def text(self) -> dict[str, Tensor]:
        """Token windows that have to flow through the blocks: none where neither method nor losses read them."""
        read = self.statistics is None and (self.solver.reads != "nothing" or self.measure_loss)
        return self.sources if read else {}

    @property
    def diagonal_only(self) -> bool:
        """Whether the diagonals of the Gram matrices suffice."""
        return self.solver.reads == "diagonal" and not self.measure_loss and not self.balance

    def check_parts(self, parts: Inventory) -> None:
        """Raise `InputError` for a model of which too little can be compressed, or not to this target."""
        if self.width is not None and (self.skip or self.only):
            raise InputError(f"{self.target} cuts all blocks alike; leave skip and only out")
        asked = sum(part.n_weights for part in parts.left_out if part.reason == ASKED)
        whole = self.partial or self.width is not None
        if parts.n_compressed < LEAST_SHARE * (parts.n_weights - asked) and not whole:
            raise InputError(f"only {parts.sentence()}; allow it with --partial (partial=True)")
        widths = [layer.weight.shape[1] for block in parts.layers for layer in block]
        check_request(self.solver, self.target, self.options, widths)

    def check(self, parts: Inventory) -> None:
        """Raise `InputError` for whatever can be judged before any work is done, as `compress` says."""
        self.check_parts(parts)
        if self.solver.needs_text and not self.shares:
            example = "calibration={'c4': load_text('c4', tokenizer)}"
            raise InputError(f"{self.method} needs calibration text; pass {example}")
        if self.solver.gradients and not self.sources:
            raise InputError(f"{self.method} needs gradients, which statistics do not hold; pass calibration text")
        if self.balance and (self.balance not in BALANCES or self.solver.reads == "nothing" or self.solver.domain_last):
            able = "a method that reads inputs and mixes all of its sources"
            raise InputError(f"balance is '{self.balance}'; give {' or '.join(BALANCES)}, and {able}")
        if self.balance == "model" and self.solver.gradients:
            raise InputError(
                f"balance 'model' tries weights on the statistics of inputs, and {self.method} reads gradients; give "
                "'worst', or weights"
            )
        if self.balance and len(set((self.weights or {}).values())) > 1:
            raise InputError("balance finds the weights of the sources; give equal ones or none")
        if self.anchor and (self.statistics is not None or self.schedule == "parallel"):
            raise InputError(
                "an anchor compares the inputs of the compressed model with the dense one's, which the schedule "
                "'parallel' and stored statistics do not know; use 'sublayer' or 'block' and text"
            )
        if self.statistics is not None:
            self._check_statistics(self.statistics, parts)
        names = list(self.sources) if self.statistics is None else self.statistics.sources
        if names:
            check_weights(names, self.shares)
        _ = self.mixing

    def _check_statistics(self, statistics: ModelStatistics, parts: Inventory) -> None:
        if self.sources and not self.solver.gradients:
            raise InputError("both text and statistics were given; leave one of them out")
        if statistics.diagonal_only and self.solver.reads == "gram":
            raise InputError(f"{self.method} needs Gram matrices; gather statistics without diagonal_only")
        statistics.check_fits(parts.layers)

    def texts(self) -> dict[str, str]:
        """Fingerprint of each source's text: that of `load_text`, or of bare windows 16 hex digits of SHA-256."""
        texts = (self.calibration or {}).items()
        return {name: getattr(text, "fingerprint", None) or _fingerprint(self.sources[name]) for name, text in texts}

    def told(self) -> dict:
        """Return how the model is made in plain values, for report and card; `made` adds to it."""
        told = {"method": self.method, "target": str(self.target), "sources": self.shares, "schedule": self.schedule}
        told |= {"refine": self.refine} if self.refine else {}
        told |= {"anchor": self.anchor} if self.anchor else {}
        told |= {"rotate": True} if self.rotate else {}
        told |= {"balance": self.balance} if self.balance else {}
        told |= {"ranks": ranks().world} if ranks().world > 1 else {}
        told |= {key: str(value) for key, value in self.options.items()}
        told |= {"texts": self.texts()} | dict(self.made or {})
        return told | {"sources": self.shares}  # as they were found, where they were


def _fingerprint(tokens: Tensor) -> str:
    return hashlib.sha256(tokens.contiguous().numpy().astype("<i8").tobytes()).hexdigest()[:16]
