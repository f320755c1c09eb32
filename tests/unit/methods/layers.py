"""Made-up layers for the quantization tests: a weight and the statistics of inputs of several kinds."""

import torch

from crosscal.calibration import InputStats

KINDS = ("random", "real-like", "few tokens", "dead inputs")


def layer(kind="random", d_out=32, d_in=144, seed=0):
    """A weight and its input statistics.

    "real-like" inputs lie near a subspace of few dimensions and a few of them are loud, as in language models;
    "few tokens" are fewer than inputs, so the Gram matrix has no inverse; five "dead inputs" are always zero.
    """
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    weight = normal(d_out, d_in)
    tokens = 24 if kind == "few tokens" else 4 * d_in
    if kind == "real-like":
        inputs = normal(tokens, 24) @ normal(24, d_in) + 0.5 * normal(tokens, d_in)
        inputs[:, torch.randperm(d_in, generator=generator)[:3]] *= 20
    else:
        inputs = normal(tokens, d_in) @ (torch.eye(d_in) + 0.1 * normal(d_in, d_in))
        inputs *= torch.linspace(0.3, 2.0, d_in)
    if kind == "dead inputs":
        inputs[:, torch.randperm(d_in, generator=generator)[:5]] = 0
    return weight, InputStats(inputs.T @ inputs, tokens)
