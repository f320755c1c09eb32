"""The language-model head apart from the body, so that logits can be made for a few positions at a time.

A window of 2,048 tokens over a vocabulary of 128,000 is a gigabyte of float32 logits; its final hidden states
are some megabytes. Metrics therefore keep hidden states and call `head_logits` on slices.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from crosscal.errors import InputError


class HeadMemory:
    """Memory for a chunk of logits that is taken once: taking it anew for each chunk costs as much as the product."""

    def __init__(self) -> None:
        self._held: Float[Tensor, "n vocab"] | None = None

    def product(self, head: nn.Module, hidden: Float[Tensor, "n hidden"]) -> Float[Tensor, "n vocab"]:
        """`head(hidden)`, in the held memory where the head is a plain linear layer."""
        if type(head) is not nn.Linear or head.bias is not None or torch.is_grad_enabled():
            return head(hidden)
        held, vocab = self._held, head.weight.shape[0]
        if held is None or len(held) < len(hidden) or (held.dtype, held.device) != (hidden.dtype, hidden.device):
            self._held = torch.empty(len(hidden), vocab, dtype=hidden.dtype, device=hidden.device)
        return torch.mm(hidden, head.weight.T, out=self._held[: len(hidden)])


def check_length(model, length: int) -> None:
    """Raise `InputError` for windows longer than the model was made for: some families fail there, others degrade."""
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if most is not None and 0 < most < length:
        raise InputError(f"windows of {length} tokens are longer than the {most} this model was made for; shorten them")


def final_hidden(
    model, input_ids: Int[Tensor, "batch length"], attention_mask: Int[Tensor, "batch length"] | None = None
) -> Float[Tensor, "batch length hidden"]:
    """The hidden states that enter the language-model head, final norm included; no cache is kept."""
    body = model.base_model
    if body is model:  # its class names another model as its base
        body = next((child for child in model.children() if isinstance(child, PreTrainedModel)), model)
    if body is model:
        raise InputError(f"{type(model).__name__} has no separate body; load it as a causal language model")
    check_length(model, input_ids.shape[1])
    return body(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state


def head_logits(
    model, hidden: Float[Tensor, "... hidden"], memory: HeadMemory | None = None
) -> Float[Tensor, "... vocab"]:
    """The model's own logits for these hidden states, logit scaling and soft-capping included.

    With a `memory` the logits, of hidden states [n, hidden], are only good until its next use.
    Soft-capping is cap * tanh(logits / cap) (Gemma 2, Team 2024, section 2); Cohere multiplies by
    `logit_scale`, Granite divides by `logits_scaling`.
    """
    head = model.get_output_embeddings()
    logits = head(hidden) if memory is None else memory.product(head, hidden)
    config = model.config.get_text_config()
    if scale := getattr(config, "logit_scale", None):
        logits = logits * scale
    if scaling := getattr(config, "logits_scaling", None):
        logits = logits / scaling
    if cap := getattr(config, "final_logit_softcapping", None):
        logits = torch.tanh(logits / cap) * cap
    return logits


@torch.no_grad()
def check_head(model) -> None:
    """Compare `head_logits(final_hidden(...))` with the model's own logits on a few tokens.

    Raises `InputError` when they differ, so that an unusual head cannot silently falsify a metric.
    """
    ids = torch.arange(1, 9, device=model.get_input_embeddings().weight.device)[None]
    own = model(input_ids=ids, use_cache=False).logits.float()
    ours = head_logits(model, final_hidden(model, ids)).float()
    if own.isnan().any():
        raise InputError("the model's outputs are NaN or infinite; load it in float32 or check its weights")
    if not torch.allclose(own, ours, atol=1e-2 * own.abs().max().item(), rtol=0):
        raise InputError(f"the head of {type(model).__name__} does more than a linear map; it is not supported yet")
