"""Token windows: what a seed decides, what never overlaps, and every sentence for a request that cannot be met."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from crosscal import load_text
from crosscal.errors import InputError
from crosscal.text import documents

TEXTS = [f"Document number {i} tells a story of its own: " + f"{i * 7919} " * (20 + i % 9) for i in range(60)]


@pytest.fixture
def notes(tmp_path):
    path = tmp_path / "notes.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    return str(path)


def draw(source, tokenizer, **changes):
    return load_text(source, tokenizer, **({"n_windows": 8, "length": 64, "seed": 3} | changes))


@pytest.mark.parametrize("packing", ["packed", "within"])
def test_the_seed_decides(notes, tokenizer, packing):
    one, same, other = (draw(notes, tokenizer, seed=s, packing=packing) for s in (3, 3, 4))
    assert torch.equal(one.tokens, same.tokens)
    assert one.fingerprint == same.fingerprint
    assert not torch.equal(one.tokens, other.tokens)
    assert one.fingerprint != other.fingerprint


def test_shape_type_and_fields(notes, tokenizer):
    windows = draw(notes, tokenizer)
    assert windows.tokens.shape == (8, 64)
    assert windows.tokens.dtype == torch.int64
    assert len(windows) == 8
    assert (windows.source, windows.split, windows.seed) == (notes, "calibration", 3)
    assert len(windows.fingerprint) == 16


def test_every_choice_changes_the_fingerprint(notes, tokenizer):
    choices = [{}, {"seed": 4}, {"length": 32}, {"n_windows": 4}, {"split": "held_out"}, {"packing": "within"}]
    assert len({draw(notes, tokenizer, **choice).fingerprint for choice in choices}) == len(choices)


def test_fingerprint_ignores_the_folder(notes, tokenizer, tmp_path):
    copy = tmp_path / "elsewhere" / "notes.jsonl"
    copy.parent.mkdir()
    copy.write_bytes((tmp_path / "notes.jsonl").read_bytes())
    assert draw(notes, tokenizer).fingerprint == draw(str(copy), tokenizer).fingerprint


def test_the_callers_random_state_is_left_alone(notes, tokenizer):
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    draw(notes, tokenizer)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_larger_draw_begins_with_the_smaller_one(notes, tokenizer):
    assert torch.equal(draw(notes, tokenizer, n_windows=12).tokens[:5], draw(notes, tokenizer, n_windows=5).tokens)


def test_all_windows_together_are_the_text_once(notes, tokenizer):
    total = sum(len(t.encode()) + 1 for t in documents(notes))
    every = draw(notes, tokenizer, n_windows=total // 64).tokens
    assert (every == tokenizer.eos_token_id).sum() >= len(documents(notes)) - 1
    pieces = {tuple(window.tolist()) for window in every}
    assert len(pieces) == len(every)


def test_windows_add_the_end_token_alone(notes, tokenizer):
    joined = "".join(f"{text}</s>" for text in documents(notes))
    windows = draw(notes, tokenizer, n_windows=50)
    ends = [piece for w in windows.tokens for piece in tokenizer.decode(w).split("</s>")[:-1]]
    assert ends
    assert all(f"{piece}</s>" in joined for piece in ends)
    assert tokenizer.bos_token_id not in windows.tokens


def test_windows_take_special_tokens_of_a_text_as_text(tmp_path, tokenizer):
    path = tmp_path / "tags.txt"
    path.write_text("\n\n".join(f"{i} <s>struck out</s> and <s>again</s>" for i in range(40)))
    windows = draw(str(path), tokenizer, n_windows=4)
    assert tokenizer.bos_token_id not in windows.tokens
    assert (windows.tokens == tokenizer.eos_token_id).sum() < 12


def test_an_edited_file_is_read_again(tmp_path, tokenizer):
    path = tmp_path / "notes.txt"
    for word in ("first", "second"):
        path.write_text("\n\n".join(f"{word} {i} " * 20 for i in range(40)))
        text = tokenizer.decode(draw(str(path), tokenizer).tokens.flatten())
        assert word in text


@pytest.mark.parametrize("packing", ["packed", "within"])
def test_windows_start_as_the_tokenizer_starts_texts(notes, starting_tokenizer, packing):
    windows = draw(notes, starting_tokenizer, packing=packing)
    assert windows.tokens.shape == (8, 64)
    assert (windows.tokens[:, 0] == starting_tokenizer.bos_token_id).all()
    assert not (windows.tokens[:, 1:] == starting_tokenizer.bos_token_id).any()


def test_windows_within_come_from_one_document_each(notes, tokenizer):
    windows = draw(notes, tokenizer, packing="within", n_windows=20)
    pieces = [tokenizer.decode(window) for window in windows.tokens]
    homes = [[i for i, text in enumerate(TEXTS) if piece in text] for piece in pieces]
    assert all(homes)
    assert tokenizer.eos_token_id not in windows.tokens


def test_parts_never_share_text(notes, tokenizer):
    a = set(documents(notes, "calibration"))
    b = set(documents(notes, "held_out"))
    assert a
    assert b
    assert not a & b
    assert a | b == {t.strip() for t in TEXTS}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"n_windows": 0}, r"n_windows is 0; give a whole number of at least 1"),
        ({"n_windows": 2.5}, r"n_windows is 2.5; give a whole number"),
        ({"length": 1}, r"length is 1; give a whole number of at least 2"),
        ({"seed": -1}, r"seed is -1; give a whole number of at least 0"),
        ({"split": "test"}, r"no split 'test' .use calibration or held_out"),
        ({"packing": "pack"}, r"no packing 'pack'; did you mean 'packed'\?"),
        ({"n_windows": 10**6}, r"holds [\d,]+ tokens, at most \d+ windows of 64; ask for fewer windows than 1000000"),
        ({"length": 10**6}, r"holds [\d,]+ tokens, not one window of 1000000; ask for .*shorter"),
        ({"length": 10**4, "packing": "within"}, r"holds 0 documents longer than 10000 tokens.*packed"),
    ],
)
def test_requests_that_cannot_be_met(notes, tokenizer, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        draw(notes, tokenizer, **changes)


def test_an_unknown_source_and_a_missing_file(tokenizer, tmp_path):
    with pytest.raises(InputError, match=r"no text source 'wikipeda'; did you mean 'wikipedia'\?"):
        draw("wikipeda", tokenizer)
    with pytest.raises(InputError, match=r"there is no file .*; give the path"):
        draw(str(tmp_path / "none.txt"), tokenizer)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", b"", r"a.txt holds no text"),
        ("a.txt", b" \n\n \n", r"a.txt holds no text"),
        ("a.txt", b"caf\xe9", r"a.txt is not UTF-8 text \(byte 3\); save it as UTF-8"),
        ("a.txt", b"\xff\xfe\x00", r"a.txt is not UTF-16 text \(byte 0\); save it as UTF-8"),
        ("a.csv", b"x,y", r"a.csv is not a .txt, .jsonl or .json file.*to_json"),
        ("a.jsonl", b'{"text": "x"}\n{"text', r"line 2 of .*a.jsonl is no JSON"),
        (
            "a.jsonl",
            b'{"n": 1}',
            r"a.jsonl has no field that is clearly its text; name it with --field NAME .its fields are n.",
        ),
        ("a.txt", b"only one document", r"no document of .*a.txt falls into the (calibration|held_out) part"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, tokenizer, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        [documents(str(tmp_path / name), split) for split in ("calibration", "held_out")]


def test_files_are_parted_and_their_fields_chosen(tmp_path):
    (tmp_path / "a.txt").write_text("\n\n".join(f"paragraph {i}\nsecond line" for i in range(30)))
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps({"id": i, "body": f"body {i}"}) for i in range(30)))
    for name, first in (("a.txt", "paragraph 0\nsecond line"), ("b.jsonl", "body 0")):
        both = documents(str(tmp_path / name), "calibration") + documents(str(tmp_path / name), "held_out")
        assert len(both) == 30
        assert first in both


TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
)


def chats(path, roles=("user", "assistant")) -> str:
    """Chats of two turns, the first one's role by turns."""
    rows = []
    for i in range(60):
        turns = [{"role": role, "content": f"{role} {i} says {i * 7919}"} for role in (roles[i % len(roles)], "user")]
        rows.append(json.dumps({"id": i, "messages": turns}))
    path.write_text("\n".join(rows))
    return str(path)


