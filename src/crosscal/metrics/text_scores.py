"""Score a model on windows of held-out text: perplexity, and divergences from the dense model, in bounded memory.

The dense model's final hidden states are kept (some megabytes) and not its logits (gigabytes); both models' logits
exist for a few positions at a time. The dense body thus runs once for a whole study, and each compressed model pays
one forward pass and one extra head product for its divergences.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from crosscal.engine.driver import Residence, final_states
from crosscal.engine.ranks import ranks
from crosscal.engine.windows import Windows, _check_windows, _token_windows
from crosscal.errors import InputError
from crosscal.metrics.divergence import _Comparison
from crosscal.models.heads import HeadMemory, check_head, final_hidden, head_logits

_CPU_ROWS = 16
_MOST_NATS = 700  # exp of more is no float64
_MICRO_BATCH = 2  # windows that run together
_POSITIONS = 512  # positions whose logits exist at one time: 50 MB of bfloat16 for a vocabulary of 49,152


@dataclass(frozen=True)
class TextScores:
    """Hold the scores of one text per predicted token: `per_token[metric]` is [n_windows, length - 1].

    Metrics: "nll" always; "js_divergence", "kl_divergence" (dense to compressed), "kl_divergence_reverse" and
    "top1_agreement" where a dense reference was given. All in nats but the agreement, which is 0 or 1.
    """

    per_token: dict[str, Float[Tensor, "n_windows length_minus_1"]]

    def per_window(self, metric: str) -> list[float]:
        """Return the mean of a metric over each window."""
        return self.per_token[metric].double().mean(dim=1).tolist()


@dataclass(frozen=True)
class DenseReference:
    """Hold the dense model's final hidden states on each text, and what turns them into its logits."""

    hidden: Mapping[str, Float[Tensor, "n_windows length hidden"]]
    logits: Callable[..., Tensor]


def perplexity(model, tokens, micro_batch: int = _MICRO_BATCH) -> float:
    """Return exp of the mean negative log-likelihood per predicted token; a uniform guess gives the vocabulary size.

    `model` is a causal language model, what `load_model` returns, or a `crosscal.disk.StreamedModel`; `tokens` is
    [n_windows, length], or what `load_text` returns. Context and stride as in `token_nll`. Equation eq-perplexity of
    the book. Source: Jelinek et al. 1977.
    """
    if hasattr(model, "tokenizer") and not isinstance(model, Residence):
        model = model.model
    nll = _score_texts(model, {"text": tokens}, micro_batch=micro_batch, progress=False)["text"].per_token["nll"]
    return math.exp(nll.double().mean().item())


def token_nll(
    model, tokens: Int[Tensor, "n_windows length"], micro_batch: int = _MICRO_BATCH
) -> Float[Tensor, "n_windows length_minus_1"]:
    """Return the negative log-likelihood of every token but each window's first, in nats, given those before it.

    Windows are scored on their own: the context is at most the window and the stride equals the window. At most
    512 rows of logits exist at a time. Raises `InputError` for windows shorter than 2 tokens and for
    non-finite results.
    """
    return _score_texts(model, {"text": tokens}, micro_batch=micro_batch, progress=False)["text"].per_token["nll"]


