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
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from crosscal.errors import InputError
from crosscal.models import Inventory, LinearLayer, check_length, forward_order

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


@dataclass
class MicroBatch:
    """Some windows of one source: the hidden states that enter the next block, and the other arguments of each call."""

    source: str
    tokens: Int[Tensor, "n_windows length"]
    hidden: Tensor
    calls: list[tuple[tuple, dict]]
    _output: Tensor | None = None

    def run(self, index: int, block: nn.Module) -> Tensor:
        """Return the block's output for these hidden states, which stay as they are."""
        args, kwargs = self.calls[index]
        output = block(self.hidden, *args, **kwargs)
        return output[0] if isinstance(output, tuple) else output

    def keep(self, output: Tensor) -> None:
        """Put aside a block's output, to enter the next block after `advance`."""
        self._output = output

    def advance(self) -> None:
        """Move on to the next block, with the output that was kept."""
        self.hidden, self._output = self._output, None


class Streams:
    """The windows of every source in micro-batches, and a probe, all standing before the same block.

    The probe is one short window of arbitrary tokens; it shows which layers of a block share an input. `micro_batch`
    windows run together; by default as many as make 4,096 tokens, on CUDA 16,384.
    """

    def __init__(
        self, model: nn.Module, parts: Inventory, sources: Mapping[str, Tensor], micro_batch: int | None = None
    ):
        self.model, self.parts, self.blocks = model, parts, parts.blocks
        self._tuples: list[bool] = []  # whether blocks return tuples, seen by letting the first one run
        device = model.get_input_embeddings().weight.device  # when streaming, other parameters are on `meta`
        self.probe = self._enter("probe", torch.arange(PROBE_TOKENS, device=device)[None])
        parts = list(_split(sources, device, micro_batch))
        self._prepare([tuple(tokens.shape) for _, tokens in parts])
        self.batches = [
            self._stored(number, self._enter(source, tokens.to(device)))
            for number, (source, tokens) in enumerate(parts)
        ]

    def groups(self, index: int, block: nn.Module) -> list[list[LinearLayer]]:
        """Return the layers of a block in groups that share an input, in the order of the forward pass.

        The probe is run for it; experts that it does not reach are grouped like others of their layer.
        """
        layers = self.parts.layers[index]
        return forward_order(layers, _input_groups(layers, lambda: self.probe.keep(self.probe.run(index, block))))

    def advance(self) -> None:
        """Move on to the next block."""
        for batch in (self.probe, *self.batches):
            batch.advance()

    def final(self) -> Iterator[tuple[str, Tensor]]:
        """Yield each micro-batch's source and final hidden states, which enter the head; all blocks are done."""
        for batch in self.batches:
            with self.stubbed(last=batch.hidden):
                yield batch.source, self.model.base_model(input_ids=batch.tokens, use_cache=False).last_hidden_state

    def _prepare(self, shapes: Sequence[tuple[int, int]]) -> None:
        """Make room for the hidden states of windows of these shapes."""

    def _stored(self, number: int, batch: MicroBatch) -> MicroBatch:
        """Return the form in which a micro-batch is kept."""
        return batch

    def _enter(self, source: str, tokens: Tensor) -> MicroBatch:
        """Embed one micro-batch and note how the model calls each of its blocks."""
        check_length(self.model, tokens.shape[1])
        inputs: list[Tensor] = []
        calls: list[tuple[tuple, dict]] = []
        with self.stubbed(inputs, calls):
            self.model.base_model(input_ids=tokens, use_cache=False)
        return MicroBatch(source, tokens, inputs[0], calls)

    @contextmanager
    def stubbed(
        self, inputs: list[Tensor] | None = None, calls: list | None = None, last: Tensor | None = None
    ) -> Iterator[None]:
        """Replace each block's forward by one that notes its arguments and returns its input, or in the end `last`."""
        real_first = self.blocks[0].forward
        inputs, calls = [] if inputs is None else inputs, [] if calls is None else calls

        def stub(*args, **kwargs):
            hidden = args[0] if args else kwargs.pop("hidden_states")
            if not inputs:
                inputs.append(hidden)
            if not self._tuples:
                self._tuples.append(isinstance(real_first(hidden, *args[1:], **kwargs), tuple))
            # A cache would grow with every call, and nothing here ever reads one.
            without_cache = {k: v for k, v in kwargs.items() if k not in ("past_key_value", "past_key_values")}
            calls.append((args[1:], without_cache | ({"use_cache": False} if "use_cache" in kwargs else {})))
            if last is not None and len(calls) == len(self.blocks):
                hidden = last
            return (hidden,) if self._tuples[0] else hidden

        own = [vars(block).get("forward") for block in self.blocks]  # some loaders put a forward on the instance
        try:
            for block in self.blocks:
                block.forward = stub
            yield
        finally:
            for block, forward in zip(self.blocks, own, strict=True):
                if forward is None:
                    del block.forward
                else:
                    block.forward = forward


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
