"""Statistics of the dense model: gathered once, they serve many runs; incomplete or foreign ones serve none."""

import pytest
import torch

from crosscal.engine.driver import compress
from crosscal.engine.gather import ModelStatistics, gather_statistics, load_statistics
from crosscal.errors import InputError
from crosscal.models import inventory
from crosscal.types import LowRank
from tests.unit.engine.test_schedules import HALF, QUIET, TARGETS, TEXT, equal
from tests.unit.families import random_windows, tiny_model


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "gptq", "awq"])
def test_gathered_statistics_serve_many_runs(method, tmp_path):
    """One dense pass, in memory or in a folder, is the `parallel` schedule, whatever the weights."""
    in_memory = gather_statistics(tiny_model("llama"), TEXT, **QUIET)
    gather_statistics(tiny_model("llama"), TEXT, folder=tmp_path, **QUIET)
    in_folder = load_statistics(tmp_path)
    for share in (0.0, 0.3):
        weights = {"a": 1 - share, "b": share}
        direct = tiny_model("llama")
        expected = compress(
            direct, method, TARGETS[method], calibration=TEXT, weights=weights, schedule="parallel", **QUIET
        )
        for statistics in (in_memory, in_folder):
            model = tiny_model("llama")
            report = compress(model, method, TARGETS[method], statistics=statistics, weights=weights, **QUIET)
            assert equal(model, direct)
            assert report.layers == expected.layers


def test_statistics_that_do_not_fit_are_refused(tmp_path):
    thin = gather_statistics(tiny_model("llama"), TEXT, diagonal_only=True, **QUIET)
    report = compress(tiny_model("llama"), "wanda", HALF, statistics=thin, **QUIET)
    assert report.layers[0].relative_error is None  # which diagonals cannot tell
    for arguments, sentence in [
        ({"method": "sparsegpt", "target": HALF, "statistics": thin}, "needs Gram matrices"),
        ({"method": "wanda", "target": HALF, "statistics": thin, "calibration": TEXT}, "leave one of them out"),
        ({"method": "fwsvd", "target": LowRank(0.5), "statistics": thin}, "needs gradients"),
    ]:
        with pytest.raises(InputError, match=sentence):
            compress(tiny_model("llama"), **arguments, **QUIET)
    with pytest.raises(InputError, match="holds no complete statistics"):
        load_statistics(tmp_path)


@pytest.mark.parametrize("parts", [{"only": ["mlp.down_proj"]}, {"skip": ["self_attn.*"]}, {"only": ["1.*"]}])
def test_statistics_of_all_layers_serve_a_part_of_them(parts):
    statistics = gather_statistics(tiny_model("llama"), TEXT, **QUIET)
    model, direct = tiny_model("llama"), tiny_model("llama")
    expected = compress(direct, "wanda", HALF, calibration=TEXT, schedule="parallel", **parts, **QUIET)
    assert compress(model, "wanda", HALF, statistics=statistics, **parts, **QUIET).layers == expected.layers
    assert equal(model, direct)


def test_statistics_of_some_layers_do_not_serve_all():
    model = tiny_model("llama")
    some = gather_statistics(model, TEXT, parts=inventory(model, only=["mlp.down_proj"]), **QUIET)
    with pytest.raises(InputError, match="those of another model"):
        compress(model, "wanda", HALF, statistics=some, **QUIET)


def test_an_interrupted_gathering_is_not_taken_for_a_whole_one(tmp_path, monkeypatch):
    gather_statistics(tiny_model("llama"), TEXT, folder=tmp_path, **QUIET)
    keep = ModelStatistics.add

    def interrupted(self, index, groups):
        if index == 1:
            raise KeyboardInterrupt
        keep(self, index, groups)

    monkeypatch.setattr(ModelStatistics, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gather_statistics(tiny_model("llama"), {"other": random_windows(seed=2)}, folder=tmp_path, **QUIET)
    with pytest.raises(InputError, match="holds no complete statistics"):
        load_statistics(tmp_path)


@pytest.mark.parametrize("other", ["gpt2", "gpt_neox"])
def test_statistics_of_another_model_are_refused_before_anything_changes(other):
    foreign = gather_statistics(tiny_model(other), TEXT, **QUIET)
    model = tiny_model("llama")
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(InputError, match="those of another model"):
        compress(model, "wanda", HALF, statistics=foreign, **QUIET)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_folder_that_cannot_be_written_gets_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        gather_statistics(tiny_model("llama"), TEXT, folder=tmp_path / "file" / "below", **QUIET)
