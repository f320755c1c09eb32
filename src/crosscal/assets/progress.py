"""A byte progress bar that works with and without tqdm. Standard library only."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PLAIN_INTERVAL = 5.0  # seconds between lines where there is no tqdm


@contextmanager
def byte_progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that takes the bytes done so far; shows a tqdm bar, or a line on stderr every few seconds."""
    try:
        from tqdm import tqdm
    except ImportError:
        yield _plain_lines(label, total)
        return
    with tqdm(total=total, desc=label, unit="B", unit_scale=True, unit_divisor=1000) as bar:

        def show(done: int) -> None:
            bar.update(min(done, total) - bar.n)

        yield show


def _plain_lines(label: str, total: int) -> Callable[[int], None]:
    """A reporter that writes at most one line every `PLAIN_INTERVAL` seconds, and one when all is there."""
    last = [-PLAIN_INTERVAL]

    def show(done: int) -> None:
        now = time.monotonic()
        if now - last[0] >= PLAIN_INTERVAL or done >= total:
            last[0] = float("inf") if done >= total else now
            sys.stderr.write(f"{label}: {min(done, total) / 1e6:.0f} of {total / 1e6:.0f} MB\n")

    return show
