"""How far a compressed model's next-token distributions lie from the dense model's, position by position.

All divergences are in nats, between two next-token distributions at one teacher-forced position; averages over
positions are taken by the caller. Nothing here is sequence-level and no square root is taken.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# exp(-100) is far below the least positive normal float32, so nothing that counts is clipped.
_LEAST_LOG = -100.0
CPU_SLICE = 8  # positions compared at one time on a CPU
MEASURES = ("js_divergence", "kl_divergence", "kl_divergence_reverse", "top1_agreement")


def js_divergence(logits_p: Float[Tensor, "*positions vocab"], logits_q: Float[Tensor, "*positions vocab"]) -> Tensor:
    """Jensen-Shannon divergence per position, in nats, from 0 (equal) to ln 2 (disjoint): [*positions].

    JS(p, q) = KL(p || m) / 2 + KL(q || m) / 2 with m = (p + q) / 2. Equation eq-divergence of the book.
    Source: Lin 1991, eq. 4.1 (natural logarithm).

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


class Comparison:
    """All measures of many positions, a slice of positions after the other, in float32 memory that is taken once.

    Fresh memory for every intermediate would cost several times what is computed in it, and on a CPU a slice is small
    enough to stay in the cache. One instance serves one thread.
    """

    def __init__(self) -> None:
        self._memory: Float[Tensor, "5 n vocab"] | None = None

    def __call__(
        self,
        logits_p: Float[Tensor, "n vocab"],
        logits_q: Float[Tensor, "n vocab"],
        targets: Int[Tensor, " n"] | None = None,
    ) -> dict[str, Tensor]:
        """The divergences of n positions, dense model p first: name -> [n].

        Forward KL is KL(dense || compressed), reverse KL the other way round. With the tokens that follow, "nll" is
        the compressed model's negative log-likelihood of each. With d = ln p - ln q and s = p + q, the three
        divergences are sums of p d, q d and s (ln p - ln(s / 2)), in which near-equal distributions keep their digits.
        """
        n = len(logits_p)
        names = MEASURES if targets is None else ("nll", *MEASURES)
        found = {name: torch.empty(n, device=logits_p.device) for name in names}
        step = CPU_SLICE if logits_p.device.type == "cpu" else n
        for low in range(0, n, step):
            part = slice(low, low + step)
            scores = self._slice(logits_p[part], logits_q[part], None if targets is None else targets[part])
            for name, values in scores.items():
                found[name][part] = values
        return found

    def _slice(self, logits_p: Tensor, logits_q: Tensor, targets: Tensor | None) -> dict[str, Tensor]:
        log_p, log_q, p, q, d = self._buffers(logits_p)
        top_p, top_q = _log_probabilities_into(log_p, p, logits_p), _log_probabilities_into(log_q, q, logits_q)
        found = {} if targets is None else {"nll": -log_q.gather(1, targets[:, None])[:, 0]}
        torch.sub(log_p.clamp_(min=_LEAST_LOG), log_q.clamp_(min=_LEAST_LOG), out=d)
        forward, backward = torch.mul(p, d, out=log_q).sum(-1), torch.mul(q, d, out=log_q).sum(-1).neg_()
        torch.log(p.add_(q), out=d)
        total = log_p.sub_(d.clamp_(min=_LEAST_LOG)).add_(math.log(2)).mul_(p).sum(-1)
        return found | {
            "js_divergence": ((total + backward) / 2).clamp_(min=0, max=math.log(2)),
            "kl_divergence": forward.clamp_(min=0),
            "kl_divergence_reverse": backward.clamp(min=0),
            "top1_agreement": (top_p == top_q).float(),
        }

    def _buffers(self, like: Tensor) -> tuple[Tensor, ...]:
        held = self._memory
        if held is None or held.shape[2] != like.shape[1] or held.shape[1] < len(like) or held.device != like.device:
            self._memory = torch.empty(5, *like.shape, device=like.device)
        return self._memory[:, : len(like)].unbind()


def divergences(logits_p: Float[Tensor, "n vocab"], logits_q: Float[Tensor, "n vocab"]) -> dict[str, Tensor]:
    """All divergences of n positions in one pass, dense model first: name -> [n]; see `Comparison`."""
    return Comparison()(logits_p, logits_q)


def _log_probabilities_into(log_p: Tensor, p: Tensor, logits: Tensor) -> Int[Tensor, " n"]:
    """Fill in ln p and p; returns the most likely token of each position."""
    p.copy_(logits)
    top = first_argmax(p)
    torch.sub(p, p.gather(1, top[:, None]), out=log_p)
    log_p.sub_(torch.exp(log_p, out=p).sum(-1, keepdim=True).log_())
    torch.exp(log_p, out=p)
    return top


def first_argmax(values: Float[Tensor, "n vocab"], chunk: int = 256) -> Int[Tensor, " n"]:
    """The first place of each row's greatest value, found in two steps: the chunk first, then inside of it.

    Looking for a maximum alone takes a fifth of the time of looking for its place.

    >>> first_argmax(torch.tensor([[0.0, 2.0, 2.0, 1.0]]), chunk=2).tolist()
    [1]
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


def _kl(log_p: Tensor, log_q: Tensor, p: Tensor) -> Tensor:
    return ((log_p - log_q) * p).sum(-1).clamp(min=0)


def _js(log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> Tensor:
    log_m = ((p + q) / 2).log_().clamp_(min=_LEAST_LOG)
    total = ((log_p - log_m) * p).add_((log_q - log_m) * q).sum(-1)
    return (total / 2).clamp(min=0, max=math.log(2))
