"""Token windows of each text source, checked, and cut into the micro-batches that run together."""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from crosscal.errors import InputError

# Tokens of a micro-batch: enough to keep the device busy, little enough to keep the activations small.
CPU_TOKENS, CUDA_TOKENS = 4096, 16384


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
