"""Compress a model that need not fit into memory, from a folder to a folder."""

import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn

from crosscal import __version__
from crosscal.disk.checkpoint import WholeModelError, _Checkpoint, _Places
from crosscal.disk.journal import MODEL, Journal
from crosscal.disk.states import _states_bytes, _StoredStreams
from crosscal.disk.weights import StreamedModel
from crosscal.engine.driver import Residence, run
from crosscal.engine.mixing import model_weights
from crosscal.engine.ranks import ranks
from crosscal.engine.reports import CompressionReport, LayerReport
from crosscal.engine.request import Request
from crosscal.engine.streams import Streams
from crosscal.errors import InputError
from crosscal.machine.facts import free_bytes
from crosscal.methods.allocation import Owl
from crosscal.models import find_folder, load_model
from crosscal.models.channels import check_channels, narrow
from crosscal.models.loading import fast_dtype, is_gguf, resolve_device, resolve_dtype
from crosscal.output.export import save_model
from crosscal.output.packing import check_storage
from crosscal.output.writer import REPORT, ROOM, Place, Writer
from crosscal.text import TextWindows
from crosscal.types import Grid, Target

log = logging.getLogger(__name__)
SHARE = 0.5  # of the free memory, for parked micro-batches


def compress_folder(
    model: str,
    output: str | Path,
    method: str,
    target: Target,
    *,
    calibration: Mapping[str, TextWindows] | None = None,
    weights: Mapping[str, float] | None = None,
    schedule: str = "sublayer",
    allocation: Owl | None = None,
    refine: str = "",
    anchor: float = 0.0,
    rotate: bool = False,
    balance: str = "",
    damp: float = 0.01,
    measure_loss: bool = True,
    micro_batch: int | None = None,
    device: str | None = None,
    dtype: str | None = None,
    storage: str = "dense",
    made: Mapping[str, object] | None = None,
    overwrite: bool = False,
    accept_terms: bool = False,
    trust_remote_code: bool = False,
    skip: Sequence[str] = (),
    only: Sequence[str] = (),
    partial: bool = False,
    progress: bool = True,
    **options: object,
) -> CompressionReport:
    """Compress a model block by block and write it to the folder `output`, which transformers loads.

    `model` is an embedded asset, a local folder or a hub id. Its weights are read from safetensors one block at a time;
    hidden states of the calibration windows lie in files, one micro-batch at a time is on the device. The weights are,
    bit for bit, those of `compress` on the loaded model, whose arguments these are. They are stored in `dtype`, by
    default the checkpoint's own, and computed in it where the device is fast in it, else in float32. `storage`
    "compressed-tensors" packs quantized weights. `made` adds to what report and model card say of how it was made.

    The work is done in `.<output name>.partial` beside `output`, which appears when everything is there. After a kill,
    an interrupt or a full disk the same call goes on at the block it had reached, to the same files.

    Methods that need gradients, OWL, GGUF files and a few architectures need the whole model in memory; a line in the
    log says so.

    Raises `InputError` as `compress`, `load_model` and `save_model` do.
    """
    return carry_out(Request(**locals()))  # the arguments, by their names


@torch.no_grad()
def carry_out(request: Request) -> CompressionReport:
    """Compress the model that a request names into its output folder; raises as `compress_folder` does."""
    request, place = replace(request, model=str(request.model)), Place(request.output)
    if ranks().first:
        place.restore()
        if not Journal(place).in_place:
            place.check(request.overwrite)
    grid = check_storage(request.storage, request.method, request.target)
    _check_plain(request)
    stored = None if request.dtype in (None, "auto") else resolve_dtype(request.dtype, resolve_device(request.device))
    try:
        _check_streams(request)
        return _stream(request, _StreamedFolder(request, stored, grid))
    except WholeModelError as error:
        log.warning("%s is loaded into memory as a whole, because %s", request.model, error.reason)
    residence = _WholeFolder(request, stored, grid)
    request.check(residence.inventory)
    if request.balance == "model":
        request = replace(request, weights=model_weights(residence, request))
    residence.request = request
    return run(request, residence)


def _check_plain(request: Request) -> None:
    try:
        json.dumps(dict(request.made or {}))
    except TypeError as error:
        raise InputError(f"made is written to {REPORT}, which cannot hold all of it ({error})") from None


