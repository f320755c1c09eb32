"""`crosscal evaluate` and `compare`: the numbers of the library, paired, kept, and one model in memory at a time."""

import gc
import json
import weakref
from dataclasses import replace

import pytest

from crosscal.cli import tables
from crosscal.cli.measure import _correct_for_many, _gaps, _numbers
from crosscal.metrics import perplexity
from crosscal.models import decoder_blocks, load_model
from crosscal.results.store import RunRecord
from crosscal.stats import bootstrap_interval
from crosscal.study import session
from crosscal.study.identity import run_key
from crosscal.text import load_text
from crosscal.types import ROW_FIELDS, Row, RunConfig, Unstructured
from tests.unit.families import save_tiny, tiny_model

SIZES = ["--texts", "notes.jsonl", "--windows", 3, "--length", 20, "--dtype", "float32"]


@pytest.fixture
def half(compress, room):
    """The tiny model at half the weights."""
    assert compress("--sparsity", 0.5, "--output", "half").status == 0
    return room / "half"


@pytest.fixture
def loads(monkeypatch):
    """The names of the models that were loaded."""
    names, load = [], session.load_model
    monkeypatch.setattr(session, "load_model", lambda name, **how: names.append(str(name)) or load(name, **how))
    return names


def test_perplexity_is_the_librarys(crosscal, tiny):
    found = crosscal("evaluate", "--model", tiny, *SIZES, "--json")
    text = json.loads(found.out)["texts"]["notes.jsonl"]
    loaded = load_model(tiny, dtype="float32")
    windows = load_text("notes.jsonl", loaded.tokenizer, n_windows=3, length=20, split="held_out")
    cell = text["perplexity"]
    assert cell["value"] == pytest.approx(perplexity(loaded, windows), rel=1e-5)
    assert cell["lo"] <= cell["value"] <= cell["hi"]
    assert cell["n"] == 3
    assert set(text) == {"perplexity"}


def test_against_the_dense_model_there_are_divergences_and_nothing_is_measured_twice(crosscal, tiny, half, loads):
    line = ["evaluate", "--model", half, "--dense", tiny, *SIZES]
    first = json.loads(crosscal(*line, "--json").out)
    assert loads == [str(tiny), str(half)]
    text = first["texts"]["notes.jsonl"]
    assert 0 < text["js_divergence"]["value"] < 0.7
    assert text["kl_divergence"]["value"] > 0
    assert 0 <= text["top1_agreement"]["value"] < 1
    ratio = text["perplexity"]["value"] / text["perplexity_dense"]["value"]
    assert text["perplexity_ratio"]["value"] == pytest.approx(ratio, rel=1e-5)
    again = crosscal(*line)
    assert len(loads) == 2
    assert "JS (nats)" in again.out
    assert "notes.jsonl" in again.out


def test_a_model_whose_weights_changed_is_measured_again(crosscal, tmp_path, loads):
    save_tiny(tmp_path / "own")
    for seed in (0, 1):
        tiny_model("llama", seed).save_pretrained(tmp_path / "own")
        assert crosscal("evaluate", "--model", "own", *SIZES).status == 0
    assert len(loads) == 2


def test_a_model_does_not_diverge_from_itself(crosscal, tiny):
    found = crosscal("evaluate", "--model", tiny, "--dense", tiny, *SIZES, "--json")
    text = json.loads(found.out)["texts"]["notes.jsonl"]
    assert text["js_divergence"]["value"] == pytest.approx(0, abs=1e-6)
    assert text["top1_agreement"]["value"] == 1
    assert text["perplexity_ratio"]["hi"] == pytest.approx(1)