def test_chats_are_written_with_the_template(tmp_path, tokenizer):
    tokenizer.chat_template = TEMPLATE
    source = chats(tmp_path / "chats.jsonl")
    windows = draw(source, tokenizer, chat=True, n_windows=20)
    text = tokenizer.decode(windows.tokens.flatten())
    assert "<s>user: user " in text
    assert (windows.tokens == tokenizer.bos_token_id).sum() > 20
    assert "</s></s>" not in text  # the template ends a chat, so no end token follows
    assert windows.report.what == "chats in 'messages'"
    assert windows.report.dropped == {}
    assert torch.equal(windows.tokens, draw(f"{source}#chat:messages", tokenizer, n_windows=20).tokens)
    assert draw(source, tokenizer, chat=True, packing="within", length=40).tokens.shape == (8, 40)
    with pytest.raises(InputError, match=r"give --chat"):
        draw(source, tokenizer)


def test_chats_that_a_template_refuses_are_counted(tmp_path, tokenizer):
    tokenizer.chat_template = TEMPLATE
    some = draw(chats(tmp_path / "a.jsonl", ("user", "system")), tokenizer, chat=True, n_windows=4)
    assert 15 < some.report.dropped["refused by the chat template"] < 35
    assert "refused by the chat template" in str(some.report)
    with pytest.raises(InputError, match=r"gives no tokens with this tokenizer; its chat template refuses such turns"):
        draw(chats(tmp_path / "b.jsonl", ("system",)), tokenizer, chat=True)


