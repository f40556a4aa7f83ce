"""Writes checkpoints beside the training, so that it goes on meanwhile, and says how often that may be.

A checkpoint is copied while the training waits (milliseconds) and written by a thread (seconds, minutes on slow
storage). One at a time; what goes wrong in the thread is raised where the training asks next.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Thread

CHECKPOINT_SECONDS = 60.0  # between checkpoints inside an epoch, or more:
CHECKPOINT_SHARE = 0.03  # of the time that checkpoints may take, copying and writing


class CheckpointWriter:
    """The thread that writes a trial's checkpoints."""

    def __init__(self) -> None:
        self.seconds = 0.0  # that the last whole checkpoint took, from the beginning of its copy
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    @property
    def interval(self) -> float:
        """Seconds of training after which the next checkpoint is due."""
        return max(CHECKPOINT_SECONDS, self.seconds / CHECKPOINT_SHARE)

    @property
    def is_busy(self) -> bool:
        """Is a checkpoint being written?"""
        return self._thread is not None and self._thread.is_alive()

    def start(self, write: Callable[[], object], began: float) -> None:
        """Call `write` in the thread, when the checkpoint before is whole.

        Args:
            write: writes a checkpoint, or raises and leaves the one before.
            began: when its copy was begun, of `time.monotonic`.

        Raises:
            BaseException: as `wait` does, for the checkpoint before.
        """
        self.wait()

        def work() -> None:
            try:
                write()
                self.seconds = time.monotonic() - began
            except BaseException as error:  # noqa: BLE001 - `wait` raises it in the thread that trains
                self._error = error

        self._thread = Thread(target=work, name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Until the checkpoint is whole, if one is being written.

        Raises:
            BaseException: it is not; whatever `write` raised.
        """
        self.close()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def check(self) -> None:
        """Raise as `wait` does, but do not wait."""
        if not self.is_busy:
            self.wait()

    def close(self) -> None:
        """Wait for the thread, whatever becomes of its checkpoint: nothing is written after this."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
