"""One model on several processes, one a device, started by torchrun: windows are divided, every rank knows the result.

What text tells of a layer is a sum over tokens, and sums over disjoint windows add. So each rank runs its share of the
windows of every source, and for each group of layers the ranks' sums of a source, upper triangle and number of tokens,
are brought together once, at the rank that owns the group. The owner solves as one process would, and the others
receive its new weights: from there on all hold the same bits. Sources stay apart until they are mixed, so mixed weights
are exact however the windows were divided. Sums are float32 and added here, in the order of ranks, since a library's
reduction adds in an order of its own: the same command on as many ranks gives the same bytes.

In a process of its own nothing is sent and nothing waits: the loop reads the same for one rank and for many.
"""

import os
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from crosscal.calibration.gram import mirror, panels
from crosscal.calibration.statistics import DiagonalStats, InputStats
from crosscal.errors import InputError
from crosscal.paths import started_by_torchrun

SENT_PANEL = 128  # columns of a Gram matrix that are sent at a time
_PATIENCE = timedelta(days=1)  # an owner may solve for long; a process that ends is noticed at once
_ENDED = (
    "a process of this run ended or was told to, so all of them stop; start the same command again, which goes on "
    "after what was finished"
)
Stats = Mapping[str, InputStats] | Mapping[str, DiagonalStats]


