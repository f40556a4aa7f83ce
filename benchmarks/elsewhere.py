"""Functions that run in a process of their own: ours as in a trial, a reference as its users run it."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

import torch

from harness.system.process import keep_freed_memory


class Elsewhere:
    """What `make(*arguments)` returns in another process, called from here; both must be importable and picklable.

    Args:
        make: called there, with torch at as many threads as here.
        arguments: of it.
        as_trial: with a trial's settings of memory and waiting threads (`harness.system.process`), or none.
    """

    def __init__(self, make: Callable[..., Callable[[], object]], *arguments: object, as_trial: bool):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        given = theirs, torch.get_num_threads(), as_trial, make, arguments
        self._process = context.Process(target=_serve, args=given, daemon=True)
        with _as_trial(as_trial):
            self._process.start()
        theirs.close()

    def __call__(self) -> None:
        """Call it and wait; the process shows what goes wrong there."""
        self._connection.send(None)
        self._connection.recv()

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join()


@contextmanager
def _as_trial(as_trial: bool) -> Iterator[None]:
    """The environment that OpenMP reads when it is loaded; this process has a trial's."""
    spins = os.environ.pop("GOMP_SPINCOUNT", None) if not as_trial else None
    try:
        yield
    finally:
        if spins is not None:
            os.environ["GOMP_SPINCOUNT"] = spins


def _serve(
    connection: Connection,
    threads: int,
    as_trial: bool,
    make: Callable[..., Callable[[], object]],
    arguments: tuple[object, ...],
) -> None:
    if as_trial:
        keep_freed_memory()
    torch.set_num_threads(threads)
    function = make(*arguments)
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        function()
        connection.send(None)
