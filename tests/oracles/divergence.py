"""Divergences as sums over the vocabulary in float64."""

import math


def softmax(logits):
    """Plain softmax of a list of numbers."""
    top = max(logits)
    parts = [math.exp(x - top) for x in logits]
    return [p / sum(parts) for p in parts]


def kl(p, q):
    """sum_i p_i ln(p_i / q_i)."""
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def js(p, q):
    """(KL(p || m) + KL(q || m)) / 2 with m the mean of p and q."""
    m = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return (kl(p, m) + kl(q, m)) / 2
