"""The streaming run: one block after the other is read, compressed, written and noted in the journal."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from crosscal.disk.checkpoint import Checkpoint
from crosscal.disk.journal import MODEL, Journal, bytes_in, work_folder
from crosscal.disk.order import Order
from crosscal.disk.output import OutputFolder
from crosscal.disk.passes import choose_schedule
from crosscal.disk.skeleton import open_skeleton
from crosscal.disk.states import PROBE, next_states, open_states, states_bytes, write_state
from crosscal.disk.weights import Weights
from crosscal.engine.blockstep import block_from_text, block_without_text
from crosscal.engine.blockwork import Job
from crosscal.engine.driver import check_call, runs_text, statistics_shares
from crosscal.engine.memory import PeakMemory
from crosscal.engine.reports import CompressionReport
from crosscal.engine.streams import PROBE_TOKENS
from crosscal.errors import InputError
from crosscal.output.export import check_place
from crosscal.output.packing import packable_layers

ROOM = 1.05  # of the bytes of weights and hidden states, for tokenizer, masks and journal


@dataclass(frozen=True)
class _Task:
    """An order with the model it is for."""

    order: Order
    folder: Path
    weights: Weights
    job: Job
    shares: Mapping[str, float]
    dtype: torch.dtype

    @property
    def text(self) -> dict[str, Tensor]:
        """The windows that flow through the blocks; none where nobody looks at them."""
        return self.order.sources if runs_text(self.job, self.order.sources) else {}

    @property
    def width(self) -> int:
        """The number of features of a hidden state."""
        return self.weights.model.config.get_text_config().hidden_size


@torch.no_grad()
def stream(order: Order, folder: Path) -> CompressionReport:
    """Do what was ordered with the model in this folder.

    Raises `InputError`, and `WholeModelError` before anything is done for a model that needs to be loaded as a whole.
    """
    report, started = CompressionReport(), time.perf_counter()
    with PeakMemory(order.where) as memory:
        task = _task(order, folder)
        try:
            report.layers = _stream(task)
        except OSError as error:
            raise InputError(
                f"{order.output} could not be written ({error.strerror or error}); free some space there and start "
                "again, which goes on after the last finished block"
            ) from error
    report.seconds, report.peak_bytes = time.perf_counter() - started, memory.peak_bytes
    return report


def _task(order: Order, folder: Path) -> _Task:
    """The model without its weights, and everything checked that can be without them."""
    checkpoint = Checkpoint(folder)
    dtype = order.computed_in(checkpoint.dtype)
    model = open_skeleton(folder, order.model, dtype, trust_remote_code=order.trust_remote_code)
    weights = Weights(model, checkpoint)
    shares = check_call(order.solver, order.target, order.options, weights.blocks, order.sources, order.weights)
    if order.grid is not None:
        packable_layers(model, order.grid)
    mixed = statistics_shares(order.solver, shares)
    job = Job(order.solver, mixed, order.measure_loss, order.damp, order.options)
    return _Task(order, folder, weights, job, shares, dtype)


def _stream(task: _Task) -> list:
    order = task.order
    journal = Journal(order.work)
    files = task.weights.checkpoint.identity()
    known = journal.request.get("model") if journal.files == files else None
    same_dtype = journal.request.get("dtype", ["", ""])[1] == str(task.dtype)
    fingerprint = known if known and same_dtype else task.weights.fingerprint(progress=order.progress)
    with work_folder(order.output):
        try:
            config = (task.folder / "config.json").read_text(encoding="utf-8")
            journal.open(order.request(fingerprint, config, task.shares, task.dtype), files)
            if journal.finished_as(order.output):
                journal.close()
                return journal.layers
            check_place(order.output, order.overwrite)
            output = OutputFolder(order.work / MODEL, task.weights, order.kept_dtype, order.grid)
            _check_room(task, output)
            if journal.done < len(task.weights.blocks):
                _compress_blocks(task, journal, output)
            _finish(task, journal, output, fingerprint)
        finally:
            if not journal.done:
                journal.close()
    return journal.layers


def _compress_blocks(task: _Task, journal: Journal, output: OutputFolder) -> None:
    order, weights, job = task.order, task.weights, task.job
    blocks, device, target = weights.blocks, order.where, order.target
    batches, probe, states = _open(task, journal)
    first, text = blocks[journal.done], task.text
    n_tokens = sum(tokens.numel() for tokens in text.values())
    run = choose_schedule(order.schedule, first, n_tokens, task.width, task.dtype, device)
    done, title = journal.done, f"{order.method} {target}"
    for index in tqdm(
        range(done, len(blocks)), title, initial=done, total=len(blocks), unit="block", disable=not order.progress
    ):
        block, last = blocks[index], index + 1 == len(blocks)
        weights.fill(block, device)
        states = None if last or states is None else next_states(journal.states(index + 1), states)
        for batch in batches:
            batch.outputs = states
        if text:
            reports = block_from_text(index, block, target, job, run, batches, probe, last)
        else:
            reports = block_without_text(index, block, target, job, probe)
        if states is not None:
            write_state(states, PROBE, probe.hidden)
            states.flush()
        output.write_block(index, block)
        weights.empty(block)
        journal.record(reports)


def _open(task: _Task, journal: Journal) -> tuple:
    """The micro-batches, the probe and their file, standing before the first block that is not done."""
    weights, device, text = task.weights, task.order.where, task.text
    if not text and not task.job.method.linked:
        return [], None, None
    tokens = torch.cat([torch.arange(PROBE_TOKENS), *(part.flatten() for part in text.values())])
    weights.fill_body(device)
    weights.fill(weights.blocks[0], device)
    with weights.embedding_of(tokens, device):
        opened = open_states(
            weights.model,
            weights.blocks,
            text,
            task.order.micro_batch,
            journal.states(journal.done),
            stored=journal.done > 0,
        )
    weights.empty(weights.model)
    return opened


def _finish(task: _Task, journal: Journal, output: OutputFolder, fingerprint: str) -> None:
    """Write all that is not a block, and put the folder in its place."""
    order = task.order
    output.write_rest()
    output.write_descriptions(task.folder, code=order.trust_remote_code)
    report = CompressionReport(journal.layers)
    output.write_report(order.model, fingerprint, report, order.told(task.shares))
    journal.finish()
    journal.put_in_place(order.output)


def _check_room(task: _Task, output: OutputFolder) -> None:
    """Raises `InputError` where the disk cannot hold the weights and the hidden states before and after a block."""
    work = task.order.work
    needed = output.bytes_needed() + 2 * states_bytes(task.text, task.width, task.dtype)
    free = shutil.disk_usage(work).free + bytes_in(work)
    if needed * ROOM > free:
        raise InputError(
            f"it takes up to {needed * ROOM / 2**30:.1f} GiB and {work.parent} has {free / 2**30:.1f} GiB left; free "
            "some space"
        )
