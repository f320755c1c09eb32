"""What an unfinished compression has done, so that the same call goes on from there.

.<output>.partial/journal.json     what was asked, how many blocks are done, and their layers' reports
.<output>.partial/states-<k>       hidden states that enter block k
.<output>.partial/model/           the folder being made

A process can be killed between any two of its steps, so the order of steps is all that counts. Each step writes new
files, or new places in a file, that no earlier record speaks of: a block's shard, its masks, the hidden states behind
it. When these are on the disk, and not before, the journal is replaced as a whole, by renaming. Then what only the
older record needed is removed. So whichever journal is found after a kill, all that it names is there, and what it
does not name may be written again. In the end the finished folder is renamed into place, and is known by the hash of
its report should the process die before the work folder is gone.

With several ranks each has hidden states of its own, .../rank-<r>-states-<k>. The first rank alone writes the journal
and the folder: the journal once the states of all ranks are on the disk, and no rank removes its older ones before.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from crosscal.engine.ranks import ranks
from crosscal.engine.reports import LayerReport
from crosscal.errors import InputError
from crosscal.files import write_atomically
from crosscal.output.tensorfile import TensorFile
from crosscal.output.writer import REPORT, Place

log = logging.getLogger(__name__)
JOURNAL, MODEL, LOCK = "journal.json", "model", "lock"


class Journal:
    """Journal of a place; `request` is what was asked, in plain values, and `done` the number of blocks."""

    def __init__(self, place: Place):
        self.place, self.work, self.path = place, place.work, place.work / JOURNAL
        try:
            body = json.loads(self.path.read_text(encoding="utf-8"))
            self.request, self.files, self.done = body["request"], body["files"], body["done"]
            self.finished, self.layers = body["finished"], [LayerReport(**layer) for layer in body["layers"]]
        except (OSError, ValueError, KeyError, TypeError):
            self._begin({}, {})

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the work folder for these ranks alone; it stays when the work is interrupted after a block.

        Raises `InputError` when another process works on the same output.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        if not ranks().first:
            yield
            return
        with _lock(self.work / LOCK, self.place.folder):
            try:
                yield
            finally:
                if not self.done:
                    self.close()

    def open(self, request: Mapping[str, object], files: Mapping[str, object]) -> None:
        """Continue the unfinished work, or start afresh where it was for another request, and log which."""
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

    def record(self, reports: Sequence[LayerReport]) -> None:
        """Note another block as done; all that belongs to it is on the disk."""
        self.done, self.layers = self.done + 1, self.layers + list(reports)
        ranks().wait()
        if ranks().first:
            self._write()
        ranks().wait()
        self._tidy()

    def put_in_place(self) -> None:
        """Move the finished folder to the output, and remove the work folder."""
        self.finished = _mark(self.work / MODEL)  # it will be known by this once it is in its place
        self._write()
        self.place.put(self.work / MODEL)
        self.close()

    @property
    def in_place(self) -> bool:
        """Whether the folder at the output is the one this journal is of, moved there."""
        return bool(self.finished) and not (self.work / MODEL).exists() and _mark(self.place.folder) == self.finished

    def close(self) -> None:
        """Remove the work folder."""
        shutil.rmtree(self.work, ignore_errors=True)

    def states(self, index: int) -> Path:
        """Return the file of the hidden states that enter a block."""
        return self.work / f"{self._own}states-{index:05d}.safetensors"

    @property
    def _own(self) -> str:
        return f"rank-{ranks().rank}-" if ranks().world > 1 else ""

    def bytes_held(self) -> int:
        """Return the bytes on disk of the work folder; parts of a file that were never written take none."""
        return sum(512 * os.stat(file).st_blocks for file in self.work.rglob("*") if file.is_file())

    def _begin(self, request: Mapping[str, Any], files: Mapping[str, object]) -> None:
        self.request, self.files, self.done, self.finished, self.layers = request, dict(files), 0, "", []

    def _write(self) -> None:
        body = {"request": self.request, "files": self.files, "done": self.done, "finished": self.finished}
        write_atomically(self.path, json.dumps(body | {"layers": [asdict(layer) for layer in self.layers]}))
        TensorFile.flush_path(self.work)

    def _tidy(self) -> None:
        """Remove what no record speaks of: hidden states of other blocks, and all of a folder that was not begun."""
        for file in self.work.glob(f"{self._own if self.done else '*'}states-*"):
            if not (self.done and file.name.startswith(self.states(self.done).stem)):
                file.unlink()
        if not self.done:
            shutil.rmtree(self.work / MODEL, ignore_errors=True)


def _mark(folder: Path) -> str:
    """Return the hash of a finished folder's report; empty where there is none."""
    try:
        return hashlib.sha256((folder / REPORT).read_bytes()).hexdigest()
    except OSError:
        return ""


@contextmanager
def _lock(path: Path, output: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # no such locks on Windows
        yield
        return
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is making {output}; wait for it, or give another folder") from None
        yield
