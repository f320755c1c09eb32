"""Who may import whom: the direction of the package, read from the source of every file."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import crosscal

ROOT = Path(crosscal.__file__).parent
# Each room may import the rooms it names and everything those may import.
MAY_IMPORT = {
    "errors": [],
    "targets": ["errors"],
    "types": ["targets", "errors"],
    "paths": [],
    "files": ["errors"],
    "stats": [],
    "assets": ["errors", "paths", "files"],
    "_moved": [],
    "text": ["assets", "errors", "paths", "files"],
    "models": ["assets", "errors", "paths", "targets"],
    "calibration": ["models", "types"],
    "methods": ["calibration", "types", "errors"],
    "engine": ["methods", "calibration", "models", "errors", "types"],
    "output": ["engine", "models", "errors", "types"],
    "metrics": ["engine", "models", "text", "types", "results"],
    "results": ["stats", "types", "errors", "paths", "files"],
    "plan": ["metrics", "text", "types", "paths", "errors"],
    "study": ["disk", "engine", "metrics", "text", "paths", "types", "results", "plan"],
    "machine": ["files", "models", "engine", "calibration", "methods", "types", "paths"],
    "disk": ["engine", "output", "machine", "text"],
    "cli": ["disk", "machine", "output", "study"],
    "__main__": ["cli"],
}
HEAVY = {"torch", "transformers", "datasets", "lm_eval"}


def allowed(room):
    """A room, what it may import, and so on down."""
    found = {room}
    for other in MAY_IMPORT[room]:
        found |= allowed(other)
    return found


def imports(path, top_level_only=False):
    """The full names a file imports; with `top_level_only`, only what runs on import."""
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            if node.module == "crosscal":
                yield from (f"crosscal.{alias.name}" for alias in node.names)


FILES = sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py" or path.parent != ROOT)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_import_only_what_lies_below_them(path):
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for name in imports(path):
        if name and name.startswith("crosscal."):
            target = name.split(".")[1]
            if (ROOT / target).exists() or (ROOT / f"{target}.py").exists():
                assert target in allowed(room), f"{room} may not import {target}"


@pytest.mark.parametrize("room", ["errors", "types", "paths", "files", "assets", "text", "results", "plan", "cli"])
def test_light_rooms_load_nothing_heavy(room):
    code = f"import sys; [sys.modules.__setitem__(n, None) for n in {sorted(HEAVY)}]; import crosscal.{room}"
    subprocess.run([sys.executable, "-c", code], check=True)


BOOK = ROOT.parent / "crosscal_book"


def test_what_shows_never_imports_what_computes_not_even_inside_functions():
    for path in BOOK.rglob("*.py"):
        assert not HEAVY & {name.split(".")[0] for name in imports(path) if name}, path.name


def test_what_computes_never_imports_what_shows():
    shows = {path: name for path in FILES for name in imports(path) if (name or "").startswith("crosscal_book")}
    assert {path.relative_to(ROOT).as_posix() for path in shows} <= {"cli/report.py"}


def test_importing_the_package_is_light():
    code = "import sys, crosscal; sys.exit(bool({'torch', 'transformers', 'pandas'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_file_is_long():
    long = {str(path): n for path in FILES if (n := len(path.read_text().splitlines())) > 350}
    assert not long
