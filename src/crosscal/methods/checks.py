"""`check_method`: the properties that every method must have, tried on made-up layers."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from crosscal.calibration.statistics import DiagonalStats, InputStats, WeightGradient, mix
from crosscal.errors import InputError
from crosscal.methods.registry import Evidence, Method
from crosscal.types import Grid, LowRank, NofM, PerGroup, SparseGrid, Target, Unstructured, Width

D_IN = 72  # 4.5 groups of 16
_TARGETS: dict[type, list[Target]] = {
    Unstructured: [Unstructured(0.3), Unstructured(0.5)],
    NofM: [NofM(2, 4), NofM(1, 4), NofM(4, 8)],
    Grid: [Grid(4), Grid(3, PerGroup(16)), Grid(4, PerGroup(16), symmetric=True)],
    SparseGrid: [SparseGrid(NofM(2, 4), Grid(4, PerGroup(16))), SparseGrid(Unstructured(0.5), Grid(3))],
    LowRank: [LowRank(0.5), LowRank(1.0)],
    Width: [Width(0.5), Width(1.0)],
}


def check_method(method: Method) -> list[str]:
    """Try a method on made-up layers and return the names of the properties that hold.

    Layers are float32 and bfloat16, with dead inputs, with fewer tokens than inputs and with widths that no group
    divides; targets are those the method names. Raises `AssertionError` that says which property fails, for which
    target, at the first that does.

    >>> from crosscal.methods.registry import find_method
    >>> check_method(find_method("magnitude"))[:2]
    ['shapes, dtypes and arguments stay as they were', 'the same call gives the same bits']
    """
    for prove in _PROPERTIES:
        for target in [target for kind in method.targets for target in _TARGETS[kind]]:
            prove(_Trial(method, target))
    names = [prove.__name__.strip("_").replace("_", " ") for prove in _PROPERTIES]
    return [name.replace("shapes dtypes", "shapes, dtypes") for name in names]


@dataclass(frozen=True)
class _Trial:
    """A method, the target it is tried with, and the pattern and the grid of that target, if it has them."""

    method: Method
    target: Target

    @property
    def d_in(self) -> int:
        """Number of inputs of the layers: one that no group divides, unless the method refuses it."""
        return D_IN if self.takes(D_IN, self.target) else 64

    def takes(self, d_in: int, target: Target) -> bool:
        """Return whether the method takes layers with so many inputs."""
        try:
            self.method.check(d_in, target, {})
        except InputError:
            return False
        return True

    def layer(self, kind: str = "", d_in: int = 0, rows: tuple[int, ...] = (16,), seed: int = 0):
        """Weights that share an input, and its statistics; `kind` is "dead" (inputs) or "few" (tokens)."""
        return _layer(kind, d_in or self.d_in, rows, seed)

    @property
    def pattern(self) -> Unstructured | NofM | None:
        pattern = self.target.pattern if isinstance(self.target, SparseGrid) else self.target
        return pattern if isinstance(pattern, (Unstructured, NofM)) else None

    @property
    def grid(self) -> Grid | None:
        grid = self.target.grid if isinstance(self.target, SparseGrid) else self.target
        return grid if isinstance(grid, Grid) else None

    def solve(self, weights: list[Tensor], stats: InputStats, target: Target | None = None, **options) -> list[Tensor]:
        return self.outcome(weights, stats, target, **options)[0]

    def outcome(self, weights: list[Tensor], stats: InputStats, target: Target | None = None, **options):
        """The new weights and the facts, from as much evidence as the method reads."""
        known = {"nothing": None, "diagonal": DiagonalStats(stats.diagonal, stats.n_tokens), "gram": stats}
        gradients = [_gradient(self.method, weight) for weight in weights] if self.method.gradients else None
        damp = {"damp": 0.01} if self.method.damped else {}
        evidence = Evidence(known[self.method.reads], gradients)
        return self.method.solve(weights, evidence, target or self.target, **(damp | options))

    def require(self, holds: bool | Tensor, fault: str) -> None:
        if not holds:
            raise AssertionError(f"{self.method.name}, {self.target}: {fault}")


def _layer(kind: str, d_in: int, rows: tuple[int, ...], seed: int):
    generator = torch.Generator().manual_seed(seed)
    tokens = d_in // 4 if kind == "few" else 128
    inputs = torch.randn(tokens, d_in, generator=generator) @ torch.randn(d_in, d_in, generator=generator)
    inputs *= torch.linspace(0.2, 2.0, d_in)
    if kind == "dead":
        inputs[:, ::17] = 0
    weights = [torch.randn(n, d_in, generator=generator) for n in rows]
    return weights, InputStats(inputs.T @ inputs, tokens)


def _gradient(method: Method, weight: Tensor) -> WeightGradient:
    """Made-up means over four windows, of gradients that are smaller than the weights."""
    windows = 1e-3 * torch.randn(4, *weight.shape, generator=torch.Generator().manual_seed(len(weight)))
    term = None if method.term is None else method.term(windows, weight.float()).mean(dim=0)
    return WeightGradient(windows.square().mean(dim=0), len(windows), term)


def _shapes_dtypes_and_arguments_stay_as_they_were(trial: _Trial) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        weights, stats = trial.layer(d_in=576, rows=(12, 5))
        weights = [weight.to(dtype) for weight in weights]
        before, gram = [weight.clone() for weight in weights], stats.gram.clone()
        grid = Grid(4, PerGroup(128))  # 4.5 groups
        target = {Grid: grid, SparseGrid: SparseGrid(NofM(2, 4), grid)}.get(type(trial.target), trial.target)
        target = target if trial.takes(576, target) else trial.target
        for old, new, copy in zip(weights, trial.solve(weights, stats, target), before, strict=True):
            trial.require(new.shape == old.shape and new.dtype == dtype, f"{new.dtype} {tuple(new.shape)} comes back")
            trial.require(new.isfinite().all(), f"a {dtype} weight becomes NaN or infinite")
            trial.require(torch.equal(old, copy), "the given weight is changed")
        trial.require(torch.equal(stats.gram, gram), "the given statistics are changed")


def _the_same_call_gives_the_same_bits(trial: _Trial) -> None:
    first, again = (trial.solve(*trial.layer())[0] for _ in range(2))
    defaults = trial.solve(*trial.layer(), trial.target, **trial.method.options)[0]
    trial.require(torch.equal(first, again), "two calls differ")
    trial.require(torch.equal(first, defaults), "an option left out is not its default")


def _zeros_are_as_many_as_asked_for(trial: _Trial) -> None:
    if trial.pattern is None:
        return
    weights, stats = trial.layer()
    tied = [torch.ones(4, trial.d_in)], InputStats(torch.eye(trial.d_in), 1)
    for case, (weight, of) in enumerate([(weights, stats), tied]):
        zeros = trial.solve(weight, of)[0] == 0
        asked = trial.pattern.sparsity * zeros.numel()
        if isinstance(trial.pattern, NofM) and trial.grid is None:
            groups = zeros.reshape(-1, trial.pattern.m).sum(dim=1)
            trial.require((groups == trial.pattern.m - trial.pattern.n).all(), "a group keeps more or less than N of M")
        # A count may be cut off for each row, and a threshold may take its own weight and those that equal it.
        trial.require(zeros.sum() > asked - len(zeros), "fewer weights are zero than asked for")
        most = zeros.numel() if case or trial.grid else asked + 1e-6 + len(zeros)
        trial.require(zeros.sum() <= most, "more weights are zero than asked for")


def _sparsity_0_keeps_every_bit_and_1_keeps_nothing(trial: _Trial) -> None:
    if trial.pattern is None or trial.grid is not None:
        return
    weights, stats = trial.layer()
    none, every = (NofM(4, 4), NofM(0, 4)) if isinstance(trial.pattern, NofM) else (Unstructured(0), Unstructured(1))
    trial.require(torch.equal(trial.solve(weights, stats, none)[0], weights[0]), "sparsity 0 changes a weight")
    trial.require(not trial.solve(weights, stats, every)[0].any(), "sparsity 1 keeps a weight")


def _dead_inputs_few_tokens_and_zero_weights_do_no_harm(trial: _Trial) -> None:
    for kind in ("dead", "few"):
        new, facts = trial.outcome(*trial.layer(kind))
        trial.require(not facts.get("failed", False), f"the factorization fails with {kind} inputs or tokens")
        trial.require(new[0].isfinite().all(), f"a weight becomes NaN or infinite with {kind} inputs or tokens")
    _, stats = trial.layer()
    trial.require(not trial.solve([torch.zeros(4, trial.d_in)], stats)[0].any(), "a weight of zeros becomes another")


def _the_number_of_tokens_and_the_scale_of_inputs_do_not_matter(trial: _Trial) -> None:
    weights, stats = trial.layer()
    expected = trial.solve(weights, stats)[0]
    for tokens in (stats.n_tokens, 16 * stats.n_tokens):
        other = InputStats(16 * stats.gram, tokens)
        trial.require(torch.equal(trial.solve(weights, other)[0], expected), "scaled statistics give other weights")


def _a_mix_of_half_and_half_is_the_pooled_text(trial: _Trial) -> None:
    weights, a = trial.layer()
    b = trial.layer(seed=1)[1]
    mixed, pooled = mix({"a": a, "b": b}, {"a": 0.5, "b": 0.5}), a + b
    trial.require(torch.equal(*(trial.solve(weights, s)[0] for s in (mixed, pooled))), "a mix is not the pooled text")


def _weights_lie_on_the_grid_and_have_the_rank(trial: _Trial) -> None:
    weights, stats = trial.layer()
    new = trial.solve(weights, stats)[0]
    if trial.grid is not None and trial.method.packs:
        size = trial.grid.group.size if isinstance(trial.grid.group, PerGroup) else trial.d_in
        most = max(len(row.unique()) for group in new.split(size, dim=1) for row in group)
        trial.require(most <= 2**trial.grid.bits, f"{most} levels in a group of {trial.grid.bits} bits")
    if trial.grid is not None and trial.pattern is None:
        fine = trial.solve(weights, stats, Grid(16))[0]
        trial.require((fine - weights[0]).abs().max() < 5e-3, "16 bits are far from the weights")
    if isinstance(trial.target, LowRank) and not trial.method.linked:
        values = torch.linalg.svdvals(new)
        rank = trial.target.rank(*new.shape)
        trial.require((values[rank:] < 1e-4 * values[0]).all(), f"the rank is above {rank}")


def _facts_and_refusals_are_what_the_engine_expects(trial: _Trial) -> None:
    _, facts = trial.outcome(*trial.layer())
    if trial.method.damped:
        trial.require("failed" in facts, "a damped method lacks the fact 'failed'")
    if trial.pattern is not None:
        bad = NofM(2, 5) if trial.grid is None else SparseGrid(NofM(2, 5), trial.grid)
        wrong = isinstance(trial.pattern, NofM) and trial.takes(trial.d_in, bad)
        trial.require(not wrong, f"check lets {bad} pass for {trial.d_in} inputs")


_PROPERTIES: tuple[Callable[[_Trial], None], ...] = (
    _shapes_dtypes_and_arguments_stay_as_they_were,
    _the_same_call_gives_the_same_bits,
    _zeros_are_as_many_as_asked_for,
    _sparsity_0_keeps_every_bit_and_1_keeps_nothing,
    _dead_inputs_few_tokens_and_zero_weights_do_no_harm,
    _the_number_of_tokens_and_the_scale_of_inputs_do_not_matter,
    _a_mix_of_half_and_half_is_the_pooled_text,
    _weights_lie_on_the_grid_and_have_the_rank,
    _facts_and_refusals_are_what_the_engine_expects,
)
