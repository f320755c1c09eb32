"""Score a model on held-out windows, alone or against the dense model, in bounded memory.

The dense model's final hidden states are kept (some megabytes) and not its logits (gigabytes); both models' logits
exist for a few positions at a time. The dense body thus runs once for a whole study, and each compressed model pays
one forward pass and one extra head product for its divergences.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from crosscal.errors import InputError
from crosscal.metrics.divergence import Comparison
from crosscal.metrics.likelihood import POSITIONS, token_losses
from crosscal.models.heads import HeadMemory, check_head, final_hidden, head_logits


@dataclass(frozen=True)
class TextScores:
    """Scores of one text per predicted token: `per_token[metric]` is [n_windows, length - 1].

    Metrics: "nll" always; "js_divergence", "kl_divergence" (dense to compressed), "kl_divergence_reverse" and
    "top1_agreement" where a dense reference was given. All in nats but the agreement, which is 0 or 1.
    """

    per_token: dict[str, Float[Tensor, "n_windows length_minus_1"]]

    def per_window(self, metric: str) -> list[float]:
        """The mean of a metric over each window."""
        return self.per_token[metric].double().mean(dim=1).tolist()


@dataclass(frozen=True)
class DenseReference:
    """The dense model's final hidden states on each text, and how to turn them into its logits."""

    hidden: Mapping[str, Float[Tensor, "n_windows length hidden"]]
    logits: Callable[..., Tensor]


@torch.inference_mode()
def dense_reference(
    model, texts: Mapping[str, Int[Tensor, "n_windows length"]], *, progress: bool = True
) -> DenseReference:
    """Run the dense model once over every text and keep its final hidden states on the CPU.

    Take it before compressing in place: the head, which compression leaves alone, is shared with the model.
    """
    check_head(model)
    device = model.get_input_embeddings().weight.device
    kept = {
        name: torch.cat([final_hidden(model, part.to(device)).cpu() for part in tokens.split(2)])
        for name, tokens in tqdm(texts.items(), desc="dense reference", unit="text", disable=not progress)
    }
    return DenseReference(kept, lambda hidden, memory=None: head_logits(model, hidden.to(device), memory))


@torch.inference_mode()
def score_text(
    model,
    tokens: Int[Tensor, "n_windows length"],
    dense_hidden: Float[Tensor, "n_windows length hidden"] | None = None,
    dense_logits: Callable[..., Tensor] | None = None,
    micro_batch: int = 2,
) -> TextScores:
    """Score every predicted token of the windows; with the dense model's hidden states, its divergences as well.

    Raises `InputError` when an output is not finite.
    """
    device = model.get_input_embeddings().weight.device
    parts: list[dict[str, Tensor]] = []
    for start in range(0, len(tokens), micro_batch):
        batch = tokens[start : start + micro_batch].to(device)
        hidden = final_hidden(model, batch)[:, :-1].flatten(0, 1)
        dense = None if dense_hidden is None else dense_hidden[start : start + micro_batch, :-1].flatten(0, 1)
        parts.append(_score_rows(model, hidden, batch[:, 1:].flatten(), dense, dense_logits))
    shape = (len(tokens), tokens.shape[1] - 1)
    per_token = {name: torch.cat([part[name] for part in parts]).view(shape) for name in parts[0]}
    if not all(torch.isfinite(values).all() for values in per_token.values()):
        raise InputError(
            "the model's outputs are NaN or infinite on this text; load it in float32 or check its weights"
        )
    return TextScores(per_token)


def _score_rows(model, hidden: Tensor, targets: Tensor, dense: Tensor | None, dense_logits) -> dict[str, Tensor]:
    """All metrics for a run of positions, whose logits exist for POSITIONS of them at a time."""
    found: dict[str, list[Tensor]] = {}
    compare, own, dense_own = Comparison(), HeadMemory(), HeadMemory()
    for start in range(0, len(hidden), POSITIONS):
        chunk = slice(start, start + POSITIONS)
        logits = head_logits(model, hidden[chunk], own)
        if dense is None:
            scores = {"nll": token_losses(logits, targets[chunk])}
        else:
            scores = compare(dense_logits(dense[chunk], dense_own), logits, targets[chunk])
        for name, values in scores.items():
            found.setdefault(name, []).append(values)
    return {name: torch.cat(values).cpu() for name, values in found.items()}
