"""Chapter 7: what several ranks would take for models of any size: computed from the work, and tried on small ones.

For one block, T tokens of S sources, N ranks, layers in groups of width d with `rows` outputs, b bytes a weight:

    forward    2 T sum d rows / N                            sums      T sum d^2 / N, half of each Gram matrix
    solution   sum over an owner's groups of 4/3 d^3 + (1 + 2 S) rows d^2, as for SparseGPT and its losses
    exchange   (N - 1) / N S 4 d (d + 128) / 2 for each group, again for those that a rank owns, b rows d for others'

With the schedule `block` owners solve side by side and the forward pass is run twice; with `sublayer` groups wait for
each other. An expert sees its part of the tokens.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

PANEL = 128  # columns of a Gram matrix that are sent at a time
SLACK = 1.3  # over the memory that can be counted
BYTES = 2  # of a weight or hidden state, bfloat16


class Group(NamedTuple):
    """Layers that share an input: its width, their outputs, how many groups are alike, and their part of the tokens."""

    d_in: int
    rows: int
    alike: int = 1
    seen: float = 1.0

    @property
    def cost(self) -> float:
        """Operations of one solution without losses, by which owners are chosen."""
        return 4 / 3 * self.d_in**3 + self.rows * self.d_in**2 + self.rows * self.d_in

    def solution(self, n_sources: int) -> float:
        """Operations of one solution and its losses."""
        return 4 / 3 * self.d_in**3 + (1 + 2 * n_sources) * self.rows * self.d_in**2

    @property
    def sent(self) -> int:
        """Numbers of one Gram matrix that one rank sends; narrow ones are sent whole."""
        return self.d_in * (self.d_in + PANEL) // 2 if self.d_in >= 3 * PANEL else self.d_in**2


class Model(NamedTuple):
    """A model's blocks, all alike."""

    name: str
    blocks: int
    hidden: int
    groups: tuple[Group, ...]

    @property
    def weights(self) -> int:
        """Weights of one block."""
        return sum(group.alike * group.rows * group.d_in for group in self.groups)


def llama(name: str, blocks: int, hidden: int, intermediate: int, keys: int) -> Model:
    """Return a model of Llama's shape; `keys` is the width of its keys and values."""
    attention = Group(hidden, hidden + 2 * keys), Group(hidden, hidden)
    return Model(name, blocks, hidden, (*attention, Group(hidden, 2 * intermediate), Group(intermediate, hidden)))


# Grattafiori et al. 2024 (arXiv 2407.21783); Yang et al. 2025 (arXiv 2505.09388), of whose 128 experts a token uses 8.
MODELS = (
    llama("8B (Llama 3.1)", 32, 4096, 14336, 1024),
    llama("70B (Llama 3.1)", 80, 8192, 28672, 1024),
    llama("405B (Llama 3.1)", 126, 16384, 53248, 1024),
    Model(
        "235B, mixture of experts (Qwen3)",
        94,
        4096,
        (Group(4096, 9216), Group(8192, 4096), Group(4096, 3072, 128, 1 / 16), Group(1536, 4096, 128, 1 / 16)),
    ),
)


class Rates(NamedTuple):
    """Operations in a second of products in bfloat16 and in float32, and bytes in a second into one rank."""

    products: float
    solution: float
    link: float


# Assumed: 40 % of the peak of an H100 SXM's data sheet in bfloat16, 30 % in float32, 40 GB/s between machines.
H100 = Rates(0.4 * 989e12, 0.3 * 67e12, 40e9)


def owned(model: Model, n: int) -> list[list[Group]]:
    """Return the groups of a block that each rank owns: the costliest first to whoever has least to do."""
    load, groups = [0.0] * n, [[] for _ in range(n)]
    each = [group for group in model.groups for _ in range(group.alike)]
    for group in sorted(each, key=lambda group: -group.cost):
        rank = min(range(n), key=lambda rank: (load[rank], rank))
        load[rank] += group.cost
        groups[rank].append(group)
    return groups


def received(model: Model, n: int, n_sources: int, itemsize: int = BYTES) -> list[int]:
    """Return the bytes that each rank receives for one block.

    >>> received(Model("tiny", 1, 10, (Group(10, 20),)), 2, 1)
    [400, 600]
    """
    by_rank = owned(model, n)
    every = sum(group.sent for groups in by_rank for group in groups)  # each rank adds a slice of all sums
    own = [sum(group.sent for group in groups) for groups in by_rank]
    weights = [sum(group.rows * group.d_in for group in groups) for groups in by_rank]
    sums = [4 * n_sources * (n - 1) * (every + part) // n for part in own]
    return [part + itemsize * (model.weights - held) for part, held in zip(sums, weights, strict=True)]


def seconds(model: Model, n: int, tokens: int, n_sources: int, rates: Rates, schedule: str) -> float:
    """Return the time of a whole model; loading, reading and writing are not in it."""
    passes = 2 if schedule == "block" else 1
    forward = passes * 2 * tokens * sum(g.alike * g.seen * g.d_in * g.rows for g in model.groups)
    sums = tokens * sum(g.alike * g.seen * g.d_in**2 for g in model.groups)
    loads = [sum(group.solution(n_sources) for group in groups) for groups in owned(model, n)]
    solution = max(loads) if schedule == "block" else sum(loads)
    exchange = max(received(model, n, n_sources)) / rates.link if n > 1 else 0.0
    return model.blocks * ((forward + sums) / n / rates.products + solution / rates.solution + exchange)


def memory(model: Model, n: int, tokens: int, n_sources: int) -> float:
    """Return the bytes on each rank: two blocks, what its windows leave around them, sums, and one solution."""
    widest = max(group.d_in for group in model.groups)
    waiting = tokens / n * BYTES * (2 * model.hidden + widest)
    sums = 4 * n_sources * sum(group.alike * group.d_in**2 for group in model.groups)
    solution = 4 * (3 * widest**2 + 4 * max(group.rows * group.d_in for group in model.groups))
    return 2 * model.weights * BYTES + SLACK * (waiting + sums + solution)


class Trial(NamedTuple):
    """A stored trial of the formulas: its facts, and points measured with several numbers of ranks."""

    facts: Mapping
    points: Sequence[Mapping]

    def misfits(self) -> dict[tuple[int, str], float]:
        """Return measured over computed CPU seconds of the busiest rank, by number of ranks and schedule.

        Computed from one rank's: what it took beside solving is divided by the ranks, solving as by owners' costs.
        """
        ratios = {}
        for point in self.points:
            (one,) = [p for p in self.points if p["ranks"] == 1 and p["schedule"] == point["schedule"]]
            ((total,), (solving,)), n = (one["cpu_seconds"], one["solve_seconds"]), point["ranks"]
            loads = [sum(group.cost for group in groups) for groups in owned(self.model, n)]
            computed = (total - solving) / n + solving * max(loads) / sum(loads)
            ratios[n, point["schedule"]] = max(point["cpu_seconds"]) / computed
        return ratios

    @property
    def model(self) -> Model:
        """The model that was compressed."""
        sizes = self.facts["shape"]
        return llama("trial", sizes["blocks"], sizes["hidden"], sizes["intermediate"], sizes["hidden"])


def read_trials(folder: Path) -> list[Trial]:
    """Return the trials stored in a folder that hold one rank's points."""
    bodies = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return [Trial(body, body["points"]) for body in bodies if any(p["ranks"] == 1 for p in body["points"])]
