"""Tasks through `crosscal evaluate` and `compare`, with made-up outcomes in the place of the harness's."""

import json
from types import SimpleNamespace

import pytest

from crosscal.cli import measure
from crosscal.metrics.tasks import TASKS, TaskResult, evaluate, harness
from crosscal.plan.parameters import TASKS as STUDY_TASKS
from crosscal.results.quantities import QUANTITIES

pytest.importorskip("lm_eval")
TEXT = ["--texts", "notes.jsonl", "--windows", 2, "--length", 20, "--dtype", "float32"]
N = 20


def outcome(name: str, right: int) -> TaskResult:
    correct = [int(item < right) for item in range(N)]
    return TaskResult(name, "general", "accuracy", right / N, {"id": list(range(N)), "correct": correct}, "1", N)


def ranking(name: str, shift: float) -> TaskResult:
    gold = [item % 2 for item in range(N)]
    score = [g * (1 - shift) + 0.01 * item for item, g in enumerate(gold)]
    value = QUANTITIES["auc"].value({"score": score, "gold": gold})
    return TaskResult(name, "legal", "auc", value, {"id": list(range(N)), "score": score, "gold": gold}, "1", N)


@pytest.fixture
def asked(monkeypatch):
    """Every (model, tasks, items) that was evaluated; the model in the folder `half` is right less often."""
    calls = []

    def evaluate_tasks(loaded, names, *, max_items, progress=True):
        worse = loaded.name.endswith("half")
        calls.append((loaded.name.rsplit("/")[-1], list(names), max_items))
        make = {"contract_clause": lambda n: ranking(n, 1.1 * worse)}
        return {name: make.get(name, lambda n: outcome(n, 8 if worse else N))(name) for name in names}

    monkeypatch.setattr(evaluate, "evaluate_tasks", evaluate_tasks)
    return calls


@pytest.fixture
def half(compress, room):
    assert compress("--sparsity", 0.5, "--output", "half").status == 0
    return room / "half"


def test_scores_have_intervals_and_chance(crosscal, tiny, asked):
    found = crosscal("evaluate", "--model", tiny, "--texts", "", "--tasks", "sciq", "--items", 7, "--json")
    assert found.status == 0, found.err
    sciq = json.loads(found.out)["tasks"]["sciq"]
    assert (sciq["value"], sciq["lo"], sciq["hi"], sciq["n"]) == (1, 1, 1, N)
    assert sciq["chance"] == TASKS["sciq"].chance
    assert asked == [("tiny", ["sciq"], 7)]


def test_all_asks_what_the_study_asks(crosscal, tiny, asked):
    assert crosscal("evaluate", "--model", tiny, "--texts", "", "--tasks", "all").status == 0
    assert [names for _, names, _ in asked] == [[name] for name in STUDY_TASKS]


def test_finished_tasks_are_kept_when_another_one_is_interrupted(crosscal, tiny, asked, monkeypatch):
    ask = evaluate.evaluate_tasks

    def interrupt(loaded, names, **sizes):
        if names == ["piqa"]:
            raise KeyboardInterrupt
        return ask(loaded, names, **sizes)

    line = ["evaluate", "--model", tiny, *TEXT, "--tasks", "sciq,piqa"]
    monkeypatch.setattr(evaluate, "evaluate_tasks", interrupt)
    assert crosscal(*line).status == 130
    monkeypatch.setattr(evaluate, "evaluate_tasks", ask)
    assert crosscal(*line).status == 0
    assert [names for _, names, _ in asked] == [["sciq"], ["piqa"]]


def test_losses_are_paired_and_what_is_no_chance_has_a_star(crosscal, tiny, half, asked):
    line = ["compare", "--dense", tiny, "--models", half, tiny, *TEXT, "--tasks", "sciq,contract_clause"]
    body = json.loads(crosscal(*line, "--json").out)
    worse, same = body["models"]
    assert worse["tasks"]["sciq"]["change"]["value"] == pytest.approx(-0.6)
    assert worse["tasks"]["sciq"]["change"]["p"] < worse["tasks"]["sciq"]["change"]["p_holm"] < 0.05
    assert worse["tasks"]["contract_clause"]["change"]["value"] < 0
    assert worse["mean_change"]["value"] == pytest.approx(-0.6)
    assert worse["mean_change"]["tasks"] == 1  # a fall of AUC is no fall of accuracy
    assert same["tasks"]["sciq"]["change"]["p_holm"] == 1
    rows = {row.split("  ")[0]: row for row in crosscal(*line).out.splitlines() if row}
    assert "-60.0 [" in rows["sciq (%)"]
    assert rows["sciq (%)"].count("*") == 1


def test_the_card_has_the_tasks(crosscal, tiny, half, asked):
    found = crosscal("evaluate", "--model", half, "--dense", tiny, *TEXT, "--tasks", "sciq", "--card")
    assert found.status == 0, found.err
    assert "| sciq | 40.0 [" in (half / "README.md").read_text()
    assert "change (points)" in found.out


def test_an_unknown_task_is_refused_before_any_model_is_loaded(crosscal, tiny, asked, monkeypatch):
    index = SimpleNamespace(task_index={}, all_tasks=["hellaswag"])
    monkeypatch.setattr(harness, "_default_manager", lambda: index)
    found = crosscal("evaluate", "--model", tiny, *TEXT, "--tasks", "sciqq")
    assert found.status == 1
    assert "there is no task 'sciqq'; did you mean 'sciq'?" in found.err
    assert "loading" not in found.err


def test_without_the_harness_tasks_name_the_package(crosscal, tiny, monkeypatch):
    monkeypatch.setattr(measure, "find_spec", lambda name: None)
    found = crosscal("evaluate", "--model", tiny, "--tasks", "sciq")
    assert found.status == 1
    assert "pip install 'crosscal[study]'" in found.err


OWN = """
task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: items.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: options
doc_to_target: right
"""


def test_a_task_of_ones_own_is_a_yaml_file(crosscal, tiny, room):
    items = [{"question": f"so {n}", "options": ["red", "green"], "right": n % 2} for n in range(6)]
    (room / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    (room / "mine.yaml").write_text(OWN)
    line = ["evaluate", "--model", tiny, "--texts", "", "--tasks", "mine.yaml"]
    found = crosscal(*line, "--json")
    assert found.status == 0, found.err
    mine = json.loads(found.out)["tasks"]["mine.yaml"]
    assert (mine["domain"], mine["metric"], mine["n"], mine["chance"]) == ("own", "accuracy_per_char", 6, None)
    (room / "items.jsonl").unlink()
    found = crosscal(*line)
    assert found.status == 1
    assert "names the data file items.jsonl" in found.err
    assert "loading" not in found.err