def test_the_dense_models_blocks_are_gone_before_the_next_model_is_loaded(crosscal, tiny, half, monkeypatch):
    blocks, alive, load = [], [], session.load_model

    def watched(name, **how):
        gc.collect()
        alive.append(sum(block() is not None for block in blocks))
        loaded = load(name, **how)
        blocks.extend(weakref.ref(block) for block in decoder_blocks(loaded.model))
        return loaded

    monkeypatch.setattr(session, "load_model", watched)
    assert crosscal("evaluate", "--model", half, "--dense", tiny, *SIZES).status == 0
    assert alive == [0, 0]
    assert len(blocks) == 6


def test_results_go_to_a_file_and_into_the_card(crosscal, tiny, half, room):
    line = ["evaluate", "--model", half, "--dense", tiny, *SIZES, "--output", "r.json", "--card"]
    printed = crosscal(*line, "--json")
    assert json.loads((room / "r.json").read_text()) == json.loads(printed.out)
    text = (half / "README.md").read_text()
    assert text.startswith("---")
    assert "## What it lost" in text
    assert "| notes.jsonl |" in text
    refused = crosscal(*line)
    assert refused.status == 1
    assert "r.json exists already" in refused.err
    assert crosscal(*line, "--overwrite").status == 0
    assert (half / "README.md").read_text() == text


def test_the_card_keeps_what_others_wrote():
    once = tables._with_section("# Model\n", f"{tables._BEGIN}\nold\n{tables._END}") + "mine\n"
    assert tables._with_section(once, f"{tables._BEGIN}\nnew\n{tables._END}") == once.replace("old", "new")


def test_compare_puts_models_side_by_side(crosscal, compress, tiny, half, room, loads):
    assert compress("--sparsity", 0.8, "--output", "most").status == 0
    line = ["compare", "--dense", tiny, "--models", "half", "most", *SIZES]
    found = crosscal(*line, "--markdown", "t.md", "--output", "r.json")
    assert found.status == 0, found.err
    assert loads == [str(tiny), "half", "most"]
    head, *rows = found.out.splitlines()
    assert head.split() == ["dense", "half", "most"]
    assert [row.split(":")[0] for row in rows[:3]] == ["notes.jsonl"] * 3
    assert (room / "t.md").read_text().startswith("|  | dense | half | most |\n| :-- | --: | --: | --: |\n")
    body = json.loads((room / "r.json").read_text())
    js = [model["texts"]["notes.jsonl"]["js_divergence"]["value"] for model in body["models"]]
    assert js[0] < js[1]
    crosscal(*line, "--json")
    assert len(loads) == 3


def test_dry_runs_load_no_model(crosscal, tiny, loads, room):
    for line in (["evaluate", "--model", tiny], ["compare", "--dense", tiny, "--models", tiny]):
        found = crosscal(*line, *SIZES, "--dry-run")
        assert found.status == 0, found.err
        assert "would measure" in found.out
        assert "3 windows of 20 tokens" in found.out
    assert loads == []
    assert [path.name for path in room.iterdir()] == ["notes.jsonl"]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (["--texts", "newz"], "there is no text source 'newz'; did you mean 'news'?"),
        (["--texts", "self"], "'self' is calibration text"),
        (["--texts", "", "--tasks", ""], "nothing is to be measured"),
        (["--windows", 0], "--windows is 0"),
        (["--length", 1], "--length is 1; give a whole number of at least 2"),
        (["--length", 4000], "ask for fewer windows"),
        (["--output", "."], ". is a folder"),
        (["--model", "./gone"], "no model at ./gone"),
        (["--card"], "was not made by crosscal"),
        (["--dense", "other"], "have different tokenizers"),
    ],
)
def test_bad_input_is_one_sentence(crosscal, tiny, room, line, sentence):
    if "other" in line:
        _other_tokenizer(room / "other")
    found = crosscal("evaluate", "--model", tiny, *SIZES, *line)
    assert found.status == 1, found.err
    assert sentence in found.err
    assert found.out == ""


def _other_tokenizer(folder):
    from tests.unit.families import tiny_tokenizer

    save_tiny(folder)
    tiny_tokenizer(100).save_pretrained(folder)


