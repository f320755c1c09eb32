"""The small parts of the text room, one example each."""

from crosscal.text.documents import _with_field
from crosscal.text.fields import _instruction_text, _whole_text
from crosscal.text.hub import _drawn_within, _parse
from crosscal.text.own import _file_of, _is_path
from crosscal.text.sources import _clean_abstract, _clean_legal


def test_texts_are_cleaned():
    assert _whole_text("cut \ud83d") == "cut \ufffd"
    assert _whole_text("\ud83d\ude00") == "\U0001f600"
    assert _clean_abstract("Context (1): We asked.\nContext (2): We found.") == "We asked.\nWe found."
    assert _clean_legal('See <a href="x">the docket</a>.') == "See the docket."


def test_an_instruction_stands_under_headings():
    told = "### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:\n3"
    assert _instruction_text("Add.", "1 and 2", "3") == told


def test_names_are_parsed():
    assert _parse("hub:Salesforce/wikitext:wikitext-103-raw-v1#text") == (
        "Salesforce/wikitext",
        "wikitext-103-raw-v1",
        "text",
    )
    assert _file_of("notes.jsonl#chat:turns")[1:] == ("turns", True)
    names = [_with_field("notes.jsonl", "body"), _with_field("c4", "body"), _with_field("log.jsonl", chat=True)]
    assert names == ["notes.jsonl#body", "c4", "log.jsonl#chat:"]
    assert _is_path("notes.jsonl#body")
    assert not _is_path("pubmed")


def test_web_pages_alone_are_drawn_within():
    drawn = [_drawn_within(name) for name in ("hub:allenai/c4", "hub:FiscalNote/billsum", "c4")]
    assert drawn == [True, False, False]
