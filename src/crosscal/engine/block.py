"""One block being compressed: sums gathered for its input groups, groups solved, and one report for each layer.

Nothing here waits for a GPU before `settle`: report values, and whether a factorization failed, stay in tensors until
the block is done. With several ranks each group has an owner, which alone solves it.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crosscal.calibration.gram import InputSums, panels
from crosscal.calibration.statistics import DiagonalStats, InputStats
from crosscal.engine.batches import MicroBatch
from crosscal.engine.gather import _all_finite, _check_inputs, _mixed
from crosscal.engine.ranks import owners, ranks
from crosscal.engine.reports import MIX_WEIGHT, LayerReport
from crosscal.engine.request import Request
from crosscal.errors import InputError
from crosscal.methods.balance import balanced
from crosscal.methods.linalg import ATTEMPTS, DAMP_STEP
from crosscal.methods.registry import Evidence
from crosscal.models import LinearLayer
from crosscal.types import Target

_PANEL = 192
EXPERT_TOKENS = 1.0  # times the number of its inputs: so many tokens an expert needs for statistics of its own
Stats = Mapping[str, InputStats] | Mapping[str, DiagonalStats]


def _settled(
    request: Request, index: int, groups: Sequence[Sequence[LinearLayer]], run: Callable[["_BlockWork"], None], **more
) -> list[LayerReport]:
    """Compress one block by `run`, again with more damping where a factorization failed; `more` is for `_BlockWork`.

    Whether one did is only asked when the block is done, so that a GPU never waits inside of it; failures are rare.
    """
    damps: dict[int, float] = {}
    for _ in range(max(1, ATTEMPTS * len(groups))):
        work = _BlockWork(request, index, groups, damps, **more)
        run(work)
        reports, failed = work.settle()
        if failed is None:
            return reports
        work.restore()
        damps[failed] = work.damp(failed) * DAMP_STEP
        if damps[failed] > request.damp * DAMP_STEP ** (ATTEMPTS - 0.5):
            raise InputError(
                f"the Hessian of layer {index}.{groups[failed][0].name} is not positive definite even with damping "
                f"{work.damp(failed):g}; use more calibration text or a larger damp"
            )
    raise AssertionError("each failure raises a damping that has a limit")


class _BlockWork:
    """Groups of one block with their sums and results. `damps` gives a group's damping where it was raised."""

    def __init__(
        self,
        request: Request,
        index: int,
        groups: Sequence[Sequence[LinearLayer]],
        damps: Mapping[int, float],
        target: Target,
        evidence: Mapping[nn.Module, Evidence],
    ):
        self.request, self.index, self.groups, self.damps = request, index, groups, damps
        self.target, self.evidence = target, evidence
        self.solved: set[int] = set()
        self._scratch: dict[int, Tensor] = {}
        self._sums = [self._new_sums() for _ in groups]
        self._old: dict[int, list[Tensor]] = {}
        self._facts: dict[int, dict] = {}
        self._diagonals: dict[int, dict[str, Tensor]] = {}
        self._tokens: dict[int, dict[str, int]] = {}
        self._fallbacks: dict[int, str] = {}
        self._pools: dict[tuple[str, ...], dict] = {}
        self._waiting: list[int] = []
        self._ready: dict[int, Stats] = {}
        self._owners = owners([_cost(request, group) for group in groups], ranks().world)

    def _new_sums(self) -> InputSums:
        return InputSums(self.request.diagonal_only, self._scratch)

    def add(self, group: int, batch: MicroBatch, inputs: Tensor) -> None:
        """Add a micro-batch of the group's shared input to its sums, with that of its twin if it has one."""
        self._sums[group].add(batch.source, inputs, batch.dense.pop(group, None))

    def solve(self, group: int, stats: Stats | None = None) -> None:
        """Compress the layers of a group, from given statistics or those gathered, and write them back.

        An expert that saw too few tokens waits for `solve_rest`.
        """
        self._take(group, stats)
        self._solve_ready()

    def solve_all(self, known: Sequence[Stats] = ()) -> None:
        """Compress every group, from known statistics where there are any; owners solve theirs side by side."""
        for group in range(len(self.groups)):
            self._take(group, known[group] if known else None)
        self._solve_ready()
        self.solve_rest()

    def _take(self, group: int, stats: Stats | None) -> None:
        """Bring a group's statistics to its owner."""
        self.solved.add(group)
        here, gathered, roles = ranks(), stats is None, self._roles(group)
        if stats is None:
            stats, self._sums[group] = self._sums[group].stats(), self._new_sums()  # the old ones are spent; free them
        if roles is not None and (gathered or here.first):  # known statistics are of all ranks already
            pool = self._pools.setdefault(roles, {})
            pool |= {name: pool[name] + part if name in pool else part for name, part in stats.items()}
        self._tokens[group] = {name: part.n_tokens for name, part in stats.items()}
        if gathered:
            self._tokens[group], stats = self._collected(group, stats, keep=roles is not None)
        if self._suffices(group):
            self._ready[group] = stats
        else:
            self._waiting.append(group)

    def _collected(self, group: int, stats: Stats, keep: bool = False) -> tuple[dict[str, int], Stats]:
        like = self.groups[group][0].weight
        return ranks().collect(stats, self._owners[group], list(self.request.mixing), like, keep=keep)

    def _solve_ready(self) -> None:
        """Solve the groups that this rank owns, and exchange the new weights of all."""
        here, ready, self._ready = ranks(), self._ready, {}
        groups = list(ready)
        for group in groups:
            stats = ready.pop(group)
            self._old[group] = [layer.weight.clone() for layer in self.groups[group]]
            if self._owners[group] == here.rank:
                self._solve(group, stats)
        for group in groups if here.world > 1 else ():
            for layer in self.groups[group]:
                layer.write(here.spread(layer.weight, self._owners[group]))

    def solve_rest(self) -> bool:
        """Compress the groups that text hardly reached, or not at all; returns whether there were any.

        They get the statistics of all experts of their layer, or, where no expert was reached, equal ones for all
        inputs, with which methods prune by magnitude or round to nearest.
        """
        waiting = [group for group in range(len(self.groups)) if group not in self.solved] + self._waiting
        pools: dict[tuple[str, ...] | None, tuple[int, dict[str, int], Stats]] = {}
        for group in waiting:
            roles = self._roles(group)
            if roles not in pools:  # what an expert lacks, its owner has for all like it
                pools[roles] = self._owners[group], *self._collected(group, self._pools.get(roles, {}))
            self._owners[group], tokens, pool = pools[roles]
            reached = any(self.request.mixing[name] > 0 for name in tokens)
            self.solved.add(group)
            self._fallbacks[group] = "experts of the layer" if reached else "weights alone"
            self._ready[group] = pool if reached else {}
        self._solve_ready()
        self._waiting = []
        return bool(waiting)

    def _roles(self, group: int) -> tuple[str, ...] | None:
        """Return what experts' layers have in common with those of other experts; None for layers of no expert."""
        layers = self.groups[group]
        return None if layers[0].expert is None else tuple(layer.role for layer in layers)

    def _suffices(self, group: int) -> bool:
        """Return whether statistics are of enough tokens: of an expert's, as many as it has inputs."""
        if self.request.solver.reads == "nothing":
            return True
        tokens = sum(count for name, count in self._tokens[group].items() if self.request.mixing[name] > 0)
        least = EXPERT_TOKENS * self.groups[group][0].weight.shape[1] if self._roles(group) is not None else 1
        return tokens >= least

    def _solve(self, group: int, stats: Stats) -> None:
        layers, request = self.groups[group], self.request
        old = self._old[group]
        known = [self.evidence.get(layer.module, Evidence()) for layer in layers]
        gradients, keep = ([getattr(part, name) for part in known] for name in ("gradients", "keep"))
        mixed = _mixed(stats, request.mixing)
        if mixed is None and request.solver.reads != "nothing":
            mixed = InputStats(torch.eye(old[0].shape[1], device=old[0].device), n_tokens=1)
        options = dict(request.options) | ({"damp": self.damp(group)} if request.solver.damped else {})

        def solve(mixed: InputStats | DiagonalStats | None) -> tuple[list[Tensor], dict]:
            return request.solver.solve(old, Evidence(mixed, gradients, keep), self.target, **options)

        if request.balance == "worst" and len(stats) > 1:
            new, facts, shares = balanced(old, stats, solve)
            facts = facts | {MIX_WEIGHT + name: share for name, share in shares.items()}
        else:
            new, facts = solve(mixed)
            if request.balance:
                facts = facts | {MIX_WEIGHT + name: share for name, share in request.mixing.items()}
        for layer, weight in zip(layers, new, strict=True):
            layer.write(weight)
        written = [layer.weight for layer in layers]
        overflow = [~weight.sum(dtype=torch.float32).isfinite() for weight in written]
        facts = {"finite": _all_finite(stats), "overflow": overflow} | facts
        facts["kept"] = [torch.count_nonzero(weight) for weight in written]
        if request.measure_loss and stats and all(isinstance(part, InputStats) for part in stats.values()):
            facts["losses"] = {name: _layer_losses(old, written, part) for name, part in stats.items()}
        self._facts[group] = facts
        self._diagonals[group] = {name: part.diagonal.clone() for name, part in stats.items()}

    def damp(self, group: int) -> float:
        """Return the damping this group is solved with."""
        return self.damps.get(group, self.request.damp)

    def settle(self) -> tuple[list[LayerReport], int | None]:
        """Return the reports, and the group whose factorization failed, if any; this waits for the device once.

        Raises `InputError` naming the layer whose inputs or new weights are not finite.
        """
        marks = [{name: _fingerprint(part) for name, part in self._diagonals[group].items()} for group in self._facts]
        own = dict(zip(self._facts, zip(_to_host(list(self._facts.values())), marks, strict=True), strict=True))
        told = {group: pair for by_group in ranks().all(own) for group, pair in by_group.items()}
        reports: list[LayerReport] = []
        for group, (facts, statistics) in sorted(told.items()):
            _check_inputs(f"{self.index}.{self.groups[group][0].name}", facts.pop("finite"))
            if facts.pop("failed", False):
                return reports, group  # what came after was computed from garbage
            for layer, overflow in zip(self.groups[group], facts.pop("overflow"), strict=True):
                if overflow:
                    raise InputError(
                        f"the new weights of layer {self.index}.{layer.name} do not fit into {layer.weight.dtype}; "
                        "load the model in bfloat16 or float32"
                    )
            reports += self._reports(group, facts, statistics)
        return reports, None

    def _reports(self, group: int, facts: dict, statistics: dict[str, str]) -> list[LayerReport]:
        kept, losses = facts.pop("kept"), facts.pop("losses", {})
        reports = []
        for n, (layer, old) in enumerate(zip(self.groups[group], self._old[group], strict=True)):
            lost = {source: pairs[n] for source, pairs in losses.items()}
            whole = sum(self.request.mixing[source] * output for source, (_, output) in lost.items())
            part = sum(self.request.mixing[source] * error for source, (error, _) in lost.items())
            reports.append(
                LayerReport(
                    name=f"{self.index}.{layer.name}",
                    sparsity=1 - kept[n] / old.numel(),
                    relative_error=(part / whole if whole > 0 else 0.0) if lost else None,
                    losses={source: error for source, (error, _) in lost.items()},
                    facts={name: value[n] if isinstance(value, list) else value for name, value in facts.items()},
                    statistics=dict(statistics),
                    tokens=dict(self._tokens.get(group, {})),
                    fallback=self._fallbacks.get(group, "") if self.request.solver.needs_text else "",
                )
            )
        return reports

    def restore(self) -> None:
        """Write the old weights back."""
        for group, old in self._old.items():
            for layer, weight in zip(self.groups[group], old, strict=True):
                layer.write(weight)


