"""Text files of one's own: which field is read, what is refused, which copies go, and what is said of it."""

import gzip
import itertools
import json
import os
import random
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosscal.errors import InputError
from crosscal.text import SPLITS, SourceReport, check_source, documents
from crosscal.text.documents import NGRAM, SHARED_NGRAMS, _split, _with_field, word_ngrams
from crosscal.text.fields import _Document, _whole_text

WORDS = "river stone bread lamp copper willow harbour candle meadow thunder velvet anchor"
N = 60


def prose(number: int, words: int = 60) -> str:
    """A text like no other, the same for the same number."""
    return " ".join(random.Random(number).choices(WORDS.split(), k=words)) + f" {number}"


def turns(number: int) -> list[dict]:
    return [{"role": "user", "content": prose(number)}, {"role": "assistant", "content": f"Yes, {prose(number, 5)}"}]


def lines(path: Path, make, n: int = N) -> str:
    """A file of JSON lines, one for each number."""
    path.write_text("".join(json.dumps(make(i)) + "\n" for i in range(n)))
    return str(path)


def both(source, **options) -> list[str]:
    return [text for split in SPLITS for text in documents(source, split, **options)]


FIELDS = {
    "text first": (lambda i: {"title": prose(i, 99), "text": prose(i)}, "field 'text'"),
    "half without text": (lambda i: {"body": prose(i), "text": prose(i) if i % 2 else None}, "field 'text'"),
    "hardly any text": (lambda i: {"body": prose(i), "text": "" if i else "x"}, "field 'body'"),
    "long ids": (lambda i: {"uuid": f"{i:0900d}", "summary": prose(i)}, "field 'summary'"),
    "ids with words": (lambda i: {"docId": prose(i, 99), "summary": prose(i)}, "field 'summary'"),
    "addresses": (lambda i: {"page": f"https://a.org/{'x' * 900}{i}", "body": prose(i)}, "field 'body'"),
    "origins": (lambda i: {"source": prose(i, 99), "created_at": "May 3 noon " * 99, "b": prose(i)}, "field 'b'"),
    "capitals": (lambda i: {"Title": prose(i, 99), "Text": prose(i)}, "field 'Text'"),
    "the longest": (lambda i: {"headline": prose(i, 9), "article": prose(i), "n": i}, "field 'article'"),
    "nested": (lambda i: {"meta": {"lang": "en us"}, "data": {"body": prose(i)}}, "field 'data.body'"),
    "paragraphs": (lambda i: {"text": [prose(i), "end"]}, "field 'text'"),
    "sections": (lambda i: {"id": i, "sections": [{"p": prose(i)}, {"p": "end"}]}, "field 'sections.p'"),
    "no spaces": (lambda i: {"id": f"{i} a b", "文": f"河流石头面包灯铜柳树{i}" * 9}, "field '文'"),
    "strings": (prose, "strings"),
    "alpaca": (
        lambda i: {"instruction": f"Do {i}", "input": "" if i % 3 else "this", "output": prose(i)},
        "fields 'instruction' + 'input' + 'output'",
    ),
    "dolly": (
        lambda i: {
            "instruction": f"Do {i}",
            "context": "" if i else "this",
            "response": prose(i),
            "category": "open question",
        },
        "fields 'instruction' + 'context' + 'response'",
    ),
    "completion": (lambda i: {"prompt": f"Q{i}", "completion": prose(i)}, "fields 'prompt' + 'completion'"),
    "preference": (
        lambda i: {"prompt": f"Q{i}", "chosen": prose(i), "rejected": prose(i, 999)},
        "fields 'prompt' + 'chosen'",
    ),
    "a passage outweighs": (lambda i: {"question": "Q?", "answer": "A", "passage": prose(i)}, "field 'passage'"),
}


