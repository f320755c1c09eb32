"""One set of mix weights for a whole model, found on statistics of the dense model before anything is compressed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from crosscal.engine.gather import ModelStatistics, _mixed, gather_statistics
from crosscal.engine.request import Request
from crosscal.methods.balance import least_worst, relative_errors
from crosscal.methods.registry import Evidence
from crosscal.models import LinearLayer


@torch.no_grad()
def model_weights(residence: Any, request: Request, folder: Path | None = None) -> dict[str, float]:
    """Return the mix weights with which the source that loses most loses least, over all layers of a residence's model.

    Every round solves all layers, on statistics of the dense model: those of the request, or gathered here, in memory
    or in a folder. Nothing is written back. The error of a source is the mean of the layers' relative output errors.
    """
    kept = request.statistics
    if kept is None:
        how = {"micro_batch": request.micro_batch, "progress": request.progress, "folder": folder}
        kept = gather_statistics(residence, request.text, parts=residence.inventory, **how)
    bar = tqdm(total=None, desc="mix weights", unit="block", disable=not request.progress)
    with bar:
        found = least_worst(request.shares, lambda shares: (None, _errors(residence, request, kept, shares, bar)))
    return found[1]


def _errors(
    residence: Any, request: Request, kept: ModelStatistics, shares: Mapping[str, float], bar: tqdm
) -> dict[str, float]:
    """The mean over groups of layers of the relative error on every source that reached them."""
    found: dict[str, list[float]] = {name: [] for name in shares}
    options = dict(request.options) | ({"damp": request.damp} if request.solver.damped else {})
    for index, layers in enumerate(residence.inventory.layers):
        residence.fill(index)
        known = {layer.name: layer for layer in layers}
        for names, by_source in kept.block(index, residence.device):
            group: list[LinearLayer] = [known[name] for name in names if name in known]
            mixed = _mixed(by_source, shares)
            if group and mixed is not None:
                old = [layer.weight for layer in group]
                new = request.solver.solve(old, Evidence(mixed), request.target, **options)[0]
                for name, error in relative_errors(old, new, by_source).items():  # type: ignore[arg-type]
                    found[name].append(error)
        residence.release(index)
        bar.update()
    return {name: sum(errors) / max(1, len(errors)) for name, errors in found.items()}
