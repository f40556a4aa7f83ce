"""Progress lines of long data work: one at most every few seconds, with the time left.

Everything in this room that may take longer than a few seconds reports through a function that takes
one line of text; `print_line` is the one used when the caller gives none.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

Progress = Callable[[str], None]
INTERVAL_SECONDS = 5.0


def print_line(line: str) -> None:
    """Print one line at once, also into a pipe or a job's log."""
    print(line, flush=True)


def print_aside(line: str) -> None:
    """Print one line to stderr, beside what a command answers."""
    print(line, file=sys.stderr, flush=True)


class Ticker:
    """Says `what: done/total, about N s left` at most every `INTERVAL_SECONDS`; short work stays silent."""

    def __init__(self, progress: Progress | None, what: str, total: int) -> None:
        self._progress = progress or print_line
        self._what = what
        self._total = total
        self._start = self._last = time.monotonic()

    def at(self, done: int) -> None:
        """Report that `done` of the total are finished."""
        now = time.monotonic()
        if now - self._last < INTERVAL_SECONDS:
            return
        self._last = now
        left = (now - self._start) / max(done, 1) * (self._total - done)
        self._progress(f"{self._what}: {done:,}/{self._total:,}, about {left:.0f} s left")


@contextmanager
def locked(path: Path, waiting: Callable[[float], None]) -> Iterator[None]:
    """Hold a lock file; the system frees it at a kill.

    Args:
        path: of the file.
        waiting: told every few seconds for how long another process has held it.
    """
    lock = FileLock(path)
    start = time.monotonic()
    while True:
        try:
            lock.acquire(timeout=INTERVAL_SECONDS)
            break
        except Timeout:
            waiting(time.monotonic() - start)
    try:
        yield
    finally:
        lock.release()
