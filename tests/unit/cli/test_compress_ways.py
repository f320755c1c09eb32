"""Special ways through `crosscal compress`: continued work, packed storage, whole models, self-written text."""

import json

import pytest
import torch

from crosscal.cli import main
from crosscal.disk.journal import Journal
from crosscal.models import load_model
from crosscal.text import TextWindows
from tests.unit.cli.conftest import write_text
from tests.unit.families import save_tiny


def folder_bytes(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors"))}


def test_the_same_command_goes_on_after_an_interrupt(compress, room, monkeypatch):
    record, recorded = Journal.record, []

    def interrupted_once(journal, reports):
        record(journal, reports)
        recorded.append(journal.done)
        if len(recorded) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "record", interrupted_once)
    stopped = compress("--sparsity", 0.5, "--output", "out")
    assert stopped.status == 130
    assert "the same command continues" in stopped.err
    assert not (room / "out").exists()
    assert compress("--sparsity", 0.5, "--output", "out").status == 0
    assert recorded == [1, 2, 3]
    assert compress("--sparsity", 0.5, "--output", "whole").status == 0
    assert folder_bytes(room / "out") == folder_bytes(room / "whole")
    assert sorted(path.name for path in room.iterdir()) == ["notes.jsonl", "out", "whole"]


def test_packed_storage_reads_back_the_same_weights(compress, room):
    pytest.importorskip("compressed_tensors")
    line = ["--method", "gptq", "--bits", 4, "--group", 16]
    assert compress(*line, "--output", "plain").status == 0
    found = compress(*line, "--output", "packed", "--storage", "compressed-tensors", "--json")
    assert found.status == 0, found.err
    assert json.loads(found.out)["bits_per_weight"] == 4 + (16 + 4) / 16
    plain, packed = (load_model(room / name, dtype="float32").model for name in ("plain", "packed"))
    tokens = torch.arange(3, 20)[None]
    assert torch.equal(plain(tokens).logits, packed(tokens).logits)


def test_what_cannot_be_packed_is_refused_before_anything_is_written(compress, room):
    line = ["--output", "out", "--storage", "compressed-tensors", "--bits", 4]
    for method, group, sentence in (("awq", 16, "weights of awq exactly"), ("gptq", 20, "20")):
        found = compress("--method", method, "--group", group, *line)
        assert found.status == 1
        assert sentence in found.err
        assert "storage=" not in found.err
    assert [path.name for path in room.iterdir()] == ["notes.jsonl"]


def test_sparsity_by_outliers(compress, room):
    found = compress("--sparsity", 0.5, "--allocation", "owl", "--output", "out", "--json")
    assert found.status == 0, found.err
    assert json.loads(found.out)["sparsity"] == pytest.approx(0.5, abs=0.02)
    assert json.loads((room / "out" / "crosscal.json").read_text())["made"]["allocation"] == "owl"


def test_general_and_domain_text_in_the_order_given(compress, room):
    write_text(room / "other.jsonl", 70)
    sources = "other.jsonl=0.5,notes.jsonl=0.5"
    line = ["--method", "dpruner", "--sparsity", 0.5, "--sources", sources, "--output", "out"]
    assert "calibrated on 0.5 other.jsonl + 0.5 notes.jsonl" in compress(*line).out
    found = compress(*line, "--overwrite", "--json")
    assert found.status == 0, found.err
    body = json.loads(found.out)
    assert list(body["sources"].items()) == [("other.jsonl", 0.5), ("notes.jsonl", 0.5)]
    assert len(set(body["texts"].values())) == 2


def test_text_that_the_model_writes_itself(compress, monkeypatch):
    import crosscal.cli.request

    asked = {}

    def write(loaded, **sizes):
        asked.update(sizes, model=loaded.name)
        tokens = torch.randint(
            3, 100, (sizes["n_windows"], sizes["length"]), generator=torch.Generator().manual_seed(0)
        )
        return TextWindows("self", "calibration", tokens, sizes["seed"], "0123")

    monkeypatch.setattr(crosscal.cli.request, "write_text", write)
    found = compress("--sparsity", 0.5, "--sources", "self", "--output", "out", "--json")
    assert found.status == 0, found.err
    assert json.loads(found.out)["texts"] == {"self": "0123"}
    assert (asked["n_windows"], asked["length"], asked["seed"]) == (4, 24, 0)
    assert "writes 4 windows of text" in found.err


