"""`crosscal report`: what is asked reaches the notebook, the page is written whole or not at all."""

import json
import tomllib

import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from crosscal.errors import InputError
from crosscal.plan.chapters import CHAPTERS, Maker
from crosscal.plan.parameters import ReportCardSettings
from crosscal.results import frame as rows
from crosscal_book.chapters import report_card
from crosscal_book.chapters.report_card import Choice
from crosscal_book.pages import notebooks


@pytest.fixture
def executed(monkeypatch, room, tiny):
    """The parameters each execution got; the notebook itself is not run, what it would show is made up."""
    asked = []
    (room / "my-model").symlink_to(tiny)

    def pretend(notebook, parameters):
        asked.append(parameters)
        shown = new_output("execute_result", data={"text/markdown": "**lost** nothing"}, execution_count=1)
        return new_notebook(cells=[new_code_cell("card", outputs=[shown])], metadata={"run_ids": ["a", "b"]})

    monkeypatch.setattr(notebooks, "executed_copy", pretend)
    monkeypatch.setattr(rows, "read_results", lambda folder, run_ids: list(run_ids))
    monkeypatch.setattr(report_card, "recommend", lambda page: Choice(0.5, (), f"Use 0.5 of {page.every}."))
    return asked


USUAL = ("report", "--model", "my-model", "--domain", "notes.jsonl", "--output", "card.html")


def test_the_page_holds_what_the_notebook_shows(crosscal, executed, room):
    found = crosscal(*USUAL, "--weights", "0.5", "--method", "gptq", "--target", "3 bits g128", "--tasks", "sciq")
    assert found.status == 0, found.err
    assert "written to card.html" in found.out
    assert "Use 0.5 of ['a', 'b']." in found.out
    page = (room / "card.html").read_text(encoding="utf-8")
    assert "<strong>lost</strong> nothing" in page
    assert "Report card: my-model, gptq to 3 bits g128" in page
    (asked,) = executed
    expected = {
        "model": "my-model",
        "domain": "notes.jsonl",
        "mix_weights": "0.5",
        "tasks": "sciq",
        "compute": "missing",
    }
    assert expected.items() <= asked.items()


def test_json_has_the_answer(crosscal, executed):
    body = json.loads(crosscal(*USUAL, "--json").out)
    assert body["weight"] == 0.5
    assert body["runs"] == 2
    assert body["weights"] == [0, 0.5, 1]


def test_an_earlier_page_stays_unless_it_may_be_replaced_and_execution_succeeds(crosscal, executed, room, monkeypatch):
    (room / "card.html").write_text("earlier")
    found = crosscal(*USUAL)
    assert found.status == 1
    assert "card.html exists already" in found.err
    assert not executed

    def fail(*_):
        raise InputError("08_your_model.ipynb: notes.jsonl is too short; give more")

    monkeypatch.setattr(notebooks, "executed_copy", fail)
    found = crosscal(*USUAL, "--overwrite")
    assert (found.status, found.err.splitlines()[-1]) == (1, "08_your_model.ipynb: notes.jsonl is too short; give more")
    assert (room / "card.html").read_text() == "earlier"


def test_a_dry_run_counts_runs_and_writes_nothing(crosscal, executed, room):
    found = crosscal(*USUAL, "--dry-run")
    assert "would make 4 of 4 runs (0 are stored)" in found.out
    assert not executed
    assert not (room / "card.html").exists()


def test_a_config_file_repeats_the_call(crosscal, executed, room):
    crosscal(*USUAL, "--weights", "0,1", "--seed", 3, "--save-config", "card.toml")
    assert "0,1" in str(tomllib.loads((room / "card.toml").read_text()))
    (room / "card.html").unlink()
    assert crosscal("report", "--config", "card.toml").status == 0
    assert executed[0] == executed[1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--weights", "0,2"], "give numbers from 0 to 1"),
        (["--general", "notes.jsonl"], "give two different texts"),
        (["--domain", "none.jsonl"], "none.jsonl"),
        (["--domain", "pubmd"], "did you mean 'pubmed'"),
        (["--method", "wnda"], "did you mean 'wanda'"),
        (["--method", "gptq"], "gptq does not compress to 50%"),
        (["--preset", "quik"], "did you mean 'quick'"),
        (["--target", "half"], "target 'half' is unclear"),
    ],
)
def test_what_is_wrong_is_said_before_any_work(crosscal, executed, arguments, sentence):
    found = crosscal(*USUAL, *arguments)
    assert found.status == 1
    assert sentence in found.err
    assert len(found.err.strip().splitlines()) == 1
    assert not executed


def test_a_missing_package_is_named_with_the_command_that_installs_it(crosscal, executed, monkeypatch):
    monkeypatch.setattr("crosscal.cli.report._NEEDED", ("json", "no_such_package"))
    found = crosscal(*USUAL)
    assert "report needs the package no_such_package; run pip install 'crosscal[study,book]'" in found.err


def test_layers_that_are_left_out_are_left_out_of_every_run(crosscal, executed, room):
    line = [*USUAL, "--skip", "mlp.down_proj", "--skip", "0.*", "--partial"]
    assert crosscal(*line).status == 0
    assert {"skip": "mlp.down_proj,0.*", "only": "", "partial": True}.items() <= executed[0].items()
    assert "--skip mlp.down_proj --skip &#x27;0.*&#x27; --partial" in (room / "card.html").read_text(encoding="utf-8")
    settings = ReportCardSettings(model="my-model", skip="mlp.down_proj,0.*", partial=True)
    dense, *others = CHAPTERS["report_card"].configs(Maker(settings))
    assert dense.options == ()
    assert {config.options for config in others} == {(("skip", ("mlp.down_proj", "0.*")), ("partial", True))}
    found = crosscal(*USUAL, "--only", "mlp.dwn_proj", "--overwrite")
    assert (found.status, len(executed)) == (1, 1)
    assert "near names are mlp.down_proj" in found.err
