"""Are the committed pages made from the committed notebooks, code and results? Hashes say so in a second.

python -m crosscal_book.pages.freshness
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jupytext
import nbformat
from jupytext.compare import NotebookDifference, compare_notebooks

from crosscal.errors import InputError
from crosscal.paths import checkout
from crosscal.results.store import load_run

# Every module of the report decides what a page shows, but the runner, the checks and the pages without notebook.
NOT_SHOWING = ("__init__", "notebooks", "generated", "freshness", "data_page", "speed", "standalone")


def hash_files(paths: Sequence[Path]) -> str:
    """The first 16 hex digits of SHA-256 over the files' names and texts (line ends as on Unix)."""
    digest = hashlib.sha256()
    for path in paths:
        text = path.read_bytes().replace(b"\r\n", b"\n")
        digest.update(path.name.encode() + b"\0" + text + b"\0")
    return digest.hexdigest()[:16]


def fingerprints(notebook: Path, folder: Path, run_ids: Sequence[str]) -> dict[str, str]:
    """What an executed copy was made from: its source of record, the code that shows, the runs it read."""
    code = sorted(path for path in Path(__file__).parents[1].rglob("*.py") if path.stem not in NOT_SHOWING)
    return {
        "source": hash_files([notebook.with_suffix(".md")]),
        "code": hash_files(code),
        "results": hash_files([path for run_id in run_ids for path in run_files(folder, run_id)]),
    }


def run_files(folder: Path, run_id: str) -> list[Path]:
    """A run's files, its per-item outcomes included; raises `InputError` when there is no such run."""
    load_run(folder, run_id)
    items = folder / "items" / f"{run_id}.json"
    return [folder / f"{run_id}.json", *([items] if items.exists() else [])]


def check_pair(notebook: Path) -> list[str]:
    """Complaints when a notebook and its text differ."""
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


def check_chapter(notebook: Path, executed: Path, results: Path) -> list[str]:
    """Complaints when an executed copy is missing, edited, or made from another source, code or rows."""
    if not executed.exists():
        return [f"{executed.name} was not executed; run: make notebooks"]
    copy = nbformat.read(executed, as_version=4)
    made = copy.metadata.get("crosscal", {})
    folder = results / str(made.get("parameters", {}).get("preset", "full"))
    try:
        now = fingerprints(notebook, folder, made.get("run_ids", []))
    except InputError as error:
        return [f"{executed.name} was made from runs that are not stored: {error}"]
    words = {"source": "its notebook", "code": "the code that draws it", "results": "its rows"}
    stale = [words[part] for part, value in now.items() if made.get(part) != value]
    if _sources(copy) != _sources(nbformat.read(notebook, as_version=4)):
        stale.append("its notebook's cells")
    return [f"{executed.name} is older than {' and '.join(stale)}; run: make notebooks"] if stale else []


def _sources(notebook: nbformat.NotebookNode) -> list[str]:
    """What a notebook says; parameters and the numbers below figures are put in when it is executed."""
    injected = "injected-parameters"
    own = [cell for cell in notebook.cells if cell.cell_type != "raw"]
    return [cell.source for cell in own if injected not in cell.metadata.get("tags", [])]


def check_all(root: Path) -> list[str]:
    """Complaints about pairs, executed chapters, generated pages and the manifest of a checkout; none when fresh."""
    from crosscal_book.pages.generated import stale_pages

    notebooks = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    texts = {text.stem for text in (root / "notebooks").glob("[0-9][0-9]_*.md")} - {n.stem for n in notebooks}
    complaints = [f"{name}.md has no notebook; run: jupytext --sync notebooks/{name}.md" for name in sorted(texts)]
    for notebook in notebooks:
        complaints += check_pair(notebook)
        complaints += check_chapter(notebook, root / "book" / "chapters" / notebook.name, root / "results")
    return complaints or stale_pages(root)


def main() -> int:
    """The command line; returns the exit status."""
    root = checkout()
    complaints = check_all(root) if root else ["run this in a git checkout of crosscal"]
    for complaint in complaints:
        sys.stderr.write(f"{complaint}\n")
    return 1 if complaints else 0


def read_chapter(executed: Path) -> dict:
    """What the runner wrote into an executed copy: parameters, run ids and fingerprints.

    Raises `InputError` when the file is missing or was not made by the runner.
    """
    try:
        return json.loads(executed.read_text(encoding="utf-8"))["metadata"]["crosscal"]
    except (OSError, json.JSONDecodeError, KeyError):
        raise InputError(f"{executed} is no executed chapter; run: make notebooks") from None


if __name__ == "__main__":
    sys.exit(main())
