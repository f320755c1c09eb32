"""The fused sweep against a column loop, in Triton's interpreter and (where there is one) on a GPU; selection."""

import csv
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location

import pytest
import torch

from crosscal.errors import InputError
from crosscal.methods.kernels import _available, _BlockRule, _supports, _sweep_block
from crosscal.methods.masks import _kth_smallest_of_parts
from crosscal.methods.rtn import _fit_levels, _Levels, _nearest_level
from crosscal.paths import checkout
from crosscal.types import Grid, NofM

SPEC = spec_from_file_location("kernels", checkout() / "benchmarks" / "kernels.py")
KERNELS = module_from_spec(SPEC)
SPEC.loader.exec_module(KERNELS)
CPU = torch.device("cpu")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="run in the interpreter by test_the_kernel_in_the_interpreter")
compiled = pytest.mark.skipif(INTERPRETED, reason="the interpreter is on")

PATTERNS = {"dense": None, "half": "keep", "1:2": NofM(1, 2), "2:4": NofM(2, 4), "4:8": NofM(4, 8)}
GRIDS = ["none", "row", "symmetric row", "groups", "permuted groups"]
GRIDS += ["fit 16", "fit 32", "symmetric fit 32", "fit 64", "fit 128"]


def problem(block, rows, seed=0):
    """Columns, flow and scale as slices of something larger, as in a sweep; correlated inputs of unlike size."""
    draw = torch.Generator().manual_seed(seed)
    inputs = torch.randn(4 * block, block // 3, generator=draw) @ torch.randn(block // 3, block, generator=draw)
    inputs = (inputs + torch.randn(inputs.shape, generator=draw)) * torch.logspace(-1, 1, block)[None]
    gram = inputs.T.double() @ inputs.double()
    gram += 0.01 * gram.diagonal().mean() * torch.eye(block)
    upper = torch.linalg.cholesky(torch.linalg.inv(gram), upper=True).float()
    flow = torch.zeros(block + 7, block + 7)
    flow[7:, 7:] = upper / upper.diagonal()[:, None]
    columns = torch.randn(block + 9, rows, generator=draw)
    return columns, flow[7:, 7:], upper.diagonal()


def make_rule(pattern, grid, columns, seed=0):
    block, rows = columns.shape
    draw = torch.Generator().manual_seed(seed)
    keep = torch.rand(block, rows, generator=draw) > 0.5 if pattern == "keep" else None
    rule = _BlockRule(keep=keep, nofm=None if pattern == "keep" else pattern)
    if grid == "none":
        return rule
    rule = replace(rule, grid=Grid(4 if "row" in grid else 3, symmetric="symmetric" in grid))
    if "fit" in grid:
        return replace(rule, fit_size=int(grid.split()[-1]))
    size = block if "row" in grid else 12
    found = [_fit_levels(part.T, rule.grid) for part in columns.split(size)]
    levels = _Levels(torch.cat([f.scale.T for f in found]), torch.cat([f.zero.T for f in found]), found[0].top)
    group_of = torch.arange(block) // size
    return replace(
        rule, levels=levels, group_of=group_of[torch.randperm(block, generator=draw)] if "perm" in grid else group_of
    )


def reference(columns, flow, scale, rule):
    """One column after the other, each loss carried to all later columns at once."""
    columns, losses = columns.clone(), torch.zeros_like(columns)
    keep, levels = rule.keep, None
    for j in range(len(columns)):
        if rule.nofm is not None and j % rule.nofm.m == 0:
            group = slice(j, j + rule.nofm.m)
            order = (columns[group] / scale[group, None]).square().argsort(dim=0, stable=True)
            keep = torch.ones(len(columns), columns.shape[1], dtype=torch.bool) if keep is None else keep
            keep[group].scatter_(0, order[: rule.nofm.m - rule.nofm.n], False)
        value = columns[j].clone()
        if rule.fit_size is not None and j % rule.fit_size == 0:
            levels = _fit_levels(columns[j : j + rule.fit_size].T, rule.grid)
            levels = _Levels(levels.scale[:, 0], levels.zero[:, 0], levels.top)
        if rule.levels is not None:
            g = rule.group_of[j]
            levels = _Levels(rule.levels.scale[g], rule.levels.zero[g], rule.levels.top)
        if levels is not None:
            value = _nearest_level(value, levels)
        if keep is not None:
            value[~keep[j]] = 0
        losses[j] = columns[j] - value
        columns[j] = value
        columns[j + 1 :] -= flow[j, j + 1 :, None] * losses[j]
    return columns, losses


def check(block, rows, pattern, grid, device=CPU, near_ties=1):
    whole, flow, scale = problem(block, rows)
    rule = make_rule(pattern, grid, whole[:block])
    expected, losses = reference(whole[:block], flow, scale, rule)
    before, there = whole.clone(), whole.to(device)
    # On another device `flow` and `scale` arrive as they are sliced here: strided views of larger tensors.
    base = torch.zeros(block + 7, block + 7, device=device)
    base[7:, 7:] = flow.to(device)
    moved = {name: getattr(rule, name).to(device) for name in ("keep", "group_of") if getattr(rule, name) is not None}
    if rule.levels is not None:
        moved["levels"] = _Levels(rule.levels.scale.to(device), rule.levels.zero.to(device), rule.levels.top)
    diagonal = torch.diag(scale.to(device)).diagonal()
    assert _supports(rule, block)
    lost = _sweep_block(there[:block], base[7:, 7:], diagonal, replace(rule, **moved)).cpu()
    found = there.cpu()
    assert torch.equal(found[block:], before[block:])
    # Sums in another order move a value over the edge between two levels once in a while, then its row differs.
    wrong = torch.zeros(rows, dtype=torch.bool)
    for ours, theirs in ((found[:block], expected), (lost, losses)):
        wrong |= ~torch.isclose(ours, theirs, rtol=1e-5, atol=1e-5 * theirs.abs().amax().item()).all(dim=0)
    wrong |= ((found[:block] == 0) != (expected == 0)).any(dim=0)
    assert wrong.sum() <= (0 if grid == "none" else near_ties), f"{pattern} {grid}: rows {wrong.nonzero().flatten()}"


@interpreted
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_short_block_equals_the_column_loop(pattern, grid):
    check(24, 20, PATTERNS[pattern], grid)


@interpreted
@pytest.mark.parametrize(
    ("block", "pattern", "grid"),
    [
        (128, "half", "none"),
        (128, "1:2", "fit 32"),
        (128, "dense", "fit 64"),
        (128, "4:8", "permuted groups"),
        (64, "half", "groups"),
        (64, "2:4", "none"),
        (40, "dense", "fit 16"),
        (40, "2:4", "symmetric fit 32"),
    ],
)
def test_several_programs_equal_the_column_loop(block, pattern, grid):
    check(block, 33, PATTERNS[pattern], grid)


@interpreted
@pytest.mark.parametrize("pattern", [NofM(3, 16), NofM(0, 4), NofM(4, 4), NofM(1, 1)], ids=str)
def test_other_groups_equal_the_column_loop(pattern):
    check(32, 5, pattern, "none")


@interpreted
def test_a_single_group_of_any_size_is_fitted():
    check(40, 5, "keep", "fit 100")


@interpreted
def test_the_leftmost_of_equal_scores_go():
    columns = torch.ones(32, 3)
    _sweep_block(columns, torch.eye(32), torch.ones(32), _BlockRule(nofm=NofM(3, 8)))
    assert columns.T.reshape(-1, 8).eq(torch.tensor([0.0] * 5 + [1.0] * 3)).all()


@interpreted
def test_halves_go_to_even_codes_and_outliers_to_the_ends():
    columns = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 7.0, 1e9, -1e9, -7340032.5, 0.49999997])[:, None]
    levels = _Levels(torch.ones(1, 1), torch.full((1, 1), 8.0), 15)
    rule = _BlockRule(grid=Grid(4), levels=levels)
    expected = _nearest_level(columns, levels)
    _sweep_block(columns, torch.eye(11), torch.ones(11), rule)
    assert torch.equal(columns, expected)
    assert columns[:3, 0].tolist() == [0.0, 2.0, 2.0]


