"""D-Pruner: the float64 oracle, signs that must not cancel, the say of general text, then the edges."""

from itertools import pairwise

import pytest
import torch

from crosscal import compress, load_model, load_text
from crosscal.calibration import InputStats
from crosscal.calibration.statistics import WeightGradient
from crosscal.errors import InputError
from crosscal.methods.dpruner import METHOD, _scores, dpruner, dpruner_term
from crosscal.methods.linalg import _inverse_factor
from crosscal.methods.registry import Evidence
from crosscal.metrics import perplexity
from crosscal.types import NofM, Unstructured
from tests.oracles import dpruner as oracle

PATTERNS = [*(Unstructured(s) for s in (0.0, 0.25, 0.5, 1.0)), NofM(2, 4), NofM(4, 8), NofM(1, 4), NofM(0, 4)]
HALF = Unstructured(0.5)
KINDS = ["random", "real", "few", "dead"]


def dpruner_scores(weight, stats, gradient, *, strength=0.1, damp=0.01):
    """The scores that `dpruner` compares."""
    return _scores(weight, _inverse_factor(stats, damp), stats.n_tokens, gradient, strength)


def inputs_of(kind, tokens, d_in, generator):
    """Random inputs, or low-rank ones with a few loud channels as in real layers, or fewer than channels, or dead."""
    if kind == "few":
        tokens = d_in // 4
    inputs = torch.randn(tokens, d_in, generator=generator)
    if kind in ("real", "dead"):
        through = torch.randn(d_in, d_in // 6, generator=generator) @ torch.randn(d_in // 6, d_in, generator=generator)
        inputs = inputs @ through / d_in**0.5
        inputs[:, ::11] *= 30
    if kind == "dead":
        inputs[:, [3, 7]] = 0
    return inputs


def make(kind="random", d_out=12, d_in=24, tokens=200, n_windows=5, seed=0):
    """A weight, general statistics and domain gradients, window by window; sizes and tails as in language models."""
    generator = torch.Generator().manual_seed(seed)
    inputs = inputs_of(kind, tokens, d_in, generator)
    weight = 0.05 * torch.randn(d_out, d_in, generator=generator)
    tails = torch.randn(n_windows, d_out, d_in, generator=generator) ** 3
    windows = 1e-3 * tails * torch.rand(d_out, d_in, generator=generator)
    return weight, InputStats(inputs.T @ inputs, len(inputs)), windows


def means(weight, windows):
    """What gathering keeps of single windows' gradients."""
    term = torch.stack([dpruner_term(window, weight.float()) for window in windows]).mean(dim=0)
    return WeightGradient(windows.square().mean(dim=0), len(windows), term)


def scores(weight, stats, windows, strength=0.1):
    return _scores(weight, _inverse_factor(stats), stats.n_tokens, means(weight, windows), strength)


def prune(weight, stats, windows, pattern, **options):
    return dpruner(weight, stats, means(weight, windows), pattern, **options)


@pytest.mark.parametrize("strength", [0.0, 0.1, 10.0])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_the_oracle(kind, strength):
    weight, stats, windows = make(kind)
    for scale in (1e-3, 1.0, 1e5):  # of the gradients; at the smallest W^2 / 1024 leads
        fast = scores(weight, stats, windows * scale, strength)
        slow = oracle.scores(weight, stats.gram, stats.n_tokens, windows * scale, strength)
        torch.testing.assert_close(fast.double(), slow, rtol=1e-3, atol=1e-4 * slow.mean().item())


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_pruning_equals_the_oracle(kind, pattern):
    weight, stats, windows = make(kind)
    for options in ({}, {"strength": 1.0, "damp": 0.1}):
        expected = oracle.dpruner(weight, stats.gram, stats.n_tokens, windows, pattern, **options)
        assert torch.equal(prune(weight, stats, windows, pattern, **options).double(), expected)


def test_opposite_windows_score_like_equal_ones():
    weight, stats, windows = make("real")
    weight *= 0.1  # W^2 / 1024 is small beside the gradients
    g = windows[:1]
    alike = scores(weight, stats, torch.cat([g, g]))
    opposed = scores(weight, stats, torch.cat([g, -g]))
    torch.testing.assert_close(opposed, alike, rtol=0.02, atol=1e-3 * alike.mean().item())
    assert (alike > 0).double().mean() > 0.99


def test_windows_are_not_merged():
    weight, stats, windows = make("real")
    merged = windows.mean(dim=0, keepdim=True)
    assert scores(weight, stats, windows).sum() > 1.2 * scores(weight, stats, merged).sum()
    assert not torch.equal(prune(weight, stats, windows, HALF), prune(weight, stats, merged, HALF))


def test_without_gradient_and_strength_the_cube_of_the_weight_decides():
    weight, stats, windows = make()
    found = scores(weight, stats, 0 * windows, strength=0.0)
    torch.testing.assert_close(found, weight.abs() ** 3 / 1024)
    assert (prune(weight, stats, 0 * windows, HALF) == 0).sum() == weight.numel() // 2


def test_general_text_has_a_say():
    weight, stats, windows = make("real")
    generator = torch.Generator().manual_seed(5)
    inputs = inputs_of("random", 200, weight.shape[1], generator)
    both = (stats, InputStats(inputs.T @ inputs, 200))
    with_say = [prune(weight, s, windows, HALF, strength=1.0) != 0 for s in both]
    without = [prune(weight, s, windows, HALF, strength=0.0) != 0 for s in both]
    assert (with_say[0] != with_say[1]).any()
    assert torch.equal(*without)


def test_a_weight_that_general_text_needs_outlives_its_equal():
    weight, window = torch.ones(1, 4), torch.full((1, 1, 4), 0.1)
    loud_third_input = InputStats(torch.diag(torch.tensor([1.0, 1.0, 9.0, 1.0])), 1)
    assert prune(weight, loud_third_input, window, Unstructured(0.75)).tolist() == [[0.0, 0.0, 1.0, 0.0]]


@pytest.mark.parametrize("scale", [1e-4, 1e3])
def test_units_of_the_inputs_do_not_matter(scale):
    weight, stats, windows = make("real")
    repeated = InputStats(stats.gram * 4, stats.n_tokens * 4)
    assert torch.equal(prune(weight, repeated, windows, HALF), prune(weight, stats, windows, HALF))
    louder = InputStats(stats.gram * scale, stats.n_tokens)
    torch.testing.assert_close(scores(weight, louder, windows), scores(weight, stats, windows), rtol=1e-3, atol=0)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_exact_counts_also_with_ties(pattern):
    weight, stats, windows = make(d_out=10)
    same, ties = torch.full_like(weight, 0.5), torch.ones(1, *weight.shape)
    for case in ((weight, stats, windows), (same, InputStats(torch.eye(24), 1), ties)):
        zeros = prune(*case, pattern) == 0
        assert zeros.sum() == int(weight.numel() * pattern.sparsity + 1e-6)
        if isinstance(pattern, NofM):
            assert (zeros.view(-1, pattern.m).sum(dim=1) == pattern.m - pattern.n).all()
    leftmost = prune(same, InputStats(torch.eye(24), 1), ties, NofM(2, 4))
    assert not leftmost.view(-1, 4)[:, :2].any()


def test_masks_nest_as_sparsity_grows():
    weight, stats, windows = make("real")
    kept = [prune(weight, stats, windows, Unstructured(s / 10)) != 0 for s in range(11)]
    assert all((more <= less).all() for less, more in pairwise(kept))


def test_weights_of_a_group_are_pruned_as_if_alone():
    parts = [make("real", d_out=rows, seed=seed) for seed, rows in enumerate((8, 4, 12))]
    stats = parts[0][1]
    weights, gradients = [part[0] for part in parts], [means(part[0], part[2]) for part in parts]
    for pattern in (HALF, NofM(2, 4)):
        new, facts = METHOD.solve(weights, Evidence(stats, gradients), pattern, strength=1.0, damp=0.02)
        assert facts == {"damp": 0.02, "failed": False}
        for weight, gradient, pruned in zip(weights, gradients, new, strict=True):
            assert torch.equal(pruned, dpruner(weight, stats, gradient, pattern, strength=1.0, damp=0.02))


def test_dtype_is_kept_and_nothing_is_changed():
    weight, stats, windows = make("real")
    weight = weight.bfloat16()
    gradient = means(weight, windows)
    before = [tensor.clone() for tensor in (weight, stats.gram, gradient.square, gradient.term)]
    pruned = dpruner(weight, stats, gradient, HALF)
    assert pruned.dtype == torch.bfloat16
    assert torch.equal(pruned[pruned != 0], weight[pruned != 0])
    assert torch.equal(pruned.double(), oracle.dpruner(weight, stats.gram, stats.n_tokens, windows, HALF))
    assert all(map(torch.equal, before, (weight, stats.gram, gradient.square, gradient.term)))
    assert torch.equal(dpruner(weight, stats, gradient, HALF), pruned)


def test_dead_inputs_gain_nothing_from_general_text():
    weight, stats, windows = make("dead")
    found, alone = (scores(weight, stats, windows, strength) for strength in (10.0, 0.0))
    assert torch.equal(found[:, [3, 7]], alone[:, [3, 7]])
    assert (found > alone).any()


def test_no_general_text_at_all_leaves_the_domain():
    weight, stats, windows = make()
    nowhere = InputStats(torch.zeros_like(stats.gram), 0)
    assert torch.equal(scores(weight, nowhere, windows), scores(weight, stats, windows, strength=0.0))


def test_bad_input_gets_a_sentence():
    weight, stats, windows = make()
    gradient = means(weight, windows)
    with pytest.raises(InputError, match="do not divide 24 inputs"):
        dpruner(weight, stats, gradient, NofM(2, 5))
    with pytest.raises(InputError, match="give each weight its own gradient"):
        dpruner(weight, stats, means(weight[:4], windows[:, :4]), HALF)
    with pytest.raises(InputError, match="has no term; gather it with term=dpruner_term"):
        dpruner(weight, stats, WeightGradient(gradient.square, 5), HALF)
    with pytest.raises(InputError, match=r"strength is -0\.1"):
        dpruner(weight, stats, gradient, HALF, strength=-0.1)
    with pytest.raises(InputError, match="not positive definite"):
        dpruner(weight, InputStats(-stats.gram, stats.n_tokens), gradient, HALF)
    weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="NaN or infinite"):
        dpruner(weight, stats, gradient, HALF)


@pytest.mark.slow
def test_dpruner_beats_magnitude_on_the_embedded_model():
    held_out, losses = {}, {}
    for method in ("magnitude", "dpruner"):
        model, tokenizer = load_model("smollm2-135m")
        text = {name: load_text(name, tokenizer, n_windows=4, length=256) for name in ("c4", "pubmed")}
        compress(model, method, Unstructured(0.3), calibration=text, progress=False)
        for name in ("pubmed", "wikipedia"):
            held_out[name] = load_text(name, tokenizer, n_windows=4, length=256, split="held_out")
            losses[method, name] = perplexity(model, held_out[name])
    assert all(losses["dpruner", name] < losses["magnitude", name] for name in held_out)
