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
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from crosscal.engine.batches import MicroBatch, _input_groups, _Output, _replaced
from crosscal.engine.windows import _split
from crosscal.errors import InputError
from crosscal.models import Inventory, LinearLayer, final_hidden, forward_order

log = logging.getLogger(__name__)
PROBE_TOKENS = 8


class WholeModelError(InputError):
    """A model that cannot be taken block by block; the `reason` follows "because"."""

    def __init__(self, reason: str):
        super().__init__(f"the model cannot be read block by block, because {reason}; load it with load_model")
        self.reason = reason


_LIKE = object()  # stands for a tensor of the shape of the hidden states


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


def _same(one: Tensor, other: object) -> bool:
    """Return whether these are one tensor, or a view of all of it."""
    if not isinstance(other, Tensor) or other.shape != one.shape or other.stride() != one.stride():
        return False
    return other is one or (other.dtype == one.dtype and other.data_ptr() == one.data_ptr())


def _scale(states: Tensor) -> float:
    """Return the root mean square of hidden states."""
    return float(states.float().square().mean().sqrt().nan_to_num())