def _cost(request: Request, group: Sequence[LinearLayer]) -> float:
    """Operations of a group's solution, and one for each weight."""
    d_in, rows = group[0].weight.shape[1], sum(len(layer.weight) for layer in group)
    cubic, by_rows = request.solver.cost
    return cubic * d_in**3 + by_rows * rows * d_in**2 + rows * d_in


def _fingerprint(diagonal: Tensor) -> str:
    return hashlib.sha256(diagonal.cpu().numpy().tobytes()).hexdigest()[:16]


def _to_host(tree):
    """Return the same nested lists and dictionaries with one-element tensors as numbers, fetched in one transfer."""
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


def _layer_losses(before: Sequence[Tensor], after: Sequence[Tensor], stats: InputStats) -> list[tuple[Tensor, Tensor]]:
    """Return tr(dW G dW^T) / n and tr(W G W^T) / n of each layer of a group, as tensors.

    The first is the squared output error per token, the second the squared output. Equation eq-layer-loss of the book.
    """
    old = torch.cat([weight.float() for weight in before])
    change = old - torch.cat([weight.float() for weight in after])
    rows = [len(weight) for weight in before]
    error, output = (_row_energies(matrix, stats.gram).split(rows) for matrix in (change, old))
    return [(e.sum() / stats.n_tokens, o.sum() / stats.n_tokens) for e, o in zip(error, output, strict=True)]


def _row_energies(matrix: Float[Tensor, "rows d_in"], gram: Float[Tensor, "d_in d_in"]) -> Float[Tensor, " rows"]:
    """Return m G m^T for each row m; G is symmetric, so the products stay on one side of its diagonal.

    >>> _row_energies(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.5], [0.5, 1.0]])).tolist()
    [7.0]
    """
    total = matrix.new_zeros(len(matrix))
    for left, right in panels(len(gram), _PANEL):
        product = matrix[:, left:right] @ gram[left:right, left:right]
        if left:
            product.addmm_(matrix[:, :left], gram[:left, left:right], alpha=2)
        total += torch.linalg.vecdot(product, matrix[:, left:right])
    return total
