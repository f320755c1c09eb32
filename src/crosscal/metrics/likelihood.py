"""Perplexity over windows of held-out text."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscal.errors import InputError
from crosscal.models.heads import final_hidden, head_logits

POSITIONS = 512  # positions whose logits exist at one time: 50 MB of bfloat16 for a vocabulary of 49,152


@torch.inference_mode()
def token_nll(
    model, tokens: Int[Tensor, "n_windows length"], micro_batch: int = 2
) -> Float[Tensor, "n_windows length_minus_1"]:
    """Negative log-likelihood of every token but each window's first, in nats, given the window's tokens before it.

    Windows are scored on their own: the context is at most the window and the stride equals the window. At most
    `POSITIONS` rows of logits exist at a time. Raises `InputError` for windows shorter than 2 tokens and for
    non-finite results.
    """
    if tokens.ndim != 2 or tokens.shape[1] < 2:
        raise InputError(f"windows are [n_windows, length >= 2], these are {tuple(tokens.shape)}; give longer windows")
    device = model.get_input_embeddings().weight.device
    parts = []
    for batch in tokens.to(device).split(micro_batch):
        hidden = final_hidden(model, batch)[:, :-1]
        losses = [
            torch.nn.functional.cross_entropy(head_logits(model, rows).float(), targets, reduction="none")
            for rows, targets in zip(
                hidden.flatten(0, 1).split(POSITIONS), batch[:, 1:].flatten().split(POSITIONS), strict=True
            )
        ]
        parts.append(torch.cat(losses).view(len(batch), -1))
    nll = torch.cat(parts).cpu()
    if not torch.isfinite(nll).all():
        raise InputError(
            "the model's outputs are NaN or infinite on this text; load it in float32 or check its weights"
        )
    return nll


def perplexity(model, tokens, micro_batch: int = 2) -> float:
    """exp of the mean negative log-likelihood per predicted token; a uniform guess scores the vocabulary size.

    `model` is a causal language model, or what `load_model` returns; `tokens` is [n_windows, length], or what
    `load_text` returns. Context and stride as in `token_nll`. Source: Jelinek et al. 1977.
    """
    if hasattr(model, "tokenizer"):
        model = model.model
    nll = token_nll(model, getattr(tokens, "tokens", tokens), micro_batch)
    return math.exp(nll.double().mean().item())
