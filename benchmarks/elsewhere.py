"""A reference in a process of its own, as its users run it: with none of our settings of memory and threads."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection

import torch


class Elsewhere:
    """What `make(*arguments)` returns there, called from here; both must be importable and picklable."""

    def __init__(self, make: Callable[..., Callable[[], object]], *arguments: object):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, torch.get_num_threads(), make, arguments), daemon=True)
        ours = os.environ.pop("GOMP_SPINCOUNT", None)
        process.start()
        if ours is not None:
            os.environ["GOMP_SPINCOUNT"] = ours
        theirs.close()

    def __call__(self) -> None:
        """Call it and wait; the process shows what goes wrong there."""
        self._connection.send(None)
        self._connection.recv()


def _serve(
    connection: Connection, threads: int, make: Callable[..., Callable[[], object]], arguments: tuple[object, ...]
) -> None:
    torch.set_num_threads(threads)
    function = make(*arguments)
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        function()
        connection.send(None)
