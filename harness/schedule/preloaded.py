"""One process of this machine that has loaded torch and all that a trial needs, for the workers of every trial here.

It is started first, and loads while Ray and the tracking store start. A worker that connects gets a fork of it, which
is the worker's fork server (`harness.system.forkserver.serve`). It ends with whoever started it, and all forks with it.
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from harness.system.entrance import python_command
from harness.system.forkserver import PR_SET_PDEATHSIG, PRELOAD, environment, load, serve

CHILD = "from harness.schedule.preloaded import main; main()"
WAITING = 64  # workers that may wait until it has loaded
REAP_SECONDS = 1.0  # between two looks for forks that have ended


class Preloaded:
    """The process, as a context manager; `place` is where workers find it (`connect`).

    Args:
        preload: modules to load; those that are not installed are left out.
    """

    def __init__(self, preload: Sequence[str] = PRELOAD) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="codetr-forks-"))  # for this user alone
        self.place = str(self._folder / "socket")
        with socket.socket(socket.AF_UNIX) as listener:  # bound here: nobody comes too early
            listener.bind(self.place)
            listener.listen(WAITING)
            self._process = subprocess.Popen(
                [*python_command(CHILD), str(listener.fileno()), *preload],
                pass_fds=[listener.fileno()],
                stdin=subprocess.PIPE,  # its end is the end of this process
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment(),
            )

    def __enter__(self) -> Preloaded:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def connect(place: str) -> Connection | None:
    """A connection to a fork server of the process at `place`; None where there is none (any more)."""
    client = socket.socket(socket.AF_UNIX)
    try:
        client.connect(place)
    except OSError:
        client.close()
        return None
    return Connection(client.detach())


def main() -> None:
    """The process itself: the number of its socket, then what to load, stand among its arguments."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal sends them to all; the starter decides
        signal.signal(number, signal.SIG_IGN)
    listener = socket.socket(fileno=int(sys.argv[1]))
    load(sys.argv[2:])
    while True:
        ready, _, _ = select.select([listener.fileno(), 0], [], [], REAP_SECONDS)
        if 0 in ready:  # nothing is ever written there: its other end is gone
            shutil.rmtree(os.path.dirname(listener.getsockname()), ignore_errors=True)
            os._exit(0)
        if listener.fileno() in ready:
            client, _ = listener.accept()
            if os.fork() == 0:
                with suppress(OSError, AttributeError):
                    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                listener.close()
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                serve(Connection(client.detach()), ())
                os._exit(0)
            client.close()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
