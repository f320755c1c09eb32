"""`crosscal compress`: a folder as asked for, the same again from its config, and nothing at all when asked wrongly."""

import json
from argparse import Namespace

import pytest

from crosscal.cli.request import _method_options, _read_shares
from crosscal.errors import InputError
from crosscal.models import load_model


def weights_of(folder) -> bytes:
    """The bytes of all shards."""
    return b"".join(path.read_bytes() for path in sorted(folder.glob("model*.safetensors")))


def test_a_compressed_folder_loads_and_the_summary_says_what_happened(compress, room, tiny):
    found = compress("--sparsity", "50%", "--output", "out")
    assert found.status == 0, found.err
    for part in ("compressed", "wanda to 50%", "notes.jsonl, 4 windows of 24 tokens", "written to out", "MiB"):
        assert part in found.out
    assert "50.0 % of the weights of 21 layers are zero" in found.out
    assert "largest: 0." in found.out or "largest: 1." in found.out or "largest: 2." in found.out
    assert f"crosscal evaluate --model out --dense {tiny}" in found.out
    model, tokenizer = load_model(room / "out", dtype="float32")
    gate = model.model.layers[0].mlp.gate_proj.weight
    assert (gate == 0).float().mean().item() == pytest.approx(0.5)
    assert tokenizer is not None


def test_json_says_the_same_to_machines(compress):
    found = compress("--pattern", "2:4", "--output", "out", "--json")
    body = json.loads(found.out)
    assert body["target"] == "2:4"
    assert body["sparsity"] == pytest.approx(0.5)
    assert body["layers"] == 21
    assert body["bits_per_weight"] == 32 / 2 + 1
    assert len(body["worst_layers"]) == 3
    assert body["worst_layers"][0]["relative_error"] >= body["worst_layers"][1]["relative_error"]
    assert set(body["texts"]) == {"notes.jsonl"}


def test_quiet_leaves_the_result_alone_on_the_screen(compress):
    found = compress("--sparsity", 0.5, "--output", "out", "--quiet")
    assert "written to out" in found.out
    assert "block" not in found.err  # no bar over blocks


@pytest.mark.parametrize("way", ["file", "folder"])
def test_a_config_makes_the_same_bytes_again(compress, crosscal, room, way):
    line = ["--method", "gptq", "--bits", 4, "--group", 16, "--symmetric", "--seed", 3, "--option", "act_order=true"]
    assert compress(*line, "--output", "first", "--save-config", "c.toml").status == 0
    config = "c.toml" if way == "file" else "first"
    found = crosscal("compress", "--config", config, "--output", "second")
    assert found.status == 0, found.err
    assert b"" != weights_of(room / "first") == weights_of(room / "second")
    first, second = (json.loads((room / name / "crosscal.json").read_text())["made"] for name in ("first", "second"))
    assert first["texts"] == second["texts"]
    assert first["config"]["group"] == 16


def test_another_seed_draws_other_text(compress, room):
    for name, seed in (("a", 0), ("b", 1)):
        assert compress("--sparsity", 0.5, "--output", name, "--seed", seed, "--windows", 2).status == 0
    assert weights_of(room / "a") != weights_of(room / "b")


def test_sparsity_and_bits_together_do_both(compress, room):
    found = compress("--method", "sparsegpt", "--sparsity", 0.5, "--bits", 4, "--output", "out", "--json")
    assert json.loads(found.out)["target"] == "50% + 4 bits per row"
    weight = load_model(room / "out", dtype="float32").model.model.layers[0].mlp.gate_proj.weight
    assert all(2 < len(row.unique()) <= 17 for row in weight)