@interpreted
def test_quotients_are_true_quotients():
    step = 1 / torch.arange(1.0, 33.0)[None]
    values = (torch.arange(1000.0, 1016.0)[:, None] + 0.5) * step  # a last bit decides which way these go
    levels = _Levels(step, torch.full((1, 32), 32768.0), 65535)
    expected = _nearest_level(values, levels)
    assert not torch.equal(torch.round(values * (1 / step)) * step, expected)
    _sweep_block(values, torch.eye(16), torch.ones(16), _BlockRule(grid=Grid(16), levels=levels))
    assert torch.equal(values, expected)


@interpreted
def test_the_interpreter_must_be_asked_for():
    assert _available(CPU, interpreted=True)
    assert not _available(CPU)


@compiled
def test_the_kernel_in_the_interpreter():
    pytest.importorskip("triton", reason="triton comes with CUDA builds of torch")
    # Its own process: the variable must be set before triton is first imported, and then holds for all of it.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    outcome = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stdout[-4000:] + outcome.stderr[-2000:]


@compiled
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="triton is made for Linux")
@pytest.mark.parametrize("architecture", KERNELS.ARCHITECTURES)
@pytest.mark.parametrize(("pattern", "grid"), KERNELS.VARIANTS)
def test_every_variant_compiles_without_a_gpu_and_spills_nothing(pattern, grid, architecture, tmp_path, monkeypatch):
    pytest.importorskip("triton", reason="triton comes with CUDA builds of torch")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = KERNELS.usage(pattern, grid, architecture)
    assert (found.stack, found.local) == (0, 0)
    assert 0 < found.registers <= 255
    assert found.shared <= 48 * 1024  # what a program may take unasked
    assert found.occupancy(architecture) > 0.1


