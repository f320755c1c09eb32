"""Greedy answers: the same as token by token without padding, whatever the batch; where they end; their scores."""

import logging

import pytest
import torch

from crosscal.errors import InputError
from crosscal.metrics import score_answers, writing
from crosscal.metrics.instructions import _Instruction, _instructions_version, _load_instructions
from crosscal.metrics.writing import (
    _HEADING,
    _LAST_TOKENS,
    _answer_text,
    _prompt_ids,
    _stop_tokens,
    _StopAtText,
    _write_answers,
)
from crosscal.models import LoadedModel
from tests.unit.families import FAMILIES, tiny_model, tiny_tokenizer
from tests.unit.text.conftest import byte_tokenizer

ASKED = [_Instruction(f"own-{i}", text, "ok") for i, text in enumerate(["pq", "a" * 30, "x", "north.south", "b" * 12])]
TEMPLATE = (
    "{% for turn in messages %}<s>{{ turn['role'] }}.{{ turn['content'] }}<e>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant.{% endif %}"
)


def chatting(tokenizer):
    """A tokenizer with a chat template whose turns end in `<e>`, which takes the place of its last entry."""
    tokenizer.chat_template = TEMPLATE
    tokenizer.add_special_tokens({"additional_special_tokens": ["<e>"]})
    return tokenizer


def tiny_loaded(family="llama", tokenizer=None):
    """A tiny model with outputs so sharp that rounding decides nothing, and a head of its own."""
    model = tiny_model(family)
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight * 20, requires_grad=False)
    return LoadedModel(model, tokenizer or tiny_tokenizer(), "tiny", "0")


@pytest.fixture
def loaded():
    found = tiny_loaded()
    found.model.config.max_position_embeddings = 4096  # rotary positions have no table that ends
    return found


def token_by_token(loaded, instruction, n_new):
    """The definition: no batch, no padding, no cache, the whole text read again for every token."""
    model, tokenizer = loaded
    ids, written = _prompt_ids(tokenizer, instruction), []
    stops = _stop_tokens(model, tokenizer)
    while len(written) < n_new:
        token = int(model(torch.tensor([ids + written])).logits[0, -1].argmax())
        if token in stops:
            break
        written.append(token)
    return tokenizer.decode(written, skip_special_tokens=True).strip()


def steer(loaded, token, after):
    """Let the model write `token` once `after` tokens have been written (counted from the end of a prompt)."""
    inner = loaded.model.forward
    calls = []

    def forward(*args, **kwargs):
        out = inner(*args, **kwargs)
        calls.append(1)
        if len(calls) > after:
            out.logits[:, -1, token] = 1e4
        return out

    loaded.model.forward = forward
    return calls


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_those_of_one_text_alone(family):
    loaded = tiny_loaded(family)
    loaded.tokenizer.chat_template = TEMPLATE.replace("<e>", "")  # the frame would take all the room these have
    wanted = [token_by_token(loaded, item.instruction, 12) for item in ASKED]
    assert len(set(wanted)) > 1
    for size in (1, 2, len(ASKED)):
        assert _write_answers(loaded, ASKED, 12, size, progress=False) == wanted


def test_answers_come_in_the_order_asked(loaded):
    answers = _write_answers(loaded, ASKED, 12, 2, progress=False)
    assert _write_answers(loaded, ASKED[::-1], 12, 2, progress=False) == answers[::-1]
    assert _write_answers(loaded, [], progress=False) == []


def test_similar_lengths_are_read_together(loaded, monkeypatch):
    widths = []
    inner = loaded.model.generate
    monkeypatch.setattr(
        loaded.model, "generate", lambda ids, **kw: widths.append(tuple(ids.shape)) or inner(ids, **kw), raising=False
    )
    _write_answers(loaded, ASKED, 2, 2, progress=False)
    lengths = sorted((len(_prompt_ids(loaded.tokenizer, item.instruction)) for item in ASKED), reverse=True)
    assert widths == [(2, lengths[0]), (2, lengths[2]), (1, lengths[4])]


@pytest.mark.parametrize("after", [0, 3])
def test_answers_end_at_the_end_token(loaded, after):
    whole = _write_answers(loaded, ASKED, 12, progress=False)
    calls = steer(loaded, loaded.tokenizer.eos_token_id, after)
    ended = _write_answers(loaded, ASKED, 12, progress=False)
    assert len(calls) == after + 1
    assert all(long.startswith(short) and len(short) < len(long) for short, long in zip(ended, whole, strict=True))
    assert any(ended) == (after > 0)


def test_empty_answers_score_nothing(loaded):
    steer(loaded, loaded.tokenizer.eos_token_id, 0)
    result = score_answers(loaded, "dialogues", 3, max_new_tokens=4, progress=False)
    assert result.values == {"exact_match": 0, "f1": 0, "rouge1": 0}


def test_prompts_follow_the_chat_template():
    tokenizer = chatting(byte_tokenizer())
    text = tokenizer.decode(_prompt_ids(tokenizer, "Name it."))
    assert text == "<s>user.Name it.<e><s>assistant."
    end = tokenizer.convert_tokens_to_ids("<e>")
    model = tiny_model("llama")
    assert _stop_tokens(model, tokenizer) == [tokenizer.eos_token_id, end, model.config.eos_token_id]
    tokens = tokenizer("Blue.\n### Red<e>Green</s>")["input_ids"]
    assert _answer_text(tokenizer, tokens, _stop_tokens(model, tokenizer)) == "Blue.\n### Red"


