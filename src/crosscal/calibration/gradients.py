"""Moments of a weight's loss gradient over windows of text; like input statistics, they mix over sources."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from crosscal.calibration.statistics import check_weights
from crosscal.errors import InputError


@dataclass(frozen=True)
class WeightGradient:
    """The `mean` of dL/dW and of its elementwise `square` over `n_windows` windows, for one weight; float32.

    L is the mean cross-entropy in nats of one window's next tokens.
    """

    mean: Float[Tensor, "d_out d_in"]
    square: Float[Tensor, "d_out d_in"]
    n_windows: int


def mix_gradients(parts: Mapping[str, WeightGradient], weights: Mapping[str, float]) -> WeightGradient:
    """The weighted average over sources of both moments; `n_windows` counts the windows of the sources that count.

    Raises `InputError` unless both mappings name the same sources, weights are >= 0 and sum to 1, and every source
    with a positive weight has windows, as `calibration.mix` does.

    >>> general = WeightGradient(torch.ones(1, 2), torch.ones(1, 2), n_windows=4)
    >>> domain = WeightGradient(torch.full((1, 2), 3.0), torch.full((1, 2), 9.0), n_windows=2)
    >>> mixed = mix_gradients({"c4": general, "pubmed": domain}, {"c4": 0.5, "pubmed": 0.5})
    >>> mixed.mean.tolist(), mixed.square.tolist(), mixed.n_windows
    ([[2.0, 2.0]], [[5.0, 5.0]], 6)
    """
    check_weights(parts, weights)
    for name, part in parts.items():
        if weights[name] > 0 and part.n_windows < 1:
            raise InputError(f"source '{name}' has no windows; give it more text")
    used = [(weights[name], part) for name, part in parts.items() if weights[name] > 0]
    mean, square = sum(share * part.mean for share, part in used), sum(share * part.square for share, part in used)
    return WeightGradient(mean, square, sum(part.n_windows for _, part in used))
