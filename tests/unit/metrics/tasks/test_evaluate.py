"""Tasks through the harness: its own scores, items for paired tests, clear sentences for bad input."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from crosscal.disk import StreamedModel
from crosscal.errors import InputError
from crosscal.metrics.evaluate import evaluate
from crosscal.metrics.tasks import TASKS, evaluate_tasks, harness, task_version
from crosscal.metrics.tasks.evaluate import _harness_domain, _harness_items, _outcome
from crosscal.metrics.tasks.files import HARNESS_PREFIX, _task_folder
from crosscal.models import LoadedModel, load_model
from crosscal.results.quantities import QUANTITIES
from tests.unit.families import save_tiny, tiny_model, tiny_tokenizer

auc = QUANTITIES["auc"].value
FORMS = ["sciq", "piqa", "lambada", "bioasq", "contract_clause"]


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    model = tiny_model("llama")
    model.config.max_position_embeddings = 2048  # rotary positions have no table that ends
    return LoadedModel(model, tiny_tokenizer(), "tiny", "0")


@pytest.fixture(scope="module")
def results(loaded):
    return evaluate_tasks(loaded, FORMS, max_items=8, progress=False)


def test_results_hold_what_they_promise(results):
    assert list(results) == FORMS
    for name, result in results.items():
        task = TASKS[name]
        assert (result.name, result.domain, result.metric) == (name, task.domain, task.metric)
        assert result.version == task_version(name)
        assert result.n == 8
        assert {len(values) for values in result.items.values()} == {8}
        assert 0 <= result.value <= 1


def test_scores_follow_from_items(results):
    for result in results.values():
        if result.metric == "auc":
            assert result.value == auc(result.items)
            continue
        assert result.value == pytest.approx(np.mean(result.items["correct"]))
        if TASKS[result.name].form != "cloze":
            decided = [(m, c) for m, c in zip(result.items["margin"], result.items["correct"], strict=True) if m]
            assert all((m > 0) == (c == 1) for m, c in decided)


def test_scores_are_the_harness_s_own(loaded, results):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    names = ["sciq", "piqa", "lambada", "contract_clause"]
    own = simple_evaluate(
        model=HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=4),
        tasks=[HARNESS_PREFIX + name for name in names],
        task_manager=TaskManager(include_path=[_task_folder(name) for name in names], include_defaults=False),
        limit=8,
        bootstrap_iters=0,
    )["results"]
    for name in names:
        metric = "acc_norm,none" if TASKS[name].metric == "accuracy_per_char" else "acc,none"
        assert own[HARNESS_PREFIX + name][metric] == pytest.approx(results[name].value)


def broken(change):
    """The tiny model with its head changed."""
    model = tiny_model("llama")
    model.config.max_position_embeddings = 2048
    change(model.lm_head.weight.detach())
    return LoadedModel(model, tiny_tokenizer(), "broken", "0")


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_outputs_are_one_sentence(name, value):
    loaded = broken(lambda head: head[5].fill_(value))
    with pytest.raises(InputError, match="NaN or infinite"):
        evaluate_tasks(loaded, [name], max_items=2, progress=False)


def test_equal_logits_are_never_right():
    results = evaluate_tasks(
        broken(lambda head: head.zero_()), ["lambada", "contract_clause"], max_items=6, progress=False
    )
    assert results["lambada"].items["correct"] == [0] * 6
    assert results["contract_clause"].items["correct"] == [0] * 6
    assert results["contract_clause"].items["margin"] == [0] * 6


class _Options:
    """A task of options, as the harness has it."""

    OUTPUT_TYPE = "multiple_choice"

    def doc_to_choice(self, doc):
        return doc["choices"]


def sampled(logprobs, harness_score, choices=("a", "bb", "cc"), metric="acc"):
    responses = [(logprob, False) for logprob in logprobs]
    return {"doc": {"choices": choices}, "filtered_resps": responses, "metrics": [metric], metric: harness_score}


@pytest.mark.parametrize(
    ("sample", "metric", "outcome"),
    [
        (sampled([-1.0, -2.0, -3.0], 1.0), "acc", 1),
        (sampled([-1.0, -1.0, -3.0], 1.0), "acc", 0),
        (sampled([-1.0, -2.0, -2.0], 1.0), "acc", 1),
        (sampled([-1.0, -2.0, -3.0], 0.0), "acc", 0),
        (sampled([-1.0, -2.0, -3.0], 1.0, metric="acc_norm"), "acc_norm", 0),
        (sampled([-1.0, -2.0, -3.0], 1.0, ("a", "é", "b"), metric="acc_bytes"), "acc_bytes", 0),
        (sampled([-1.0, -2.0, -2.5, -9.0, -9.0, -9.0], 1.0), "acc", 1),
        (sampled([-1.0, -1.0], 1.0, metric="f1"), "f1", 1),
    ],
)
def test_ties_are_no_hits(sample, metric, outcome):
    assert _outcome(sample, metric, _Options()) == outcome


def test_tasks_of_a_streamed_model(tmp_path):
    model = tiny_model("llama")
    model.config.max_position_embeddings = 2048
    save_tiny(tmp_path)
    model.save_pretrained(tmp_path)
    streamed = StreamedModel(tmp_path, dtype="float32", progress=False)
    loaded = load_model(tmp_path, dtype="float32")
    asked = evaluate_tasks(streamed, FORMS, max_items=4, progress=False)
    for name, result in evaluate_tasks(loaded, FORMS, max_items=4, progress=False).items():
        assert asked[name].items["id"] == result.items["id"]
        for key in set(result.items) - {"id"}:
            assert asked[name].items[key] == pytest.approx(result.items[key], abs=1e-3)


def test_streamed_models_refuse_to_write(tmp_path, monkeypatch):
    save_tiny(tmp_path)
    streamed = StreamedModel(tmp_path, dtype="float32", progress=False)
    with pytest.raises(InputError, match="need the whole model in memory"):
        evaluate(streamed, answers=["alpaca"], progress=False)
    monkeypatch.setattr(streamed, "fill", None)
    writing = {"own": SimpleNamespace(OUTPUT_TYPE="generate_until", get_config=len, set_fewshot_seed=dict)}
    monkeypatch.setattr(harness, "_load_tasks", lambda names: writing)
    with pytest.raises(InputError, match="'own' asks for written text"):
        evaluate_tasks(streamed, ["own"], max_items=2, progress=False)


def test_items_are_nested(loaded, results):
    few = evaluate_tasks(loaded, ["piqa", "bioasq"], max_items=5, progress=False)
    for name, result in few.items():
        for key, values in result.items.items():
            assert (
                values == pytest.approx(results[name].items[key][:5], abs=1e-3)
                or values == results[name].items[key][:5]
            )


def test_random_state_is_left_alone(loaded):
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = states()
    evaluate_tasks(loaded, ["contract_clause"], max_items=2, progress=False)
    assert states() == before


def test_evaluate_prints_nothing_without_progress(loaded, capfd):
    evaluate_tasks(loaded, ["contract_clause"], max_items=2, progress=False)
    assert capfd.readouterr() == ("", "")


def test_names_may_be_one_none_or_repeated(loaded):
    assert evaluate_tasks(loaded, [], max_items=1) == {}
    assert list(evaluate_tasks(loaded, "sciq", max_items=1, progress=False)) == ["sciq"]
    assert list(evaluate_tasks(loaded, ["sciq", "sciq"], max_items=1, progress=False)) == ["sciq"]


@pytest.mark.parametrize("max_items", [0, -3, 2.5])
def test_max_items_must_be_a_whole_number(loaded, max_items):
    with pytest.raises(InputError, match="give a whole number of at least 1"):
        evaluate_tasks(loaded, ["sciq"], max_items=max_items)


def fail_to_connect(names):
    raise ConnectionError("Couldn't reach\nthe hub")


@pytest.fixture
def offline(monkeypatch):
    """The harness's index with one task, whose data cannot be had."""
    manager = SimpleNamespace(task_index={"piqa": None}, all_tasks=["piqa"], load=fail_to_connect)
    monkeypatch.setattr(harness, "_default_manager", lambda: manager)


