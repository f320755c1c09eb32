"""Hub sources, offline, from a cache folder laid out as the hub's own library lays it out."""

import csv
import gzip
import json
import random
from pathlib import Path

import pytest

from crosscal import load_text
from crosscal.errors import InputError
from crosscal.text import documents, domain_of
from crosscal.text.documents import _parts
from crosscal.text.hub import _KNOWN, _explained

COMMIT = "a" * 40


@pytest.fixture
def cache(tmp_path):
    """The folder of the hub's cache."""
    return tmp_path / "hub"


@pytest.fixture
def hub(cache, monkeypatch):
    """An empty hub cache, offline; returns a function that puts rows into a file of a data set there."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    _parts.cache_clear()

    def put(dataset: str, file: str, rows: list[dict]) -> None:
        base = cache / f"datasets--{dataset.replace('/', '--')}"
        path = base / "snapshots" / COMMIT / file
        path.parent.mkdir(parents=True, exist_ok=True)
        (base / "refs").mkdir(exist_ok=True)
        (base / "refs" / "main").write_text(COMMIT)
        write(path, rows)

    yield put
    _parts.cache_clear()


def write(path: Path, rows: list[dict]) -> None:
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with open(path, "w", newline="") as file:
            sheet = csv.DictWriter(file, rows[0])
            sheet.writeheader()
            sheet.writerows(rows)
    else:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def row_of(dataset: str, i: int) -> dict:
    """Row `i` as that data set has it."""
    rows = {
        "tatsu-lab/alpaca": {"instruction": f"do {i}", "input": "", "output": f"done {i}", "text": "x"},
        "qiaojin/PubMedQA": {"pubid": i, "context": {"contexts": [f"aim {i}", "result"]}},
        "casehold/casehold": {"": i, "0": f"cite {i} (<HOLDING>)", **{str(k): f"h{k}" for k in range(1, 6)}, "11": 2},
    }
    return rows.get(dataset, {"text": f"text {i} of {dataset}", "meta": {"url": "u"}})


@pytest.mark.parametrize("dataset", [name for name in _KNOWN if name != "Salesforce/wikitext"])
def test_known_data_sets_are_read_from_the_cache(hub, dataset):
    known = _KNOWN[dataset]
    for number, file in enumerate((*known.calibration, *known.held_out)):
        hub(dataset, file, [row_of(dataset, 100 * number + i) for i in range(20)])
    calibration, held_out = documents(f"hub:{dataset}"), documents(f"hub:{dataset}", "held_out")
    assert calibration
    assert held_out
    assert not set(calibration) & set(held_out)
    assert len(calibration) + len(held_out) == 20 * len((*known.calibration, *known.held_out))
    if known.held_out:
        assert len(held_out) == 20


def test_holdings_are_put_into_their_place(hub):
    for file in ("data/all/train.csv", "data/all/test.csv"):
        hub("casehold/casehold", file, [row_of("casehold/casehold", 1)])
    assert documents("hub:casehold/casehold") == ["cite 1 (h3)"]


def test_wikitext_lines_become_articles(hub):
    lines = ["", " = One = \n", " first . \n", " = = Part = = \n", " more . \n", " = Two = \n", " second . \n"]
    known = _KNOWN["Salesforce/wikitext"]
    hub("Salesforce/wikitext", known.calibration[0], [{"text": line} for line in lines])
    hub("Salesforce/wikitext", known.held_out[0], [{"text": " = Three = \n"}, {"text": " third . \n"}])
    articles = documents("hub:Salesforce/wikitext")
    assert articles == ["= One = \n first . \n = = Part = = \n more .", "= Two = \n second ."]
    assert documents("hub:Salesforce/wikitext", "held_out") == ["= Three = \n third ."]


def test_web_pages_are_cut_within_documents(hub, tokenizer):
    known = _KNOWN["allenai/c4"]
    for file, word in ((known.calibration[0], "cal"), (known.held_out[0], "out")):
        hub("allenai/c4", file, [{"text": f"{i} " + f"{word}{i} " * (5 * i)} for i in range(40)])
    windows = load_text("hub:allenai/c4", tokenizer, n_windows=10, length=64)
    assert windows.tokens.shape == (10, 64)
    assert tokenizer.eos_token_id not in windows.tokens


def test_any_other_data_set_by_its_files_and_fields(hub):
    hub("me/notes", "train.jsonl", [{"id": i, "title": f"t{i}", "body": f"b{i}"} for i in range(9)])
    hub("me/notes", "test.jsonl", [{"id": i, "title": f"T{i}", "body": f"x{i}"} for i in range(3)])
    with pytest.raises(InputError, match=r"no field that is clearly its text.*--field NAME .its fields are id, title"):
        documents("hub:me/notes")
    assert documents("hub:me/notes#body", "held_out") == ["x0", "x1", "x2"]
    with pytest.raises(InputError, match=r"has no text in a field 'text' .its fields are id, title, body"):
        documents("hub:me/notes#text")
    with pytest.raises(InputError, match=r"needs one of its configurations, as in hub:me/notes:<config>"):
        documents("hub:me/notes:large")


class TestCacheThatLooksLikeAPattern:
    """The hub's cache in a folder with brackets, braces, a star and an emoji."""

    @pytest.fixture
    def cache(self, tmp_path):
        return tmp_path / "[team] hub \U0001f600 {a,b} *"

    def test_known_sets_are_read(self, hub):
        for file in (*_KNOWN["FiscalNote/billsum"].calibration, *_KNOWN["FiscalNote/billsum"].held_out):
            hub("FiscalNote/billsum", file, [{"text": f"a bill of {file}"}])
        assert documents("hub:FiscalNote/billsum") == ["a bill of data/train-00000-of-00001.parquet"]

    def test_others_are_one_sentence(self, hub):
        hub("me/single", "data.jsonl", [{"text": f"text {i}"} for i in range(50)])
        with pytest.raises(InputError, match=r"has brackets in its path; move it and set HF_HUB_CACHE"):
            documents("hub:me/single")


