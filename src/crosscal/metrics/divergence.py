"""How far a compressed model's next-token distributions lie from the dense model's, position by position.

All divergences are in nats, between two next-token distributions at one teacher-forced position; averages over
positions are taken by the caller. Nothing here is sequence-level and no square root is taken.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# exp(-100) is far below the least positive normal float32, so nothing that counts is clipped.
_LEAST_LOG = -100.0


def js_divergence(logits_p: Float[Tensor, "*positions vocab"], logits_q: Float[Tensor, "*positions vocab"]) -> Tensor:
    """Jensen-Shannon divergence per position, in nats, from 0 (equal) to ln 2 (disjoint): [*positions].

    JS(p, q) = KL(p || m) / 2 + KL(q || m) / 2 with m = (p + q) / 2. Source: Lin 1991, eq. 4.1 (natural logarithm).

    >>> far = torch.tensor([100.0, 0.0])
    >>> round(js_divergence(far, -far).item(), 4), js_divergence(far, far).item()
    (0.6931, 0.0)
    """
    log_p, log_q = _log_probabilities(logits_p), _log_probabilities(logits_q)
    return _js(log_p, log_q, log_p.exp(), log_q.exp())


def kl_divergence(logits_p: Float[Tensor, "*positions vocab"], logits_q: Float[Tensor, "*positions vocab"]) -> Tensor:
    """Kullback-Leibler divergence KL(p || q) per position, in nats: [*positions].

    Source: Kullback & Leibler 1951, eq. 2.4. With p the dense model this is the usual "forward" direction.

    >>> kl_divergence(torch.tensor([0.0, 0.0]), torch.tensor([0.0, 0.0])).item()
    0.0
    """
    log_p, log_q = _log_probabilities(logits_p), _log_probabilities(logits_q)
    return _kl(log_p, log_q, log_p.exp())


def top1_agreement(
    logits_p: Float[Tensor, "*positions vocab"], logits_q: Float[Tensor, "*positions vocab"]
) -> Bool[Tensor, "*positions"]:
    """Whether both models put the same token first, per position.

    >>> top1_agreement(torch.tensor([0.0, 1.0]), torch.tensor([5.0, 6.0])).item()
    True
    """
    return logits_p.argmax(-1) == logits_q.argmax(-1)


def divergences(logits_p: Float[Tensor, "n vocab"], logits_q: Float[Tensor, "n vocab"]) -> dict[str, Tensor]:
    """All divergences of n positions in one pass, dense model first: name -> [n].

    Forward KL is KL(dense || compressed), reverse KL the other way round.
    """
    log_p, log_q = _log_probabilities(logits_p), _log_probabilities(logits_q)
    p, q = log_p.exp(), log_q.exp()
    return {
        "js_divergence": _js(log_p, log_q, p, q),
        "kl_divergence": _kl(log_p, log_q, p),
        "kl_divergence_reverse": _kl(log_q, log_p, q),
        "top1_agreement": top1_agreement(logits_p, logits_q).float(),
    }


def _log_probabilities(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.float(), dim=-1).clamp_(min=_LEAST_LOG)


def _kl(log_p: Tensor, log_q: Tensor, p: Tensor) -> Tensor:
    return ((log_p - log_q) * p).sum(-1).clamp(min=0)


def _js(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> Tensor:
    log_m = ((p + q) / 2).log_().clamp_(min=_LEAST_LOG)
    total = ((log_p - log_m) * p).add_((log_q - log_m) * q).sum(-1)
    return (total / 2).clamp(min=0, max=math.log(2))
