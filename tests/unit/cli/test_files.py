"""Results reach the reader whatever standard output can take; files are never replaced unasked."""

import io
import json
import os
import subprocess
import sys

import pytest

from crosscal.cli import assets, files, main
from crosscal.cli.files import _as_json, _check_new, _LastingError
from crosscal.errors import InputError

WORDS = "кэш café µ 🙂"
FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")


def run(room, *flags, encoding="utf-8", out=subprocess.PIPE, err=subprocess.PIPE, shell=""):
    """`crosscal assets list` with odd letters in its result: (status, bytes of standard output, text of the other)."""
    environment = os.environ | {"CROSSCAL_CACHE": str(room / WORDS), "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "crosscal", *(flags or ("assets", "list"))]
    if shell:
        command = ["sh", "-c", f'exec "$@" {shell}', "sh", *command]
    done = subprocess.run(command, env=environment, stdout=out, stderr=err)
    return done.returncode, done.stdout, (done.stderr or b"").decode()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-16"])
def test_letters_that_standard_output_lacks_are_escaped(room, encoding):
    status, out, err = run(room, encoding=encoding)
    assert (status, err) == (0, "")
    assert "smollm2-135m" in out.decode(encoding)
    assert ("café" if encoding != "ascii" else r"caf\xe9") in out.decode(encoding)
    status, out, err = run(room, "assets", "--json", encoding=encoding)
    assert (status, err) == (0, "")
    assert json.loads(out.decode(encoding))["cache"].endswith(WORDS)


@FULL
@pytest.mark.parametrize(
    "flags", [("assets",), ("assets", "--json"), ("--help",), ("compress", "--help"), ("--version",)]
)
def test_a_full_disk_is_one_sentence_and_the_result_is_kept(room, flags):
    with open("/dev/full", "wb") as full:
        status, _, err = run(room, *flags, out=full)
    *result, sentence = err.splitlines()
    assert status == 1
    assert sentence.startswith("standard output cannot be written (No space left on device)")
    assert "crosscal" in result[0] or WORDS in "".join(result)


@FULL
def test_nothing_is_left_to_say_on_two_full_disks(room):
    with open("/dev/full", "wb") as full:
        assert run(room, out=full, err=full)[0] == 1


@pytest.mark.skipif(os.name != "posix", reason="streams are closed by the shell")
def test_closed_streams(room):
    status, _, err = run(room, shell=">&-")
    assert status == 1
    assert "smollm2-135m" in err
    assert err.splitlines()[-1].startswith("standard output cannot be written (it is closed)")
    status, out, _ = run(room, shell="2>&-")
    assert (status, b"smollm2-135m" in out) == (0, True)
    assert run(room, "compres", shell="2>&- >&- <&-")[0] == 2


@pytest.mark.skipif(os.name != "posix", reason="pipes of the shell")
def test_a_reader_that_has_seen_enough_is_no_error(room):
    status, _, err = run(room, shell="| true")
    assert (status, err) == (0, "")


def test_a_stream_without_encoding_takes_everything(monkeypatch, room):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert main(["assets", "list"]) == 0
    assert "smollm2-135m" in sys.stdout.getvalue()


def test_standard_error_never_ends_the_work():
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    for stream in (Full(), None):
        lasting = _LastingError(stream)
        assert lasting.write("abc") == 3
        lasting.flush()
    assert _LastingError(sys.__stderr__).fileno() == 2


def test_json_has_standard_output_to_itself_and_only_finite_numbers(monkeypatch, crosscal, room):
    def talk(options):
        print("a library talks")
        return {"value": float("nan"), "place": room, "list": (1, float("inf"))}

    monkeypatch.setattr(assets, "_run_assets", talk)
    ran = crosscal("assets", "--json")
    assert json.loads(ran.out) == {"value": None, "place": str(room), "list": [1, None]}
    assert ran.err == "a library talks\n"


def test_a_file_name_that_is_no_text_can_be_written_as_json():
    odd = os.fsdecode(b"caf\xe9")
    assert json.loads(_as_json({"model": odd}).encode()) == {"model": odd}


def test_the_result_is_printed_before_the_options_are_saved(monkeypatch, crosscal, room):
    monkeypatch.setattr(
        assets, "_run_assets", lambda options: (room / "c.toml").mkdir() or {"action": "clear", "states": {}}
    )
    ran = crosscal("assets", "--save-config", "c.toml")
    assert (ran.status, ran.out) == (1, "the cache is empty\n")
    assert "cannot write c.toml" in ran.err


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("notes.jsonl", "notes.jsonl exists already"),
        (".", ". is a folder"),
        ("notes.jsonl/half.json", "because .*notes.jsonl is a file"),
        ("notes.jsonl/a/b.json", "because .*notes.jsonl is a file"),
        ("a" * 300, "cannot look for .*File name too long"),
        ("zero\0.json", "cannot look for .*null"),
    ],
)
def test_places_that_cannot_be_written_are_refused_before_any_work(room, name, sentence):
    with pytest.raises(InputError, match=sentence):
        _check_new(name)


def test_new_files_and_those_that_may_be_replaced(room):
    for name in ("new.json", "new/folder/new.json", "~no-such-user/new.json"):
        _check_new(name)
    _check_new("notes.jsonl", overwrite=True)
    _check_new(None)


def test_a_folder_that_is_write_protected(room, monkeypatch):
    monkeypatch.setattr(files.os, "access", lambda *_: False)
    with pytest.raises(InputError, match="write-protected"):
        _check_new("new.json")


def test_a_folder_that_may_not_be_entered(closed_folder):
    with pytest.raises(InputError, match="Permission denied"):
        _check_new(closed_folder / "half.json")
