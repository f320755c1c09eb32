"""Token windows on their way through the decoder blocks, in micro-batches.

A decoder is a list of blocks, but each family calls its blocks in its own way: some pass one attention mask, Gemma 3 a
different mask and rotary embedding for its sliding layers, Gemma 4 a dictionary that later blocks read keys from. To
write all of this down, family by family, would be to write transformers again. Instead the model itself is asked, once
for each micro-batch: every block's `forward` is replaced by a stub that notes the arguments it gets and returns its
hidden states unchanged. One cheap pass through embedding, masks and rotary embeddings then yields the list of calls,
one for each block, and the hidden states that enter the first block.

From there on the model is no longer needed as a whole. A block is run by repeating its noted call with the hidden
states that the block before it put out, so that blocks can be run one at a time, as often as a schedule likes, with
weights that are only in memory while their block is. What the model does after its last block (the final norm, a
projection) is obtained in the same way: it runs once more with stubs, of which the last returns the true hidden states.

Some blocks hand on more than hidden states: which tokens later blocks attend to, the state of a router. A stub returns
tensors of its own, in the form in which blocks of its class return theirs. Where one of them turns up among the
arguments of a later call, that call is noted with an `_Output` in its place, for which the true one is put when the
block runs. What blocks leave for each other in a mapping that all are given stays there.

This is right only if the model does no more than hand on what its blocks put out. If it does more, the stubs' tensors
do not arrive, or, in memory, a few tokens give other numbers than the model itself. Blocks that run several times, or
not in the order of the list, are seen too. Then the whole model is run for each block's statistics, by hooks on that
block's layers (`_WholeStreams`): slower by the number of blocks, and right for every model.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils import _pytree as pytree

from crosscal.errors import InputError
from crosscal.models import Inventory, LinearLayer, final_hidden, forward_order

log = logging.getLogger(__name__)
# Tokens of a micro-batch: enough to keep the device busy, little enough to keep the activations small.
CPU_TOKENS, CUDA_TOKENS = 4096, 16384
PROBE_TOKENS = 8


@runtime_checkable
class _HasTokens(Protocol):
    """Token windows with their origin, as `load_text` returns them."""

    tokens: Int[Tensor, "n_windows length"]


Windows = Int[Tensor, "n_windows length"] | _HasTokens | Mapping[str, Any]
"""Token windows of one text source: bare, as `load_text` returns them, or what a tokenizer returns, with its mask."""


_WHOLE = (torch.int64, torch.int32, torch.int16, torch.uint8)


def _rows(source: str, text: object) -> Tensor:
    """Return token windows [n_windows, length], int64; -1 follows the tokens of rows that a mask makes shorter."""
    tokens = text if isinstance(text, Tensor) else getattr(text, "tokens", None)
    if isinstance(text, Mapping) and "input_ids" in text:
        rows = [torch.as_tensor(row) for row in text["input_ids"]]
        masks = [torch.as_tensor(row).bool() for row in text.get("attention_mask", map(torch.ones_like, rows))]
        rows = [row[mask] if row.ndim else row for row, mask in zip(rows, masks, strict=True)]
        whole = rows and all(row.ndim == 1 and len(row) for row in rows)
        tokens = pad_sequence(rows, batch_first=True, padding_value=-1) if whole else None
    kind = f"of type {type(text).__name__}"
    if isinstance(tokens, Tensor):
        kind = f"{tokens.dtype} of shape {tuple(tokens.shape)}"
        if tokens.ndim == 2 and tokens.numel() and tokens.dtype in _WHOLE:
            if isinstance(text, Mapping) or tokens.min() >= 0:
                return tokens.long()
            kind = "partly negative"
    raise InputError(
        f"the windows of '{source}' are {kind}; give token ids as a tensor [n_windows, length], or what a tokenizer "
        "returns for several texts"
    )


def _check_windows(model: nn.Module, texts: Mapping[str, Windows]) -> None:
    """Raise `InputError` for windows that are none, tokens the model has not, and padding that no mask tells of."""
    size, pad = len(model.get_input_embeddings().weight), getattr(getattr(model, "config", None), "pad_token_id", None)
    for source, tokens in _token_windows(texts).items():
        if tokens.max() >= size:
            raise InputError(
                f"token {int(tokens.max())} of '{source}' is outside the model's vocabulary of {size}; "
                "use the tokenizer that belongs to the model"
            )
        ends = torch.stack([tokens[:, :2], tokens[:, -2:]])  # a pad token may also be the one that ends documents
        text = texts[source]
        unmasked = isinstance(text, Tensor) or (isinstance(text, Mapping) and "attention_mask" not in text)
        if unmasked and tokens.shape[1] > 2 and pad is not None and (ends == pad).all(2).any():
            raise InputError(f"the windows of '{source}' are padded; give what the tokenizer returns, with its mask")


def _token_windows(texts: Mapping[str, Windows] | None) -> dict[str, Tensor]:
    """Return the token windows of each source, [n_windows, length]."""
    return {name: _rows(name, text) for name, text in (texts or {}).items()}


class WholeModelError(InputError):
    """A model that cannot be taken block by block; the `reason` follows "because"."""

    def __init__(self, reason: str):
        super().__init__(f"the model cannot be read block by block, because {reason}; load it with load_model")
        self.reason = reason


_LIKE = object()  # stands for a tensor of the shape of the hidden states


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


class Streams:
    """The windows of every source in micro-batches, and a probe, all standing before the same block.

    The probe is one short window of arbitrary tokens; it shows which layers of a block share an input. `micro_batch`
    windows run together; by default as many as make 4,096 tokens, on CUDA 16,384. The first block of each class holds
    its weights: it shows in what form blocks return their output.

    Raises `WholeModelError` where blocks cannot be run one by one.
    """

    whole = False

    def __init__(
        self, model: nn.Module, parts: Inventory, sources: Mapping[str, Tensor], micro_batch: int | None = None
    ):
        self.model, self.parts, self.blocks = model, parts, parts.blocks
        self._forms: dict[type, tuple[list, pytree.TreeSpec]] = {}
        device = model.get_input_embeddings().weight.device  # when streaming, other parameters are on `meta`
        with _resisting():
            self.probe = self._enter("probe", torch.arange(PROBE_TOKENS, device=device)[None])
            batches = list(_split(sources, device, micro_batch))
            self._prepare([tuple(tokens.shape) for _, tokens in batches])
        self.batches = [
            self._stored(number, self._enter(source, tokens.to(device)))
            for number, (source, tokens) in enumerate(batches)
        ]

    def groups(self, index: int, block: nn.Module) -> list[list[LinearLayer]]:
        """Return the layers of a block in groups that share an input, in the order of the forward pass.

        The probe is run for it; experts that it does not reach are grouped like others of their layer.
        """
        layers = self.parts.layers[index]
        with _resisting():
            return forward_order(layers, _input_groups(layers, lambda: self._run_probe(index, block)))

    def _run_probe(self, index: int, block: nn.Module) -> None:
        leaves = self.probe.outputs(index, block)
        assumed = self._forms.get(type(block), (leaves,))[0]
        if self.probe.calls[index] and [x is None for x in leaves] != [x is None for x in assumed]:
            raise WholeModelError("its blocks return different things")
        self.probe.keep(leaves[0])

    def advance(self) -> None:
        """Move on to the next block."""
        for batch in (self.probe, *self.batches):
            batch.advance()

    def final(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each micro-batch's source and final hidden states, which enter the head; all blocks are done."""
        for batch in self.batches:
            yield batch.source, self._final(batch)

    def _final(self, batch: MicroBatch) -> Tensor:
        end = max(n for n, call in enumerate(batch.calls) if call is not None)

        def note(index: int, args: tuple, kwargs: dict, out: list) -> list:
            true = {_Output(end): batch.hidden, **batch.carried}
            return [true.get(_Output(index, n), leaf) for n, leaf in enumerate(out)]

        with self.stubbed(note):
            return final_hidden(self.model, batch.tokens)

    def verify(self) -> None:
        """Raise `WholeModelError` unless blocks run one by one get and give what they do in the model, in memory."""
        batch, seen = self._enter("probe", self.probe.tokens), {}

        def watch(index: int, real: Callable, *args, **kwargs):
            seen[index] = _hidden_of(args, kwargs)
            return real(*args, **kwargs)

        with _resisting():
            with self._with_forward(watch):
                final = final_hidden(self.model, batch.tokens)
            pairs = []
            for index, block in enumerate(self.blocks):
                pairs += [(batch.hidden, seen[index])] if index in seen else []
                batch.keep(batch.run(index, block))
                batch.advance()
            pairs.append((self._final(batch), final))
            if not all(torch.allclose(*pair, rtol=0.02, atol=0.02 * _scale(pair[1]), equal_nan=True) for pair in pairs):
                raise WholeModelError("its blocks give other numbers one by one than in the model")

    def _prepare(self, shapes: Sequence[tuple[int, int]]) -> None:
        """Make room for the hidden states of windows of these shapes."""

    def _stored(self, number: int, batch: MicroBatch) -> MicroBatch:
        """Return the form in which a micro-batch is kept."""
        return batch

    def _enter(self, source: str, tokens: Tensor) -> MicroBatch:
        """Embed one micro-batch and note how the model calls each of its blocks."""
        calls: list[tuple[tuple, dict] | None] = [None] * len(self.blocks)
        made: list[tuple[Tensor, _Output]] = []  # holding the tensors keeps their identities apart
        until: dict[_Output, int] = {}
        mappings: dict[int, tuple[MutableMapping, set[int]]] = {}
        entering: list[Tensor] = []
        before = -1

        def note(index: int, args: tuple, kwargs: dict, out: list) -> list:
            nonlocal before
            if index <= before:
                raise WholeModelError("its blocks run several times in one pass, or not in their order")
            if not entering:
                entering.append(_hidden_of(args, kwargs))
            known = made if before >= 0 else [(entering[0], _Output(-1))]
            found: list[_Output] = []

            def link(leaf):
                if isinstance(leaf, MutableMapping):
                    mappings.setdefault(id(leaf), (leaf, set()))[1].add(index)
                key = next((key for tensor, key in known if _same(tensor, leaf)), None)
                found.extend([] if key is None else [key])
                return leaf if key is None else key

            # A cache would grow with every call, and nothing here ever reads one.
            kwargs = {k: v for k, v in kwargs.items() if k not in ("past_key_value", "past_key_values")}
            calls[index] = _replaced((args, kwargs | ({"use_cache": False} if "use_cache" in kwargs else {})), link)
            if _Output(before) not in found:
                raise WholeModelError("its blocks do not hand their hidden states on as they are")
            until.update({key: index for key in found if key != _Output(before)})
            made.extend((leaf, _Output(index, n)) for n, leaf in enumerate(out) if isinstance(leaf, Tensor))
            before = index
            return out

        with self.stubbed(note):
            final_hidden(self.model, tokens)
        if not entering or any(call is None and self.parts.layers[n] for n, call in enumerate(calls)):
            raise WholeModelError("some of its blocks do not run on text")
        until |= {key: len(calls) for _, key in made if key.block == before and key.place}  # read by what comes after
        shared = [mapping for mapping, readers in mappings.values() if len(readers) > 1]
        return MicroBatch(source, tokens, entering[0], calls, until, shared)

    @contextmanager
    def stubbed(self, note: Callable[[int, tuple, dict, list], list] | None = None) -> Iterator[None]:
        """Let no block run, but return its hidden states as they were, in the form that blocks of its class have.

        `note(index, args, kwargs, out)` gets each call and the parts of what is returned, all tensors of their own, and
        may return other ones.
        """

        def stub(index: int, real: Callable, *args, **kwargs):
            kind, hidden = type(self.blocks[index]), _hidden_of(args, kwargs)
            if kind not in self._forms:
                leaves, form = pytree.tree_flatten(real(*args, **kwargs))
                alike = [n == 0 or getattr(leaf, "shape", None) == hidden.shape for n, leaf in enumerate(leaves)]
                self._forms[kind] = [_LIKE if like else leaf for like, leaf in zip(alike, leaves, strict=True)], form
            # To be told apart they need places in memory, but no contents, unless the model goes on with them.
            empty = note is not None and index + 1 < len(self.blocks)

            def new(leaf):
                if leaf is _LIKE:
                    return hidden.new_zeros(()).expand(hidden.shape) if empty else hidden.detach()
                return leaf.clone() if isinstance(leaf, Tensor) else leaf

            leaves, form = self._forms[kind]
            out = [new(leaf) for leaf in leaves]
            return pytree.tree_unflatten(out if note is None else note(index, args, kwargs, out), form)

        with self._with_forward(stub):
            yield

    @contextmanager
    def _with_forward(self, forward: Callable) -> Iterator[None]:
        """Have `forward(index, real, *args, **kwargs)` in place of each block's own, `real`."""
        own = [vars(block).get("forward") for block in self.blocks]  # some loaders put a forward on the instance
        try:
            for index, block in enumerate(self.blocks):
                block.forward = partial(forward, index, block.forward)
            yield
        finally:
            for block, before in zip(self.blocks, own, strict=True):
                if before is None:
                    vars(block).pop("forward", None)
                else:
                    block.forward = before


