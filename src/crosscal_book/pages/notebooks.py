"""Execute the chapter notebooks, and clean what comes out so that two runs give the same bytes.

    python -m crosscal_book.pages.notebooks -p compute never    every chapter, from stored full rows, into book/chapters
    python -m crosscal_book.pages.notebooks --preset quick --into DIR 01    one chapter, computing what is missing

papermill executes; it only warns about a parameter that a notebook does not have, so this runner stops instead. A
failed run leaves the earlier file as it was.
"""

import argparse
import ast
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import reduce
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nbformat
import papermill
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from crosscal.errors import InputError, exit_status, suggest
from crosscal.files import write_atomically
from crosscal.paths import checkout, results_dir
from crosscal_book.pages.freshness import fingerprints

GIVEN = "Parameters given for this page"
SOCKET_FOLDER = 60
"""Longest temporary folder, in bytes: a socket's path may have 103 (macOS) and what is added takes 30."""


def execute(notebook: Path, output: Path, parameters: Mapping[str, object]) -> None:
    """Run a notebook with these parameters and write its cleaned copy to `output`, whole or not at all.

    Raises `InputError` with the notebook's own sentence when a cell fails.
    """
    clean = executed_copy(notebook, parameters, again=True)
    values = {name: _literal(declared["default"]) for name, declared in _declared(notebook).items()} | dict(parameters)
    run_ids = clean.metadata.pop("run_ids", [])
    hashes = fingerprints(notebook, results_dir(str(values.get("preset", "full"))), run_ids, values)
    clean.metadata["crosscal"] = {"parameters": values, "run_ids": run_ids, **hashes}
    write_atomically(output, nbformat.writes(clean) + "\n")


def executed_copy(notebook: Path, parameters: Mapping[str, object], again: bool = False) -> NotebookNode:
    """Run a notebook with these parameters; what comes out, cleaned, `again` with the command for it below each figure.

    Raises `InputError` with the notebook's own sentence when a cell fails. Kernels talk over files where a path is
    short enough, not over TCP ports, so that several can run side by side; their progress bars go to standard error.
    """
    known = list(_declared(notebook))
    for name in parameters:
        if name not in known:
            near = suggest(name, known)
            raise InputError(f"{notebook.name} has no parameter '{name}'{near}; it has: {', '.join(known)}")
    folder = _kernel_sockets()
    talk = {"transport": "ipc", "ip": f"{folder.name}/kernel"} if folder else {}
    try:
        executed = papermill.execute_notebook(
            _unformatted(notebook),
            None,
            dict(parameters),
            kernel_name="python3",
            progress_bar=False,
            shutdown_kernel="immediate",  # the graceful way makes the kernel complain about being interrupted
            stderr_file=sys.stderr,
            config=Config({"KernelManager": talk}),
        )
    except PapermillExecutionError as error:
        where = "" if error.ename == "InputError" else f"cell {error.cell_index + 1} stopped with {error.ename}: "
        raise InputError(f"{notebook.name}: {where}{error.evalue}") from error
    finally:
        if folder:
            folder.cleanup()
    preset = parameters.get("preset", "quick")
    return _clean(executed, f"papermill notebooks/{notebook.name} again.ipynb -p preset {preset}" if again else "")


def _unformatted(path: Path) -> str:
    """The path as papermill gives it back, which takes paths for format strings."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _declared(notebook: Path) -> dict[str, dict]:
    """What the notebook's parameters cell sets: name -> type, default and comment."""
    return papermill.inspect_notebook(_unformatted(notebook))


def _kernel_sockets() -> "tempfile.TemporaryDirectory | None":
    """A temporary folder whose path is short enough for sockets; None where there is none, or there are no sockets."""
    for place in (tempfile.gettempdir(), "/tmp", "/var/tmp") if os.name == "posix" else ():
        if len(os.fsencode(place)) <= SOCKET_FOLDER:
            with suppress(OSError):
                return tempfile.TemporaryDirectory(dir=place)
    return None


