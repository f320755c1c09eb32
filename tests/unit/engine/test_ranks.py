"""One model on several ranks: the same bytes every time and on every rank, and nearly those of one rank."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from crosscal.engine.ranks import Ranks, floats_sent, owners, ranks
from crosscal_book.numbers.ranks import llama, received
from tests.unit.engine import on_ranks

ROOT = Path(__file__).parents[3]
WORLDS = (2, 4)
TOUCHY = ("refined", "asvd")  # near ties: already another size of micro-batch moves their losses by up to 0.4 %


def torchrun(n, module, *arguments, more=(), **options):
    """Run a module on n processes that meet on the loopback."""
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"] if "--nnodes" not in more else []
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(n), *meet, *more, "-m", module]
    return subprocess.Popen([*command, *map(str, arguments)], cwd=options.pop("cwd", ROOT), text=True, **options)


def finished(process, timeout=200):
    """Its status, output and errors."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders of what 2 and 4 ranks made of every case, and of what 2 made of some of them again."""
    folder = tmp_path_factory.mktemp("ranks")
    found = {}
    for name, n, cases in [(2, 2, on_ranks.CASES), (4, 4, on_ranks.CASES), ("again", 2, ["sparsegpt", "few"])]:
        found[name] = folder / str(name)
        found[name].mkdir()
        process = torchrun(n, "tests.unit.engine.on_ranks", found[name], *cases, stderr=subprocess.PIPE)
        status, _, err = finished(process)
        assert status == 0, err
    return found


@pytest.fixture(scope="module")
def alone():
    """What one process makes of a case."""
    kept = {}

    def of(case):
        if case not in kept:
            kept[case] = on_ranks.made(case)
        return kept[case]

    return of


def told(folder, case, rank=0):
    return json.loads((folder / f"{case}-{rank}.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("case", on_ranks.CASES)
@pytest.mark.parametrize("n", WORLDS)
def test_ranks_agree_to_the_bit_and_with_one_nearly(made, alone, case, n):
    model, report = alone(case)
    weights = [load_file(made[n] / f"{case}-{rank}.safetensors") for rank in range(n)]
    dense = dict(model.state_dict())
    for name, first in weights[0].items():
        assert all(torch.equal(first, other[name]) for other in weights[1:]), name
    differ = sum(int(((weights[0][name] != 0) != (dense[name] != 0)).sum()) for name in dense)
    assert differ < 0.001 * sum(part.numel() for part in dense.values())
    layers = told(made[n], case)["layers"]
    assert all(told(made[n], case, rank)["layers"] == layers for rank in range(1, n))
    for layer, one in zip(layers, report.layers, strict=True):
        assert (layer["name"], layer["tokens"], layer["fallback"]) == (one.name, one.tokens, one.fallback)
        if case not in TOUCHY:
            assert layer["losses"] == pytest.approx(one.losses, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["sparsegpt", "few"])
def test_ranks_make_the_same_bytes_again(made, case):
    for rank in range(2):
        first, second = ((made[name] / f"{case}-{rank}.safetensors").read_bytes() for name in (2, "again"))
        assert first == second
        assert told(made[2], case, rank) == told(made["again"], case, rank)


@pytest.mark.slow
@pytest.mark.parametrize("n", WORLDS)
def test_bytes_counted_are_those_of_the_formula(made, n):
    sizes = on_ranks.WIDE
    model = llama("wide", sizes["num_hidden_layers"], sizes["hidden_size"], sizes["intermediate_size"], 384)
    n_sources, computed = len(on_ranks.TEXT), received(model, n, len(on_ranks.TEXT), itemsize=4)
    for rank in range(n):
        found = told(made[n], "counted", rank)
        assert found["received"] == model.blocks * computed[rank]
        own = Ranks(rank, n).share(on_ranks.TEXT)
        assert found["states"] == 4 * model.hidden * sum(part.numel() for part in own.values())
        assert found["sums"] == 4 * n_sources * sum(group.d_in**2 for group in model.groups)


def test_one_process_sends_nothing():
    alone = ranks()
    assert (alone.rank, alone.world, alone.first, alone.received) == (0, 1, True, 0)
    stats, tensor = {"a": on_ranks.random_stats()}, torch.ones(2)
    counts, same = alone.collect(stats, 0, ["a"], torch.ones(1, 4))
    assert same is stats
    assert counts == {"a": stats["a"].n_tokens}
    assert alone.spread(tensor, 0) is tensor
    assert alone.all(3) == [3]
    assert alone.least(None) is None


@pytest.mark.parametrize("n", [1, 2, 5, 8])
@pytest.mark.parametrize("together", [1, 2])
def test_windows_are_shared_whole_and_in_order(n, together):
    rows = {"a": torch.arange(7), "b": torch.arange(1)}
    parts = [Ranks(rank, n).share(rows, together) for rank in range(n)]
    for name, whole in rows.items():
        assert torch.equal(torch.cat([part[name] for part in parts]), whole)
        ends = [len(torch.cat([part[name] for part in parts[: rank + 1]])) for rank in range(n)]
        assert all(end % together == 0 or end == len(whole) for end in ends)


def test_owners_balance_costs():
    costs = [8.0, 1.0, 4.0, 4.0, 7.0]
    loads = [sum(cost for cost, owner in zip(costs, owners(costs, 3), strict=True) if owner == n) for n in range(3)]
    assert sorted(loads) == [8.0, 8.0, 8.0]


def test_half_of_a_wide_matrix_is_sent():
    assert floats_sent(32) == 32**2
    assert floats_sent(512) == 512 * (512 + 128) // 2
