"""What all commands share: help, usage, exit statuses, config files, and what standard output holds."""

import json
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from crosscal.cli import COMMANDS, main, runner
from crosscal.cli.config import read_config
from crosscal.cli.parser import CommandParser
from crosscal.errors import InputError, exit_status

HEAVY = "{'torch', 'transformers', 'numpy', 'pandas'} & set(sys.modules)"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_worked_examples(crosscal, command):
    found = crosscal(command, "--help")
    assert found.status == 0
    assert found.out.count(f"crosscal {command}") > 2
    assert "--dry-run" in found.out
    assert found.err == ""


@pytest.mark.parametrize("line", [(), ("--help",), ("-h",)])
def test_help_lists_the_commands(crosscal, line):
    found = crosscal(*line)
    assert found.status == 0
    assert all(f"  {command} " in found.out for command in COMMANDS)


def test_the_version(crosscal):
    assert crosscal("--version").out.startswith("crosscal 0.")


@pytest.mark.parametrize("option", ["--config", "--save-config"])
def test_files_in_a_hidden_folder_are_one_sentence(crosscal, monkeypatch, option):
    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("os.stat", refuse)
        found = crosscal("assets", "list", option, "private/a.toml")
    assert found.status == 1
    assert found.err.startswith("private/a.toml cannot be ")
    assert "Permission denied" in found.err


@pytest.mark.parametrize("line", [["--help"], ["compress", "--help"], ["assets", "list"], ["compres"]])
def test_the_command_line_is_there_without_torch(line):
    code = f"import sys; from crosscal.cli import main; main({line}); sys.exit(bool({HEAVY}))"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_package_runs_as_a_command():
    found = subprocess.run([sys.executable, "-m", "crosscal", "compres"], capture_output=True, text=True)
    assert found.returncode == 2
    assert "did you mean 'compress'" in found.stderr


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (["compres"], "there is no command 'compres'; did you mean 'compress'?"),
        (["compress", "--sparsty", "0.5"], "no option --sparsty; did you mean '--sparsity'"),
        (["compress", "--model", "m"], "required: --method, --output"),
        (["compress", "--windows", "many"], "invalid int value: 'many'"),
        (["evaluate", "--mod", "m"], "no option --mod"),
        (["assets", "fetsch"], "invalid choice: 'fetsch'"),
        (["compare", "--dense"], "expected one argument"),
    ],
)
def test_wrong_usage_is_status_2_and_one_sentence(crosscal, line, sentence):
    found = crosscal(*line)
    assert found.status == 2
    assert sentence in found.err
    assert found.err.count("\n") == 1
    assert found.out == ""


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("sparsty = 0.5", "unknown key 'sparsty'; did you mean 'sparsity'?"),
        ('windows = "many"', "windows is 'many'; give it as on the command line"),
        ("symmetric = 1", "symmetric is 1; give true or false"),
        ('schedule = "sublayers"', "did you mean 'sublayer'?; give one of sublayer, block, parallel"),
        ("model = { a = 1 }\nmodel", "is no TOML"),
        ('command = "evaluate"', "is for 'crosscal evaluate', not for 'crosscal compress'"),
    ],
)
def test_a_config_file_that_makes_no_sense_is_status_1(crosscal, room, text, sentence):
    (room / "c.toml").write_text(text)
    found = crosscal("compress", "--config", "c.toml")
    assert found.status == 1
    assert sentence in found.err
    assert found.err.count("\n") == 1


def test_config_files_that_cannot_be_read(room):
    (room / "crosscal.json").write_text('{"made": {}}')
    (room / "binary.toml").write_bytes(b"\xff\xfe")
    for name, sentence in [("nope.toml", "no file nope.toml"), (".", "tells no options"), ("binary.toml", "cannot be")]:
        with pytest.raises(InputError, match=sentence):
            read_config(Path(name))


@pytest.fixture
def parser():
    found = CommandParser("crosscal compress", "")
    runner.find_command("compress").add_options(found)
    return found


