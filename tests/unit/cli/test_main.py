"""What all commands share: help, usage, exit statuses, and the words of errors."""

import re
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from crosscal.cli import main
from crosscal.cli.parser import _COMMANDS, _CommandParser
from crosscal.errors import exit_status

HEAVY = "{'torch', 'transformers', 'numpy', 'pandas'} & set(sys.modules)"


@pytest.mark.parametrize("command", _COMMANDS)
def test_help_has_worked_examples(crosscal, command):
    ran = crosscal(command, "--help")
    assert ran.status == 0
    assert ran.out.count(f"crosscal {command}") > 2
    assert "--dry-run" in ran.out
    assert ran.err == ""
    assert ran.out.isascii()
    assert all(len(line) <= 110 for line in ran.out.splitlines())


@pytest.mark.parametrize("command", _COMMANDS)
def test_examples_of_help_name_options_that_exist(command):
    known = set(_CommandParser(command)._option_string_actions)
    for line in re.findall(rf"crosscal {command}((?:.|\\\n)*?)(?<!\\)\n", _COMMANDS[command]["examples"] + "\n"):
        assert set(re.findall(r"--[a-z-]+", line)) <= known


@pytest.mark.parametrize("line", [(), ("--help",), ("-h",)])
def test_help_lists_the_commands(crosscal, line):
    ran = crosscal(*line)
    assert ran.status == 0
    assert all(f"  {command} " in ran.out for command in _COMMANDS)


def test_the_version(crosscal):
    assert crosscal("--version").out.startswith("crosscal 0.")


@pytest.mark.parametrize("line", [["--help"], ["compress", "--help"], ["assets", "list"], ["compres"]])
def test_the_command_line_starts_without_torch(line):
    code = f"import sys; from crosscal.cli import main; main({line}); sys.exit(bool({HEAVY}))"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_package_runs_as_a_command():
    ran = subprocess.run([sys.executable, "-m", "crosscal", "compres"], capture_output=True, text=True)
    assert ran.returncode == 2
    assert "did you mean 'compress'" in ran.stderr


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
    ran = crosscal(*line)
    assert ran.status == 2
    assert sentence in ran.err
    assert ran.err.count("\n") == 1
    assert ran.out == ""


def run_with(monkeypatch, crosscal, error, command="assets", *arguments):
    """A command that raises this error."""

    def fail(options):
        raise error

    monkeypatch.setattr(import_module(f"crosscal.cli.{_COMMANDS[command]['module']}"), f"_run_{command}", fail)
    return crosscal(command, *arguments)


def test_an_interrupt_is_status_130_and_says_how_to_continue(monkeypatch, crosscal):
    ran = run_with(monkeypatch, crosscal, KeyboardInterrupt())
    assert ran.status == 130
    assert "the same command continues" in ran.err


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate")])
def test_too_little_memory_is_a_sentence(monkeypatch, crosscal, error):
    ran = run_with(monkeypatch, crosscal, error, "evaluate", "--model", "m")
    assert ran.status == 1
    assert ran.err.startswith("not enough memory; give fewer --windows, a shorter --length, --device cpu")


def test_advice_names_only_options_of_the_command(monkeypatch, crosscal):
    ran = run_with(monkeypatch, crosscal, MemoryError(), "report", "--model", "m", "--domain", "d", "--output", "o")
    assert ran.err == "not enough memory; give a smaller --preset, --device cpu\n"
    assert run_with(monkeypatch, crosscal, MemoryError()).err == "not enough memory\n"


def test_other_errors_are_not_hidden(monkeypatch, crosscal):
    with pytest.raises(RuntimeError, match="a bug"):
        run_with(monkeypatch, crosscal, RuntimeError("a bug"))


def test_exit_status_passes_a_status_on():
    assert exit_status(lambda: 3, "") == 3


def test_the_installed_script_is_this_command_line():
    scripts = tomllib.loads((Path(__file__).resolve().parents[3] / "pyproject.toml").read_text())["project"]["scripts"]
    assert EntryPoint("crosscal", scripts["crosscal"], "console_scripts").load() is main
