"""Tasks of one's own: a YAML file as the harness reads it, with data beside it; known by its contents."""

import glob
import json
import textwrap

import pytest

from crosscal.errors import InputError
from crosscal.metrics.tasks import check_tasks, evaluate_tasks, task_version
from crosscal.models import LoadedModel
from tests.unit.families import tiny_model, tiny_tokenizer

OPTIONS = """
task: valves
dataset_path: json
dataset_kwargs: {data_files: {test: items.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: options
doc_to_target: right
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
ITEMS = [{"question": f"what is {n}?", "options": ["red", "green", "blue"], "right": n % 3} for n in range(12)]


def write_items(folder, items=ITEMS, name="items.jsonl"):
    (folder / name).write_text("".join(json.dumps(item) + "\n" for item in items))


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A function that writes the task's YAML file, with changes, and gives its path."""
    monkeypatch.setenv("CROSSCAL_CACHE", str(tmp_path / "cache [1]"))
    folder = tmp_path / "my tasks [2]"
    folder.mkdir()
    write_items(folder)

    def write(*changes, name="valves.yaml", text=OPTIONS):
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (folder / name).write_text(text)
        return str(folder / name)

    write.folder = folder
    return write


@pytest.fixture(scope="module")
def loaded():
    return LoadedModel(tiny_model("llama"), tiny_tokenizer(), "tiny", "0")


def test_own_tasks_are_asked_like_any_other(own, loaded):
    name = own()
    check_tasks([name])
    few, more = (evaluate_tasks(loaded, [name], max_items=k, progress=False)[name] for k in (5, 12))
    assert (more.name, more.domain, more.metric, more.n) == (name, "own", "accuracy", 12)
    assert more.version == task_version(name)
    assert set(few.items["id"]) < set(more.items["id"])
    assert more.value == sum(more.items["correct"]) / 12


def test_own_items_do_not_depend_on_the_folder(own, loaded, monkeypatch):
    name = own()
    monkeypatch.chdir(own.folder)
    here, there = (evaluate_tasks(loaded, [n], max_items=5, progress=False)[n] for n in ("valves.yaml", name))
    assert here.items == there.items
    assert here.version == there.version


@pytest.mark.parametrize("change", ["data", "settings", "included", "code"])
def test_own_tasks_are_known_by_their_contents(own, change):
    own(name="base.yml", text="test_split: test\noutput_type: multiple_choice\n")
    (own.folder / "utils.py").write_text("def text(item):\n    return item['question']\n")
    name = own(
        ("test_split: test\noutput_type: multiple_choice", "include: base.yml"),
        ('"Question: {{question}}\\nAnswer:"', "!function utils.text"),
    )
    check_tasks([name])
    version = task_version(name)
    assert version == task_version(name)
    if change == "data":
        write_items(own.folder, ITEMS[::-1])
    elif change == "settings":
        own(("Answer:", "The answer is"))
    elif change == "included":
        (own.folder / "base.yml").write_text("test_split: test\noutput_type: multiple_choice\nnum_fewshot: 0\n")
    else:
        (own.folder / "utils.py").write_text("def text(item):\n    return 'Say: ' + item['question']\n")
    assert task_version(name) != version


def test_own_data_are_asked_as_they_are_now(own, loaded):
    name = own()
    before = evaluate_tasks(loaded, [name], max_items=99, progress=False)[name]
    write_items(own.folder, ITEMS[:7])
    after = evaluate_tasks(loaded, [name], max_items=99, progress=False)[name]
    assert (before.n, after.n) == (12, 7)


