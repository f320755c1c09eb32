"""Perplexity over windows of held-out text."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from crosscal.errors import InputError
from crosscal.models.heads import HeadMemory, final_hidden, head_logits

CPU_ROWS = 16
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
    parts, memory = [], HeadMemory()
    for batch in tokens.to(device).split(micro_batch):
        hidden = final_hidden(model, batch)[:, :-1]
        pieces = zip(hidden.flatten(0, 1).split(POSITIONS), batch[:, 1:].flatten().split(POSITIONS), strict=True)
        losses = [token_losses(head_logits(model, rows, memory), targets) for rows, targets in pieces]
        parts.append(torch.cat(losses).view(len(batch), -1))
    nll = torch.cat(parts).cpu()
    if not torch.isfinite(nll).all():
        raise InputError(
            "the model's outputs are NaN or infinite on this text; load it in float32 or check its weights"
        )
    return nll


def token_losses(logits: Float[Tensor, "n vocab"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """-ln p(target) of each position, in float32.

    >>> token_losses(torch.zeros(1, 2), torch.tensor([0])).exp().tolist()
    [2.0]
    """
    # Few rows at a time on a CPU: their float32 copies then stay in its cache.
    step = CPU_ROWS if logits.device.type == "cpu" else max(1, len(logits))
    pieces = zip(logits.split(step), targets.split(step), strict=True)
    return torch.cat([cross_entropy(rows.float(), wanted, reduction="none") for rows, wanted in pieces])


def perplexity(model, tokens, micro_batch: int = 2) -> float:
    """exp of the mean negative log-likelihood per predicted token; a uniform guess scores the vocabulary size.

    `model` is a causal language model, or what `load_model` returns; `tokens` is [n_windows, length], or what
    `load_text` returns. Context and stride as in `token_nll`. Equation eq-perplexity of the book.
    Source: Jelinek et al. 1977.
    """
    if hasattr(model, "tokenizer"):
        model = model.model
    nll = token_nll(model, getattr(tokens, "tokens", tokens), micro_batch)
    return math.exp(nll.double().mean().item())
