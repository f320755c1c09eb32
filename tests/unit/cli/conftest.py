"""A tiny model in a folder, a text beside it, a cache of its own, and a way to run a command line."""

import errno
import json
import os
import random
from collections import namedtuple
from pathlib import Path

import pytest

from crosscal.cli import main
from tests.unit.families import save_tiny

Ran = namedtuple("Ran", "status out err")
WORDS = "the court found that cells of the liver divide while markets fall and rain falls on the plain"


def write_text(path, documents: int = 60) -> None:
    """A .jsonl file of short documents, none like another."""
    draw = random.Random(0)
    rows = [" ".join(draw.choices(WORDS.split(), k=29)) + f" {i}" for i in range(documents)]
    path.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder with a tiny llama."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_tiny(folder)
    return folder


@pytest.fixture
def room(tmp_path, monkeypatch):
    """The working folder of a test, with `notes.jsonl` in it and an empty cache."""
    monkeypatch.setenv("CROSSCAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "notes.jsonl")
    return tmp_path


@pytest.fixture
def closed_folder(room, monkeypatch):
    """A folder that may not be entered, not even by root."""
    look = os.stat

    def refuse(path, **options):
        if room / "private" in Path(path).parents:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return look(path, **options)

    monkeypatch.setattr(os, "stat", refuse)
    return room / "private"


@pytest.fixture
def crosscal(room, capsys):
    """Run a command line in the working folder: (status, standard output, standard error)."""

    def run(*arguments) -> Ran:
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return Ran(status, *capsys.readouterr())

    return run


@pytest.fixture
def compress(crosscal, tiny):
    """`crosscal compress` of the tiny model on the notes; what is given last goes first."""

    def run(*arguments) -> Ran:
        usual = ["--model", tiny, "--sources", "notes.jsonl", "--windows", 4, "--length", 24, "--dtype", "float32"]
        return crosscal("compress", *usual, "--method", "wanda", *arguments)

    return run