@pytest.mark.parametrize("shape", FIELDS)
def test_the_field_is_chosen_by_rule(tmp_path, shape):
    make, what = FIELDS[shape]
    source = lines(tmp_path / "a.jsonl", make)
    report = check_source(source)
    assert report.what == what
    assert report.rows == N
    assert report.documents == (N // 2 if shape == "half without text" else N)
    told = prose if shape != "no spaces" else lambda i: f"灯铜柳树{i}"
    assert all(any(told(i) in text for i in range(N)) for text in both(source))


def test_instructions_keep_their_form(tmp_path):
    source = lines(tmp_path / "a.jsonl", FIELDS["alpaca"][0])
    assert f"### Instruction:\nDo 0\n\n### Input:\nthis\n\n### Response:\n{prose(0)}" in both(source)
    assert f"### Instruction:\nDo 1\n\n### Response:\n{prose(1)}" in both(source)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda i: {"id": f"a b {i}", "url": "x y", "n": i},
            r"no field that is clearly its text.*--field NAME .*id, url, n",
        ),
        (lambda i: {"hash": "ab12" * 20, "words": "one"}, r"--field NAME .its fields are hash, words"),
        (lambda i: i, r"--field NAME .its rows are no objects"),
        (lambda i: {"id": f"c {i}", "messages": turns(i)}, r"holds chats .'messages'. and no plain text; give --chat"),
        (lambda i: {"note": "a word", "conversations": turns(i)}, r"holds chats .'conversations'."),
        (turns, r"holds chats .whole rows."),
    ],
    ids=["origins", "no words", "numbers", "messages", "conversations", "bare turns"],
)
def test_without_text_the_fields_are_named(tmp_path, make, sentence):
    with pytest.raises(InputError, match=sentence):
        check_source(lines(tmp_path / "a.jsonl", make))


def test_a_field_by_name(tmp_path):
    source = lines(
        tmp_path / "a.jsonl", lambda i: {"text": "same", "d": {"t": prose(i)}, "e.f": f"dot {i}", "c": turns(i)}
    )
    assert set(both(source, field="d.t")) == set(both(f"{source}#d.t")) == {prose(i) for i in range(N)}
    assert check_source(source, field="e.f").what == "field 'e.f'"
    assert prose(0) in "".join(both(source, field="c.content"))
    for field, sentence in {
        "d.x": r"no text in a field 'd.x' .its fields are text, d, e.f, c.",
        "c": r"give --chat too",
    }.items():
        with pytest.raises(InputError, match=sentence):
            documents(source, field=field)


def test_a_file_may_have_a_hash_in_its_name(tmp_path):
    source = lines(tmp_path / "no#1.jsonl", lambda i: {"a": prose(i), "b": f"b {i}"})
    assert check_source(source).what == "field 'a'"
    assert _with_field(source, "b") == f"{source}#b"
    assert check_source(source, field="b").what == "field 'b'"