def test_generation_stops_where_a_chat_turn_ends(loaded):
    tokenizer = loaded.tokenizer
    tokenizer.chat_template = TEMPLATE.replace("<e>", "<unk>")  # an entry that the tiny model can write
    end = tokenizer.unk_token_id
    assert end in _stop_tokens(loaded.model, tokenizer)
    calls = steer(loaded, end, 2)
    _write_answers(loaded, ASKED[:2], 12, progress=False)
    assert len(calls) == 3


def test_prompts_without_a_template_have_headings():
    tokenizer = byte_tokenizer(starts=True)
    text = tokenizer.decode(_prompt_ids(tokenizer, "Name it."))
    assert text.startswith("<s>Write an answer")
    assert text.endswith(f"\n{_HEADING} Instruction:\nName it.\n{_HEADING} Response:\n")
    for written, answer in [
        ("Blue.\n\n### Input:\nx", "Blue."),
        ("### Red", ""),
        ("C### is\nno # key", "C### is\nno # key"),
    ]:
        tokens = tokenizer(written, add_special_tokens=False)["input_ids"]
        assert _answer_text(tokenizer, tokens, [1]) == answer
    assert text.count("<s>") == 1


@pytest.mark.parametrize("before", ["", "fog", "a dense fog"])
def test_headings_are_noticed_with_their_last_token(before):
    tokenizer = byte_tokenizer()
    prompt = tokenizer("a question" + _HEADING + " Response:\n")["input_ids"]
    notice = _StopAtText(tokenizer, len(prompt), [_HEADING], _LAST_TOKENS, before="\n")
    written = tokenizer(f"{before}{_HEADING} More")["input_ids"]
    other = tokenizer("nothing of the sort ## #")["input_ids"][: len(written)]
    first = len(before) + len(_HEADING)
    found = [
        notice(torch.tensor([prompt + written[:n], prompt + other[:n]]), None).tolist() for n in range(1, first + 1)
    ]
    assert found[-1] == [True, False]
    assert found[-2] == [False, False]
    assert not any(two for _, two in found)
    at_once = tokenizer("###")["input_ids"]
    assert notice(torch.tensor([prompt + at_once]), None).tolist() == [True]


def test_generation_stops_at_a_further_heading(loaded, monkeypatch):
    _write_answers(loaded, ASKED[:2], 12, progress=False)
    calls = steer(loaded, 5, 100)
    monkeypatch.setattr(writing, "_HEADING", "")  # then every token completes one
    _write_answers(loaded, ASKED[:2], 12, progress=False)
    assert len(calls) == 1


def test_generation_ignores_the_models_own_settings(loaded):
    wanted = _write_answers(loaded, ASKED, 12, progress=False)
    own = loaded.model.generation_config
    own.update(repetition_penalty=5.0, do_sample=True, temperature=2.0, min_new_tokens=3, max_length=7)
    assert _write_answers(loaded, ASKED, 12, progress=False) == wanted
    assert loaded.model.generation_config is own
    assert own.repetition_penalty == 5.0


def test_nothing_is_logged(loaded):
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logging.getLogger("transformers").addHandler(handler)
    try:
        _write_answers(loaded, ASKED, 4, 2, progress=False)
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert not records


def test_scores_follow_from_items(loaded):
    result = score_answers(loaded, "alpaca", 5, max_new_tokens=6, progress=False)
    assert (result.name, result.n, result.version) == ("alpaca", 5, _instructions_version("alpaca"))
    assert result.items["id"] == [item.id for item in _load_instructions("alpaca", 5)]
    assert list(result.items) == ["id", "exact_match", "f1", "rouge1"]
    for metric, value in result.values.items():
        assert value == pytest.approx(sum(result.items[metric]) / 5)
        assert all(score == round(score, 4) for score in result.items[metric])
    assert score_answers(loaded, "dialogues", 1000, max_new_tokens=2, progress=False).n == 8


def test_answers_equal_to_references_score_one(loaded, monkeypatch):
    monkeypatch.setattr(
        "crosscal.metrics.writing._write_answers", lambda loaded, asked, *rest: [item.reference for item in asked]
    )
    assert score_answers(loaded, "alpaca", 73).values == {"exact_match": 1, "f1": 1, "rouge1": 1}


def test_references_count_by_the_best_of_several(loaded, monkeypatch):
    asked = [
        _Instruction("own-0", "Who?", "Ada Lovelace", ("Countess Ada", "Ada")),
        _Instruction("own-1", "Where?", "at home", ("London",)),
    ]
    monkeypatch.setattr("crosscal.metrics.writing._load_instructions", lambda name, n_items: asked)
    monkeypatch.setattr("crosscal.metrics.writing._write_answers", lambda *args: ["Ada", "at my home"])
    items = score_answers(loaded, "squad").items
    assert items["exact_match"] == [1, 0]
    assert items["f1"] == items["rouge1"] == [1, 0.8]


def test_writing_requests_are_checked(loaded):
    with pytest.raises(InputError, match="has no tokenizer"):
        _write_answers(LoadedModel(loaded.model, None, "tiny", "0"), ASKED)
    with pytest.raises(InputError, match="max_new_tokens is 0"):
        _write_answers(loaded, ASKED, 0)
    with pytest.raises(InputError, match="batch_size is 0"):
        _write_answers(loaded, ASKED, 4, 0)
    with pytest.raises(InputError, match="instruction own-1 has"):
        _write_answers(loaded, ASKED, 4000)
    with pytest.raises(InputError, match="no instruction set"):
        score_answers(loaded, "nothing")


def test_non_finite_outputs_are_one_sentence(loaded):
    loaded.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="NaN or infinite"):
        _write_answers(loaded, ASKED, progress=False)