def test_a_method_that_reads_no_text_needs_none(crosscal, tiny, room):
    found = crosscal("compress", "--model", tiny, "--method", "magnitude", "--sparsity", 0.5, "--output", "out")
    assert found.status == 0, found.err
    assert "no text" in found.out


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(compress, room):
    before = sorted(room.rglob("*"))
    found = compress("--target", "2:4 + 4 bits g16", "--method", "sparsegpt", "--output", "out", "--dry-run")
    assert found.status == 0, found.err
    assert "would compress" in found.out
    assert "2:4 + 4 bits g16" in found.out
    assert "of memory" in found.out
    assert sorted(room.rglob("*")) == before


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (["--method", "wnda", "--sparsity", 0.5], "unknown method 'wnda'; did you mean 'wanda'?"),
        (["--sparsity", 1.5], "sparsity is 1.5; give a number from 0"),
        (["--sparsity", "half"], "--sparsity is 'half'; give a fraction such as 0.5"),
        (["--sparsity", 0.5, "--pattern", "2:4"], "give one of them"),
        (["--pattern", "0.5"], "--pattern is '0.5'; give kept:group"),
        (["--pattern", "5:4"], "pattern is 5:4; give kept:group"),
        (["--pattern", "2:5"], "do not divide"),
        ([], "the target is missing; give --sparsity 0.5"),
        (
            ["--bits", 4],
            "wanda does not compress to 4 bits per row; give a target such as 50% (Unstructured) or 2:4 (NofM)",
        ),
        (["--bits", 40, "--method", "rtn"], "bits is 40; give a whole number from 1 to 16"),
        (["--group", 16, "--sparsity", 0.5], "--group and --symmetric need --bits"),
        (["--rank", 0.5, "--bits", 4], "--rank goes with no other target"),
        (["--target", "2:4", "--bits", 4], "--target is the whole target"),
        (["--target", "lots"], "target 'lots' is unclear"),
        (["--sparsity", 0.5, "--sources", "notes.jsonl=0.5"], "do not sum to 1"),
        (["--sparsity", 0.5, "--sources", "pubmd"], "there is no text source 'pubmd'; did you mean 'pubmed'?"),
        (["--sparsity", 0.5, "--sources", "gone.txt"], "there is no file gone.txt"),
        (["--sparsity", 0.5, "--length", 5000], "ask for fewer windows than 4, or shorter ones"),
        (["--sparsity", 0.5, "--windows", 0], "--windows is 0; give a whole number of at least 1"),
        (["--sparsity", 0.5, "--seed", -1], "--seed is -1"),
        (["--sparsity", 0.5, "--seed", "12345678901234567890"], "--seed is 12345678901234567890; give a whole"),
        (["--sparsity", 0.5, "--micro-batch", 0], "--micro-batch is 0"),
        (["--sparsity", 0.5, "--damp", 0], "--damp is 0.0; give a number above 0"),
        (["--sparsity", 0.5, "--damp", "nan"], "--damp is nan; give a number above 0"),
        (["--sparsity", "nan"], "sparsity is nan"),
        (["--rank", "33,3%", "--method", "svd"], "--rank is '33,3%'; give a fraction"),
        (["--sparsity", 0.5, "--option", "block=64"], "wanda has no option 'block'"),
        (["--sparsity", 0.5, "--option", "block"], "--option block is unclear; write key=value"),
        (["--sparsity", 0.5, "--option", "block=1e999"], "--option block=1e999 is unclear"),
        (["--sparsity", 0.5, "--option", f"block={'9' * 5000}"], "is unclear"),
        (["--pattern", "2:4", "--allocation", "owl"], "give --sparsity"),
        (["--sparsity", 0.5, "--model", "smollm2-135n"], "unknown model 'smollm2-135n'; did you mean 'smollm2-135m'?"),
        (["--sparsity", 0.5, "--model", "./gone"], "no model at ./gone"),
        (["--sparsity", 0.5, "--model", "a" * 300], "cannot look for aaa"),
        (["--sparsity", 0.5, "--output", "a" * 300], "cannot look for aaa"),
        (["--sparsity", 0.5, "--output", "notes.jsonl/out"], "notes.jsonl is a file"),
        (["--sparsity", 0.5, "--output", "taken"], "taken exists already; give another --output"),
        (["--sparsity", 0.5, "--output", "taken", "--overwrite"], "was not made by crosscal"),
        (["--sparsity", 0.5, "--storage", "compressed-tensors"], "does not round weights to a grid; use dense storage"),
        (["--sparsity", 0.5, "--device", "cuda:99"], "device 'cuda:99' is not available here"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_everything_as_it_was(compress, room, line, sentence):
    (room / "taken").mkdir()
    (room / "taken" / "thesis.tex").write_text("years of work")
    found = compress("--output", "out", *line)
    assert found.status == 1, found.err
    assert sentence in found.err
    assert found.out == ""
    assert sorted(path.name for path in room.iterdir()) == ["notes.jsonl", "taken"]
    assert [path.name for path in (room / "taken").iterdir()] == ["thesis.tex"]


def test_no_room_on_the_disk_is_a_sentence(compress, room, monkeypatch):
    import shutil

    full = shutil._ntuple_diskusage(10, 10, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    found = compress("--sparsity", 0.5, "--output", "out")
    assert found.status == 1
    assert "free some space" in found.err
    assert not (room / "out").exists()


def test_an_interrupt_leaves_no_folder_and_says_how_to_go_on(compress, room, monkeypatch):
    import crosscal.cli.compress

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(crosscal.cli.compress, "_draw_calibration", interrupt)
    found = compress("--sparsity", 0.5, "--output", "out")
    assert found.status == 130
    assert "the same command continues at the block it had reached" in found.err
    assert not (room / "out").exists()


def test_shares_of_sources(room):
    plain = Namespace(field=None, chat=False)
    assert _read_shares("c4=0.5,notes.jsonl=0.5", plain) == {"c4": 0.5, "notes.jsonl": 0.5}
    hub = "hub:allenai/c4:en#text"
    assert _read_shares(f"{hub}=0.25,self=0.75", plain) == {hub: 0.25, "self": 0.75}
    with pytest.raises(InputError, match="occurs twice"):
        _read_shares("c4=0.5,c4=0.5", plain)


def test_options_of_a_method_are_numbers_or_truths():
    assert _method_options(["strength=0.1", "act_order=False"]) == {"strength": 0.1, "act_order": False}
    with pytest.raises(InputError, match="with a number, true or false"):
        _method_options(["block=many"])
