"""Mix weights that are found, not given: those with which the source that loses most loses least.

A mix weight is a guess, and the right one differs by layer: where two texts look alike to a layer any weight will do,
where they differ one of them pays. The Gram matrices of the sources are kept apart, so that a layer can be solved with
several mixes without another pass over the text. Each round solves with the present weights, measures the relative
output error on every source, and raises the weight of a source by its error (multiplicative weights, Freund & Schapire
1997, for the game between the solver and the sources). The best round is kept. Equal weights are the first round, so
the worst source is never worse off than with them.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from crosscal.calibration.statistics import InputStats, mix

BALANCES = ("worst",)
_ROUNDS = 6


def balanced(
    weights: Sequence[Float[Tensor, "_ d_in"]],
    stats: Mapping[str, InputStats],
    solve: Callable[[InputStats], tuple[list[Tensor], dict]],
) -> tuple[list[Tensor], dict, dict[str, float]]:
    """Return the new weights, facts and mix weights of the round whose worst source has the least relative error.

    `stats` are those of each source, `solve` compresses the weights with a mix of them. The relative error of a source
    is tr(dW G dW^T) / tr(W G W^T). Waits for the device once a round.

    >>> loud = {"a": InputStats(torch.diag(torch.tensor([1.0, 0.1])), 1), "b": InputStats(torch.eye(2), 1)}
    >>> _, _, shares = balanced([torch.eye(2)], loud, lambda mixed: ([torch.diag(mixed.diagonal > 0.6).float()], {}))
    >>> sum(shares.values())
    1.0
    """
    old = torch.cat([weight.float() for weight in weights])
    whole = {name: _energy(old, part).item() for name, part in stats.items()}
    steps, least = dict.fromkeys(stats, 0.0), math.inf
    best: tuple[list[Tensor], dict, dict[str, float]] = [], {}, {}
    for _ in range(_ROUNDS):
        total = math.fsum(math.exp(step) for step in steps.values())
        shares = {name: math.exp(step) / total for name, step in steps.items()}
        new, facts = solve(mix(stats, shares))
        change = old - torch.cat([weight.float() for weight in new])
        lost = torch.stack([_energy(change, part) for part in stats.values()]).tolist()
        errors = {name: loss / whole[name] if whole[name] > 0 else 0.0 for name, loss in zip(stats, lost, strict=True)}
        if not best[0] or max(errors.values()) < least:
            best, least = (new, facts, shares), max(errors.values())
        mean = math.fsum(errors.values()) / len(errors)
        if not (0 < mean < math.inf):
            break
        steps = {name: step + errors[name] / mean for name, step in steps.items()}
    return best


def _energy(matrix: Float[Tensor, "rows d_in"], stats: InputStats) -> Float[Tensor, ""]:
    """tr(M G M^T) per token."""
    return ((matrix @ stats.gram) * matrix).sum() / stats.n_tokens