def test_chats_need_a_template(tmp_path, tokenizer):
    with pytest.raises(InputError, match=r"tokenizer has no chat template; use a chat model, or leave --chat"):
        draw(chats(tmp_path / "a.jsonl"), tokenizer, chat=True)


def test_parts_of_chats_are_those_of_every_template(tmp_path, tokenizer):
    source = chats(tmp_path / "a.jsonl")
    said = documents(source, "held_out", chat=True)
    assert said
    for template in (TEMPLATE, TEMPLATE.replace("<s>", "#")):
        tokenizer.chat_template = template
        text = tokenizer.decode(draw(source, tokenizer, chat=True, split="held_out", length=50).tokens.flatten())
        assert ("<s>" in text) == ("<s>" in template)
        assert (
            sum(part.partition("\n")[0].removeprefix("user: ").removeprefix("assistant: ") in text for part in said)
            > len(said) / 2
        )


def unknown_file(path, share: float) -> str:
    """Words of which this share has a letter that a tokenizer of bytes below 128 does not know."""
    words = [("ж" if i % 100 < 100 * share else "z") for i in range(6_000)]
    path.write_text("\n\n".join(f"{i} " + "".join(words[i * 100 : i * 100 + 100]) for i in range(60)))
    return str(path)


def ascii_tokenizer(unknown: str | None) -> PreTrainedTokenizerFast:
    """A token per ASCII character; any other is the unknown token, or is dropped where there is none."""
    names = [unknown or "<pad>", "</s>", *map(chr, range(32, 127))]
    raw = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [], unk_token=unknown))
    return PreTrainedTokenizerFast(tokenizer_object=raw, unk_token=unknown, eos_token="</s>")


@pytest.mark.parametrize("unknown", ["<unk>", None])
@pytest.mark.parametrize("packing", ["packed", "within"])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 0.9])
def test_unknown_tokens_are_told(tmp_path, caplog, unknown, packing, share):
    tokenizer = ascii_tokenizer(unknown)
    options = {"length": 8, "packing": packing}
    source = unknown_file(tmp_path / "a.txt", share)
    if share > 0.5:
        with pytest.raises(InputError, match=r"[89]\d % of .*a.txt calibration is unknown to the model"):
            draw(source, tokenizer, **options)
        return
    assert draw(source, tokenizer, **options).report.unknown == pytest.approx(share, abs=0.03)
    draw(source, tokenizer, **options)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == (0 if share < 0.1 else 1 if packing == "packed" else 2)
    assert all("% of" in line and "unknown to the model's tokenizer" in line for line in said)


@pytest.mark.slow
def test_sources_have_the_tokens_that_are_registered():
    import transformers

    from crosscal.assets import model_gguf
    from crosscal.text import SOURCES

    gguf = model_gguf("smollm2-135m")
    real = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    for name, source in SOURCES.items():
        for split, expected in zip(("calibration", "held_out"), source.tokens, strict=True):
            with pytest.raises(InputError, match=f"{name} {split} holds {expected:,} tokens"):
                load_text(name, real, n_windows=10**7, split=split)
    assert load_text("c4", real).tokens.shape == (128, 1024)