def _windows_of(model, texts: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the token windows of each text; raises `InputError` for what is none, or cannot be scored."""
    _check_windows(model.model if isinstance(model, Residence) else model, texts)
    windows = _token_windows(texts)
    for name, tokens in windows.items():
        if tokens.shape[1] < 2:
            raise InputError(f"the windows of '{name}' have one token and no next one; give longer windows")
        if tokens.min() < 0:
            raise InputError(f"the windows of '{name}' differ in length; cut them to one, with truncation=True")
    return windows


def _own_windows(windows: Mapping[str, Tensor], micro_batch: int) -> dict[str, Tensor]:
    """Return this rank's windows, in whole micro-batches: scores are those of one process, to the bit."""
    for name, tokens in windows.items():
        if len(tokens) <= (least := micro_batch * (ranks().world - 1)):
            raise InputError(
                f"'{name}' has {len(tokens)} windows for {ranks().world} processes; give more than {least} windows, or "
                "fewer processes"
            )
    return ranks().share(windows, together=micro_batch)


def _joined(scores: TextScores) -> TextScores:
    """Return the scores of all ranks' windows."""
    parts = ranks().all(scores.per_token)
    return TextScores({metric: torch.cat([part[metric] for part in parts]) for metric in scores.per_token})


def dense_reference(model, texts: Mapping[str, Windows], *, progress: bool = True) -> DenseReference:
    """Run the dense model once over every text and keep its final hidden states on the CPU, of this rank's windows.

    Take it before compressing in place: the head, which compression leaves alone, is shared with the model. `model` may
    be one that is read from disk block by block (`crosscal.disk.StreamedModel`); then its head stays in memory.
    """
    texts = _own_windows(_windows_of(model, texts), _MICRO_BATCH)
    if isinstance(model, Residence):
        hidden = final_states(model, texts, micro_batch=_MICRO_BATCH, progress=progress)
        with model.head() as filled:
            head, device = _kept_head(filled), model.device
    else:
        check_head(model)
        head, device = model, model.get_input_embeddings().weight.device
        bar = tqdm(texts.items(), desc="dense reference", unit="text", disable=not progress)
        hidden = {name: torch.cat(list(_run(model, tokens, _MICRO_BATCH))).cpu() for name, tokens in bar}
    return DenseReference(hidden, lambda states, memory=None: head_logits(head, states.to(device), memory))


def _score_texts(
    model,
    texts: Mapping[str, Any],
    dense: DenseReference | None = None,
    micro_batch: int = _MICRO_BATCH,
    progress: bool = True,
) -> dict[str, TextScores]:
    """The scores of several texts, for which a model on disk is read once."""
    texts = _own_windows(_windows_of(model, texts), micro_batch)
    if isinstance(model, Residence):
        states = final_states(model, texts, micro_batch=micro_batch, progress=progress)
        with model.head() as head:
            parts = {name: (part.to(model.device) for part in states[name].split(micro_batch)) for name in texts}
            return {name: _joined(_scores(head, tokens, parts[name], dense, name)) for name, tokens in texts.items()}
    bar = tqdm(texts.items(), desc="texts", unit="text", disable=not progress, leave=False)
    own = {name: _scores(model, tokens, _run(model, tokens, micro_batch), dense, name) for name, tokens in bar}
    return {name: _joined(scores) for name, scores in own.items()}


@torch.inference_mode()
def _run(model, tokens: Tensor, micro_batch: int) -> Iterator[Tensor]:
    """The final hidden states of a few windows after the other: [windows, length, hidden]."""
    device = model.get_input_embeddings().weight.device
    for batch in tokens.split(micro_batch):
        yield final_hidden(model, batch.to(device))


@torch.inference_mode()
def _scores(head, tokens: Tensor, states: Iterable[Tensor], dense: DenseReference | None, name: str) -> TextScores:
    """All metrics of the windows whose final hidden states these are."""
    parts: list[dict[str, Tensor]] = []
    done = 0
    for hidden in states:
        rows = slice(done, done := done + len(hidden))
        targets = tokens[rows, 1:].flatten().to(hidden.device)
        of_dense = None if dense is None else (dense.hidden[name][rows, :-1].flatten(0, 1), dense.logits)
        parts.append(_score_rows(head, hidden[:, :-1].flatten(0, 1), targets, of_dense))
    joined = {metric: _check_finite(torch.cat([part[metric] for part in parts])) for metric in parts[0]}
    scores = TextScores({metric: values.view(len(tokens), -1) for metric, values in joined.items()})
    if (most := max(scores.per_window("nll"))) > _MOST_NATS:
        raise InputError(
            f"the model gives a window of this text {most:,.0f} nats per token, a perplexity beyond all numbers; "
            "load it in float32 or check its weights"
        )
    return scores


def _score_rows(
    head, hidden: Tensor, targets: Tensor, dense: tuple[Tensor, Callable[..., Tensor]] | None
) -> dict[str, Tensor]:
    """All metrics for a run of positions, whose logits exist for _POSITIONS of them at a time."""
    scores: dict[str, list[Tensor]] = {}
    compare, own, dense_own = _Comparison(), HeadMemory(), HeadMemory()
    for start in range(0, len(hidden), _POSITIONS):
        chunk = slice(start, start + _POSITIONS)
        logits = head_logits(head, hidden[chunk], own)
        if dense is None:
            values = {"nll": _token_losses(logits, targets[chunk])}
        else:
            states, dense_logits = dense
            values = compare(dense_logits(states[chunk], dense_own), logits, targets[chunk])
        for name, part in values.items():
            scores.setdefault(name, []).append(part)
    return {name: torch.cat(parts).cpu() for name, parts in scores.items()}


def _kept_head(model) -> SimpleNamespace:
    """The head of a model on disk, which stays when the model lets go of it; `head_logits` takes it for a model."""
    module = copy.copy(model.get_output_embeddings())
    module._parameters = dict(module._parameters)  # the model empties its own
    return SimpleNamespace(get_output_embeddings=lambda: module, config=model.config)


def _token_losses(logits: Float[Tensor, "n vocab"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """-ln p(target) of each position, in float32."""
    # Few rows at a time on a CPU: their float32 copies then stay in its cache.
    step = _CPU_ROWS if logits.device.type == "cpu" else max(1, len(logits))
    pieces = zip(logits.split(step), targets.split(step), strict=True)
    return torch.cat([cross_entropy(rows.float(), wanted, reduction="none") for rows, wanted in pieces])


def _check_finite(scores: Tensor) -> Tensor:
    """The scores of a model, or `InputError` where one is NaN or infinite; every score passes here."""
    if not torch.isfinite(scores).all():
        raise InputError(
            "the model's outputs are NaN or infinite on this text; load it in float32 or check its weights"
        )
    return scores