def test_the_card_tells_how_the_folder_was_made(compress, room):
    assert compress("--sparsity", 0.5, "--output", "out", "--seed", 7).status == 0
    made = json.loads((room / "out" / "crosscal.json").read_text())["made"]
    assert (made["method"], made["target"], made["seed"]) == ("wanda", "50%", 7)
    assert made["config"]["command"] == "compress"
    assert "torch" in made["versions"]
    assert "method: wanda" in (room / "out" / "README.md").read_text()


def test_overwriting_needs_permission_each_time(compress, room, capsys):
    for _ in range(2):
        line = ["--sparsity", 0.5, "--output", "out", "--overwrite"]
        assert compress(*line).status == 0
    assert main(["compress", "--config", "out", "--output", "out"]) == 1
    assert "--overwrite" in capsys.readouterr().err


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    """A folder with a tiny mixture of experts."""
    folder = tmp_path_factory.mktemp("models") / "experts"
    save_tiny(folder, "qwen3_moe")
    return folder


def test_what_was_left_out_is_told_everywhere(compress, room, experts):
    line = ["--model", experts, "--sparsity", 0.5, "--output", "out"]
    found = compress(*line)
    assert found.status == 0, found.err
    told = ["99.4 % of the decoder's 98,816 weights", "router", "512  0.52 %  model.layers.*.mlp.gate"]
    told += ["embedding", "too few tokens reached", "experts of the layer ("]
    assert [part for part in told if part not in found.out] == []
    card = (room / "out" / "README.md").read_text()
    told = [told[0], "| router | 2 | 512 | 0.52 % | `model.layers.*.mlp.gate` |", *told[4:]]
    assert [part for part in told if part not in card] == []
    assert json.loads((room / "out" / "crosscal.json").read_text())["inventory"]["left_out"]["router"]["weights"] == 512
    body = json.loads(compress(*line, "--overwrite", "--json").out)
    assert (body["layers"], body["weights"], body["share"]) == (24, 98816, pytest.approx(0.9948, abs=1e-4))
    assert [row["reason"] for row in body["left_out"]] == ["router", "embedding", "head"]


def test_layers_are_skipped_or_alone_compressed(compress, crosscal, room):
    line = ["--sparsity", 0.5, "--skip", "mlp.down_proj", "--skip", "*.v_proj", "--only", "1.*", "--output", "out"]
    found = compress(*line, "--save-config", "c.toml", "--json")
    assert found.status == 0, found.err
    assert json.loads(found.out)["layers"] == 5
    first, second = (load_model(room / "out", dtype="float32").model.model.layers[n].mlp for n in (0, 1))
    assert [(m.weight == 0).any().item() for m in (first.up_proj, second.up_proj, second.down_proj)] == [0, 1, 0]
    again = crosscal("compress", "--config", "c.toml", "--output", "again", "--dry-run")
    assert "would change" in again.out
    assert "asked to be left out" in again.out


def test_a_pattern_that_matches_nothing_names_near_ones(compress, room):
    for option in ("--skip", "--only"):
        found = compress("--sparsity", 0.5, option, "mlp.dwn_proj", "--output", "out")
        assert (found.status, found.out) == (1, "")
        assert "no layer matches 'mlp.dwn_proj'; near names are mlp.down_proj" in found.err


def test_a_small_share_needs_permission(compress, room, experts, monkeypatch):
    monkeypatch.setattr("crosscal.engine.request.LEAST_SHARE", 0.999)
    line = ["--model", experts, "--sparsity", 0.5, "--output", "out"]
    found = compress(*line)
    assert (found.status, found.out) == (1, "")
    assert found.err.startswith("only 99.5 % of the text decoder's 98,816 weights are compressed; left out: ")
    assert "allow it with --partial" in found.err
    assert compress(*line, "--partial").status == 0
