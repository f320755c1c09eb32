"""One block being compressed: sums gathered for its input groups, groups solved, and one report at the end.

Nothing here waits for a GPU until `settle`: what a report tells, and whether a factorization failed, stays in
tensors until the block is done.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from crosscal.calibration.gradients import WeightGradient
from crosscal.calibration.statistics import DiagonalStats, InputStats, mix
from crosscal.engine.capture import InputSums, all_finite, check_inputs
from crosscal.engine.layerloss import layer_losses
from crosscal.engine.reports import LayerReport
from crosscal.errors import InputError
from crosscal.methods.registry import Evidence, Method
from crosscal.models import LinearLayer
from crosscal.types import Target


@dataclass(frozen=True)
class Job:
    """What is to be done to every block: method, options, each source's share, and what to measure."""

    method: Method
    shares: Mapping[str, float]
    measure_loss: bool
    damp: float = 0.01
    options: Mapping[str, object] = field(default_factory=dict)
    gradients: Mapping[nn.Module, WeightGradient] | None = None

    @property
    def diagonal_only(self) -> bool:
        """Whether the diagonal of the Gram matrix is all that anybody will ask for."""
        return self.method.reads == "diagonal" and not self.measure_loss


class BlockWork:
    """The groups of one block with their sums and results. `damps` gives a group's damping where it was raised."""

    def __init__(
        self, index: int, groups: Sequence[Sequence[LinearLayer]], target: Target, job: Job, damps: Mapping[int, float]
    ):
        self.index, self.groups, self.target, self.job, self.damps = index, groups, target, job, damps
        self.solved: set[int] = set()
        self._scratch: dict[int, Tensor] = {}
        self._sums = [InputSums(job.diagonal_only, self._scratch) for _ in groups]
        self._old: dict[int, list[Tensor]] = {}
        self._facts: dict[int, dict] = {}
        self._diagonals: dict[int, dict[str, Tensor]] = {}

    def add(self, group: int, source: str, inputs: Tensor) -> None:
        """Count a micro-batch of the group's shared input."""
        self._sums[group].add(source, inputs)

    def solve(self, group: int, stats: Mapping[str, InputStats | DiagonalStats] | None = None) -> None:
        """Compress the layers of a group, from given statistics or those gathered, and write them back."""
        layers, job = self.groups[group], self.job
        stats = self._sums[group].stats() if stats is None else stats
        old = [layer.weight.clone() for layer in layers]
        gradients = [job.gradients[layer.module] for layer in layers] if job.gradients is not None else None
        mixed = mix(stats, {name: job.shares[name] for name in stats}) if stats else None
        options = dict(job.options) | ({"damp": self.damp(group)} if job.method.damped else {})
        new, facts = job.method.solve(old, Evidence(mixed, gradients), self.target, **options)
        for layer, weight in zip(layers, new, strict=True):
            layer.write(weight)
        written = [layer.weight for layer in layers]
        facts = {
            "finite": all_finite(stats),
            "overflow": [~w.sum(dtype=torch.float32).isfinite() for w in written],
        } | facts
        facts["kept"] = [torch.count_nonzero(weight) for weight in written]
        if job.measure_loss and stats and all(isinstance(part, InputStats) for part in stats.values()):
            facts["losses"] = {name: layer_losses(old, written, part) for name, part in stats.items()}
        self._old[group], self._facts[group] = old, facts
        self._diagonals[group] = {name: part.diagonal.clone() for name, part in stats.items()}
        self._sums[group] = InputSums(job.diagonal_only, self._scratch)  # the sums are spent; free them
        self.solved.add(group)

    def solve_all(self) -> None:
        """Compress every group that any text has reached."""
        for group in range(len(self.groups)):
            self.solve(group)

    def damp(self, group: int) -> float:
        """The damping this group is solved with."""
        return self.damps.get(group, self.job.damp)

    def settle(self) -> tuple[list[LayerReport], list[int]]:
        """The reports, and the groups whose factorization failed; this waits for the device once.

        Raises `InputError` naming the layer that got inputs which are not finite.
        """
        facts = to_host([self._facts[group] for group in sorted(self.solved)])
        reports: list[LayerReport] = []
        for group, found in zip(sorted(self.solved), facts, strict=True):
            check_inputs(f"{self.index}.{self.groups[group][0].name}", found.pop("finite"))
            if found.pop("failed", False):
                return reports, [group]  # what came after was computed from garbage
            for layer, overflow in zip(self.groups[group], found.pop("overflow"), strict=True):
                if overflow:
                    raise InputError(
                        f"the new weights of layer {self.index}.{layer.name} do not fit into {layer.weight.dtype}; "
                        "load the model in bfloat16 or float32"
                    )
            reports += self._reports(group, found)
        return reports, []

    def _reports(self, group: int, found: dict) -> list[LayerReport]:
        kept, losses = found.pop("kept"), found.pop("losses", {})
        statistics = {source: _fingerprint(diagonal) for source, diagonal in self._diagonals[group].items()}
        reports = []
        for n, (layer, old) in enumerate(zip(self.groups[group], self._old[group], strict=True)):
            lost = {source: pairs[n] for source, pairs in losses.items()}
            shares = {source: self.job.shares[source] for source in lost}
            whole = sum(shares[s] * output for s, (_, output) in lost.items())
            part = sum(shares[s] * error for s, (error, _) in lost.items())
            reports.append(
                LayerReport(
                    name=f"{self.index}.{layer.name}",
                    sparsity=1 - kept[n] / old.numel(),
                    relative_error=(part / whole if whole > 0 else 0.0) if lost else None,
                    losses={source: error for source, (error, _) in lost.items()},
                    facts={k: v[n] if isinstance(v, list) else v for k, v in found.items()},
                    statistics=dict(statistics),
                )
            )
        return reports

    def restore(self) -> None:
        """Put the weights back as they were."""
        for group, old in self._old.items():
            for layer, weight in zip(self.groups[group], old, strict=True):
                layer.write(weight)


def _fingerprint(diagonal: Tensor) -> str:
    return hashlib.sha256(diagonal.cpu().numpy().tobytes()).hexdigest()[:16]


def to_host(tree):
    """The same nested lists and dictionaries with every one-element tensor a number, all fetched in one transfer."""
    leaves: list[Tensor] = []

    def walk(node, leaf):
        if isinstance(node, dict):
            return {key: walk(value, leaf) for key, value in node.items()}
        if isinstance(node, (list, tuple)):
            return [walk(value, leaf) for value in node]
        return leaf(node) if isinstance(node, Tensor) else node

    walk(tree, lambda tensor: leaves.append(tensor.double()))
    numbers = iter(torch.stack(leaves).tolist() if leaves else [])
    return walk(tree, lambda _: next(numbers))
