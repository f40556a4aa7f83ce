"""`--fail-fast` on Ray: the first failure stops the grid, and what runs leaves its checkpoint.

A thread of the driver watches the records. After a failure it leaves the launch's request to stop, which every
worker looks at, waits for them, and then takes the main thread out of Ray Tune.
"""

from __future__ import annotations

import _thread
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from harness.files import write_atomic
from harness.schedule.execute import on_signals
from harness.schedule.progress import Progress
from harness.store.results import RECORD, RunStore

if TYPE_CHECKING:
    from harness.spec.grid import Trial

LOOK_SECONDS = 0.5
GRACE_SECONDS = 120.0  # for a step to end and a checkpoint to be written


class StoppedByFailure(BaseException):
    """A trial failed, and the others have stopped. Nobody may take it for an error of his own on its way."""


@contextmanager
def failure_stops(trials: Sequence[Trial], store: RunStore, marker: Path, progress: Progress) -> Iterator[None]:
    """Write `marker` once one of the trials has failed, wait until none runs, and leave the body.

    Outside the main thread, which signals cannot reach, the body ends by itself when all workers saw the marker.

    Raises:
        StoppedByFailure: in the main thread, when the body was left.
    """
    ended = threading.Event()
    in_main = threading.current_thread() is threading.main_thread()

    def watch() -> None:
        looked: dict[str, int] = {}
        while not ended.wait(LOOK_SECONDS):
            name = _failed_one(trials, store, looked)
            if name is None:
                continue
            progress.say(f"stopping: {name} has failed (--fail-fast)")
            write_atomic(marker, "")
            deadline = time.monotonic() + GRACE_SECONDS
            while time.monotonic() < deadline and not ended.wait(LOOK_SECONDS):
                with suppress(OSError):
                    if "running" not in {store.status(trial.trial_id) for trial in trials}:
                        break
            if in_main and not ended.is_set():
                _thread.interrupt_main(signal.SIGUSR1)  # without a handler (any more) it does nothing
            return

    left = threading.Event()

    def leave(*_: object) -> NoReturn:
        left.set()
        raise StoppedByFailure

    thread = threading.Thread(target=watch, name="fail-fast", daemon=True)
    with on_signals(leave, (signal.SIGUSR1,)):
        thread.start()
        try:
            yield
        except Exception:
            if left.is_set():  # Ray has made an error of its own of it
                raise StoppedByFailure from None
            raise
        finally:
            ended.set()
            thread.join()


def _failed_one(trials: Sequence[Trial], store: RunStore, looked: dict[str, int]) -> str | None:
    """A trial that has failed; records that did not change since the last look are not read again."""
    for trial in trials:
        path = store.dir(trial.trial_id) / RECORD
        try:
            stamp = path.stat().st_mtime_ns
        except OSError:
            continue
        if looked.get(trial.trial_id) == stamp:
            continue
        with suppress(OSError):  # the next look tells
            if store.status(trial.trial_id) == "failed":
                return trial.trial_id
            looked[trial.trial_id] = stamp
    return None