class Ranks:
    """The processes that work on one model, `world` of them, of which this is number `rank`.

    `received` counts the bytes of sums and weights that came here; counts and reports, some kilobytes, are left out.
    Every method but `share` and `turns` is called by all ranks, in the same order. Raises `InputError` where another
    process has ended.
    """

    def __init__(self, rank: int = 0, world: int = 1, store: Any = None):
        self.rank, self.world, self.received, self._store = rank, world, 0, store

    @property
    def first(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def share(self, windows: Mapping[str, Tensor], together: int = 1) -> dict[str, Tensor]:
        """Return this rank's part of each source's windows, in units of so many; it may be empty.

        >>> [Ranks(rank, 2).share({"c4": torch.arange(5)})["c4"].tolist() for rank in range(2)]
        [[0, 1, 2], [3, 4]]
        """
        parts = {}
        for source, rows in windows.items():
            units = -(-len(rows) // together)
            start, end = (together * -(-units * n // self.world) for n in (self.rank, self.rank + 1))
            parts[source] = rows[start:end]
        return parts

    def turns(self, items: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """Yield every `world`-th item with its number, from this rank's own on."""
        return ((number, item) for number, item in enumerate(items) if number % self.world == self.rank)

    def all(self, value: Any) -> list:
        """Return every rank's plain value, in the order of ranks."""
        values: list = [value] * self.world
        if self.world > 1:
            with _together():
                dist.all_gather_object(values, value)
        return values

    def least(self, number: int | None) -> int | None:
        """Return the least number of any rank; None where no rank has one."""
        return min((n for n in self.all(number) if n is not None), default=None)

    def add_up(self, part: Tensor, owner: int, senders: Sequence[int] | None = None) -> None:
        """Put the sum of the senders' tensors, by default of all, in their order, in the place of the owner's own.

        Every rank adds a slice of it: an owner that received all others' tensors would be slower with every rank.
        """
        if self.world == 1:
            return
        size = -(-part.numel() // self.world)
        sent = torch.zeros(self.world * size, dtype=part.dtype, device=part.device)
        sent[: part.numel()] = part.flatten()
        slices = torch.empty_like(sent)
        with _together():
            dist.all_to_all_single(slices, sent)
        first, *others = senders or range(self.world)
        total = slices[first * size :][:size].clone()
        for rank in others:
            total += slices[rank * size :][:size]
        whole = list(sent.split(size)) if self.rank == owner else None
        with _together():
            dist.gather(total, whole, dst=owner)
        self.received += (self.world - 1) * total.nbytes * (2 if whole else 1)
        if whole:
            part.copy_(sent[: part.numel()].view_as(part))

    def spread(self, tensor: Tensor, owner: int) -> Tensor:
        """Return the owner's tensor, of the form of this one."""
        if self.world == 1:
            return tensor
        tensor = tensor.contiguous()
        with _together():
            dist.broadcast(tensor, owner)
        self.received += tensor.nbytes * (self.rank != owner)
        return tensor

    def collect(
        self, stats: Stats, owner: int, sources: Sequence[str], like: Tensor, *, keep: bool = False
    ) -> tuple[dict[str, int], Stats]:
        """Return the number of tokens of each source on all ranks, and at the owner the sum of their statistics.

        The sums of a rank are spent, unless it shall `keep` them. `like` [rows, d_in] tells width and device.
        """
        if self.world == 1:
            return {name: part.n_tokens for name, part in stats.items()}, stats
        told = {name: (p.n_tokens, getattr(p, "cross", None) is not None, type(p)) for name, p in stats.items()}
        by_rank, counts, total = self.all(told), {}, {}
        for name in sources:
            senders = [rank for rank, known in enumerate(by_rank) if name in known and known[name][0]]
            if not senders:
                continue
            tokens, crossed, kinds = zip(*(by_rank[rank][name] for rank in senders), strict=True)
            counts[name] = sum(tokens)
            mine = stats.get(name)
            if mine is None or (keep and self.rank == owner):
                mine = _copy(mine, kinds[0], like)
            for piece in _pieces(mine, crossed=all(crossed)):
                self.add_up(piece, owner, senders)
            if self.rank == owner:
                total[name] = _completed(mine, counts[name], crossed=all(crossed))
        return counts, total

    def collect_everywhere(self, stats: Stats, sources: Sequence[str], like: Tensor) -> Stats:
        """Return the sum of all ranks' statistics, on every rank."""
        if self.world == 1:
            return stats
        counts, total = self.collect(stats, 0, sources, like)
        (kind,) = {kind for kinds in self.all({type(part) for part in stats.values()}) for kind in kinds} or {
            InputStats
        }
        for name, count in counts.items():
            mine = total.get(name) or _copy(None, kind, like)
            field = "gram" if kind is InputStats else "diagonal"
            total |= {name: kind(self.spread(getattr(mine, field), 0), count)}
        return total

    def wait(self) -> None:
        """Return when every rank is here."""
        self.all(None)

    def speaks(self) -> bool:
        """Whether this rank is the first to end with an error, and so the one that says why."""
        if self.world == 1:
            return True
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing more is to be said
        try:
            return self._store.add("crosscal/ended", 1) == 1
        except RuntimeError:  # the store is gone, with the machine it was on
            return self.rank < 2


def _pieces(stats: InputStats | DiagonalStats, crossed: bool) -> list[Tensor]:
    """What is sent of statistics: a diagonal, or a Gram matrix on and above its diagonal and the whole cross part."""
    if isinstance(stats, DiagonalStats):
        return [stats.diagonal]
    edges = panels(len(stats.gram), SENT_PANEL)
    pieces = [stats.gram[left:right, left:] for left, right in edges]
    return pieces + ([stats.cross[left:right] for left, right in edges] if crossed and stats.cross is not None else [])


def _copy(stats: Any, kind: type, like: Tensor) -> InputStats | DiagonalStats:
    """Statistics that may be changed: those given, or of no tokens."""
    if stats is None:
        width = like.shape[1]
        empty = torch.zeros((width,) if kind is DiagonalStats else (width, width), device=like.device)
        return kind(empty, 0) if kind is DiagonalStats else InputStats(empty, 0, torch.zeros_like(empty))
    if isinstance(stats, DiagonalStats):
        return DiagonalStats(stats.diagonal.clone(), stats.n_tokens)
    return InputStats(stats.gram.clone(), stats.n_tokens, None if stats.cross is None else stats.cross.clone())


def _completed(stats: Any, n_tokens: int, crossed: bool) -> InputStats | DiagonalStats:
    if isinstance(stats, DiagonalStats):
        return DiagonalStats(stats.diagonal, n_tokens)
    return InputStats(mirror(stats.gram), n_tokens, stats.cross if crossed else None)


def owners(costs: Sequence[float], world: int) -> list[int]:
    """Return the rank that owns each group, the costliest first to whoever has least to do.

    >>> owners([1.0, 5.0, 2.0, 1.0], 2)
    [1, 0, 1, 1]
    """
    load, chosen = [0.0] * world, [0] * len(costs)
    for group in sorted(range(len(costs)), key=lambda n: (-costs[n], n)):
        chosen[group] = min(range(world), key=lambda rank: (load[rank], rank))
        load[chosen[group]] += costs[group]
    return chosen


def floats_sent(d_in: int) -> int:
    """Return how many numbers of a Gram matrix one rank sends: panels from their block on the diagonal on.

    >>> floats_sent(100), floats_sent(4096) / 4096**2
    (10000, 0.515625)
    """
    return sum((right - left) * (d_in - left) for left, right in panels(d_in, SENT_PANEL))


_here = Ranks()


def ranks() -> Ranks:
    """Return the ranks that this process has joined, or itself alone."""
    return _here


def join(device: str | None = None) -> Ranks:
    """Meet the other processes that torchrun started, if it did, and return the ranks until `leave`.

    Each takes the GPU of its number on the machine. Sums and weights on GPUs travel by NCCL, all else by gloo. Raises
    `InputError` for a rank without a GPU of its own.
    """
    global _here
    if started_by_torchrun() and _here.world == 1:
        signal.signal(signal.SIGTERM, _stop)  # what torchrun sends to the others when one process ends
        with _together():
            store, rank, world = next(iter(dist.rendezvous("env://")))
            _here = Ranks(rank, world, store)
            on_gpu = torch.cuda.is_available() and device != "cpu"
            if on_gpu:
                _take_gpu(device)
            backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
            dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=_PATIENCE)
    return _here


def leave() -> None:
    """Part from the other processes, when all are done."""
    global _here
    if _here.world > 1:
        _here.wait()
        dist.destroy_process_group()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _here = Ranks()


def _take_gpu(device: str | None) -> None:
    number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if device not in (None, "auto", "cuda"):
        raise InputError(f"device is '{device}', and each process takes a GPU of its own; leave it out, or give cpu")
    if number >= count:
        raise InputError(f"process {number} has no GPU of its own among {count}; start {count} processes a machine")
    torch.cuda.set_device(number)


def _stop(*_: object) -> None:
    raise InputError(_ENDED)


@contextmanager
def _together() -> Iterator[None]:
    """Raise `InputError` where another process is no longer there."""
    try:
        yield
    except RuntimeError as error:
        if "out of memory" in str(error):
            raise
        raise InputError(_ENDED) from error
