"""What was asked of `compress_folder`, and what follows from it before any weight is read."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from torch import Tensor

from crosscal import __version__
from crosscal.disk.journal import work_path
from crosscal.engine.schedules import find_schedule
from crosscal.engine.streams import token_windows
from crosscal.errors import InputError, suggest
from crosscal.methods.allocation import Owl
from crosscal.methods.registry import Method, find_method
from crosscal.models.loading import fast_dtype, resolve_device, resolve_dtype
from crosscal.output.export import REPORT
from crosscal.output.packing import STORAGES, grid_of
from crosscal.types import Grid, Target


@dataclass(frozen=True)
class Order:
    """The arguments of `compress_folder`; raises `InputError` for those that make no sense whatever the model."""

    model: str
    output: Path
    method: str
    target: Target
    calibration: Mapping[str, object] | None
    weights: Mapping[str, float] | None
    schedule: str
    allocation: Owl | None
    damp: float
    measure_loss: bool
    micro_batch: int | None
    device: str | None
    dtype: str | None
    storage: str
    made: Mapping[str, object] | None
    overwrite: bool
    accept_terms: bool
    trust_remote_code: bool
    progress: bool
    options: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self):
        find_schedule(self.schedule)
        if self.storage not in STORAGES:
            known = ", ".join(STORAGES)
            raise InputError(f"storage is '{self.storage}'{suggest(self.storage, list(STORAGES))}; give one of {known}")
        _ = self.solver, self.where, self.grid, self.kept_dtype
        try:
            json.dumps(dict(self.made or {}))
        except TypeError as error:
            raise InputError(f"made is written to {REPORT}, which cannot hold all of it ({error})") from None

    @property
    def solver(self) -> Method:
        """The method asked for."""
        return find_method(self.method)

    @property
    def work(self) -> Path:
        """The folder in which the output is made."""
        return work_path(self.output)

    @property
    def where(self) -> torch.device:
        """The device to compute on."""
        return resolve_device(self.device)

    @property
    def grid(self) -> Grid | None:
        """The grid whose codes are to be stored, None for dense weights."""
        return None if self.storage == "dense" else grid_of(self.method, self.target)

    @property
    def kept_dtype(self) -> torch.dtype | None:
        """The dtype asked for, None for the checkpoint's own."""
        return None if self.dtype in (None, "auto") else resolve_dtype(self.dtype, self.where)

    @property
    def sources(self) -> dict[str, Tensor]:
        """The token windows of each source."""
        return token_windows(self.calibration)

    def computed_in(self, checkpoint: torch.dtype) -> torch.dtype:
        """The output's dtype where the device is fast in it, else float32."""
        dtype = self.kept_dtype or checkpoint
        fast = {fast_dtype(self.where)} | ({torch.float16} if self.where.type == "cuda" else set())
        return dtype if dtype in fast else torch.float32

    def told(self, shares: Mapping[str, float]) -> dict:
        """How the model is made, for report and card: what the caller tells, or what was asked."""
        told = {"method": self.method, "target": str(self.target), "sources": dict(shares)}
        told |= {"schedule": self.schedule} | {key: str(value) for key, value in self.options.items()}
        told |= {"texts": {name: text_fingerprint(text) for name, text in (self.calibration or {}).items()}}
        told |= {} if self.grid is None else {"storage": f"{self.storage}, {self.grid}"}
        return told | dict(self.made or {})

    def request(self, fingerprint: str, config: str, shares: Mapping[str, float], computed_in: torch.dtype) -> dict:
        """Everything that the numbers depend on, in plain values: work of another request is not continued."""
        where, names = self.where, [(name, text_fingerprint(text)) for name, text in (self.calibration or {}).items()]
        return {
            "dtype": [str(self.kept_dtype), str(computed_in)],  # the fingerprint depends on it, so it is named first
            "model": fingerprint,
            "config": json.loads(config),
            "method": [self.method, self.solver.version],
            "target": str(self.target),
            "options": {name: str(value) for name, value in sorted(self.options.items())},
            "damp": self.damp,
            "texts": names,
            "weights": {name: shares[name] for name, _ in names},
            "schedule": self.schedule,
            "measure_loss": self.measure_loss,
            "micro_batch": self.micro_batch,
            "storage": self.storage,
            "device": where.type if where.type != "cuda" else torch.cuda.get_device_name(where),
            "versions": {"crosscal": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
        }


def text_fingerprint(text: object) -> str:
    """That of windows `load_text` drew, or 16 hex digits of SHA-256 over bare token windows."""
    known = getattr(text, "fingerprint", None)
    return known or hashlib.sha256(text.contiguous().numpy().astype("<i8").tobytes()).hexdigest()[:16]
