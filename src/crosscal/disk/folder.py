"""Compress a model that need not fit into memory, from a folder to a folder."""

import logging
from collections.abc import Mapping
from pathlib import Path

from crosscal.disk.checkpoint import Checkpoint
from crosscal.disk.journal import Journal, restore
from crosscal.disk.names import WholeModelError
from crosscal.disk.order import Order
from crosscal.disk.run import stream
from crosscal.engine.driver import compress
from crosscal.engine.reports import CompressionReport
from crosscal.methods.allocation import Owl
from crosscal.models import load_model
from crosscal.models.loading import find_folder, is_gguf
from crosscal.output.export import check_place, save_model
from crosscal.text import TextWindows
from crosscal.types import Target

log = logging.getLogger(__name__)


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
    order = Order(
        model=str(model),
        output=Path(output).expanduser(),
        method=method,
        target=target,
        calibration=calibration,
        weights=weights,
        schedule=schedule,
        allocation=allocation,
        damp=damp,
        measure_loss=measure_loss,
        micro_batch=micro_batch,
        device=device,
        dtype=dtype,
        storage=storage,
        made=made,
        overwrite=overwrite,
        accept_terms=accept_terms,
        trust_remote_code=trust_remote_code,
        progress=progress,
        options=options,
    )
    restore(order.output)
    journal = Journal(order.work)
    if not journal.finished_as(order.output):
        check_place(order.output, overwrite)
    try:
        _check_streams(order)
        return stream(order, _folder(order))
    except WholeModelError as reason:
        log.warning("%s is loaded into memory as a whole, because %s", order.model, reason)
    return _in_memory(order)


def _check_streams(order: Order) -> None:
    """Raises `WholeModelError` for an order that looks at more than one block at a time."""
    if order.solver.gradients:
        raise WholeModelError(f"{order.method} needs gradients")
    if order.allocation is not None:
        raise WholeModelError("OWL looks at all blocks before the first is compressed")
    if is_gguf(order.model):
        raise WholeModelError("a GGUF file is dequantized as a whole")


def _folder(order: Order) -> Path:
    return find_folder(
        order.model,
        accept_terms=order.accept_terms,
        dtype=order.kept_dtype,
        trust_remote_code=order.trust_remote_code,
    )


def _in_memory(order: Order) -> CompressionReport:
    """Load, compress and save the whole model."""
    kept = order.kept_dtype
    if kept is None and not is_gguf(order.model):
        kept = Checkpoint(_folder(order)).dtype
    loaded = load_model(
        order.model,
        device=order.device,
        dtype=None if kept is None else order.computed_in(kept),
        accept_terms=order.accept_terms,
        trust_remote_code=order.trust_remote_code,
    )
    report = compress(
        loaded.model,
        order.method,
        order.target,
        calibration=order.sources,
        weights=order.weights,
        schedule=order.schedule,
        allocation=order.allocation,
        damp=order.damp,
        measure_loss=order.measure_loss,
        micro_batch=order.micro_batch,
        progress=order.progress,
        **order.options,
    )
    if kept is not None:
        loaded.model.to(kept)
    shares = order.weights or {name: 1 / len(order.sources) for name in order.sources}
    made, grid = order.told(shares), order.grid
    save_model(
        loaded, order.output, report=report, made=made, overwrite=order.overwrite, storage=order.storage, grid=grid
    )
    return report