def test_own_data_may_be_patterns_lists_and_folders(own, loaded, tmp_path):
    (own.folder / "data").mkdir()
    write_items(own.folder / "data", ITEMS[:4], "a.jsonl")
    write_items(own.folder / "data", ITEMS[4:], "b.jsonl")
    for new in ("data/*.jsonl", ["data/a.jsonl", "data/b.jsonl"], glob.escape(str(own.folder)) + "/data/?.jsonl"):
        name = own(("items.jsonl", json.dumps(new)))
        assert evaluate_tasks(loaded, [name], max_items=99, progress=False)[name].n == 12
    folder = (own.folder / "data").rename(tmp_path / "data")  # the data library takes brackets for a pattern here
    name = own(
        ("dataset_path: json", f"dataset_path: {folder}"),
        ("dataset_kwargs: {data_files: {test: items.jsonl}}\n", ""),
        ("test_split: test", "test_split: train"),
    )
    assert evaluate_tasks(loaded, [name], max_items=99, progress=False)[name].n == 12


def test_own_cloze_and_written_answers_are_scored(own, loaded):
    cloze = own(
        ("multiple_choice", "loglikelihood"),
        ("doc_to_choice: options\n", ""),
        ("doc_to_target: right", 'doc_to_target: "red"'),
        name="cloze.yml",
    )
    written = own(
        ("multiple_choice", "generate_until\ngeneration_kwargs: {until: [a], max_gen_toks: 4}"),
        ("doc_to_choice: options\n", ""),
        ("doc_to_target: right", 'doc_to_target: "red"'),
        ("metric: acc,", "metric: exact_match,"),
        name="written.yaml",
    )
    results = evaluate_tasks(loaded, [cloze, written], max_items=3, progress=False)
    assert (results[cloze].metric, results[written].metric) == ("accuracy", "exact_match")
    assert results[written].n == 3


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ([("items.jsonl", "..")], r"names the data file \.\., which is not in"),
        ([("task: valves", "task: 2024-13-45")], "is no YAML file"),
        ([("items.jsonl", "elsewhere.jsonl")], "names the data file elsewhere.jsonl, which is not in"),
        ([("task: valves", "task: [a, b]")], "is a group of tasks; give the file of each task"),
        ([("task: valves", "task: 'valves")], r"is no YAML file \(while scanning"),
        ([(OPTIONS, "- a\n- b\n")], "holds no settings of a task"),
        ([("doc_to_choice: options", "doc_to_choice: nothing")], "cannot be asked"),
        ([("multiple_choice", "multiple_guess")], "cannot be asked .*multiple_guess"),
        ([("doc_to_target: right", 'doc_to_target: "7"')], "cannot be asked"),
        ([("test_split: test", "test_split: none")], "cannot be asked"),
        ([("task: valves", "task: valves\ninclude: valves.yaml")], "includes itself"),
        ([("task: valves", "task: valves\ninclude: gone.yaml")], r"cannot read the task .*gone.yaml"),
        ([("task: valves", "task: valves\nunsafe_code: true")], "runs generated code"),
        ([("{{question}}", "{{query}}")], "cannot be asked .*query"),
        ([('"Question: {{question}}\\nAnswer:"', "!function utils.text")], "cannot be asked .*utils"),
    ],
)
def test_own_tasks_that_cannot_be_asked_get_a_sentence(own, changes, sentence):
    name = own(*changes)
    with pytest.raises(InputError, match=sentence) as caught:
        check_tasks([name])
    assert "\n" not in str(caught.value)


def test_own_tasks_of_whole_texts_are_refused(own):
    rolling = """
        task: whole
        dataset_path: json
        dataset_kwargs: {data_files: {test: items.jsonl}}
        test_split: test
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: question
        metric_list: [{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}]
    """
    with pytest.raises(InputError, match="give the text to --texts"):
        check_tasks([own(text=textwrap.dedent(rolling))])


def test_own_files_that_are_missing_are_one_sentence(own):
    with pytest.raises(InputError, match=r"cannot read the task .*nothing.yaml"):
        check_tasks([str(own.folder / "nothing.yaml")])


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"options": ["red", "", "blue"]}, "an option is empty"),
        ({"right": 3}, "the right option, 3, is not one of"),
        ({"right": -1}, "the right option, -1, is not one of"),
    ],
)
def test_own_items_without_a_right_option(own, wrong, sentence):
    write_items(own.folder, [*ITEMS, ITEMS[0] | wrong])
    with pytest.raises(InputError, match=sentence):
        check_tasks([own()])
