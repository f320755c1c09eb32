"""What only a GPU can show; skipped without one."""

import warnings

import pytest
import torch

from crosscal.engine.driver import compress
from crosscal.types import Grid, NofM, PerGroup, SparseGrid, Unstructured
from tests.unit.families import random_windows, tiny_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
TEXT = {"a": random_windows(), "b": random_windows(seed=1)}
CASES = [
    ("magnitude", Unstructured(0.5)),
    ("wanda", NofM(2, 4)),
    ("sparsegpt", Unstructured(0.5)),
    ("sparsegpt", SparseGrid(NofM(2, 4), Grid(4, PerGroup(16)))),
    ("gptq", Grid(4, PerGroup(16))),
    ("awq", Grid(4)),
]


@pytest.mark.parametrize(("method", "target"), CASES, ids=str)
def test_a_gpu_compresses_as_a_cpu_does(method, target):
    on_cpu, on_gpu = tiny_model("llama"), tiny_model("llama").cuda()
    expected = compress(on_cpu, method, target, calibration=TEXT, progress=False)
    report = compress(on_gpu, method, target, calibration=TEXT, progress=False)
    for slow, fast in zip(expected.layers, report.layers, strict=True):
        assert fast.relative_error == pytest.approx(slow.relative_error, rel=0.05)
        assert fast.sparsity == pytest.approx(slow.sparsity, abs=0.01)


def test_the_same_run_gives_the_same_bits():
    models = [tiny_model("llama").bfloat16().cuda() for _ in range(2)]
    for model in models:
        compress(model, "sparsegpt", Unstructured(0.5), calibration=TEXT, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


def test_the_host_waits_once_for_each_block():
    """One wait to look for bad weights, and one to fetch each block's report."""
    model = tiny_model("llama").bfloat16().cuda()
    compress(model, "sparsegpt", Unstructured(0.5), calibration=TEXT, progress=False)  # kernels compile here
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            compress(model, "sparsegpt", Unstructured(0.5), calibration=TEXT, progress=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum("synchroniz" in str(wait.message) for wait in waits) <= 3 + 3