def test_fields_are_for_sources_that_have_some(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    for source in ("c4", "self", "hub:allenai/c4", str(tmp_path / "a.txt")):
        assert _with_field(source, "body", chat=True) == source
        with pytest.raises(InputError, match="has no fields to choose from; leave field and chat out"):
            documents(source, field="body")
    with pytest.raises(InputError, match=r"plain text, which has no fields"):
        documents(f"{tmp_path / 'a.txt'}#body")


CHATS = {
    "messages": lambda i: {"id": i, "text": "unused words", "messages": turns(i)},
    "sharegpt": lambda i: {"conversations": [{"from": "human", "value": prose(i)}, {"from": "gpt", "value": "Yes"}]},
    "parts": lambda i: {
        "messages": [{"role": "User", "content": [{"type": "text", "text": prose(i)}, {"type": "image"}]}]
    },
    "another name": lambda i: {"log": turns(i), "tags": [{"a": 1}]},
    "bare turns": turns,
    "nested": lambda i: {"id": i, "request": {"body": {"messages": turns(i)}}},
    "as a string": lambda i: {"id": i, "messages": json.dumps(turns(i))},
    "prompt and completion": lambda i: {"completion": turns(i)[1:], "prompt": turns(i)[:1]},
    "tools": lambda i: {"messages": [*turns(i), {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}]},
}


@pytest.mark.parametrize("shape", CHATS)
def test_chats_are_read_when_asked(tmp_path, shape):
    source = lines(tmp_path / "a.jsonl", CHATS[shape])
    report = check_source(source, chat=True)
    assert report.what.startswith("chats in '") or report.what == "chats in whole rows"
    assert report.documents == N
    assert all(any(text.startswith(f"user: {prose(i)}") for i in range(N)) for text in both(source, chat=True))


def test_chats_that_are_none_or_several(tmp_path):
    source = lines(tmp_path / "a.jsonl", lambda i: {"text": prose(i)})
    with pytest.raises(InputError, match=r"holds no chats, lists of turns with roles; name the field"):
        check_source(source, chat=True)
    source = lines(tmp_path / "b.jsonl", lambda i: {"chosen": turns(i), "rejected": turns(-i - 1)})
    with pytest.raises(InputError, match=r"several chats, 'chosen' \+ 'rejected'; name the field with --field"):
        check_source(source, chat=True)
    assert prose(0) in "".join(both(source, chat=True, field="chosen"))


def packed(rows: list, form: str) -> tuple[str, bytes]:
    """Rows in a file of this form: its name and its bytes."""
    joined = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return {
        "list": ("a.json", json.dumps(rows, indent=2).encode()),
        "list in an object": ("a.json", json.dumps({"version": 1, "data": rows}).encode()),
        "list as lines": ("a.jsonl", json.dumps(rows, indent=2).encode()),
        "lines as list": ("a.json", joined),
        "ndjson": ("a.ndjson", joined.replace(b"\n", b"\r\n\r\n")),
        "gzip": ("A.JSONL.GZ", gzip.compress(joined)),
    }[form]


@pytest.mark.parametrize("form", ["list", "list in an object", "list as lines", "lines as list", "ndjson", "gzip"])
def test_forms_of_json(tmp_path, form):
    name, content = packed([{"body": prose(i)} for i in range(N)], form)
    (tmp_path / name).write_bytes(content)
    assert set(both(str(tmp_path / name))) == {prose(i) for i in range(N)}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_with_a_mark_are_read(tmp_path, encoding, end):
    text = f"{end}{end}".join(prose(i) + " é" for i in range(N))
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    assert set(both(str(tmp_path / "a.txt"))) == {prose(i) + " é" for i in range(N)}
    assert check_source(str(tmp_path / "a.txt")).encoding == encoding.removesuffix("-sig").upper()


@pytest.mark.parametrize(
    "blank", ["\n \t\n", "\n\u00a0\n", "\n\u3000\n", "\n\u200b\n", "\n\f\n", "\u2028\u2028", "\u2029", "\x85\x85"]
)
def test_blank_lines_of_all_kinds_part_documents(tmp_path, blank):
    (tmp_path / "a.txt").write_bytes(blank.join(map(prose, range(N))).encode())
    assert set(both(str(tmp_path / "a.txt"))) == set(map(prose, range(N)))


UNREADABLE = {
    "UTF-16 little": ("a.txt", prose(1).encode("utf-16-le"), r"holds zero bytes: it is UTF-16 without a mark"),
    "UTF-16 big": ("a.jsonl", b'{"text": "a"}'.decode().encode("utf-16-be"), r"holds zero bytes"),
    "a zero byte": ("a.txt", b"one\0two", r"holds zero bytes.*save it as UTF-8"),
    "Latin-1": ("a.jsonl", b'{"text": "caf\xe9"}', r"is not UTF-8 text \(byte 13\)"),
    "no gzip": ("a.txt.gz", b"text", r"cannot be unpacked \(Not a gzipped file.*pack it again"),
    "half a gzip": ("a.txt.gz", gzip.compress(prose(1).encode())[:30], r"cannot be unpacked \(Compressed file ended"),
    "one object": ("a.json", b'{"a": 1}', r"holds one object; give a list of objects"),
    "damaged list": ("a.json", b'[{"a": "b c"},', r"line 1 of .* is no JSON"),
    "empty list": ("a.json", b"[]", r"holds no text"),
    "deep": (
        "a.jsonl",
        b'{"text": "x", "t": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        r"line 1 .* nested too deeply",
    ),
    "long number": ("a.jsonl", b'{"text": "x", "n": ' + b"1" * 5000 + b"}", r"line 1 of .* is no JSON"),
    "a table": ("a.csv", b"text\nx", r"is not a .txt, .jsonl or .json file.*to_json"),
    "parquet": ("a.parquet", b"PAR1", r"is not a .txt, .jsonl or .json file"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_what_cannot_be_read_is_one_sentence(tmp_path, kind):
    name, content, sentence = UNREADABLE[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        documents(str(tmp_path / name))


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("x/" * 3 + "a.txt", r"there is no file x/x/x/a.txt; give the path"),
        ("a" * 300, r"there is no text source 'a{77}\.\.\.'"),
        ("./" + "b" * 300, r"cannot read b+\.\.\. .File name too long."),
        ("Either/or, somebody gave the text itself. " * 9, r"(there is no file|cannot read) Either/or, some"),
        ("Somebody gave the text itself.\n\nHere. " * 30, r"no text source 'Somebody gave the text itself. Here. Some"),
        ("a\0b.txt", r"cannot read a.b.txt .embedded null byte."),
        ("~nobody-of-this-name/a.txt", r"there is no file ~nobody"),
        (None, r"source is None; give the name of a text"),
        (["c4"], r"source is \['c4'\]; give the name"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_names_that_name_nothing(source, sentence):
    with pytest.raises(InputError, match=sentence):
        documents(source)


def test_a_folder_is_no_text(tmp_path):
    (tmp_path / "a.txt").mkdir()
    for path in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(InputError, match=r"is a folder; give one file"):
            documents(str(path))


def test_a_path_object_is_taken(tmp_path):
    assert documents(Path(lines(tmp_path / "a.jsonl", lambda i: {"text": prose(i)})))


def test_a_folder_nobody_may_enter(tmp_path, monkeypatch):
    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    source = lines(tmp_path / "a.jsonl", prose)
    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(InputError, match=r"cannot read .*a.jsonl .Permission denied.; give the path of a file you may"):
        documents(source)


def test_halves_of_characters_become_whole(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(f'{{"text": "cut \\ud83d {i} \\ud83d\\ude00 \\u0000", "t": "\\udc00"}}\n' for i in range(N))
    )
    assert set(both(str(path))) == {f"cut � {i} 😀 �" for i in range(N)}
    assert _whole_text("plain é 笔") == "plain é 笔"


COPIES = {
    "a mark": lambda text, i: f"{text} (copy)",
    "a date": lambda text, i: f"2031-05-{i % 28 + 1:02d} {text}",
    "spaces": lambda text, i: text.replace(" ", "  \t"),
    "capitals": lambda text, i: text.upper(),
    "punctuation": lambda text, i: text.replace(" ", ", "),
    "a new beginning": lambda text, i: f"{prose(1000 + i, 30)} {text}",
    "a quotation": lambda text, i: f"{prose(1000 + i, 300)} {text} {prose(2000 + i, 300)}",
}


SHORT = [(words, change) for words in (12, 30) for change in ("spaces", "capitals")]
MIDDLE = [(30, change) for change in ("a mark", "a date", "punctuation")]


@pytest.mark.parametrize(("words", "change"), [*SHORT, *MIDDLE, *((200, change) for change in COPIES)])
def test_no_held_out_document_is_a_copy(tmp_path, words, change):
    make = [prose(i, words) for i in range(N)]
    rows = make + [COPIES[change](text, i) for i, text in enumerate(make)]
    source = lines(tmp_path / "a.jsonl", lambda i: {"text": rows[i]}, len(rows))
    calibration = [" ".join(text.lower().split()) for text in documents(source)]
    seen = set().union(*map(word_ngrams, calibration))
    held_out = documents(source, "held_out")
    for text in held_out:
        own = word_ngrams(text)
        assert len(own & seen) <= min(SHARED_NGRAMS, len(own) / 2)
        assert " ".join(text.lower().split()) not in calibration
    report = check_source(source)
    dropped = report.dropped.get("near-duplicate", 0)
    assert (dropped, report.together) == ((dropped, 0) if change == "a quotation" else (0, N))
    assert report.shared == 0
    assert len(held_out) + len(calibration) + dropped == len(rows)


def test_signs_without_spaces_are_compared(tmp_path):
    texts = ["".join(random.Random(i).choices("河流石头面包灯铜柳树港口蜡烛草地雷声", k=120)) for i in range(N)]
    rows = texts + [f"二〇三一年 {text}" for text in texts]
    source = lines(tmp_path / "a.jsonl", lambda i: {"text": rows[i]}, len(rows))
    assert check_source(source).together == N


ALIKE = {
    "a footer": lambda i: f"{prose(i)} {prose(999, 100)}",
    "a long head": lambda i: f"{prose(999, 90)} {prose(i, 25)}",
    "three words": lambda i: " ".join(random.Random(i).choices(["stone", "bread", "lamp"], k=60)),
    "a form": lambda i: f"Order {i} of {prose(i, 4)} is late. " + "We are sorry and send it as soon as we can. " * 2,
}


@pytest.mark.parametrize("kind", ALIKE)
@pytest.mark.parametrize("n", [8, N])
def test_texts_with_a_common_template_stay(tmp_path, kind, n):
    report = check_source(lines(tmp_path / "a.jsonl", lambda i: {"text": ALIKE[kind](i)}, n))
    assert sum(report.parts.values()) == n
    assert min(report.parts.values()) > 0
    assert (report.dropped, report.together, report.shared) == ({}, 0, 0)


def test_many_copies_of_a_few_texts_go_together(tmp_path):
    source = lines(tmp_path / "a.jsonl", lambda i: {"text": f"{prose(i % 6)}, number {i}."}, 120)
    report = check_source(source)
    assert (report.together, sum(report.parts.values())) == (114, 120)
    assert {t[:99] for t in documents(source)}.isdisjoint(t[:99] for t in documents(source, "held_out"))
    assert "114 near-copies in the part of their first" in str(report)


def test_texts_that_are_all_alike_are_kept_and_told(tmp_path, caplog):
    source = lines(tmp_path / "a.jsonl", lambda i: {"text": f"{prose(1, 200)} {i}"})
    report = check_source(source)
    assert sum(report.parts.values()) == N
    assert report.shared == report.parts["held_out"] > 0
    assert "held-out documents are near-copies of calibration ones" in str(report)
    assert "give texts that differ more" in caplog.text


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(20, 90), st.integers(0, 9)), min_size=2, max_size=30),
    st.sampled_from([2, 12]),
)
def test_parts_are_never_empty_and_never_leak_unsaid(drawn, vocabulary):
    words = WORDS.split()[:vocabulary]
    texts = [" ".join(random.Random(i).choices(words, k=n)) + f" {end}" for i, n, end in drawn]
    members = [_Document(text, text) for text in texts]
    parts, report = _split(members, 0.8, SourceReport("a", "", len(texts), len(texts)), "across")
    distinct = len(set(texts))
    assert sum(report.parts.values()) + report.dropped.get("near-duplicate", 0) == distinct
    assert distinct < 2 or min(report.parts.values()) > 0
    held_by = Counter(run for text in set(texts) for run in word_ngrams(text))
    rare = {part: [{r for r in word_ngrams(d.text) if held_by[r] <= 4} for d in parts[part]] for part in parts}
    for own, other in itertools.product(rare["held_out"] if not report.shared else (), rare["calibration"]):
        assert len(own & other) <= SHARED_NGRAMS


def test_long_texts_are_compared_in_part(monkeypatch, tmp_path):
    monkeypatch.setattr(sys.modules["crosscal.text.documents"], "_EXACT_CHARACTERS", 4_000)
    rows = [prose(i, 200) for i in range(N)] + [f"{prose(i, 200)} (copy)" for i in range(N)]
    source = lines(tmp_path / "a.jsonl", lambda i: {"text": rows[i]}, len(rows))
    seen = set().union(*map(word_ngrams, documents(source)))
    assert all(len(word_ngrams(text) & seen) <= SHARED_NGRAMS for text in documents(source, "held_out"))
    some = word_ngrams(rows[0], every=4)
    assert some < word_ngrams(rows[0])
    assert NGRAM < len(some) < 100


def test_the_report_counts_and_says_all(tmp_path):
    rows = [{"body": prose(i % 50)} for i in range(55)] + [{"body": ""}, {"n": 1}]
    source = lines(tmp_path / "notes.jsonl", lambda i: rows[i], len(rows))
    report = check_source(source)
    assert report.dropped == {"empty": 2, "equal": 5}
    assert sum(report.parts.values()) == 50
    parts = "{calibration} for calibration, {held_out} held out".format(**report.parts)
    assert str(report) == f"notes.jsonl: 55 of 57 documents: field 'body', UTF-8; dropped 2 empty, 5 equal; {parts}"
    assert check_source("c4") is None
    assert check_source("hub:me/unseen") is None


def test_an_edited_file_is_read_again(tmp_path):
    source = lines(tmp_path / "a.jsonl", lambda i: {"text": prose(i)})
    before = both(source)
    lines(tmp_path / "a.jsonl", lambda i: {"text": prose(i + 500)})
    os.utime(source, ns=(1, 1))
    assert not set(before) & set(both(source))


def test_short_texts_are_told_apart(tmp_path):
    rows = ["x = a + b", "x = a - b", "🙂", "🙃", "!!", "??", "Yes", "yes "]
    source = lines(tmp_path / "a.jsonl", lambda i: {"text": rows[i]}, len(rows))
    report = check_source(source)
    assert (report.dropped, report.together) == ({}, 1)
    assert sum(report.parts.values()) == len(rows)