@dataclass
class _WholeBatch(MicroBatch):
    """A micro-batch that goes through the whole model, whichever block is asked for."""

    model: nn.Module | None = None
    whole = True

    def outputs(self, index: int, block: nn.Module) -> list:
        return [final_hidden(self.model, self.tokens)]

    def keep(self, output: Tensor) -> None:
        """Keep nothing: the next block's inputs are made anew."""

    def advance(self) -> None:
        """Do nothing: there is no place to stand."""


class _WholeStreams(Streams):
    """Windows of a model, in memory, that as a whole is run for each block's statistics."""

    whole = True

    def __init__(self, model: nn.Module, parts: Inventory, sources: Mapping[str, Tensor], micro_batch: int | None):
        self.model, self.parts, self.blocks, self._forms = model, parts, parts.blocks, {}
        device = model.get_input_embeddings().weight.device
        windows = [("probe", torch.arange(PROBE_TOKENS)[None]), *_split(sources, device, micro_batch)]
        self.probe, *self.batches = (
            _WholeBatch(source, tokens.to(device), torch.empty(0), [None] * len(self.blocks), model=model)
            for source, tokens in windows
        )

    def final(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each micro-batch's source and final hidden states."""
        for batch in self.batches:
            yield batch.source, batch.run(0, self.blocks[0])


def open_streams(
    model: nn.Module, parts: Inventory, sources: Mapping[str, Tensor], micro_batch: int | None = None
) -> Streams:
    """Return the windows of every source before the first block of a model in memory.

    A model whose blocks cannot be run one by one is run as a whole for each of them, and a line in the log says why.
    """
    try:
        Streams(model, parts, {}).verify()
    except WholeModelError as error:
        log.warning("for the statistics of each block the whole model is run, because %s", error.reason)
        return _WholeStreams(model, parts, sources, micro_batch)
    return Streams(model, parts, sources, micro_batch)


@contextmanager
def _resisting() -> Iterator[None]:
    """Raise `WholeModelError` where a block or model does not take what stubs give it."""
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, AssertionError, RuntimeError) as error:
        if isinstance(error, InputError | torch.OutOfMemoryError):
            raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise WholeModelError(f"its blocks cannot be run one by one ({reason})") from error


