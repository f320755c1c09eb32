"""Task files: the same bytes everywhere, sound items, nothing shared with calibration text."""

import json

import pytest

from crosscal.metrics.tasks import TASKS, describe, task_version
from crosscal.metrics.tasks.files import _RECIPES, _build_items, _digest_of, _items_text, _task_folder
from crosscal.metrics.tasks.harness import _load_tasks, _quiet
from crosscal.metrics.tasks.held_out import _held_out_abstracts, _held_out_cases
from crosscal.metrics.tasks.items import _Entry, _generator, _ordered, _with_distractors
from crosscal.text import SOURCES, documents
from crosscal.text.documents import word_ngrams
from crosscal.text.sources import LEGAL_CALIBRATION_ROWS, LEGAL_SHARED_ROWS

NGRAM = 12


def texts_of(it: dict) -> list[str]:
    return [it.get("query", ""), it.get("target", ""), *it["choices"]]


@pytest.mark.parametrize("name", TASKS)
def test_tasks_are_what_the_catalogue_says(name):
    task, text = TASKS[name], _items_text(name)
    items = [json.loads(line) for line in text.splitlines()]
    assert _digest_of(text.encode()) == task.digest
    assert len(items) == task.n_items == len({it["id"] for it in items})
    assert text == _items_text(name)
    if task.form != "cloze" and task.metric != "auc":
        guess = sum(1 / len(it["choices"]) for it in items) / len(items)
        assert task.chance == pytest.approx(guess, abs=0.005)


@pytest.mark.parametrize("name", TASKS)
def test_items_are_sound(name):
    task = TASKS[name]
    for it in _build_items(name):
        assert len(set(it["choices"])) == len(it["choices"]) > it["gold"] >= 0
        for text in texts_of(it):
            assert text.lstrip() == text.rstrip() or task.form == "cloze"
        for text in it["choices"] if task.form == "contexts" else [*it["choices"], it["query"]]:
            assert text
            assert text == text.strip()
        if task.metric == "auc":
            assert it["choices"] == ["Yes", "No"]


@pytest.mark.parametrize("name", TASKS)
def test_right_options_stand_anywhere(name):
    golds = [it["gold"] for it in _build_items(name)]
    if TASKS[name].form != "cloze" and TASKS[name].metric != "auc":
        assert max(map(golds.count, set(golds))) < 2 * len(golds) / len(set(golds))


def test_built_tasks_hold_no_calibration_text():
    seen = {source: set().union(*(word_ngrams(t, NGRAM) for t in documents(source))) for source in ("pubmed", "bioasq")}
    for name in ("pubmedqa_yesno", "pubmed_next_section", "pubmed_question"):
        own = set().union(*(word_ngrams(text, NGRAM) for it in _build_items(name) for text in texts_of(it)))
        assert own
        assert all(not own & grams for grams in seen.values())


def test_legal_tasks_use_held_out_rows_only():
    rows = {int(number) for number, _, _ in _held_out_cases()}
    assert rows
    assert not rows & (set(LEGAL_CALIBRATION_ROWS) | LEGAL_SHARED_ROWS)
    for name in ("case_summary", "case_next_sentence"):
        assert {int(it["id"]) for it in _build_items(name)} <= rows
    calibration = " ".join(" ".join(text.split()) for text in documents("contracts"))
    for it in _build_items("contract_clause"):
        assert all(clause.removesuffix("\nQuestion:") not in calibration for clause in it["choices"])


def test_abstracts_are_those_of_the_held_out_part():
    assert len(list(_held_out_abstracts())) == len(documents("pubmed", "held_out"))


def test_overlaps_name_text_sources():
    assert all(set(task.overlaps) <= set(SOURCES) for task in TASKS.values())
    assert TASKS["bioasq"].overlaps == ("bioasq",)


def test_distractors_are_of_similar_length():
    entries = [_Entry(str(n), str(n // 2), f"q{n}", "x" * n + f" {n}") for n in range(1, 200)]
    for entry, it in zip(entries, _with_distractors("demo", entries, 3), strict=True):
        others = [choice for choice in it["choices"] if choice != entry.answer]
        assert it["choices"][it["gold"]] == entry.answer
        assert len(others) == 3
        assert all(abs(len(other) - len(entry.answer)) <= 45 for other in others)
        partner = {e.answer for e in entries if e.document == entry.document}
        assert not partner & set(others)


def test_catalogue_has_a_recipe_for_every_task():
    assert list(_RECIPES) == list(TASKS)


def test_order_is_nested_and_its_generator_independent():
    items = [{"id": n} for n in range(50)]
    assert _ordered("demo", items, 10) == _ordered("demo", items, 30)[:10]
    assert _generator("demo", "order").random() != _generator("demo", "other").random()


def test_damaged_files_are_written_again(tmp_path, monkeypatch):
    monkeypatch.setattr("crosscal.metrics.tasks.files.cache_dir", lambda: tmp_path)
    folder = _task_folder("contract_clause")
    whole = (folder / "items.jsonl").read_bytes()
    (folder / "items.jsonl").write_bytes(whole[:1000])
    (folder / "task.yaml").write_text("task: other\n", encoding="utf-8")
    assert _task_folder("contract_clause") == folder
    assert (folder / "items.jsonl").read_bytes() == whole
    assert "task: crosscal_contract_clause" in (folder / "task.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["[team] cache", "emoji \U0001f600", "a*b?{c,d}", "100% 'q' \\n"])
def test_tasks_load_from_any_cache_folder(tmp_path, monkeypatch, name):
    monkeypatch.setattr("crosscal.metrics.tasks.files.cache_dir", lambda: tmp_path / name)
    with _quiet():
        task = _load_tasks(["contract_clause"])["contract_clause"]
    assert len(task.eval_docs) == TASKS["contract_clause"].n_items


def test_versions_and_description():
    assert task_version("sciq") == f"{TASKS['sciq'].version}.{TASKS['sciq'].digest}"
    assert task_version("hendrycks").startswith("lm-eval ")
    assert [row["name"] for row in describe()] == list(TASKS)
