"""How far a compressed model's next-token distributions lie from the dense model's, position by position.

All divergences are in nats, between two next-token distributions at one teacher-forced position; averages over
positions are taken by the caller. Nothing here is sequence-level and no square root is taken.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscal.results.quantities import quantities_over

_MEASURES = tuple(quantity.items[0] for quantity in quantities_over("windows"))
# exp(-100) is far below the least positive normal float32, so nothing that counts is clipped.
_LEAST_LOG = -100.0
_CPU_SLICE = 8  # positions compared at one time on a CPU


def js_divergence(logits_p: Float[Tensor, "*positions vocab"], logits_q: Float[Tensor, "*positions vocab"]) -> Tensor:
    """Return the Jensen-Shannon divergence per position, in nats, from 0 (equal) to ln 2 (disjoint): [*positions].

    JS(p, q) = KL(p || m) / 2 + KL(q || m) / 2 with m = (p + q) / 2. Equation eq-divergence of the book.
    Source: Lin 1991, eq. 4.1 (natural logarithm).

    >>> far = torch.tensor([100.0, 0.0])
    >>> round(js_divergence(far, -far).item(), 4), js_divergence(far, far).item()
    (0.6931, 0.0)
    """
    log_p, log_q = _log_probabilities(logits_p), _log_probabilities(logits_q)
    p, q = log_p.exp(), log_q.exp()
    log_m = ((p + q) / 2).log_().clamp_(min=_LEAST_LOG)
    total = ((log_p - log_m) * p).add_((log_q - log_m) * q).sum(-1)
    return (total / 2).clamp(min=0, max=math.log(2))


def kl_divergence(logits_p: Float[Tensor, "*positions vocab"], logits_q: Float[Tensor, "*positions vocab"]) -> Tensor:
    """Return the Kullback-Leibler divergence KL(p || q) per position, in nats: [*positions].

    Source: Kullback & Leibler 1951, eq. 2.4. With p the dense model this is the usual "forward" direction.

    >>> kl_divergence(torch.tensor([0.0, 0.0]), torch.tensor([0.0, 0.0])).item()
    0.0
    """
    log_p, log_q = _log_probabilities(logits_p), _log_probabilities(logits_q)
    return ((log_p - log_q) * log_p.exp()).sum(-1).clamp(min=0)


def top1_agreement(
    logits_p: Float[Tensor, "*positions vocab"], logits_q: Float[Tensor, "*positions vocab"]
) -> Bool[Tensor, "*positions"]:
    """Return whether both models put the same token first, per position: of equal logits, the first in the vocabulary.

    >>> top1_agreement(torch.tensor([0.0, 1.0]), torch.tensor([5.0, 6.0])).item()
    True
    """
    return logits_p.argmax(-1) == logits_q.argmax(-1)


class _Comparison:
    """All measures of many positions, a slice of positions after the other, in float32 memory that is taken once.

    Fresh memory for every intermediate would cost several times what is computed in it, and on a CPU a slice is small
    enough to stay in the cache. One instance serves one thread.
    """

    def __init__(self) -> None:
        self._memory: Float[Tensor, "5 n vocab"] | None = None

    def __call__(
        self, logits_p: Float[Tensor, "n vocab"], logits_q: Float[Tensor, "n vocab"], targets: Int[Tensor, " n"]
    ) -> dict[str, Tensor]:
        """The measures of n positions, dense model p first: name -> [n]; `targets` are the tokens that follow.

        "nll" is the compressed model's negative log-likelihood of them, forward KL is KL(dense || compressed), reverse
        KL the other way round. With d = ln p - ln q and s = p + q, the three divergences are sums of p d, q d and
        s (ln p - ln(s / 2)), in which near-equal distributions keep their digits.
        """
        n = len(logits_p)
        scores = {name: torch.empty(n, device=logits_p.device) for name in _MEASURES}
        step = _CPU_SLICE if logits_p.device.type == "cpu" else n
        for low in range(0, n, step):
            part = slice(low, low + step)
            for name, values in self._slice(logits_p[part], logits_q[part], targets[part]).items():
                scores[name][part] = values
        return scores

    def _slice(self, logits_p: Tensor, logits_q: Tensor, targets: Tensor) -> dict[str, Tensor]:
        log_p, log_q, p, q, d = self._buffers(logits_p)
        top_p, top_q = _log_probabilities_into(log_p, p, logits_p), _log_probabilities_into(log_q, q, logits_q)
        nll = -log_q.gather(1, targets[:, None])[:, 0]
        torch.sub(log_p.clamp_(min=_LEAST_LOG), log_q.clamp_(min=_LEAST_LOG), out=d)
        forward, backward = torch.mul(p, d, out=log_q).sum(-1), torch.mul(q, d, out=log_q).sum(-1).neg_()
        torch.log(p.add_(q), out=d)
        total = log_p.sub_(d.clamp_(min=_LEAST_LOG)).add_(math.log(2)).mul_(p).sum(-1)
        return {
            "nll": nll,
            "js_divergence": ((total + backward) / 2).clamp_(min=0, max=math.log(2)),
            "kl_divergence": forward.clamp_(min=0),
            "kl_divergence_reverse": backward.clamp(min=0),
            "top1_agreement": (top_p == top_q).float(),
        }

    def _buffers(self, like: Tensor) -> tuple[Tensor, ...]:
        memory, (n, vocab) = self._memory, like.shape
        if memory is None or memory.device != like.device or memory.shape[1] < n or memory.shape[2] != vocab:
            memory = self._memory = torch.empty(5, n, vocab, device=like.device)
        return memory[:, :n].unbind()


def _log_probabilities_into(log_p: Tensor, p: Tensor, logits: Tensor) -> Int[Tensor, " n"]:
    """Fill in ln p and p; returns the most likely token of each position."""
    p.copy_(logits)
    top = _first_argmax(p)
    torch.sub(p, p.gather(1, top[:, None]), out=log_p)
    log_p.sub_(torch.exp(log_p, out=p).sum(-1, keepdim=True).log_())
    torch.exp(log_p, out=p)
    return top


def _first_argmax(values: Float[Tensor, "n vocab"], chunk: int = 256) -> Int[Tensor, " n"]:
    """The first place of each row's greatest value, in two steps: the chunk first, then inside of it.

    Looking for a maximum alone takes a fifth of the time of looking for its place.
    """
    size = math.gcd(values.shape[1], chunk)
    if size < 2:
        return values.argmax(-1)
    chunks = values.unflatten(1, (-1, size))
    which = chunks.amax(-1).argmax(-1)
    inside = chunks.gather(1, which[:, None, None].expand(-1, 1, size))[:, 0].argmax(-1)
    return which * size + inside


def _log_probabilities(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.float(), dim=-1).clamp_(min=_LEAST_LOG)
