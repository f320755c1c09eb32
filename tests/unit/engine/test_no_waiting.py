"""Nothing between the first layer of a block and its report waits for a GPU.

On a CPU nothing waits, but what would wait on a GPU can be seen here too: an operation that hands values to Python.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from crosscal.calibration.gram import InputSums
from crosscal.calibration.statistics import mix
from crosscal.engine.block import _layer_losses
from crosscal.engine.gather import _all_finite
from crosscal.methods.masks import _kth_smallest_of_parts
from crosscal.methods.registry import METHODS, Evidence
from crosscal.types import Grid, NofM, PerGroup, SparseGrid, Unstructured

CASES = [
    ("magnitude", Unstructured(0.5)),
    ("magnitude", NofM(2, 4)),
    ("wanda", Unstructured(0.5)),
    ("wanda", NofM(2, 4)),
    ("sparsegpt", Unstructured(0.5)),
    ("sparsegpt", NofM(2, 4)),
    ("sparsegpt", SparseGrid(Unstructured(0.5), Grid(4, PerGroup(32)))),
    ("rtn", Grid(4, PerGroup(48))),
    ("gptq", Grid(4)),
    ("gptq", Grid(4, PerGroup(64))),
    ("gptq", Grid(4, PerGroup(128), symmetric=True)),
    ("awq", Grid(4, PerGroup(64))),
]


LOOKS = {torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select}
INDEXING = {torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_}


class NoLooking(TorchDispatchMode):
    """Raises where an operation hands a tensor's values to Python, as `item`, `bool` and boolean indexing do."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        packet = function.overloadpacket
        by_mask = packet in INDEXING and any(i is not None and i.dtype == torch.bool for i in args[1])
        if packet in LOOKS or by_mask:
            raise AssertionError(f"{function} waits for the device")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "target"), CASES, ids=str)
def test_a_group_is_gathered_solved_and_measured_without_a_look_at_values(name, target, dtype):
    method, generator = METHODS[name], torch.Generator().manual_seed(0)
    weights = [torch.randn(rows, 256, generator=generator).to(dtype) for rows in (48, 16)]
    texts = {source: torch.randn(2, 40, 256, generator=generator).to(dtype) for source in ("a", "b")}
    options = {"damp": 0.01} if method.damped else {}
    with NoLooking():
        sums = InputSums(False, {})
        for source, inputs in texts.items():
            sums.add(source, inputs)
        stats = sums.stats()
        mixed = mix(stats, {"a": 0.5, "b": 0.5})
        new, facts = method.solve(weights, Evidence(mixed, None), target, **options)
        losses, finite = _layer_losses(weights, new, mixed), _all_finite(stats)
    assert [weight.shape for weight in new] == [weight.shape for weight in weights]
    assert all(0 < error < output for error, output in losses)
    assert all(finite.values())
    assert ("failed" in facts) == method.damped


def test_thresholds_on_a_gpu_are_found_without_a_look_at_values():
    scores = torch.rand(16, 40, generator=torch.Generator().manual_seed(0))
    with NoLooking():
        found = _kth_smallest_of_parts(scores, [30, 10], [100, 7], radix=True)
    assert torch.equal(found, _kth_smallest_of_parts(scores, [30, 10], [100, 7], radix=False))


@pytest.mark.parametrize("look", [bool, torch.Tensor.item, torch.Tensor.nonzero, lambda t: t[t > 0]])
def test_a_look_would_be_noticed(look):
    with NoLooking(), pytest.raises(AssertionError, match="waits for the device"):
        look(torch.ones(1))
