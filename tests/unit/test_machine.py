"""What the machine tells of itself, and what is estimated; how near the times are is for `benchmarks/estimates.py`."""

import json
from pathlib import Path
from statistics import median

import pytest
import torch
from transformers import LlamaConfig

from crosscal.errors import InputError
from crosscal.machine import estimate, estimates, facts, samples, this_machine
from crosscal.methods.registry import find_method
from crosscal.models import decoder_blocks, linear_layers
from crosscal.types import LowRank, Unstructured, parse_target
from tests.unit.families import FAMILIES, tiny_config, tiny_model

HALF = Unstructured(0.5)


@pytest.fixture
def hasty(monkeypatch):
    """Measure each part once: what is asked is not how long it takes."""
    monkeypatch.setattr(samples, "_ENOUGH", 0.0)
    monkeypatch.setattr(samples, "_SIDE", 64)


def small(**changes):
    """A Llama wide enough for its products to count."""
    sizes = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4}
    return LlamaConfig(vocab_size=256, max_position_embeddings=512, **(sizes | changes))


def test_this_machine_has_a_cpu_memory_disk_and_packages():
    machine = this_machine()
    cpu = machine.devices[-1]
    assert cpu.kind == "cpu"
    assert 0 < cpu.free <= cpu.total
    assert machine.cores >= 1
    assert all(disk.free > 0 for disk in machine.disks)
    assert machine.packages["torch"] == torch.__version__
    assert set(facts._EXTRAS["study"]) <= set(machine.packages)


def test_a_containers_share_counts_not_the_machines(tmp_path, monkeypatch):
    limit, used = tmp_path / "max", tmp_path / "current"
    limit.write_text("1000000\n")
    used.write_text("400000\n")
    monkeypatch.setattr(facts, "_CGROUPS", ((str(limit), str(used)),))
    assert facts.host_memory() == (600_000, 1_000_000)
    limit.write_text("max\n")
    assert facts.host_memory()[1] > 1_000_000


def test_a_package_that_is_not_there_is_none():
    assert facts._installed("no-such-package-anywhere") is None


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_come_from_the_config_of_every_family(hasty, family):
    model = tiny_model(family)
    config, blocks = model.config, decoder_blocks(model)
    where, kind = torch.device("cpu"), torch.float32
    sample = samples._take_sample(config, find_method("wanda"), HALF, where, kind, 32, False)
    shape = sample.shape
    own = [layer.weight for block in blocks for layer in linear_layers(block)]
    assert shape.linear == sum(weight.numel() for weight in own)
    assert shape.blocks * sum(group.weights for group in shape.groups) == shape.linear
    assert len(shape.groups) == 4
    assert shape.parameters == sum(part.numel() for part in model.parameters())
    assert min(sample.forward, sample.sums, sample.solve_weight, sample.solve_flop) >= 0


@pytest.mark.parametrize("family", ["jamba", "mamba", "gemma3n_text", "falcon_h1", "qwen3_moe"])
def test_families_whose_layers_follow_from_other_settings(hasty, family):
    assert estimate(tiny_config(family), "wanda", HALF, n_windows=2, length=24).seconds > 0


def test_what_takes_longer_is_estimated_to_take_longer(hasty):
    config = small()

    def seconds(**changes):
        return estimate(config, **({"method": "sparsegpt", "target": HALF, "n_windows": 16, "length": 64} | changes))

    usual = seconds()
    assert usual.seconds == pytest.approx(usual.forward + usual.sums + usual.solve)
    assert min(usual.forward, usual.sums, usual.solve) > 0
    more = seconds(n_windows=1600)
    assert more.forward > 10 * usual.forward
    assert more.sums > 10 * usual.sums
    assert more.work_bytes > 5 * usual.work_bytes
    assert seconds(n_sources=0, method="magnitude").forward == 0
    assert seconds(method="svd", target=LowRank(0.5), n_sources=0).solve > 0
    assert not seconds(method="dpruner").streamed
    assert usual.streamed
    assert seconds(streamed=False).memory_bytes > usual.memory_bytes


def test_gradients_of_every_source_are_counted(hasty):
    def work(method, n_sources):
        return estimate(small(), method, HALF, n_windows=1, length=4, n_sources=n_sources).work_bytes

    linear = 4 * (4 * 256 * 256 + 3 * 256 * 688)
    fisher, sparsegpt, dpruner = (work(name, 7) - work(name, 4) for name in ("fisher", "sparsegpt", "dpruner"))
    assert fisher - sparsegpt == pytest.approx(3 * 4 * linear * estimates._SLACK, rel=1e-3)
    assert dpruner <= sparsegpt  # gradients of the domain alone
    # With few sources, what takes most are the mix, the scores and their copy.
    assert work("fisher", 1) == work("fisher", 3) - (work("sparsegpt", 3) - work("sparsegpt", 1))


def test_unknown_methods_and_devices_get_a_sentence():
    with pytest.raises(InputError, match="unknown method 'wnda'; did you mean 'wanda'"):
        estimate(small(), "wnda", HALF)
    with pytest.raises(InputError, match="device 'gpu9' is not available"):
        estimate(small(), "wanda", HALF, device="gpu9")


SMOL = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
SMOL |= {"num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192, "tie_word_embeddings": True}
STORED = json.loads((Path(__file__).parents[2] / "results" / "benchmarks" / "xeon-bf16.json").read_text())


ROWS = {f"{row['name']} {row.get('options')}": row for row in STORED["rows"] if "options" in row}


@pytest.mark.parametrize("name", list(ROWS)[::2])
def test_the_memory_estimated_for_smollm2_is_near_the_stored_benchmark(hasty, name):
    row = ROWS[name]
    method, target = row["name"].split(" ", 1)
    sizes = {"n_windows": STORED["n_windows"], "length": STORED["length"]}
    found = estimate(
        LlamaConfig(**SMOL),
        method,
        parse_target(target),
        **sizes,
        **row["options"],
        device="cpu",
        dtype="bfloat16",
        streamed=False,
    )
    assert found.parameters == pytest.approx(134.5e6, rel=0.01)
    peak = median(run["peak_bytes"] for run in row["ours"])
    assert peak / 2 < found.work_bytes < peak * 2
