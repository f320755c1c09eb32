"""Width: drop whole channels of feed-forward layers, so that the model that is left is smaller for every program.

A channel j of a feed-forward layer is column j of the matrix that reads the channels (`down`) and a row of those that
write them. Dropping the channels whose output matters least and letting the others make up for them in `down` is least
squares again: with K the kept channels,

    W_down[:, K] <- (W_down G[:, K] + R W_down[:, K]) (G[K, K] + R)^-1,   R = damp * mean(diag G) * I,

where the damping pulls towards the weights as they were, not towards 0. What results is an ordinary dense model with a
smaller number of channels in its configuration.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscal.calibration.statistics import InputStats
from crosscal.errors import InputError
from crosscal.methods.masks import _check_finite
from crosscal.methods.registry import Evidence, Method
from crosscal.types import Width


def width(
    down: Float[Tensor, "d_out channels"],
    stats: InputStats,
    target: Width,
    *,
    compensate: bool = True,
    damp: float = 0.01,
) -> Float[Tensor, "d_out channels"]:
    """Zero the channels that matter least and let the others make up for them.

    Kept are the `target.channels(channels)` with the most output energy, G_jj ||W_:j||^2; of equal ones the first.
    Without `compensate` the others stay as they are. Equation eq-width of the book. Source: channels by energy as in
    FLAP (An et al. 2024, arXiv 2312.11983), made up for as in SliceGPT's and ZipLM's least squares; here on mixed
    statistics.

    Raises `InputError` for weights that are not finite, and a Gram matrix that no damping makes positive definite.

    >>> same = InputStats(torch.ones(16, 16) + 1e-4 * torch.eye(16), n_tokens=1)  # nearly the same in all channels
    >>> down = torch.tensor([[1.0] * 15 + [2.0]])
    >>> new = width(down, same, Width(0.5), damp=1e-5)
    >>> new.count_nonzero().item(), round(new.sum().item(), 2)
    (8, 17.0)
    """
    _check_finite(down)
    new, failed = _narrowed(down, stats, target.channels(down.shape[1]), compensate, damp)
    if failed:
        raise InputError(
            f"the Gram matrix is not positive definite with damping {damp:g}; use a larger one, or more text"
        )
    return new


def channel_energy(down: Float[Tensor, "d_out channels"], stats: InputStats) -> Float[Tensor, " channels"]:
    """Return the mean output energy of each channel, G_jj ||W_:j||^2 / n.

    >>> channel_energy(torch.tensor([[1.0, 2.0]]), InputStats(torch.eye(2), n_tokens=1)).tolist()
    [1.0, 4.0]
    """
    return down.float().square().sum(dim=0) * stats.mean_square


def _narrowed(down: Tensor, stats: InputStats, count: int, compensate: bool, damp: float) -> tuple[Tensor, Tensor]:
    """The weight with zeros for the channels that go, and whether making up for them failed."""
    kept = channel_energy(down, stats).argsort(descending=True, stable=True)[:count].sort().values
    new, values, failed = torch.zeros_like(down), down[:, kept], torch.zeros((), dtype=torch.bool, device=down.device)
    if compensate:
        values, failed = _compensated(down, stats, kept, damp)
    new[:, kept] = values
    return new, failed


def _compensated(
    down: Tensor, stats: InputStats, kept: Int[Tensor, " count"], damp: float
) -> tuple[Tensor, Bool[Tensor, ""]]:
    """`down` on the kept channels, so that it puts out what all channels did, as well as it can."""
    gram = stats.gram.float()
    pull = damp * gram.diagonal().mean()
    system, own = gram[kept][:, kept], down.float()[:, kept]
    dead: Bool[Tensor, " count"] = system.diagonal() == 0  # they keep their weights; where nothing pulls, by a 1
    pulls = torch.where(dead & (pull == 0), torch.ones_like(pull), pull)
    system.diagonal().add_(pulls)
    aim = down.float() @ gram[:, kept] + own * pulls
    factor, info = torch.linalg.cholesky_ex(system)
    return torch.cholesky_solve(aim.T, factor).T.to(down.dtype), info > 0


def _solve(
    weights: list[Tensor], evidence: Evidence, target: Width, *, compensate: bool = True, damp: float = 0.01
) -> tuple[list[Tensor], dict]:
    """`width` for the matrices that read the channels; the facts say how many of how many are kept."""
    channels = weights[0].shape[1]
    count = target.channels(channels)
    made = [_narrowed(weight, evidence.stats, count, compensate, damp) for weight in weights]
    failed = torch.stack([failed for _, failed in made]).any()
    return [new for new, _ in made], {
        "channels": float(channels),
        "channels kept": float(count),
        "failed": failed,
        "damp": damp,
    }


def _check(d_in: int, target: Width, options: Mapping[str, object]) -> None:
    """Raise `InputError` where so many channels, rounded, are all of them."""
    if target.share < 1 and target.channels(d_in) == d_in:
        raise InputError(f"{target} of {d_in} channels, rounded, is all {d_in} of them; give a smaller width")


METHOD = Method(
    "width",
    version=1,
    targets=(Width,),
    solve=_solve,
    reads="gram",
    damped=True,
    options={"compensate": True},
    check=_check,
    cost=(1.0, 2.0),
    label="Width",
    source="an2024",
    style=("#6B4C9A", "$W$"),
    place=120,
)
