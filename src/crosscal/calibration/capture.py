"""Gather the input statistics of a block's linear layers while it runs, one Gram matrix for each distinct input.

Query, key and value projections read the same tensor, and so do gate and up projections. Which layers share is
seen at run time, by the identity of the tensor that enters them, so no architecture is known here by name.
"""

from collections.abc import Sequence

import torch
from torch import nn

from crosscal.calibration.gram import add_gram
from crosscal.calibration.statistics import InputStats
from crosscal.errors import InputError
from crosscal.models.structure import LinearLayer


class GramCapture:
    """A context manager that sums x x^T for the layers of one block, separately for each text source.

    Set `source` before running the block on that source's text. `groups` lists the layers that share an input;
    `stats(group_leader)` gives `{source: InputStats}` for such a group.
    """

    def __init__(self, layers: Sequence[LinearLayer]):
        self.layers = {layer.module: layer for layer in layers}
        self.source = ""
        self._leader: dict[nn.Module, nn.Module] = {}
        self._live: list[
            tuple[nn.Module, torch.Tensor]
        ] = []  # inputs of this forward pass; holding them keeps ids unique
        self._grams: dict[nn.Module, dict[str, torch.Tensor]] = {}
        self._tokens: dict[nn.Module, dict[str, int]] = {}
        self._hooks: list = []

    def __enter__(self) -> "GramCapture":
        self._hooks = [module.register_forward_pre_hook(self._on_input) for module in self.layers]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
        self._live.clear()

    def end_pass(self) -> None:
        """Forget the tensors of the forward pass that just ended."""
        self._live.clear()

    def _on_input(self, module: nn.Module, args: tuple) -> None:
        inputs = args[0]
        if module not in self._leader:
            same = next((first for first, tensor in self._live if tensor is inputs), module)
            self._leader[module] = same
        if self._leader[module] is not module:
            return
        self._live.append((module, inputs))
        flat = inputs.reshape(-1, inputs.shape[-1])
        grams = self._grams.setdefault(module, {})
        if self.source not in grams:
            grams[self.source] = torch.zeros(flat.shape[1], flat.shape[1], device=flat.device)
        add_gram(grams[self.source], flat)
        tokens = self._tokens.setdefault(module, {})
        tokens[self.source] = tokens.get(self.source, 0) + flat.shape[0]

    @property
    def groups(self) -> list[list[LinearLayer]]:
        """The layers that ran, grouped by shared input, in the order in which inputs were first seen."""
        return [
            [self.layers[module] for module in self._leader if self._leader[module] is leader] for leader in self._grams
        ]

    def stats(self, group: Sequence[LinearLayer]) -> dict[str, InputStats]:
        """The statistics of a group's shared input, by source.

        Raises `InputError` naming the layer when an activation was not finite.
        """
        leader = self._leader[group[0].module]
        found = {name: InputStats(gram, self._tokens[leader][name]) for name, gram in self._grams[leader].items()}
        for name, part in found.items():
            if not part.gram.sum().isfinite():
                raise InputError(
                    f"layer {group[0].name} received NaN or infinite inputs on source '{name}'; "
                    "load the model in float32, or check its weights"
                )
        return found