def _check_streams(request: Request) -> None:
    """Raise `WholeModelError` for a request that looks at more than one block at a time."""
    if request.solver.gradients:
        raise WholeModelError(f"{request.method} needs gradients")
    if request.allocation is not None:
        raise WholeModelError("OWL looks at all blocks before the first is compressed")
    if is_gguf(request.model):
        raise WholeModelError("a GGUF file is dequantized as a whole")


def _stream(request: Request, residence: "_StreamedFolder") -> CompressionReport:
    """Run the loop, or what is left of it, and put the folder in its place."""
    request.check(residence.inventory)
    if request.balance == "model":
        reader = StreamedModel(
            request.model,
            device=request.device,
            dtype=residence.dtype,
            trust_remote_code=request.trust_remote_code,
            folder=residence.folder,
            progress=request.progress,
            skip=request.skip,
            only=request.only,
            width=request.width,
        )
        kept = residence.journal.work.with_suffix(f".statistics-{ranks().rank}")
        try:
            request = residence.request = replace(request, weights=model_weights(reader, request, kept))
        finally:
            shutil.rmtree(kept, ignore_errors=True)
    journal = residence.journal
    with journal.locked():
        try:
            finished = ranks().first and _opened(request, residence)
            finished, journal.done, journal.layers = ranks().all((finished, journal.done, journal.layers))[0]
            if finished:
                return CompressionReport(journal.layers, inventory=residence.inventory.told())
            residence.first, residence.layers = journal.done, list(journal.layers)
            return run(request, residence)
        except OSError as error:
            raise InputError(
                f"{request.output} could not be written ({error.strerror or error}); free some space there and start "
                "again, which goes on after the last finished block"
            ) from error


def _opened(request: Request, residence: "_StreamedFolder") -> bool:
    """Open the journal; returns whether the finished folder is in its place already."""
    journal, files = residence.journal, residence._checkpoint.identity()
    if journal.files == files and journal.request.get("dtype", ["", ""])[1] == str(residence.dtype):
        vars(residence)["fingerprint"] = journal.request["model"]  # the files did not change: no weight need be read
    journal.open(_identity(request, residence), files)
    if journal.in_place:
        journal.close()
        return True
    journal.place.check(request.overwrite)
    journal.place.check_room(ROOM * residence.bytes_needed(request), journal.bytes_held())
    return False