def test_the_table_of_the_speed_page_holds_every_variant():
    lines = list(csv.DictReader(KERNELS.FILE.read_text(encoding="utf-8").splitlines()))
    told = {(line["pattern"], line["grid"], line["architecture"]) for line in lines}
    assert told == {(*variant, f"sm_{number}") for variant in KERNELS.VARIANTS for number in KERNELS.ARCHITECTURES}
    assert {line["stack"] + line["local"] for line in lines} == {"00"}


@compiled
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_compiled_kernel_equals_the_column_loop(pattern, grid):
    device = torch.device("cuda", torch.cuda.current_device())
    assert _available(device)
    check(128, 1000, PATTERNS[pattern], grid, device, near_ties=20)
    check(40, 35, PATTERNS[pattern], grid, device)


def test_what_the_kernel_cannot_do_is_left_to_the_loop():
    levels = _Levels(torch.ones(2, 3), torch.zeros(2, 3), 15)
    assert _supports(_BlockRule(), 128)
    assert _supports(_BlockRule(nofm=NofM(2, 4)), 40)
    assert not _supports(_BlockRule(nofm=NofM(2, 4)), 42)
    assert not _supports(_BlockRule(nofm=NofM(2, 32)), 128)
    assert _supports(_BlockRule(keep=torch.ones(4, 3, dtype=torch.bool), nofm=NofM(2, 3)), 4)
    assert _supports(_BlockRule(grid=Grid(4), levels=levels, group_of=torch.zeros(4, dtype=torch.long)), 4)
    assert not _supports(_BlockRule(grid=Grid(4), levels=levels), 4)
    assert not _supports(_BlockRule(grid=Grid(4), fit_size=8), 128)
    assert not _supports(_BlockRule(grid=Grid(4)), 128)
    assert not _available(CPU)


SCORES = {
    "random": torch.randn(999, generator=torch.Generator().manual_seed(0)).square(),
    "ties": torch.arange(999).remainder(7).float(),
    "zeros": torch.zeros(999),
    "close": 1 + torch.arange(999).flip(0) * 2.0**-23,
    "tiny to infinite": torch.cat([torch.logspace(-45, 38, 900), torch.zeros(50), torch.full((49,), float("inf"))]),
}


def kth_smallest(scores, position, radix):
    return _kth_smallest_of_parts(scores[None], [len(scores)], [position], radix=radix)[0]


@pytest.mark.parametrize("name", SCORES)
def test_both_selections_are_exact(name):
    scores = SCORES[name]
    ordered = scores.sort().values
    for position in (0, 1, 499, 500, 950, len(scores) - 1):
        for radix in (True, False):
            assert torch.equal(kth_smallest(scores, position, radix), ordered[position])


def test_parts_are_selected_apart():
    scores = torch.stack(list(SCORES.values())[:3])[:, :100].contiguous()
    rows, positions = [40, 1, 59], [60, 2, 0]
    expected = [part.flatten().sort().values[p] for part, p in zip(scores.split(rows, dim=1), positions, strict=True)]
    for radix in (True, False):
        assert torch.equal(_kth_smallest_of_parts(scores, rows, positions, radix=radix), torch.stack(expected))


def test_negative_zero_and_nan_sort_as_in_kthvalue():
    scores = torch.tensor([-0.0, 1.0, float("nan"), -float("nan"), 0.0])
    for position in range(5):
        ours, theirs = (kth_smallest(scores, position, radix) for radix in (True, False))
        assert torch.allclose(ours, theirs, equal_nan=True)


def test_positions_that_do_not_exist_get_a_sentence():
    with pytest.raises(InputError, match="no score at position 3 of 3"):
        kth_smallest(torch.ones(3), 3, None)
    with pytest.raises(InputError, match="do not make 3"):
        _kth_smallest_of_parts(torch.ones(2, 3), [1, 1], [0, 0])
