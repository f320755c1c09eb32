"""What an unfinished compression has done, so that the same call goes on from there.

.<output>.partial/journal.json     what was asked, how many blocks are done, and their layers' reports
.<output>.partial/states-<k>       hidden states that enter block k
.<output>.partial/model/           the folder being made
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from crosscal.disk.tensorfile import flush
from crosscal.engine.reports import LayerReport
from crosscal.errors import InputError
from crosscal.output.export import REPORT

log = logging.getLogger(__name__)
JOURNAL, MODEL, LOCK, ASIDE = "journal.json", "model", "lock", "earlier"


class Journal:
    """The journal in a work folder; `request` is what was asked, in plain values, and `done` the number of blocks."""

    def __init__(self, work: Path):
        self.work, self.path = work, work / JOURNAL
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            self.request, self.files, self.done = found["request"], found["files"], found["done"]
            self.finished, layers = found["finished"], found["layers"]
            self.layers = [LayerReport(**layer) for layer in layers]
        except (OSError, ValueError, KeyError, TypeError):
            self._begin({}, {})

    def open(self, request: Mapping[str, object], files: Mapping[str, object]) -> None:
        """Go on with the work found, or start afresh where it was for another request, and say so."""
        request = json.loads(json.dumps(request))  # as it will be read back
        if self.request == request:
            if self.done:
                log.warning("continuing the unfinished work in %s after %d blocks", self.work, self.done)
            self._tidy()
            return
        if self.request:
            other = [name for name in request if request[name] != self.request.get(name)]
            log.warning("the unfinished work in %s had another %s; starting afresh", self.work, other[0])
        self._begin(request, files)
        self._tidy()
        self._write()

    def record(self, reports: list[LayerReport]) -> None:
        """Another block is done, and all that belongs to it is on the disk."""
        self.done, self.layers = self.done + 1, self.layers + reports
        self._write()
        self._tidy()

    def finish(self) -> None:
        """The folder is whole; it will be known by its report once it is in its place."""
        self.finished = folder_mark(self.work / MODEL)
        self._write()

    def finished_as(self, output: Path) -> bool:
        """Whether the folder at `output` is the one this journal tells of, moved there."""
        return bool(self.finished) and not (self.work / MODEL).exists() and folder_mark(output) == self.finished

    def put_in_place(self, output: Path) -> None:
        """Move the folder to `output`; an earlier one is set aside until it is there."""
        aside = self.work / ASIDE
        if output.exists():
            shutil.rmtree(aside, ignore_errors=True)  # left by a process killed after it had moved its folder
            output.rename(aside)
        try:
            (self.work / MODEL).rename(output)
        except OSError:
            restore(output)
            raise
        flush(output.parent)
        self.close()

    def close(self) -> None:
        """Remove the work folder."""
        shutil.rmtree(self.work, ignore_errors=True)

    def states(self, index: int) -> Path:
        """The file of the hidden states that enter a block."""
        return self.work / f"states-{index:05d}.safetensors"

    def _begin(self, request: dict, files: Mapping[str, object]) -> None:
        self.request, self.files, self.done, self.finished, self.layers = request, dict(files), 0, "", []

    def _write(self) -> None:
        body = {"request": self.request, "files": self.files, "done": self.done, "finished": self.finished}
        body["layers"] = [asdict(layer) for layer in self.layers]
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(body), encoding="utf-8")
        flush(new)
        new.replace(self.path)
        flush(self.work)

    def _tidy(self) -> None:
        """Remove what no record speaks of: hidden states of other blocks, and all of a folder that was not begun."""
        for file in self.work.glob("states-*"):
            if file != self.states(self.done) or not self.done:
                file.unlink()
        if not self.done:
            shutil.rmtree(self.work / MODEL, ignore_errors=True)


def folder_mark(folder: Path) -> str:
    """What tells one finished folder from another; empty where there is none."""
    try:
        return hashlib.sha256((folder / REPORT).read_bytes()).hexdigest()
    except OSError:
        return ""


@contextmanager
def work_folder(output: Path) -> Iterator[None]:
    """The hidden folder beside `output` in which it is made, for this process alone.

    It stays when the work is interrupted. Raises `InputError` when another process works on the same output.
    """
    work = work_path(output)
    work.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # no such locks on Windows
        yield
        return
    with open(work / LOCK, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is making {output}; wait for it, or give another folder") from None
        yield


def restore(output: Path) -> None:
    """Put back the folder that was set aside by a process killed before it put the new one there."""
    aside = work_path(output) / ASIDE
    if aside.exists() and not output.exists():
        aside.rename(output)


def work_path(output: Path) -> Path:
    """The hidden folder beside `output`."""
    return output.with_name(f".{output.name}.partial")


def bytes_in(folder: Path) -> int:
    """What the files of a folder take on the disk; parts of a file that were never written take nothing."""
    return sum(512 * os.stat(file).st_blocks for file in folder.rglob("*") if file.is_file())