def _clean(notebook: NotebookNode, command: str = "") -> NotebookNode:
    """The notebook without what differs between two runs or machines, its figures' words where the book finds them."""
    notebook.metadata.pop("papermill", None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    cells = []
    for number, cell in enumerate(notebook.cells):
        cells.append(cell)
        cell["id"] = f"cell-{number:02d}"
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.metadata["tags"] = [*cell.metadata["tags"], "hide-input"]
            cell.metadata["mystnb"] = {"code_prompt_show": GIVEN, "code_prompt_hide": GIVEN}
            cell.source = cell.source.rstrip()
        if cell.cell_type == "code":
            roots = [f"{path}{os.sep}" for path in (checkout(), Path.cwd(), Path.home()) if path and path.parts[1:]]
            cell.outputs = [
                nbformat.from_dict(_without(roots, output)) for output in cell.outputs if output.get("name") != "stderr"
            ]
            cells += _adopt_words(notebook, cell, command)
    notebook.cells = cells
    return notebook


def _adopt_words(notebook: NotebookNode, cell: NotebookNode, command: str) -> list[NotebookNode]:
    """Copy a figure's caption and alternative text to the cell's options, and a page's run ids to the notebook.

    Returns what goes below the cell: a figure's numbers, inside the link itself, and the command that makes it again.
    """
    below = []
    for output in cell.outputs:
        words = output.get("metadata", {}).pop("crosscal", {})
        if "run_ids" in words:
            notebook.metadata["run_ids"] = list(words["run_ids"])
        elif words:
            name, csv = words["name"], words.get("csv")
            figure = {"caption": words["caption"], "name": name}
            cell.metadata["mystnb"] = {"image": {"alt": words["alt"]}, "figure": figure}
            file = f'download="{name}.csv" href="data:text/csv;charset=utf-8,{quote(csv or "")}"'
            again = f"; code: the cell above; again: <code>{escape(command)}</code>" if command else ""
            html = f'<p class="figure-data"><a {file}>Numbers of this figure (CSV)</a>{again}</p>'
            form = {"format": "text/html", "raw_mimetype": "text/html"}
            below += [nbformat.v4.new_raw_cell(html, id=f"{cell['id']}-data", metadata=form)] if csv else []
    return below


def _without(roots: Sequence[str], value: Any) -> Any:
    """A value of JSON, such as an output, without absolute paths."""
    if isinstance(value, str):
        return reduce(lambda text, root: text.replace(root, ""), roots, value)
    if isinstance(value, list):
        return [_without(roots, part) for part in value]
    return {key: _without(roots, part) for key, part in value.items()} if isinstance(value, dict) else value


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    about = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m crosscal_book.pages.notebooks", description=about)
    parser.add_argument("chapters", nargs="*", help="beginnings of names, such as 01; all when none is given")
    parser.add_argument("--preset", default="full")
    parser.add_argument("--into", type=Path, help="folder for the executed copies (book/chapters)")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="parameters")
    options = parser.parse_args(arguments)
    again = "interrupted; finished runs are stored, the same command goes on from there"
    return exit_status(lambda: _execute_all(options), again)


def _execute_all(options: argparse.Namespace) -> None:
    """Execute the chapters asked for, one after the other."""
    root = checkout()
    if root is None:
        raise InputError("the notebooks are part of the source; run this in a git checkout of crosscal")
    into = options.into or root / "book" / "chapters"
    for notebook in _select(root / "notebooks", options.chapters):
        sys.stderr.write(f"executing {notebook.name} with preset {options.preset}\n")
        given = _typed(notebook, dict(options.parameters))
        execute(notebook, into / notebook.name, {"preset": options.preset, **given})


def _typed(notebook: Path, given: Mapping[str, str]) -> dict[str, object]:
    """Values of the command line: text where the notebook's own value is text (a model named 007), else literals."""
    texts = {name for name, declared in _declared(notebook).items() if declared["inferred_type_name"] == "str"}
    return {name: value if name in texts else _literal(value) for name, value in given.items()}


def _literal(text: str) -> object:
    """The value that a parameter's text stands for; a text that is no literal stands for itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _select(folder: Path, beginnings: Sequence[str]) -> list[Path]:
    """The numbered notebooks of a folder whose names begin so; raises `InputError` when a beginning fits none."""
    notebooks = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    for beginning in beginnings:
        if not any(notebook.name.startswith(beginning) for notebook in notebooks):
            names = ", ".join(notebook.stem for notebook in notebooks) or "none"
            raise InputError(f"no notebook begins with '{beginning}'; there are: {names}")
    return [n for n in notebooks if not beginnings or n.name.startswith(tuple(beginnings))]


if __name__ == "__main__":
    sys.exit(main())
