"""Mixtures of experts: each matrix of a stacked parameter seen, and run, as a linear layer of its own.

transformers keeps the experts of a layer in parameters of three dimensions, [experts, out, in] or [experts, in, out],
and multiplies them in one call. A method needs each expert's matrix, and the tokens that were routed to it. One could
take the stack apart into modules, as some libraries do; but then parameters change their names, a model on disk cannot
be filled block by block, and every family needs code of its own. Here nothing is taken apart. Inside `experts_apart`,
the name of a stacked parameter, looked up in its module, gives a stand-in. The module runs its own eager forward, a
loop over experts written by the model's authors. Where that loop multiplies with one matrix of the stack, as in
`torch.nn.functional.linear(states, self.down_proj[3])`, torch asks the stand-in (`__torch_function__`) to do it, and
that calls a small module, outside the tree, which stands for expert 3's projection: forward hooks on it see the routed
tokens. Parameters, names and memory stay as they are, so that state dicts, gradients, and weights that come and go
between disk and device work as for any other layer.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn import functional

from crosscal.errors import InputError
from crosscal.models.families import _stack_layout

_PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)
_BATCHED = (torch.bmm, Tensor.bmm, torch.baddbmm, *_PRODUCTS)


class _Matrix(nn.Module):
    """One matrix of a stacked parameter, which stays where it is; called with the rows of the tokens routed to it."""

    def __init__(self, owner: nn.Module, leaf: str, index: int, count: int, transposed: bool):
        super().__init__()
        self.leaf, self.index, self.count, self.transposed, self.bias = leaf, index, count, transposed, None
        self.__dict__["owner"] = owner  # no child: the tree stays as it is

    @property
    def parameter(self) -> nn.Parameter:
        """The whole stack; streaming replaces it, so that it is looked up anew."""
        return self.owner._parameters[self.leaf]

    def seen(self, stack: Tensor) -> Tensor:
        """Return this matrix, [d_out, d_in], in a tensor shaped like the parameter."""
        matrix = stack.view(self.count, -1, stack.shape[-1])[self.index]
        return matrix.T if self.transposed else matrix

    @property
    def weight(self) -> Tensor:
        """The current matrix, [d_out, d_in]; a view."""
        return self.seen(self.parameter)

    def forward(self, states: Tensor) -> Tensor:
        """Return `states`, [tokens, d_in], times the matrix."""
        if len(states) == 1:  # a product with a vector is rounded by where the weights lie in memory: on disk or not
            return functional.linear(states.expand(2, -1), self.weight)[:1]
        return functional.linear(states, self.weight)


def _matrices(owner: nn.Module) -> dict[str, list[_Matrix]]:
    """Return the matrices of each stacked parameter of a module, always the same objects."""
    made = owner.__dict__.setdefault("_crosscal_matrices", {})
    for leaf, parameter in owner._parameters.items():
        if parameter is not None and leaf not in made and (layout := _stack_layout(owner, leaf)):
            made[leaf] = [_Matrix(owner, leaf, index, layout[0], layout[1]) for index in range(layout[0])]
    if not made:
        del owner.__dict__["_crosscal_matrices"]
    return made


@contextmanager
def experts_apart(model: nn.Module) -> Iterator[None]:
    """Run stacked experts one by one, so that forward hooks on a layer's `module` see the tokens routed to it.

    The model's own eager arithmetic is used; its output equals that of other implementations up to float rounding.
    Parameters, modules and state dict are the same inside and outside; entering again inside changes nothing.
    """
    owners = {owner: stacks for owner in model.modules() if (stacks := _matrices(owner)) and not _is_apart(owner)}
    # RWKV would divide the weights of later blocks by powers of two, and they would be written so.
    scaled = [m for m in model.modules() if getattr(m, "layers_are_rescaled", None) is False and m.config.rescale_every]
    every = [module.config.rescale_every for module in scaled]
    try:
        for module in scaled:
            module.config.rescale_every = 0
        for owner, stacks in owners.items():
            owner.__dict__.update({leaf: _Stack(matrices) for leaf, matrices in stacks.items()})
            eager = getattr(type(owner).forward, "__wrapped__", None)
            if eager is not None and "forward" not in owner.__dict__:  # `use_experts_implementation` wraps it
                owner.__dict__["forward"] = MethodType(eager, owner)
        yield
    finally:
        for module, count in zip(scaled, every, strict=True):
            module.config.rescale_every, module.layers_are_rescaled = count, False
        for owner, stacks in owners.items():
            for leaf in (*stacks, "forward"):
                owner.__dict__.pop(leaf, None)


def _is_apart(owner: nn.Module) -> bool:
    return any(isinstance(value, _Stack) for value in owner.__dict__.values())


class _StandIn:
    """Stands for a tensor in products with it; in all else that tensor takes its place."""

    def __getattr__(self, name: str):
        return getattr(self.plain(), name)

    def __len__(self) -> int:
        return len(self.plain())

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        product = next((arg for arg in (*args, *kwargs.values()) if isinstance(arg, cls)), None)
        result = None if product is None else product.product(function, args, kwargs)
        if result is not None:
            return result
        return function(*map(_plain, args), **{name: _plain(value) for name, value in kwargs.items()})


def _plain(value: object) -> object:
    return value.plain() if isinstance(value, _StandIn) else value


class _One(_StandIn):
    """Stands for one matrix of a stack, or for its transpose."""

    def __init__(self, matrix: _Matrix, flipped: bool = False):
        self.matrix, self.flipped = matrix, flipped

    def plain(self) -> Tensor:
        stored = self.matrix.weight.T if self.matrix.transposed else self.matrix.weight
        return stored.T if self.flipped else stored

    @property
    def T(self) -> "_One":  # noqa: N802
        return _One(self.matrix, not self.flipped)

    mT = T  # noqa: N815

    def t(self) -> "_One":
        return self.T

    def transpose(self, *_: int) -> "_One":
        return self.T

    def product(self, function, args: tuple, kwargs: dict) -> Tensor | None:
        """Return the result where this is a linear map of its first argument, else None."""
        if function is functional.linear and len(args) > 1 and args[1] is self:
            bias = args[2] if len(args) > 2 else kwargs.get("bias")
            result = self._of(args[0], turned=self.flipped)
            return result if bias is None else result + _plain(bias)
        if function in _PRODUCTS and len(args) == 2 and args[1] is self:
            return self._of(args[0], turned=not self.flipped)
        return None

    def _of(self, states: Tensor, turned: bool) -> Tensor:
        """`turned` is whether states meet the rows of the matrix as it is stored, which `transposed` must say too."""
        if turned != self.matrix.transposed:
            raise InputError(
                f"{type(self.matrix.owner).__name__} stores '{self.matrix.leaf}' in another layout than expected; "
                "leave it out with skip='*.experts.*'"
            )
        return self.matrix(states)


class _Stack(_StandIn):
    """Stands for a stacked parameter: indexed it gives matrices, and in a batched product each of them is called.

    Some are stored in two dimensions; they are stacks once the model's code has `viewed` them in three.
    """

    def __init__(self, matrices: list[_Matrix], flipped: bool = False, viewed: bool = False):
        self.matrices, self.flipped, self.viewed = matrices, flipped, viewed

    def plain(self) -> Tensor:
        stack = self.matrices[0].parameter
        stack = stack.view(len(self.matrices), -1, stack.shape[-1]) if self.viewed else stack
        return stack.transpose(1, 2) if self.flipped else stack

    def __getitem__(self, index):
        single = isinstance(index, int) or (isinstance(index, Tensor) and index.ndim == 0 and index.dtype != torch.bool)
        return _One(self.matrices[int(index)], self.flipped) if single and self.ndim == 3 else self.plain()[index]

    def view(self, *shape):
        viewed = self.plain().view(*shape)
        stack = viewed.ndim == 3 and len(viewed) == len(self.matrices) and not self.flipped
        return _Stack(self.matrices, viewed=True) if stack else viewed

    def transpose(self, one: int, other: int):
        if self.ndim != 3 or {one % 3, other % 3} != {1, 2}:
            return self.plain().transpose(one, other)
        return _Stack(self.matrices, not self.flipped, self.viewed)

    @property
    def mT(self):  # noqa: N802
        return self.transpose(-1, -2)

    def product(self, function, args: tuple, kwargs: dict) -> Tensor | None:
        """Return the result where each matrix is applied to its own part of the states, else None.

        Llama 4 hands every expert all tokens, those that are not routed to it as zeros; these are left out.
        """
        *bias, states, _ = args
        if function not in _BATCHED or args[-1] is not self or states.ndim != 3 or len(states) != len(self.matrices):
            return None
        results = []
        for number, part in enumerate(states):
            routed = part.any(dim=-1)
            result = part.new_zeros(len(part), self.shape[-1])
            results.append(result.index_put((routed,), part[routed] @ self[number]))
        return torch.stack(results) + (bias[0] if bias else 0)


def forward_order(layers: Sequence, reached: Sequence[Sequence]) -> list[list]:
    """Return all layers of a block in groups that share an input, in the order of the forward pass.

    `reached` are the groups that some tokens went through. Experts which none of them was routed to come in the order
    of their numbers, grouped like one that was reached; any other layer follows the one declared before it.
    """
    groups = [list(group) for group in reached]
    names = {layer.name for group in groups for layer in group}
    missing = [layer for layer in layers if layer.name not in names]
    declared = {layer.name: number for number, layer in enumerate(layers)}
    models = {layer.role: group for group in groups for layer in group if layer.expert is not None}
    while missing:
        layer = missing[0]
        alike = {other.role for other in models.get(layer.role, ()) if other.expert is not None}
        group = [other for other in missing if other.expert == layer.expert and other.role in alike] or [layer]
        missing = [other for other in missing if other not in group]
        groups.insert(_place(groups, layer, declared), group)
    return groups


def _place(groups: Sequence[Sequence], layer, declared: dict[str, int]) -> int:
    """Return where the group of a layer belongs: behind the experts before it, or the layer declared before it."""
    mixture = [(n, other) for n, group in enumerate(groups) for other in group if other.mixture is layer.mixture]
    if layer.expert is not None and mixture:
        before = [n for n, other in mixture if other.expert is not None and other.expert <= layer.expert]
        return before[-1] + 1 if before else mixture[0][0]
    before = [n for n, group in enumerate(groups) for one in group if declared[one.name] < declared[layer.name]]
    return before[-1] + 1 if before else 0