def _hidden_of(args: tuple, kwargs: dict) -> Tensor:
    """Return the hidden states among a block's arguments."""
    first = kwargs.get("hidden_states", next((value for value in args if isinstance(value, Tensor)), None))
    return next(value for value in kwargs.values() if isinstance(value, Tensor)) if first is None else first


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


def _same(one: Tensor, other: object) -> bool:
    """Return whether these are one tensor, or a view of all of it."""
    if not isinstance(other, Tensor) or other.shape != one.shape or other.stride() != one.stride():
        return False
    return other is one or (other.dtype == one.dtype and other.data_ptr() == one.data_ptr())


def _scale(states: Tensor) -> float:
    """Return the root mean square of hidden states."""
    return float(states.float().square().mean().sqrt().nan_to_num())


def _split(
    sources: Mapping[str, Tensor], device: torch.device, micro_batch: int | None
) -> Iterator[tuple[str, Tensor]]:
    """Yield the windows of every source, cut into micro-batches."""
    enough = CUDA_TOKENS if device.type == "cuda" else CPU_TOKENS
    for source, tokens in sources.items():
        lengths = (tokens >= 0).sum(1)
        for length in lengths.unique().tolist():
            for part in tokens[lengths == length, :length].split(micro_batch or max(1, enough // length)):
                yield source, part


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
    add: Callable[[int, str, Tensor], None],
) -> Iterator[tuple[MicroBatch, Tensor]]:
    """Yield each micro-batch and its output; `add(group, source, inputs)` gets what enters each group on the way."""
    leaders = {group[0].module: number for number, group in enumerate(groups)}
    source = ""

    def note(module: nn.Module, args: tuple) -> None:
        add(leaders[module], source, args[0])

    with _hooked(list(leaders), note):
        for batch in batches:
            source = batch.source
            yield batch, batch.run(index, block)