def _identity(request: Request, residence: "_StreamedFolder") -> dict:
    """Return everything that the numbers depend on, in plain values: work of another identity is not continued."""
    where, texts = residence.device, request.texts()
    return {
        "dtype": [str(residence.writer.dtype), str(residence.dtype)],  # the fingerprint depends on it, so it is first
        "model": residence.fingerprint,
        "config": json.loads((residence.folder / "config.json").read_text(encoding="utf-8")),
        "method": [request.method, request.solver.version],
        "target": str(request.target),
        "options": {name: str(value) for name, value in sorted(request.options.items())},
        "damp": request.damp,
        "refine": [request.refine, request.anchor, request.rotate, request.balance],
        "texts": list(texts.items()),
        "weights": {name: request.shares[name] for name in texts},
        "schedule": request.schedule,
        "measure_loss": request.measure_loss,
        "micro_batch": request.micro_batch,
        "left_out": [list(request.skip), list(request.only)],
        "storage": request.storage,
        "ranks": ranks().world,
        "device": where.type if where.type != "cuda" else torch.cuda.get_device_name(where),
        "versions": {"crosscal": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }


class _StreamedFolder(StreamedModel):
    """A streamed model that is written to a folder as its blocks are done, with a journal of what has been."""

    def __init__(self, request: Request, stored: torch.dtype | None, grid: Grid | None):
        self.request, self._states = request, None
        folder = _find_folder(request, stored)
        super().__init__(
            request.model,
            device=request.device,
            dtype=_computed_in(stored or _Checkpoint(folder).dtype, resolve_device(request.device)),
            trust_remote_code=request.trust_remote_code,
            folder=folder,
            progress=request.progress,
            skip=request.skip,
            only=request.only,
            width=request.width,
        )
        self.journal = Journal(Place(request.output))
        self.writer = Writer(self.journal.work / MODEL, self._places, stored, request.storage, grid)

    def schedule(self, name: str, tokens: int) -> str:
        """Return the sublayer schedule in passes where there is too little memory for parked micro-batches."""
        # Parked before its widest layer a micro-batch holds that layer's input, the residual and attention's tensors.
        widest = max((layer.weight.shape[1] for block in self.inventory.layers for layer in block), default=0)
        beside = 1 if self.device.type == "cuda" else int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # share its memory
        parked = beside * tokens * (6 * self._width + 2 * widest) * self.dtype.itemsize
        scarce = name == "sublayer" and parked >= SHARE * free_bytes(self.device)
        return "sublayer in passes" if scarce else name

    def fill(self, index: int) -> nn.Module:
        """Read a block's weights from disk, and make room for its output."""
        if self._states is not None and index + 1 < len(self.blocks):
            self._states.prepare_next()
        block = super().fill(index)
        if self.request.width is not None:
            check_channels(self.model, block)
        return block

    def done(self, index: int, reports: Sequence[LayerReport] = ()) -> None:
        """Write a block, let go of its weights, and record it as done."""
        if ranks().first:
            self.writer.write_block(index)
        super().done(index, reports)
        self.journal.record(reports)

    def close(self) -> None:
        """Write all that is not a block, and put the folder in its place."""
        if not ranks().first:
            return
        self.writer.write_rest()
        self.writer.copy_descriptions(self.folder, code=self.request.trust_remote_code)
        report = CompressionReport(self.layers, inventory=self.inventory.told())
        self.writer.finish(self.name, self.fingerprint, report, self.request.told())
        self.journal.put_in_place()

    def bytes_needed(self, request: Request) -> int:
        """Return the bytes on disk of the output and of the hidden states before and after a block."""
        return self.writer.bytes_needed() + (4 if request.anchor else 2) * _states_bytes(
            request.text, self._width, self.dtype
        )

    @property
    def _width(self) -> int:
        return self._embedding.weight.shape[1]

    def _opened(self, sources: Mapping[str, Tensor], micro_batch: int | None) -> Streams:
        place = self.journal.states
        self._states = _StoredStreams(self.model, self.inventory, sources, micro_batch, place, self.first)
        return self._states


class _WholeFolder(Residence):
    """A model loaded as a whole that is written to a folder in the end."""

    def __init__(self, request: Request, stored: torch.dtype | None, grid: Grid | None):
        self.request, self._stored, self._grid = request, stored, grid
        device, kept = resolve_device(request.device), stored
        self._folder: Path | None = None
        if not is_gguf(request.model):
            self._folder = _find_folder(request, stored)
            if "quantization_config" in json.loads((self._folder / "config.json").read_text(encoding="utf-8")):
                raise InputError(f"{request.model} is quantized already; give the dense model that it was made from")
            self._checkpoint = _Checkpoint(self._folder)
            kept = stored or self._checkpoint.dtype
        self._loaded = load_model(
            self._folder or request.model,
            device=request.device,
            dtype=None if kept is None else _computed_in(kept, device),
            accept_terms=request.accept_terms,
            trust_remote_code=request.trust_remote_code,
        )
        super().__init__(self._loaded.model, skip=request.skip, only=request.only, width=request.width)
        for block in self.blocks if request.width is not None else ():
            check_channels(self.model, block)

    def close(self) -> None:
        """Write the model: what did not change as it is in the checkpoint, tensors of another dtype included."""
        if not ranks().first:
            return
        request, report = self.request, CompressionReport(self.layers, inventory=self.inventory.told())
        if self._folder is None:
            if request.width is not None:
                narrow(self.model, request.width)
            self.model.to(self._stored or self.model.dtype)
            more = {"overwrite": request.overwrite, "storage": request.storage, "grid": self._grid}
            save_model(self._loaded, request.output, report=report, made=request.told(), **more)
            return
        folder, place = self._folder, Place(request.output)
        source = _Places(self.model, self.inventory, self._checkpoint, loaded=True, width=request.width)
        writer = Writer(place.temporary, source, self._stored, request.storage, self._grid)
        code = request.trust_remote_code
        about = request.model, self._loaded.fingerprint, report, request.told()
        writer.write_all(place, lambda _: writer.copy_descriptions(folder, code=code), *about)


def _find_folder(request: Request, stored: torch.dtype | None) -> Path:
    options = {"accept_terms": request.accept_terms, "trust_remote_code": request.trust_remote_code}
    return find_folder(request.model, dtype=stored, **options)


def _computed_in(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Return the output's dtype where the device is fast in it, else float32."""
    fast = {fast_dtype(device)} | ({torch.float16} if device.type == "cuda" else set())
    return dtype if dtype in fast else torch.float32
