"""Loss-aware masks: the loss decides which weights go, the layer's inputs decide how the others make up for them.

A layer's output error, what Wanda and SparseGPT look at, says nothing of whether that output matters. The second-order
change of the loss when a weight is set to zero does: with F the diagonal of the windows' empirical Fisher information,

    L(w_ij = 0) - L  ~  F_ij w_ij^2 / 2,     F = sum_s w_s F_s,    F_s = mean over windows of (dL_window / dW)^2,

one scale for the whole model, so that one threshold can compare weights of all layers (optimal brain damage, LeCun et
al. 1990; with blocks of F and one-shot, oBERT, Kurtic et al. 2022). F mixes over sources like a Gram matrix. What is
new here is the division of labour, and that both halves are mixed: the mask comes from the mixed Fisher information of
the loss, over the whole model, and SparseGPT's sweep on the mixed Gram matrix of the compressed stream makes up for it.
GBLM-Pruner (Das et al. 2023) and D-Pruner (Zhang et al. 2024) add gradients to a score within a matrix and update
nothing.

Gradients must not be merged over windows before they are squared: their mean is near zero where the model was trained
well, and says nothing of how sharp the loss is.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscal.calibration.statistics import InputStats, WeightGradient
from crosscal.errors import InputError, real_number
from crosscal.methods.linalg import _inverse_factor, _try_factor
from crosscal.methods.masks import _check_finite, _fraction_count, drop_mask
from crosscal.methods.registry import Evidence, Method
from crosscal.methods.sparsegpt import _check, _parts, _prune
from crosscal.methods.sweep import BLOCK
from crosscal.types import Grid, NofM, Pattern, SparseGrid, Unstructured


def fisher(
    weight: Float[Tensor, "d_out d_in"],
    stats: InputStats,
    gradient: WeightGradient,
    pattern: Pattern,
    *,
    grid: Grid | None = None,
    damp: float = 0.01,
    block: int = BLOCK,
) -> Float[Tensor, "d_out d_in"]:
    """Prune the weights that the loss misses least, F w^2, and let the others make up for it by SparseGPT's sweep.

    Weights compete across this matrix; `whole_model_masks` lets those of all layers compete, as `compress` does.
    Exactly floor(sparsity * size) go, or those of each N:M group of a row, and they are exactly 0. H and the sweep are
    those of `sparsegpt`, with the mask given; with a `grid`, so is the rounding of the weights that stay.
    Equation eq-fisher of the book. Source: the mask is that of optimal brain damage (LeCun et al. 1990).

    Raises `InputError` as `sparsegpt` does, and for a gradient of another shape than its weight.

    >>> stats = InputStats(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), n_tokens=2)
    >>> steep = WeightGradient(torch.tensor([[0.1, 9.0]]), n_windows=1)
    >>> fisher(torch.tensor([[1.0, 2.0]]), stats, steep, NofM(1, 2), damp=0.0).tolist()
    [[0.0, 2.5]]
    """
    _check_finite(weight)
    _check(weight.shape[1], pattern if grid is None else SparseGrid(pattern, grid), {"block": block})
    keep = _masks([weight], [gradient], pattern, whole_model=False, floor=0.0)
    return _prune([weight], _inverse_factor(stats, damp), pattern, grid, block, keep)[0]


def loss_increase(weight: Float[Tensor, "d_out d_in"], gradient: WeightGradient) -> Float[Tensor, "d_out d_in"]:
    """Return twice the predicted increase of the loss when a weight alone is set to zero: F w^2, in nats.

    Raises `InputError` for a gradient of another shape than its weight.
    """
    if gradient.square.shape != weight.shape:
        shapes = f"{tuple(gradient.square.shape)} and the weight {tuple(weight.shape)}"
        raise InputError(f"the gradient is {shapes}; give each weight its own gradient, as [d_out, d_in]")
    return gradient.square * weight.float().square()


def whole_model_masks(
    scores: Sequence[Float[Tensor, "_ _"]], pattern: Pattern, floor: float = 0.02
) -> list[Bool[Tensor, "_ _"]]:
    """Return the weights that stay in each matrix: those with the largest scores of the whole model.

    Unstructured: exactly floor(s * N) of all N weights go, one threshold for all, of equal scores the first; but each
    matrix keeps at least `floor` of its weights, or the share that stays on the whole if that is less: its best, so
    that no layer is emptied. N:M patterns have no choice between layers: the best N of each M.

    >>> from crosscal.types import Unstructured
    >>> scores = [torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])]
    >>> masks = whole_model_masks(scores, Unstructured(0.5), floor=0.0)
    >>> [mask.tolist() for mask in masks]
    [[[False, False]], [[True, True]]]
    """
    if isinstance(pattern, NofM):
        return [~drop_mask(part, pattern) for part in scores]
    sizes = [part.numel() for part in scores]
    count = _fraction_count(pattern.sparsity, sum(sizes))
    order = [part.flatten().float().clone() for part in scores]
    for part in order:
        best = _fraction_count(min(floor, 1 - pattern.sparsity), len(part))
        if best and pattern.sparsity < 1:
            part[part.topk(best).indices] = torch.inf
    drop = _smallest(order, min(count, sum(sizes)))
    return [~part.view_as(score) for part, score in zip(drop, scores, strict=True)]


def _smallest(parts: Sequence[Float[Tensor, " _"]], count: int) -> list[Bool[Tensor, " _"]]:
    """True at exactly `count` smallest values of all parts together; of equal ones the first go first.

    A float that is not negative is ordered as its bits are, so two counts, of the upper and then of the lower 16 bits,
    find the threshold without holding or sorting all values at once.
    """
    if count <= 0:
        return [torch.zeros_like(part, dtype=torch.bool) for part in parts]
    keys = [part.view(torch.int32) for part in parts]
    high, before = _bucket([key >> 16 for key in keys], count)
    low, below = _bucket([key[(key >> 16) == high] & 0xFFFF for key in keys], count - before)
    threshold, missing = (high << 16) | low, count - before - below
    drop = []
    for key in keys:
        equal = key == threshold
        taken = equal & (equal.cumsum(0) <= missing)
        missing -= int(taken.sum())
        drop.append((key < threshold) | taken)
    return drop


def _bucket(numbers: Sequence[Int[Tensor, " _"]], position: int) -> tuple[int, int]:
    """The 16-bit number at `position` (from 1) of all in order, and how many numbers are below it."""
    counts = torch.stack([torch.bincount(part, minlength=1 << 16).cpu() for part in numbers]).sum(dim=0)
    reached = counts.cumsum(0)
    bucket = int(torch.searchsorted(reached, position))
    return bucket, int(reached[bucket] - counts[bucket])


def _masks(
    weights: Sequence[Tensor],
    gradients: Sequence[WeightGradient],
    target: Pattern | SparseGrid,
    *,
    whole_model: bool = True,
    floor: float = 0.02,
    **_: object,
) -> list[Bool[Tensor, "_ _"]]:
    """The weights that stay, of all matrices of a model."""
    scores = [loss_increase(weight, gradient) for weight, gradient in zip(weights, gradients, strict=True)]
    pattern, _grid = _parts(target)
    if whole_model:
        return whole_model_masks(scores, pattern, floor)
    return [~drop_mask(part, pattern, per="matrix") for part in scores]


def _solve(
    weights: list[Tensor],
    evidence: Evidence,
    target: Pattern | SparseGrid,
    *,
    damp: float = 0.01,
    block: int = BLOCK,
    update: bool = True,
    whole_model: bool = True,
    floor: float = 0.02,
) -> tuple[list[Tensor], dict]:
    """`fisher` for weights that share one input, on the masks that the engine had chosen, or on masks of their own."""
    keep = evidence.keep
    if not keep or keep[0] is None:
        keep = _masks(weights, evidence.gradients, target, whole_model=False)
    pattern, grid = _parts(target)
    if not update:
        return [torch.where(mask, weight, 0) for mask, weight in zip(keep, weights, strict=True)], {}
    factor = _try_factor(evidence.stats, damp)
    return _prune(weights, factor, pattern, grid, block, keep), {"failed": factor.failed, "damp": damp}


def _check_options(d_in: int, target: Pattern | SparseGrid, options: Mapping[str, object]) -> None:
    real_number("floor", options.get("floor", 0.02), 0, 1)
    if options.get("update") is False and isinstance(target, SparseGrid):
        raise InputError("weights are rounded in the sweep that updates them; leave update=False out for this target")
    _check(d_in, target, options)


METHOD = Method(
    "fisher",
    version=1,
    targets=(Unstructured, NofM, SparseGrid),
    solve=_solve,
    reads="gram",
    gradients=True,
    masks=_masks,
    damped=True,
    options={"whole_model": True, "update": True, "floor": 0.02, "block": 128},
    check=_check_options,
    packs=("compressed-tensors",),
    cost=(4 / 3, 1.0),
    label="Fisher + SparseGPT",
    source="lecun1990",
    style=("#C2185B", "8"),
    place=36,
)