@pytest.mark.usefixtures("offline")
def test_unknown_tasks_are_one_sentence(loaded):
    with pytest.raises(InputError, match=r"there is no task 'scic'; did you mean 'sciq'\?.*lm-eval ls tasks") as caught:
        evaluate_tasks(loaded, ["sciq", "scic"], max_items=1)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("offline")
def test_harness_data_out_of_reach_are_one_sentence(loaded):
    with pytest.raises(InputError, match=r"'piqa' cannot be had \(ConnectionError: Couldn't reach the hub\)") as caught:
        evaluate_tasks(loaded, ["harness:piqa"], max_items=1)
    assert "\n" not in str(caught.value)


def test_harness_tasks_run(loaded, monkeypatch):
    """A task of the harness's kind, found by its name there; its file stands in for the hub."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=[_task_folder("sciq")], include_defaults=False)
    monkeypatch.setattr(harness, "_default_manager", lambda: manager)
    name = f"harness:{HARNESS_PREFIX}sciq"
    few, more = (evaluate_tasks(loaded, [name], max_items=k, progress=False)[name] for k in (3, 6))
    assert (more.metric, more.domain, more.n) == ("accuracy", "general", 6)
    assert more.version.startswith("lm-eval ")
    assert set(few.items["id"]) < set(more.items["id"])
    assert set(more.items["correct"]) <= {0.0, 1.0}


def test_tasks_without_a_number_per_item_are_errors():
    sample = {"filter": "none", "metrics": ["word_perplexity"], "word_perplexity": (-3.0, 2), "doc_id": 0}
    with pytest.raises(InputError, match="'wikitext' has no score per item"):
        _harness_items("wikitext", [sample], SimpleNamespace(OUTPUT_TYPE="loglikelihood_rolling"))


@pytest.mark.parametrize("seed", range(5))
def test_auc_is_the_share_of_pairs_in_order(seed):
    draw = random.Random(seed)
    scores = [draw.randint(0, 6) / 2 for _ in range(40)]
    gold = [draw.randint(0, 1) for _ in range(40)]
    positives, negatives = ([s for s, g in zip(scores, gold, strict=True) if g == wanted] for wanted in (1, 0))
    pairs = [(p > q) + 0.5 * (p == q) for p in positives for q in negatives]
    value = auc({"score": scores, "gold": gold})
    assert value == pytest.approx(np.mean(pairs))
    assert value + auc({"score": [-s for s in scores], "gold": gold}) == pytest.approx(1)


def test_auc_of_one_class_is_one_half():
    assert auc({"score": [1.0, 2.0], "gold": [1, 1]}) == 0.5


def test_domains_of_the_harness_s_tasks():
    assert _harness_domain("pubmedqa") == _harness_domain("mmlu_clinical_knowledge") == "biomedical"
    assert _harness_domain("mmlu_jurisprudence") == "legal"
    assert _harness_domain("arc_challenge") == "general"
