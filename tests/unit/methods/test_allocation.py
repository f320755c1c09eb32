"""Sparsity by outliers: what counts as one, and how sparsities follow from them."""

import math

import pytest
import torch

from crosscal.errors import InputError
from crosscal.methods.allocation import Owl
from tests.oracles import allocation as oracle


def allocate(fractions, sizes, sparsity, owl):
    return owl.sparsities(fractions, sizes, sparsity)


def block_outliers(weights, mean_squares, outlier):
    return Owl(outlier=outlier).outliers(weights, mean_squares)


def layer(d_out=16, d_in=24, tokens=60, seed=0):
    """Weights with a heavy tail, and inputs that a few loud channels and a low rank shape, as in real layers."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(tokens, d_in // 3, generator=generator) @ torch.randn(d_in // 3, d_in, generator=generator)
    inputs[:, ::7] *= 12.0
    weight = torch.randn(d_out, d_in, generator=generator) ** 3
    return weight, inputs.square().mean(dim=0)


def cases(n=60):
    """Random blocks: few and many, alike and not, with one far off, at sparsities and limits of every kind."""
    generator = torch.Generator().manual_seed(1)

    def rand(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    for i in range(n):
        blocks = int(1 + 12 * rand())
        fractions = 0.05 * rand(blocks) ** (1 + i % 4)
        if i % 3 == 0:
            fractions[0] = 0.5
        if i % 5 == 0:
            fractions[1:] = fractions[1:].mul(100).round() / 100  # ties
        sizes = (1 + 1000 * rand(blocks)).long().tolist()
        sparsity = (0.5, 0.7, 0.02, 0.97, float(rand()))[i % 5]
        limit = (0.08, 0.2, 0.01, 1.0, float(rand()))[i // 5 % 5]
        yield fractions.tolist(), sizes, sparsity, limit


CASES = list(cases())


def mean(values, sizes):
    return math.fsum(v * size for v, size in zip(values, sizes, strict=True)) / sum(sizes)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_the_mean_is_exact_the_bounds_hold_and_more_outliers_never_mean_more_zeros(case):
    fractions, sizes, sparsity, limit = case
    found = allocate(fractions, sizes, sparsity, Owl(limit=limit))
    assert mean(found, sizes) == pytest.approx(sparsity, abs=1e-12)
    assert all(max(0, sparsity - limit) <= s <= min(1, sparsity + limit) for s in found)
    by_outliers = [s for _, s in sorted(zip(fractions, found, strict=True), key=lambda pair: pair[0])]
    assert by_outliers == sorted(by_outliers, reverse=True)
    if len(set(fractions)) > 1:
        assert by_outliers[0] > by_outliers[-1]
    for i, one in enumerate(fractions):
        assert all(found[i] == found[j] for j, other in enumerate(fractions) if one == other)


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_sparsities_equal_their_oracle(case):
    fractions, sizes, sparsity, limit = case
    assert allocate(fractions, sizes, sparsity, Owl(limit=limit)) == pytest.approx(oracle.allocate(*case), abs=1e-12)


def test_cases_cover_blocks_at_both_bounds_and_between():
    at = {"low": 0, "high": 0, "between": 0}
    for fractions, sizes, sparsity, limit in CASES:
        for s in allocate(fractions, sizes, sparsity, Owl(limit=limit)):
            at["low" if s == max(0, sparsity - limit) else "high" if s == min(1, sparsity + limit) else "between"] += 1
    assert min(at.values()) > 20


def test_where_no_bound_interferes_sparsity_is_linear_over_a_range_of_twice_the_limit():
    fractions = [0.00, 0.04, 0.01, 0.03, 0.02]
    assert allocate(fractions, [7] * 5, 0.6, Owl(0.1)) == pytest.approx([0.7, 0.5, 0.65, 0.55, 0.6])


def test_one_far_block_pulls_only_to_the_limit():
    found = allocate([0.3, 0.01, 0.01, 0.01, 0.01], [100] * 5, 0.5, Owl(0.08))
    assert found == pytest.approx([0.42, 0.52, 0.52, 0.52, 0.52])


def test_large_blocks_weigh_more():
    assert allocate([0.02, 0.01], [300, 100], 0.5, Owl(0.08)) == pytest.approx([0.5 - 0.08 / 3, 0.58])


@pytest.mark.parametrize(
    ("fractions", "sparsity", "limit"),
    [
        ([0.02, 0.02, 0.02], 0.5, 0.08),
        ([0.0, 0.0, 0.0], 0.5, 0.08),
        ([0.02, 0.02 * (1 + 1e-7), 0.02], 0.5, 0.08),  # equal but for float32 rounding
        ([0.01, 0.02, 0.03], 0.5, 0.0),
        ([0.01, 0.02, 0.03], 0.0, 0.08),
        ([0.01, 0.02, 0.03], 1.0, 0.08),
        ([0.01, 0.02, 0.03], 1, 1),
    ],
)
def test_uniform_where_there_is_nothing_to_choose(fractions, sparsity, limit):
    assert allocate(fractions, [10, 20, 30], sparsity, Owl(limit)) == [sparsity] * 3


def test_one_block_gets_the_mean():
    assert allocate([0.2], [5], 0.3, Owl()) == [0.3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("outlier", [0.5, 1.0, 3.0, 5.0, 1000.0])
@pytest.mark.parametrize("seed", range(4))
def test_outliers_are_counted_as_the_oracle_does(outlier, seed, dtype):
    weight, mean_square = layer(seed=seed)
    weight = weight.to(dtype)
    before = weight.clone()
    found = block_outliers([weight], [mean_square], outlier)
    count, size = oracle.outliers(weight, mean_square, outlier)
    assert found.ndim == 0
    assert found.item() * size == pytest.approx(count, abs=1e-3)
    assert (count > 0) == (outlier < 1000)
    assert torch.equal(weight, before)


def test_random_weights_without_a_tail_too():
    generator = torch.Generator().manual_seed(3)
    weight, mean_square = torch.randn(20, 30, generator=generator), torch.rand(30, generator=generator)
    count, size = oracle.outliers(weight, mean_square, 3.0)
    assert 0 < count < size
    assert block_outliers([weight], [mean_square], 3.0).item() == pytest.approx(count / size)


def test_the_fraction_of_a_block_counts_each_matrix_by_its_own_mean_and_its_size():
    layers = [layer(8, 12, seed=1), layer(20, 24, seed=2), layer(24, 9, seed=3)]
    layers[0] = (100 * layers[0][0], layers[0][1])  # its size must not make the others' outliers vanish
    counted = [oracle.outliers(*each, 5.0) for each in layers]
    assert all(count for count, _ in counted)
    expected = sum(count for count, _ in counted) / sum(size for _, size in counted)
    found = block_outliers([w for w, _ in layers], [m for _, m in layers], 5.0)
    assert found.ndim == 0
    assert found.item() == pytest.approx(expected)


def test_scale_changes_nothing_and_dead_inputs_are_no_outliers():
    weight, mean_square = layer()
    found = block_outliers([weight], [mean_square], 5.0)
    assert torch.equal(block_outliers([weight * 4], [mean_square * 16], 5.0), found)
    mean_square[::7] = 0  # the loud ones
    count, size = oracle.outliers(weight, mean_square, 5.0)
    assert block_outliers([weight], [mean_square], 5.0).item() == pytest.approx(count / size)
    assert block_outliers([torch.zeros(3, 24)], [mean_square], 5.0).item() == 0
    assert block_outliers([weight], [torch.zeros(24)], 5.0).item() == 0


def test_scores_at_the_threshold_are_no_outliers():
    assert block_outliers([torch.ones(4, 8)], [torch.ones(8)], 1.0).item() == 0
    assert block_outliers([torch.ones(4, 8)], [torch.ones(8)], 0.5).item() == 1


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Owl(limit=-0.1), r"the limit of OWL is -0.1; give a number from 0 to 1"),
        (lambda: Owl(limit=1.1), r"the limit of OWL is 1.1"),
        (lambda: Owl(limit=math.nan), r"the limit of OWL is nan"),
        (lambda: Owl(outlier=0), r"the outlier of OWL is 0; give a number above 0"),
        (lambda: Owl(outlier=math.nan), r"the outlier of OWL is nan"),
        (lambda: Owl(outlier=math.inf), r"the outlier of OWL is inf"),
        (lambda: allocate([], [], 0.5, Owl()), r"0 outlier fractions and 0 sizes; give one of each for every block"),
        (lambda: allocate([0.1], [1, 2], 0.5, Owl()), r"1 outlier fractions and 2 sizes"),
        (lambda: allocate([0.1, 1.1], [1, 2], 0.5, Owl()), r"an outlier fraction is 1.1; give a number from 0 to 1"),
        (lambda: allocate([0.1, math.nan], [1, 2], 0.5, Owl()), r"an outlier fraction is nan"),
        (lambda: allocate([0.1, 0.2], [1, 0], 0.5, Owl()), r"the size of a block is 0"),
        (lambda: allocate([0.1, 0.2], [1, 2], 1.5, Owl()), r"sparsity is 1.5; give a number from 0"),
        (lambda: block_outliers([], [], 5.0), r"0 weights and 0 statistics; give them in pairs, at least one"),
        (lambda: block_outliers([torch.ones(2, 2)], [], 5.0), r"1 weights and 0 statistics"),
    ],
)
def test_bad_input_gets_a_sentence(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()