def test_a_saved_config_reads_back_as_what_was_given(parser, room):
    from crosscal.cli.config import apply_config, config_text

    line = ["--model", 'a "quoted" \\ päth\x7f', "--method", "gptq", "--output", "out", "--bits", "4", "--symmetric"]
    line += ["--option", "block=64", "--option", "act_order=true", "--damp", "1e-05"]
    options = parser.parse_args(line)
    (room / "c.toml").write_text(config_text(parser, "compress", options))
    again = CommandParser("crosscal compress", "")
    runner.find_command("compress").add_options(again)
    apply_config(again, "compress", read_config(room / "c.toml"), "c.toml")
    assert again.parse_args([]) == options
    assert again.parse_args(["--bits", "3"]).bits == 3  # the command line goes first


def test_lists_and_tables_stand_for_what_has_commas(parser):
    from crosscal.cli.config import apply_config

    values = {"sources": {"c4": 0.5, "notes.jsonl": 0.5}, "model": "m", "method": "x", "output": "o"}
    apply_config(parser, "compress", values, "c.toml")
    assert parser.parse_args([]).sources == "c4=0.5,notes.jsonl=0.5"


def test_permission_to_overwrite_is_never_saved(parser):
    from crosscal.cli.config import config_text

    options = parser.parse_args(["--model", "m", "--method", "x", "--output", "o", "--overwrite"])
    assert "overwrite" not in config_text(parser, "compress", options)


def run_with(monkeypatch, crosscal, work, *flags):
    """`crosscal assets` with `work` in the place of what it does."""
    command = runner.find_command("assets")
    monkeypatch.setattr(command, "run", work)
    return crosscal("assets", *flags)


def test_an_interrupt_is_status_130_and_says_how_to_continue(monkeypatch, crosscal):
    def interrupt(options):
        raise KeyboardInterrupt

    found = run_with(monkeypatch, crosscal, interrupt)
    assert found.status == 130
    assert "the same command goes on" in found.err


def test_errors_speak_of_options(monkeypatch, crosscal):
    def refuse(options):
        raise InputError("pass accept_terms=True or trust_remote_code=True, n_windows is 0")

    found = run_with(monkeypatch, crosscal, refuse)
    assert found.status == 1
    assert found.err == "pass --accept-terms or --trust-remote-code, --windows is 0\n"


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate")])
def test_too_little_memory_is_a_sentence(monkeypatch, crosscal, error):
    def run_out(options):
        raise error

    found = run_with(monkeypatch, crosscal, run_out)
    assert found.status == 1
    assert "memory did not suffice; give fewer --windows" in found.err


def test_other_errors_are_not_hidden(monkeypatch, crosscal):
    def fail(options):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run_with(monkeypatch, crosscal, fail)


def test_json_has_standard_output_to_itself_and_only_finite_numbers(monkeypatch, crosscal, room):
    def talk(options):
        print("a library talks")
        return {"value": float("nan"), "place": room, "list": (1, float("inf"))}

    found = run_with(monkeypatch, crosscal, talk, "--json")
    assert json.loads(found.out) == {"value": None, "place": str(room), "list": [1, None]}
    assert found.err == "a library talks\n"


def test_a_saved_config_replaces_no_file(crosscal, room):
    (room / "mine.toml").write_text("# mine")
    found = crosscal("assets", "list", "--save-config", "mine.toml")
    assert found.status == 1
    assert "mine.toml exists already" in found.err
    assert (room / "mine.toml").read_text() == "# mine"
    assert crosscal("assets", "list", "--save-config", "new.toml").status == 0
    assert crosscal("assets", "--config", "new.toml").status == 0


def test_exit_status_passes_a_status_on():
    assert exit_status(lambda: 3, "") == 3


def test_the_installed_script_is_this_command_line():
    scripts = tomllib.loads((Path(__file__).resolve().parents[3] / "pyproject.toml").read_text())["project"]["scripts"]
    assert EntryPoint("crosscal", scripts["crosscal"], "console_scripts").load() is main
