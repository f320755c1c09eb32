"""`--field` and `--chat` of the commands that read text, and what they say of it on standard error."""

import json
import shutil

import pytest

from tests.unit.cli.conftest import write_text

EVALUATE = ("evaluate", "--windows", 2, "--length", 24)


@pytest.fixture
def bodies(room):
    """A file whose text is in `data.body`, beside a longer field."""
    write_text(room / "plain.jsonl")
    texts = [json.loads(line)["text"] for line in (room / "plain.jsonl").read_text().splitlines()]
    rows = [{"id": i, "notes": f"other words {i} " * 40, "data": {"body": text}} for i, text in enumerate(texts)]
    (room / "bodies.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return texts


@pytest.fixture
def chats(bodies, room, tiny):
    """A file of chats, and a tiny model with a chat template."""
    rows = [{"id": i, "messages": [{"role": "user", "content": text}]} for i, text in enumerate(bodies)]
    (room / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(tiny, room / "talker")
    (room / "talker" / "chat_template.jinja").write_text("{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}")
    return "talker"


def test_compress_says_which_field_it_read(compress, bodies, room):
    chosen = compress("--sources", "bodies.jsonl", "--sparsity", 0.5, "--output", "a")
    assert chosen.status == 0, chosen.err
    assert "read bodies.jsonl: 60 of 60 documents: field 'notes', UTF-8; " in chosen.err
    named = compress(
        "--sources", "bodies.jsonl=0.5,notes.jsonl=0.5", "--field", "data.body", "--sparsity", 0.5, "--output", "b"
    )
    assert named.status == 1
    assert "notes.jsonl has no text in a field 'data.body' (its fields are text)" in named.err
    named = compress(
        "--sources",
        "bodies.jsonl",
        "--field",
        "data.body",
        "--sparsity",
        0.5,
        "--output",
        "b",
        "--save-config",
        "b.toml",
    )
    assert "60 of 60 documents: field 'data.body', UTF-8; " in named.err
    assert 'field = "data.body"' in (room / "b.toml").read_text()
    assert json.loads((room / "b" / "crosscal.json").read_text())["made"]["sources"] == {"bodies.jsonl#data.body": 1.0}


def test_quiet_says_nothing_of_the_text(compress, bodies):
    assert compress("--sources", "bodies.jsonl", "--sparsity", 0.5, "--output", "a", "--quiet").err == ""


def test_evaluate_reads_the_field_asked_for(crosscal, bodies, tiny):
    said = []
    for options in (["--field", "data.body"], ["--texts", "bodies.jsonl#data.body"]):
        ran = crosscal(*EVALUATE, "--model", tiny, "--texts", "bodies.jsonl", *options, "--json")
        assert ran.status == 0, ran.err
        assert list(json.loads(ran.out)["texts"]) == ["bodies.jsonl#data.body"]
        said.append("field 'data.body'" in ran.err)
    assert said == [True, False]  # what is measured already is not read again


def test_chats_without_chat_are_refused_first(crosscal, compress, chats, tiny):
    for ran in (
        compress("--sources", "chats.jsonl", "--sparsity", 0.5, "--output", "a"),
        crosscal(*EVALUATE, "--model", tiny, "--texts", "chats.jsonl"),
        crosscal("report", "--model", tiny, "--domain", "chats.jsonl", "--output", "card.html"),
    ):
        assert ran.status == 1
        assert ran.err.startswith("chats.jsonl holds chats ('messages') and no plain text; give --chat")


def test_chat_writes_with_the_model_s_template(crosscal, compress, chats, room):
    ran = compress("--model", chats, "--sources", "chats.jsonl", "--chat", "--sparsity", 0.5, "--output", "a")
    assert ran.status == 0, ran.err
    assert "read chats.jsonl: 60 of 60 documents: chats in 'messages', UTF-8; " in ran.err
    ran = crosscal("compare", *EVALUATE[1:], "--dense", chats, "--models", "a", "--texts", "chats.jsonl", "--chat")
    assert ran.status == 0, ran.err
    assert "chats in 'messages'" in ran.err


def test_a_model_without_template_cannot_chat(compress, chats):
    ran = compress("--sources", "chats.jsonl", "--chat", "--sparsity", 0.5, "--output", "a")
    assert ran.status == 1
    assert "tokenizer has no chat template; use a chat model, or leave --chat out" in ran.err


@pytest.mark.parametrize("option", [["--field", "text"], ["--chat"]])
def test_options_that_no_text_takes_are_refused(crosscal, tiny, room, option):
    ran = crosscal(*EVALUATE, "--model", tiny, "--texts", "news", *option)
    assert (ran.status, ran.out) == (1, "")
    assert ran.err.startswith(f"{option[0]} is for .jsonl and .json files and sets of the hub, and none is named")


def test_the_report_is_made_of_the_field_asked_for(crosscal, bodies, tiny):
    usual = ("report", "--model", tiny, "--domain", "bodies.jsonl", "--general", "notes.jsonl", "--output", "card.html")
    ran = crosscal(*usual, "--field", "data.body", "--preset", "smoke", "--tasks", "", "--dry-run", "--json")
    assert ran.status == 1  # the general text has no such field
    (general,) = [line for line in ran.err.splitlines() if "notes.jsonl" in line]
    assert "has no text in a field 'data.body'" in general
    ran = crosscal(
        *usual, "--general", "c4", "--field", "data.body", "--preset", "smoke", "--tasks", "", "--dry-run", "--json"
    )
    assert ran.status == 0, ran.err
    assert json.loads(ran.out)["domain"] == "bodies.jsonl#data.body"
    assert "read bodies.jsonl: 60 of 60 documents: field 'data.body'" in ran.err