def test_a_model_named_twice_is_refused(crosscal, tiny):
    found = crosscal("compare", "--dense", tiny, "--models", tiny, tiny, *SIZES)
    assert found.status == 1
    assert "named twice" in found.err


def record(name, correct, order=None):
    """A run of one task, sciq, as the store holds it."""
    items = {"id": order or list(range(len(correct))), "correct": correct}
    value = sum(correct) / len(correct)
    lo, hi = bootstrap_interval(correct)
    row = Row(**dict.fromkeys(ROW_FIELDS, 0) | {"eval_set": "sciq", "metric": "accuracy", "domain": "general"})
    row = replace(row, value=value, lo=lo, hi=hi, n=len(correct))
    facts = {"tasks": {"sciq": {"chance": 0.25}}}
    return RunRecord(name, {"model": name, "texts": []}, facts, [row], [], {"sciq": items})


def test_changes_of_tasks_are_paired_and_corrected_together():
    dense = record("d", [1] * 20)
    models = [_numbers(record(n, c), dense) for n, c in (("same", [1] * 20), ("worse", [0] * 10 + [1] * 10))]
    _correct_for_many(models)
    same, worse = (model["tasks"]["sciq"]["change"] for model in models)
    assert (same["value"], same["p_holm"]) == (0, 1)
    assert worse["value"] == -0.5
    assert worse["p_holm"] == pytest.approx(2 * worse["p"])
    assert worse["p"] == pytest.approx(2 / 2**10)


def test_items_are_paired_by_id_whatever_their_order():
    after, before = record("a", [1, 0], [2, 1]), record("b", [1, 1], [1, 2])
    assert _gaps(after, before, "sciq").tolist() == [-1, 0]


def test_tasks_on_which_the_dense_model_guesses_are_not_tested():
    dense = record("d", [1, 0, 0, 0] * 5)
    model = _numbers(dense, dense)
    _correct_for_many([model])
    assert not model["tasks"]["sciq"]["usable"]
    assert "p_holm" not in model["tasks"]["sciq"]["change"]


def test_one_window_has_no_interval(crosscal, tiny):
    printed = crosscal("evaluate", "--model", tiny, *SIZES, "--windows", 1).out
    assert "[" not in printed.splitlines()[3]


def test_cache_that_cannot_be_written_costs_a_line(crosscal, tiny, room):
    (room / "cache").write_text("no folder")
    done = crosscal("evaluate", "--model", tiny, *SIZES)
    assert done.status == 0
    assert "not kept: cannot write" in done.err


def test_evaluate_and_study_share_what_they_measure(crosscal, tiny, half, loads):
    """The dense model's run is the study's, piece by piece and with the same id."""
    crosscal("evaluate", "--model", half, "--dense", tiny, *SIZES)
    config = RunConfig(
        *(str(tiny), "dense", Unstructured(0.0), (), 16, 64, 5, ("notes.jsonl",), 3, 20, (), 4, "cpu", "float32")
    )
    del loads[:]
    own = session.Session(str(tiny), device="cpu", dtype="float32", progress=False)
    run = own.record(config, "smoke")
    assert loads == []
    assert run.run_id == run_key(config.to_json(), own.identify(config))
    assert {row.metric for row in run.rows} == {"perplexity"}
    pruned = replace(config, method="magnitude", target=Unstructured(0.5))
    layers = replace(pruned, texts=())
    assert [kind for kind, _ in own.missing(pruned)] == ["text", "compression"]
    assert [kind for kind, _ in own.missing(layers)] == ["compression"]
    again = json.loads(crosscal("evaluate", "--model", tiny, *SIZES, "--json").out)
    row = run.rows[0]
    cell = again["texts"]["notes.jsonl"]["perplexity"]
    assert (cell["value"], cell["lo"], cell["hi"]) == (row.value, row.lo, row.hi)
    assert loads == []
