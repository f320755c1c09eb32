"""Mix weights that are found, not given: those with which the source that loses most loses least.

A mix weight is a guess, and the right one differs by layer: where two texts look alike to a layer any weight will do,
where they differ one of them pays. The Gram matrices of the sources are kept apart, so that a layer can be solved with
several mixes without another pass over the text. Each round solves with the present weights, measures the relative
output error on every source, and raises the weight of a source by its error (multiplicative weights, Freund & Schapire
1997, for the game between the solver and the sources). The best round is kept. Equal weights are the first round, so
the worst source is never worse off than with them.

"worst" plays the game for each group of layers that share an input, "model" once for all of them, with the mean of the
layers' relative errors: one set of weights, which can be told, compared and used again.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from crosscal.calibration.statistics import InputStats, mix

BALANCES = ("worst", "model")
_ROUNDS = 6
T = TypeVar("T")


def least_worst(
    sources: Collection[str], play: Callable[[Mapping[str, float]], tuple[T, Mapping[str, float]]]
) -> tuple[T, dict[str, float]]:
    """Return what came of the round whose worst source has the least error, and that round's mix weights.

    `play` tries mix weights: it returns what comes of them and the relative error on every source.

    >>> least_worst(["a", "b"], lambda shares: ("tried", {"a": 2 * shares["b"], "b": shares["a"]}))[1]["b"] < 0.5
    True
    """
    steps, least = dict.fromkeys(sources, 0.0), math.inf
    best: tuple[T, dict[str, float]] | None = None
    for _ in range(_ROUNDS):
        total = math.fsum(math.exp(step) for step in steps.values())
        shares = {name: math.exp(step) / total for name, step in steps.items()}
        result, errors = play(shares)
        if best is None or max(errors.values()) < least:
            best, least = (result, shares), max(errors.values())
        mean = math.fsum(errors.values()) / len(errors)
        if not (0 < mean < math.inf):
            break
        steps = {name: step + errors[name] / mean for name, step in steps.items()}
    assert best is not None
    return best


def balanced(
    weights: Sequence[Float[Tensor, "_ d_in"]],
    stats: Mapping[str, InputStats],
    solve: Callable[[InputStats], tuple[list[Tensor], dict]],
) -> tuple[list[Tensor], dict, dict[str, float]]:
    """Return the new weights, facts and mix weights of the best round for weights that share an input.

    `stats` are those of each source, `solve` compresses the weights with a mix of them. Waits for the device once a
    round.

    >>> loud = {"a": InputStats(torch.diag(torch.tensor([1.0, 0.1])), 1), "b": InputStats(torch.eye(2), 1)}
    >>> _, _, shares = balanced([torch.eye(2)], loud, lambda mixed: ([torch.diag(mixed.diagonal > 0.6).float()], {}))
    >>> sum(shares.values())
    1.0
    """

    def play(shares: Mapping[str, float]):
        new, facts = solve(mix(stats, shares))
        return (new, facts), relative_errors(weights, new, stats)

    (new, facts), shares = least_worst(stats, play)
    return new, facts, shares


def relative_errors(
    before: Sequence[Float[Tensor, "_ d_in"]],
    after: Sequence[Float[Tensor, "_ d_in"]],
    stats: Mapping[str, InputStats],
) -> dict[str, float]:
    """Return tr(dW G dW^T) / tr(W G W^T) on every source; 0 where the layer puts nothing out.

    >>> relative_errors([torch.eye(2)], [torch.zeros(2, 2)], {"a": InputStats(torch.eye(2), n_tokens=1)})
    {'a': 1.0}
    """
    old, new = (torch.cat([weight.float() for weight in part]) for part in (before, after))
    pairs = torch.stack([torch.stack([_energy(matrix, s) for matrix in (old - new, old)]) for s in stats.values()])
    return {name: lost / whole if whole > 0 else 0.0 for name, (lost, whole) in zip(stats, pairs.tolist(), strict=True)}


def _energy(matrix: Float[Tensor, "rows d_in"], stats: InputStats) -> Float[Tensor, ""]:
    """tr(M G M^T) per token."""
    return ((matrix @ stats.gram) * matrix).sum() / stats.n_tokens
