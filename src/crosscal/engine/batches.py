"""One micro-batch before a block, hooks on the layers that it runs through, and the groups of layers these show."""

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxtyping import Int
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from crosscal.models import LinearLayer


class _Output(NamedTuple):
    """Stands for a tensor that a block puts out, by its place there; block -1 is what enters the first one."""

    block: int
    place: int = 0


@dataclass
class MicroBatch:
    """Some windows of one source: the hidden states that enter the next block, and how the model calls each block.

    `calls` are None for blocks that text does not go through. `carried` are the outputs of blocks before that others
    still read, up to the block in `until`; `shared` the mappings in which blocks leave something for later ones.
    """

    source: str
    tokens: Int[Tensor, "n_windows length"]
    hidden: Tensor
    calls: list[tuple[tuple, dict] | None]
    until: dict[_Output, int] = field(default_factory=dict)
    shared: list[MutableMapping] = field(default_factory=list)
    carried: dict[_Output, Any] = field(default_factory=dict)
    twin: "MicroBatch | None" = None  # the same windows on their way through the dense model
    dense: dict[int, Tensor] = field(default_factory=dict)  # what enters each group there, until it is used
    _output: Tensor | None = None
    whole = False

    def run(self, index: int, block: nn.Module) -> Tensor:
        """Return the block's output for these hidden states, which stay as they are."""
        return self.outputs(index, block)[0]

    def outputs(self, index: int, block: nn.Module) -> list:
        """Return all that the block puts out, hidden states first."""
        call = self.calls[index]
        if call is None:
            return [self.hidden]
        before = max((n for n in range(index) if self.calls[n] is not None), default=-1)
        known = {**self.carried, _Output(before): self.hidden}
        args, kwargs = _replaced(call, lambda leaf: known[leaf] if isinstance(leaf, _Output) else leaf)
        leaves = pytree.tree_leaves(block(*args, **kwargs))
        made = {key: leaf for n, leaf in enumerate(leaves) if (key := _Output(index, n)) in self.until}
        self.carried = {key: leaf for key, leaf in (self.carried | made).items() if self.until[key] >= index}
        return leaves

    def keep(self, output: Tensor) -> None:
        """Put aside a block's output, to enter the next block after `advance`."""
        self._output = output

    def advance(self) -> None:
        """Move on to the next block, with the output that was kept."""
        self.hidden, self._output = self._output, None


def _replaced(tree, leaf_of: Callable):
    """Return nested tuples, lists and dictionaries with leaves replaced; those without any stay the same objects."""
    if type(tree) is dict:
        leaf_of(tree)
        new = {key: _replaced(value, leaf_of) for key, value in tree.items()}
        return tree if all(new[key] is value for key, value in tree.items()) else new
    if type(tree) in (tuple, list):
        new = [_replaced(value, leaf_of) for value in tree]
        return tree if all(map(lambda one, other: one is other, new, tree)) else type(tree)(new)
    return leaf_of(tree)


@contextmanager
def _hooked(modules: Sequence[nn.Module], hook: Callable[[nn.Module, tuple], None]) -> Iterator[None]:
    """Have `hook(module, args)` called before each of the modules runs."""
    handles = [module.register_forward_pre_hook(hook) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _input_groups(layers: Sequence[LinearLayer], run: Callable[[], object]) -> list[list[LinearLayer]]:
    """Return the layers that `run` reaches, in the order of the forward pass, those that read the same tensor together.

    Query, key and value projections read the same tensor, and so do gate and up projections. Which layers share is
    seen at run time, by the identity of the tensor that enters them, so no architecture is known here by name.
    """
    inputs: list[tuple[Tensor, list[nn.Module]]] = []  # holding the tensors keeps their identities apart

    def note(module: nn.Module, args: tuple) -> None:
        if any(module in members for _, members in inputs):
            return
        same = next((members for tensor, members in inputs if tensor is args[0]), None)
        if same is None:
            inputs.append((args[0], [module]))
        else:
            same.append(module)

    by_module = {layer.module: layer for layer in layers}
    with _hooked(list(by_module), note):
        run()
    return [[by_module[module] for module in members] for _, members in inputs]


def _run_and_add(
    index: int,
    block: nn.Module,
    batches: Sequence[MicroBatch],
    groups: Sequence[Sequence[LinearLayer]],
    add: Callable[[int, MicroBatch, Tensor], None],
) -> Iterator[tuple[MicroBatch, Tensor]]:
    """Yield each micro-batch and its output; `add(group, batch, inputs)` gets what enters each group on the way."""
    leaders = {group[0].module: number for number, group in enumerate(groups)}
    for batch in batches:
        _run_twin(index, block, batch, groups)

        def note(module: nn.Module, args: tuple) -> None:
            add(leaders[module], batch, args[0])  # noqa: B023

        with _hooked(list(leaders), note):
            output = batch.run(index, block)
        yield batch, output


def _run_twin(index: int, block: nn.Module, batch: MicroBatch, groups: Sequence[Sequence[LinearLayer]]) -> None:
    """Run a micro-batch's twin through the block while that is dense, and note what enters each group there.

    Experts are left out: in the dense model other tokens may be routed to them.
    """
    if batch.twin is None:
        return
    leaders = {group[0].module: number for number, group in enumerate(groups) if group[0].expert is None}

    def note(module: nn.Module, args: tuple) -> None:
        batch.dense[leaders[module]] = args[0]

    with _hooked(list(leaders), note):
        batch.twin.keep(batch.twin.run(index, block))
