"""Options in files: read back as given, and refused where a value is not the one that was written."""

import json
import string
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crosscal.cli.config import _apply_config, _as_toml, _config_values, _read_config
from crosscal.cli.parser import _CommandParser
from crosscal.errors import InputError


def applied(values, command="compress", needed=("model", "method", "output")):
    """The options that a command gets from a file alone."""
    parser = _CommandParser(command)
    _apply_config(parser, command, dict.fromkeys(needed, "x") | values, "c.toml")
    return parser.parse_args([])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("sparsty = 0.5", "unknown key 'sparsty'; did you mean 'sparsity'?"),
        ('windows = "many"', "windows is 'many'; give a whole number"),
        ("windows = 12.5", "windows is 12.5; give a whole number"),
        ("windows = true", "windows is true; give a whole number"),
        ("damp = [1]\nwindows = 1979-05-27", "windows is 1979-05-27; give a whole number"),
        ('damp = "much"', "damp is 'much'; give a number"),
        ("symmetric = 1", "symmetric is 1; give true or false"),
        ('schedule = "sublayers"', "did you mean 'sublayer'?; give one of sublayer, block, parallel"),
        ("model = { a = 1 }\nmodel", "is not TOML"),
        ("pattern = 2:4", "is not TOML"),
        ("model = 1.10", "model is 1.1; give it in quotes"),
        ("model = 2024_01", "model is 202401; give it in quotes"),
        ("model = 2024-01-02", "model is 2024-01-02; give it in quotes"),
        ("output = true", "output is true; give it in quotes"),
        ("sources = [1.5]", "sources is 1.5; give it in quotes"),
        ("sources = { notes.jsonl = 1 }", 'sources: notes is no number; put names with dots in quotes, as in "notes.'),
        ("sources = { c4 = [1] }", "sources: c4 is [1]; give a number, true or false"),
        ('command = "evaluate"', "is for 'crosscal evaluate', not for 'crosscal compress'"),
    ],
)
def test_a_file_that_makes_no_sense_is_one_sentence(crosscal, room, text, sentence):
    (room / "c.toml").write_text(text)
    ran = crosscal("compress", "--config", "c.toml")
    assert ran.status == 1
    assert sentence in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("nope.toml", None, "no file nope.toml"),
        ("crosscal.json", b'{"made": {}}', "holds no options"),
        ("deep.json", b"[" * 100_000, "holds no options"),
        ("binary.toml", b"\xff\xfe\x00", "not UTF-8 text"),
        ("a" * 300, None, "cannot look for aaa"),
        ("zero\0.toml", None, "cannot look for zero"),
    ],
)
def test_files_that_cannot_be_read(room, name, content, sentence):
    if content is not None:
        (room / name).write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        _read_config(room / name if content else room.joinpath(name).relative_to(room))


def test_a_byte_order_mark_is_no_part_of_the_text(room):
    for name, text in (("c.toml", "windows = 4\n"), ("crosscal.json", '{"made": {"config": {"windows": 4}}}')):
        (room / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert _read_config(room / name) == {"windows": 4}


def test_a_folder_that_may_not_be_entered_is_a_sentence(closed_folder):
    with pytest.raises(InputError, match="Permission denied"):
        _read_config(closed_folder / "c.toml")


def test_a_saved_config_reads_back_as_what_was_given():
    line = ["--model", 'a "quoted" \\ päth\x7f', "--method", "gptq", "--output", "out", "--bits", "4", "--symmetric"]
    line += ["--option", "block=64", "--option", "act_order=true", "--damp", "1e-05", "--seed", str(2**63 - 1)]
    parser = _CommandParser("compress")
    options = parser.parse_args(line)
    again = _CommandParser("compress")
    _apply_config(again, "compress", tomllib.loads(_as_toml(_config_values(parser, "compress", options))), "c.toml")
    assert again.parse_args([]) == options
    assert again.parse_args(["--bits", "3"]).bits == 3  # the command line goes first


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_reads_back(text):
    assert tomllib.loads(_as_toml({"model": text})) == {"model": text}


@given(st.dictionaries(st.text(string.ascii_letters, min_size=1), st.floats(0, 1) | st.integers(), min_size=1))
def test_tables_stand_for_commas(shares):
    text = ",".join(f"{name}={share}" for name, share in shares.items())
    assert applied({"sources": shares}).sources == text
    assert applied({"sources": text.split(",")}).sources == text


def test_lists_and_tables_of_options():
    assert applied({"option": ["block=64", "act_order=true"]}).option == ["block=64", "act_order=true"]
    assert applied({"option": {"block": 64, "act_order": True}}).option == ["block=64", "act_order=True"]


def test_numbers_are_texts_only_where_texts_are_numbers():
    assert applied({"sparsity": 0.5}).sparsity == "0.5"
    assert applied({"weights": [0, 0.5, 1]}, "report", ("model", "domain", "output")).weights == "0,0.5,1"


def test_permission_to_overwrite_is_never_saved():
    parser = _CommandParser("compress")
    options = parser.parse_args(["--model", "m", "--method", "x", "--output", "o", "--overwrite"])
    assert "overwrite" not in _config_values(parser, "compress", options)


def test_a_saved_config_replaces_no_file(crosscal, room):
    (room / "mine.toml").write_text("# mine")
    ran = crosscal("assets", "list", "--save-config", "mine.toml")
    assert ran.status == 1
    assert "mine.toml exists already" in ran.err
    assert (room / "mine.toml").read_text() == "# mine"
    assert crosscal("assets", "list", "--save-config", "new.toml").status == 0
    assert crosscal("assets", "--config", "new.toml").status == 0


def test_the_options_that_made_a_folder(room):
    (room / "crosscal.json").write_text(json.dumps({"made": {"config": {"command": "compress", "bits": 4}}}))
    assert _read_config(room) == {"command": "compress", "bits": 4}