def test_hub_rows_are_read_by_the_same_rule(hub):
    turns = [[{"role": "user", "content": f"question {i} of many"}] for i in range(40)]
    hub("me/chats", "data.jsonl", [{"id": i, "meta": {"body": f"a body {i}"}, "messages": turns[i]} for i in range(40)])
    with pytest.raises(InputError, match=r"hub:me/chats holds chats .'messages'. and no plain text; give --chat"):
        documents("hub:me/chats")
    assert "user: question 1 of many" in documents("hub:me/chats", chat=True)
    assert "a body 1" in documents("hub:me/chats#meta.body")


def test_parts_of_the_publisher_are_known_by_the_first_word(hub):
    for part in ("train_sft", "test_sft", "train_gen"):
        hub("me/chats", f"data/{part}-00000-of-00001.parquet", [{"text": f"{part} {i} of many"} for i in range(9)])
    assert documents("hub:me/chats", "held_out") == [f"test_sft {i} of many" for i in range(9)]
    assert all(text.startswith("train_") for text in documents("hub:me/chats"))


def test_copies_of_the_publishers_test_part_leave_calibration(hub):
    texts = [" ".join(random.Random(i).choices(["river", "stone", "bread", "lamp", "copper"], k=60)) for i in range(30)]
    hub("me/leak", "train.jsonl", [{"text": text} for text in texts])
    hub("me/leak", "test.jsonl", [{"text": f"{text} (copy)"} for text in texts[:10]])
    assert documents("hub:me/leak") == texts[10:]
    report = _parts("hub:me/leak", 0)[1]
    assert (report.dropped, report.together, report.shared) == ({"near-duplicate": 10}, 0, 0)


def test_a_data_set_without_rows_is_one_sentence(hub):
    hub("me/none", "train.jsonl", [])
    hub("me/empty", "README.md", [])
    for source in ("hub:me/none", "hub:me/empty"):
        with pytest.raises(InputError, match=r"holds no rows in files that can be read here"):
            documents(source)


def test_a_data_set_without_parts_is_split_by_document(hub):
    hub("me/single", "data.jsonl", [{"text": f"text {i}"} for i in range(50)])
    both = [documents("hub:me/single", part) for part in ("calibration", "held_out")]
    assert sorted(both[0] + both[1]) == sorted(f"text {i}" for i in range(50))
    assert len(both[0]) > len(both[1]) > 0


@pytest.mark.parametrize("source", ["hub:me/none", "hub:FiscalNote/billsum", "hub:allenai/c4"])
def test_hub_without_connection_says_what_to_do(hub, source):
    with pytest.raises(
        InputError, match=r"cannot be reached and its local cache has no copy.*HF_HUB_OFFLINE.*local file"
    ):
        documents(source)


def test_a_name_that_is_none():
    for source in ("hub:", "hub:a/b/c"):
        with pytest.raises(InputError, match=r"is no data set of the hub; write hub:<owner>/<name>"):
            documents(source)


class GatedRepoError(Exception):
    """As the hub's library names it."""


class DatasetNotFoundError(Exception):
    """As the datasets library names it."""


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (GatedRepoError("401"), r"accept its terms at https://huggingface.co/datasets/me/x and set HF_TOKEN"),
        (DatasetNotFoundError("Dataset 'me/x' is a gated dataset on the Hub."), r"set HF_TOKEN to a token"),
        (DatasetNotFoundError("Dataset 'me/x' doesn't exist"), r"the hub has no data set 'me/x'.*check the name"),
        (RuntimeError("Dataset scripts are no longer supported, but found x.py"), r"is read by a script"),
        (ConnectionError("no route"), r"cannot read hub:me/x from the hub .it cannot be reached"),
        (ImportError("no", name="datasets"), r"needs the package 'datasets'; run pip install 'crosscal\[study\]'"),
        (ValueError("odd"), r"cannot read hub:me/x from the hub .ValueError: odd"),
    ],
)
def test_what_the_hub_says_becomes_one_sentence(error, sentence):
    with pytest.raises(InputError, match=sentence), _explained("hub:me/x", "me/x"):
        raise error


def test_known_sets_have_roles():
    assert {domain_of(f"hub:{name}") for name in _KNOWN} == {"general", "instruction", "biomedical", "legal"}
