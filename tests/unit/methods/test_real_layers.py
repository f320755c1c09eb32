"""Every method against its float64 oracle on the statistics of real layers (tests/data/make_real_layers.py)."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from crosscal.calibration import InputStats
from crosscal.calibration.statistics import WeightGradient
from crosscal.methods import asvd, awq, dpruner, fwsvd, gptq, joint_rank, magnitude, rtn, sparsegpt, svd, wanda
from crosscal.methods.dpruner import dpruner_term
from crosscal.types import Grid, LowRank, NofM, PerGroup, Unstructured
from tests.oracles import dpruner as dpruner_oracle
from tests.oracles import lowrank as lowrank_oracle
from tests.oracles import pruning, quantization

FILE = Path(__file__).resolve().parents[2] / "data" / "real_layers.safetensors"
PATTERNS = [Unstructured(0.5), Unstructured(0.7), NofM(2, 4)]
GRIDS = [Grid(4), Grid(3, PerGroup(64)), Grid(4, PerGroup(32), symmetric=True)]
QUARTER = LowRank(0.25)
TIED = 0.5  # two of AWQ's exponents may be equally good; the one chosen decides many roundings, and not the loss


@pytest.fixture(params=["attention", "mlp"], scope="module")
def layer(request):
    """(weight, statistics, gradients of each window) of one layer."""
    with safe_open(FILE, framework="pt") as file:
        weight, gram, gradients = (
            file.get_tensor(f"{request.param}.{part}") for part in ("weight", "gram", "gradients")
        )
        return weight, InputStats(gram, int(file.metadata()["n_tokens"])), gradients


def loss(weight, new, gram):
    """tr(dW G dW^T) in float64."""
    change = weight.double() - torch.as_tensor(new).double()
    return ((change @ gram.double()) * change).sum().item()


def assert_same_quality(fast, slow, weight, gram, equal=0.995):
    """The same weights nearly everywhere, and the same loss within half a percent."""
    slow = torch.as_tensor(slow).double()
    close = (fast.double() - slow).abs() <= 2e-3 * weight.abs().max()
    assert close.double().mean() >= equal
    assert loss(weight, fast, gram) == pytest.approx(loss(weight, slow, gram), rel=5e-3)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_pruning(layer, pattern):
    weight, stats, gradients = layer
    gram, n = stats.gram, stats.n_tokens
    assert torch.equal(magnitude(weight, pattern).double(), pruning.magnitude(weight, pattern))
    assert torch.equal(wanda(weight, stats, pattern).double(), pruning.wanda(weight, gram, n, pattern))
    assert_same_quality(sparsegpt(weight, stats, pattern), pruning.sparsegpt(weight, gram, pattern), weight, gram)
    term = dpruner_term(gradients, weight).mean(dim=0)
    moments = WeightGradient(gradients.square().mean(dim=0), len(gradients), term)
    slow = dpruner_oracle.dpruner(weight, gram, n, gradients, pattern)
    assert_same_quality(dpruner(weight, stats, moments, pattern), slow, weight, gram)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_quantization(layer, grid):
    weight, stats, _ = layer
    gram = stats.gram
    nearest = rtn(weight, grid)
    torch.testing.assert_close(nearest.double(), quantization.rtn(weight, grid, ties=nearest), rtol=1e-5, atol=1e-7)
    for act_order in (False, True):
        fast = gptq(weight, stats, grid, act_order=act_order)
        slow = quantization.gptq(weight, gram, grid, act_order=act_order, ties=fast)
        assert_same_quality(fast, slow, weight, gram)
    fast = awq(weight, stats, grid)
    assert loss(weight, fast, gram) <= loss(weight, nearest, gram) * (1 + 1e-5)
    if grid.symmetric:
        return  # the largest weight of every group is half way between two levels, so no two precisions agree
    (slow,), _, _ = quantization.awq([weight], gram, grid, ties=[fast])
    assert_same_quality(fast, slow, weight, gram, equal=TIED)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_joint_pruning_and_quantization(layer, pattern, grid):
    weight, stats, _ = layer
    fast = sparsegpt(weight, stats, pattern, grid=grid)
    slow = quantization.joint(weight, stats.gram, pattern, grid, ties=fast)
    assert_same_quality(fast, slow, weight, stats.gram, equal=0.95)


def test_low_rank(layer):
    weight, stats, gradients = layer
    gram, squares = stats.gram, gradients.square().mean(dim=0)
    for fast, slow in [
        (svd(weight, QUARTER), lowrank_oracle.svd(weight, QUARTER.ratio)),
        (fwsvd(weight, squares, QUARTER), lowrank_oracle.fwsvd(weight, squares, QUARTER.ratio)),
        (asvd(weight, stats, QUARTER), lowrank_oracle.asvd(weight, gram, QUARTER.ratio)),
        (
            torch.cat(joint_rank([weight[:12], weight[12:]], QUARTER)),
            torch.cat([torch.tensor(w) for w in lowrank_oracle.joint_rank([weight[:12], weight[12:]], QUARTER.ratio)]),
        ),
    ]:
        assert_same_quality(fast, slow, weight, gram)


def test_what_reads_the_text_loses_less_on_it(layer):
    """Half the weights, 3 bits, a quarter of the numbers: each family's order of methods, by loss on real inputs."""
    weight, stats, _ = layer
    half, three = Unstructured(0.5), Grid(3, PerGroup(64))

    def lost(new):
        return loss(weight, new, stats.gram)

    assert lost(sparsegpt(weight, stats, half)) < lost(wanda(weight, stats, half)) < lost(magnitude(weight, half))
    assert lost(gptq(weight, stats, three)) < lost(rtn(weight, three))
    assert lost(awq(weight, stats, three)) < lost(rtn(weight, three))
    assert lost(asvd(weight, stats, QUARTER)) < lost(svd(weight, QUARTER))
