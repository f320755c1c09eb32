"""Run by torchrun: the command line, with one rank killed before it takes note of a block.

torchrun --nproc-per-node 2 -m tests.unit.cli.killed_rank <rank> <blocks> compress ...
"""

import os
import signal
import sys

from crosscal.cli import main
from crosscal.disk.journal import Journal


def kill_at(rank: int, blocks: int) -> None:
    """Have this process killed after so many blocks, if it is of that rank."""
    record = Journal.record

    def killed(self, reports):
        if int(os.environ["RANK"]) == rank and self.done == blocks:
            os.kill(os.getpid(), signal.SIGKILL)
        record(self, reports)

    Journal.record = killed


if __name__ == "__main__":
    kill_at(int(sys.argv[1]), int(sys.argv[2]))
    sys.exit(main(sys.argv[3:]))
