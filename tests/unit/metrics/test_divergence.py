"""Divergences: bounds, symmetry, and sums over the vocabulary."""

import math

import pytest
import torch

from crosscal.metrics import js_divergence, kl_divergence, top1_agreement
from crosscal.metrics.divergence import _Comparison
from tests.oracles import divergence as oracle

NEXT = torch.arange(7)  # the tokens that follow


def logits(seed=0, n=7, vocab=50, scale=3.0):
    return scale * torch.randn(n, vocab, generator=torch.Generator().manual_seed(seed))


def test_equal_distributions_do_not_diverge():
    assert js_divergence(logits(), logits()).abs().max() < 1e-7
    assert js_divergence(logits(), logits() + 5.0).abs().max() < 1e-6
    assert torch.equal(kl_divergence(logits(), logits()), torch.zeros(7))


def test_js_is_symmetric_and_at_most_ln_2():
    p, q = logits(), logits(1)
    torch.testing.assert_close(js_divergence(p, q), js_divergence(q, p))
    far = torch.tensor([1e4, 0.0, -1e4])
    assert js_divergence(far, -far).item() == pytest.approx(math.log(2))
    assert (js_divergence(100 * p, 100 * q) <= math.log(2)).all()


def test_values_equal_the_oracle():
    p, q = logits(), logits(1)
    for i in range(len(p)):
        first, second = oracle.softmax(p[i].double().tolist()), oracle.softmax(q[i].double().tolist())
        assert js_divergence(p, q)[i].item() == pytest.approx(oracle.js(first, second), rel=1e-5)
        assert kl_divergence(p, q)[i].item() == pytest.approx(oracle.kl(first, second), rel=1e-5)


def test_small_divergences_keep_their_digits():
    p = logits(vocab=5000)
    q = p + 1e-2 * logits(1, vocab=5000)
    first, second = (oracle.softmax(x[0].double().tolist()) for x in (p, q))
    assert js_divergence(p, q)[0].item() == pytest.approx(oracle.js(first, second), rel=1e-2)


def test_comparison_gives_what_the_functions_give():
    p, q = logits(), logits(1)
    found = _Comparison()(p, q, NEXT)
    torch.testing.assert_close(found["nll"], torch.nn.functional.cross_entropy(q, NEXT, reduction="none"))
    torch.testing.assert_close(found["js_divergence"], js_divergence(p, q))
    torch.testing.assert_close(found["kl_divergence"], kl_divergence(p, q))
    torch.testing.assert_close(found["kl_divergence_reverse"], kl_divergence(q, p))
    torch.testing.assert_close(found["top1_agreement"], top1_agreement(p, q).float())


def test_shapes_are_kept_and_half_precision_is_taken():
    p, q = logits(n=6).view(2, 3, 50).bfloat16(), logits(1, n=6).view(2, 3, 50).bfloat16()
    assert js_divergence(p, q).shape == (2, 3)
    assert js_divergence(p, q).dtype == torch.float32


def test_tokens_ruled_out_by_both_count_for_nothing():
    p, q = logits(), logits(1)
    p[:, 10:], q[:, 10:] = -math.inf, -math.inf
    found, inner = _Comparison()(p, q, NEXT), _Comparison()(p[:, :10], q[:, :10], NEXT)
    for name, values in found.items():
        torch.testing.assert_close(values, inner[name], msg=name)
