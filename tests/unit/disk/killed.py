"""Run as a program: start the same compression many times, each killed before another of its steps on the disk.

    python -m tests.unit.disk.killed <dense folder> <where outputs go> <step> ...

With no step, prints how many there are. The steps are what the interpreter's audit events tell of: files opened for
writing or flushing, renamed and removed.
"""

import os
import signal
import sys
from pathlib import Path

from crosscal.disk import compress_folder
from tests.unit.disk.common import HALF, TEXT

EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir"}
SETTINGS = {"calibration": TEXT, "micro_batch": 4, "overwrite": True, "progress": False}


def run(dense, output):
    """The compression in question."""
    return compress_folder(dense, output, "sparsegpt", HALF, **SETTINGS)


def killed_at(step, output):
    """Have this process killed before the step of this number; returns the count so far."""
    count = [0]

    def watch(event, args):
        if event not in EVENTS or output.name not in str(args[0]) or _only_reads(event, args):
            return
        count[0] += 1
        if count[0] == step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    return count


def _only_reads(event, args):
    return event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR) and "states" not in str(args[0])


def main(dense, place, *steps):
    """Count the steps, or be killed at each of those given."""
    for step in map(int, steps or ["0"]):
        output = Path(place) / f"out-{step}"
        child = os.fork()
        if not child:
            count = killed_at(step, output)
            run(dense, output)
            print(count[0], flush=True)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if step and not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            sys.exit(f"step {step} was not reached")


if __name__ == "__main__":
    main(*sys.argv[1:])
