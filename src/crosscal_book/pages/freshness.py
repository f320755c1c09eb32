"""Are the committed pages made from the committed notebooks, code and results? Hashes say so in a second.

python -m crosscal_book.pages.freshness

An executed chapter is made from its notebook, from the modules that its own imports (comments and docstrings left
out), from the runs that its plan asks for, and from the rows of those that were stored.
"""

import ast
import hashlib
import io
import sys
import tokenize
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from jupytext.compare import NotebookDifference, compare_notebooks

from crosscal.errors import InputError
from crosscal.files import hash_json
from crosscal.paths import checkout
from crosscal.plan.chapters import CHAPTERS, Maker
from crosscal.results.store import load_run
from crosscal_book.pages.generated import expected

SOURCES = Path(__file__).parents[2]
SHOWING = ("crosscal_book", "crosscal.results", "crosscal.stats")  # plans are hashed by what they ask for
WORDS = {"source": "its notebook", "code": "the code that draws it", "plan": "its plan", "results": "its rows"}


def fingerprints(notebook: Path, folder: Path, run_ids: Sequence[str], parameters: Mapping[str, Any]) -> dict[str, str]:
    """Return hashes of what a notebook executed with `parameters` is made from: its text, code, plan and rows.

    Raises `InputError` when one of the runs is not in the `folder`.
    """
    chapter = next((chapter for chapter in CHAPTERS.values() if chapter.notebook == notebook.stem), None)
    rows = [path for run_id in run_ids for path in _run_files(folder, run_id)]
    code, plan = [], []
    if chapter:
        known = {field.name for field in fields(chapter.settings)}
        settings = chapter.settings(**{name: value for name, value in parameters.items() if name in known})
        plan = [config.to_json() for config in chapter.configs(Maker(settings))]
        code = [(path.name, _read(path)[0]) for path in _code_files(f"crosscal_book.chapters.{chapter.name}")]
    return {
        "source": _hash_files([notebook.with_suffix(".md")]),
        "code": hash_json(code),
        "plan": hash_json(plan),
        "results": _hash_files(rows),
    }


def _hash_files(paths: Iterable[Path]) -> str:
    """The first 16 hex digits of SHA-256 over the files' names and texts (line ends as on Unix)."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0" + path.read_bytes().replace(b"\r\n", b"\n") + b"\0")
    return digest.hexdigest()[:16]


def _run_files(folder: Path, run_id: str) -> list[Path]:
    """A run's files, its per-item outcomes included; raises `InputError` when there is no such run."""
    load_run(folder, run_id)
    items = folder / "items" / f"{run_id}.json"
    return [folder / f"{run_id}.json", *([items] if items.exists() else [])]


def _code_files(first: str) -> list[Path]:
    """The files of a module and of all that show something among what it imports, directly or not."""
    found, waiting = set(), [first]
    while waiting:
        stem = SOURCES.joinpath(*waiting.pop().split("."))
        for path in (stem.with_suffix(".py"), stem / "__init__.py"):
            if path.exists() and path not in found:
                found.add(path)
                waiting += [name for name in _read(path)[1] if name.startswith(SHOWING)]
    return sorted(found)


def _read(path: Path) -> tuple[str, list[str]]:
    return _parsed(path.read_text(encoding="utf-8"))


@lru_cache
def _parsed(text: str) -> tuple[str, list[str]]:
    """A module's text without comments, docstrings and empty lines, and what it imports, names of modules or not.

    >>> _parsed('import a  # why\\n"About."\\nfrom b import c\\n')
    ('import a\\nfrom b import c', ['a', 'b', 'b.c'])
    """
    lines, imported = text.splitlines(), []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for number in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                lines[number - 1] = ""
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    return "\n".join(line.rstrip() for line in lines if line.strip()), imported


def check_pair(notebook: Path) -> list[str]:
    """Return complaints when a notebook and its text differ."""
    text = notebook.with_suffix(".md")
    if not text.exists():
        return [f"{notebook.name} has no {text.name}; run: jupytext --sync notebooks/{notebook.name}"]
    both = jupytext.read(text), nbformat.read(notebook, as_version=4)
    try:
        compare_notebooks(both[1], both[0], fmt="md:myst", allow_expected_differences=True)
    except NotebookDifference:
        return [f"{notebook.name} differs from {text.name}; run: jupytext --sync notebooks/{text.name}"]
    if any(cell.get("outputs") for cell in both[1].cells):
        return [f"{notebook.name} holds outputs; clear them, executed copies live in book/chapters"]
    return []


def _check_chapter(notebook: Path, executed: Path, results: Path) -> list[str]:
    """Complaints when an executed copy is missing, edited, or made from another source, code, plan or rows."""
    if not executed.exists():
        return [f"{executed.name} was not executed; run: make notebooks"]
    copy = nbformat.read(executed, as_version=4)
    made = copy.metadata.get("crosscal", {})
    parameters = made.get("parameters", {})
    folder = results / str(parameters.get("preset", "full"))
    try:
        now = fingerprints(notebook, folder, made.get("run_ids", []), parameters)
    except InputError as error:
        return [f"{executed.name} was made from runs that are not stored: {error}"]
    stale = [WORDS[part] for part, value in now.items() if made.get(part) != value]
    if _sources(copy) != _sources(nbformat.read(notebook, as_version=4)):
        stale.append("its notebook's cells")
    return [f"{executed.name} is older than {' and '.join(stale)}; run: make notebooks"] if stale else []


def _sources(notebook: nbformat.NotebookNode) -> list[str]:
    """What a notebook says; parameters and the numbers below figures are put in when it is executed."""
    own = [cell for cell in notebook.cells if cell.cell_type != "raw"]
    return [cell.source for cell in own if "injected-parameters" not in cell.metadata.get("tags", [])]


def check_all(root: Path) -> list[str]:
    """Return complaints about pairs, executed chapters, generated pages and the manifest of a checkout, if any."""
    notebooks = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    texts = {text.stem for text in (root / "notebooks").glob("[0-9][0-9]_*.md")} - {n.stem for n in notebooks}
    complaints = [f"{name}.md has no notebook; run: jupytext --sync notebooks/{name}.md" for name in sorted(texts)]
    for notebook in notebooks:
        complaints += check_pair(notebook)
        complaints += _check_chapter(notebook, root / "book" / "chapters" / notebook.name, root / "results")
    pages = expected(root) if not complaints else {}
    stale = [p for p, text in pages.items() if not p.exists() or p.read_text(encoding="utf-8") != text]
    return complaints + [f"{path.relative_to(root).as_posix()} is out of date; run: make notebooks" for path in stale]


if __name__ == "__main__":
    root = checkout()
    complaints = check_all(root) if root else ["run this in a git checkout of crosscal"]
    sys.exit("\n".join(complaints) or 0)
