"""A fresh process for every trial, at the price of a fork.

Loading torch and what its optimisers bring along costs a process seconds of computing. So a worker starts one server
that loads it once and then only waits: each trial runs in a fork of it. Nothing leaks from one trial to the next, and
what kills a trial takes nothing else along. The server ends with its worker, and the trial with either of them.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection, Pipe
from typing import IO, Any, NoReturn

from harness.system.entrance import python_command, python_path

# What a trial loads. None of it may start a thread or touch a GPU: a fork has neither.
PRELOAD = (
    *("harness.trial.trial", "torch._dynamo", "faster_coco_eval", "pycocotools.mask", "PIL.Image", "scipy.optimize"),
)
CHILD = "from harness.system.forkserver import main; main()"
POLL_SECONDS = 0.05  # between two looks whether the trial has ended
PR_SET_PDEATHSIG = 1  # Linux, sys/prctl.h


class WorkerLost(RuntimeError):
    """The process of the trial died without a word.

    Args:
        text: how.
        code: its exit code, negative for a signal; None where that is not known.
        output: where each of its threads was, if the system let it say so.
    """

    def __init__(self, text: str, code: int | None = None, output: str = "") -> None:
        super().__init__(text, code, output)
        self.code = code
        self.output = output

    def __str__(self) -> str:
        return str(self.args[0])


class WorkerError(RuntimeError):
    """An exception in the process of the trial; its text is that of the exception."""


class WorkerUnfit(RuntimeError):
    """What a function and its arguments need cannot be loaded there; the text is that of the exception."""


class ForkServer:
    """Runs functions in forks of one process that has loaded what they need. One at a time.

    Args:
        preload: modules to load first; those that are not installed are left out.
        stdin: what the forks read from, as in `subprocess`.
        connection: to a server that another process has started (`harness.schedule.preloaded`); None: start one.
    """

    def __init__(
        self,
        preload: Sequence[str] = PRELOAD,
        stdin: int | None = subprocess.DEVNULL,
        connection: Connection | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        if connection is not None:
            self._connection = connection
            return
        self._connection, theirs = Pipe()
        command = [*python_command(CHILD), str(theirs.fileno()), *preload]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=stdin, env=environment())
        theirs.close()  # so that the server's end is the end of the connection

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(*arguments)` in a fork that has this process's environment; all of it must be importable there.

        Raises:
            WorkerError: the function raised.
            WorkerUnfit: it could not be called at all.
            WorkerLost: the fork, or the server, was killed.
        """
        with self._lock:
            try:
                self._connection.send((dict(os.environ), function, arguments))
                answer = self._connection.recv()
                _, status, output = answer if answer[0] == "ended" else self._connection.recv()
            except (EOFError, OSError):
                raise WorkerLost("the process that forks the trials was killed") from None
        if answer[0] == "returned":
            return answer[1]
        if answer[0] in ("raised", "unfit"):
            raise (WorkerError if answer[0] == "raised" else WorkerUnfit)(answer[1])
        code = os.waitstatus_to_exitcode(status)
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        raise WorkerLost(how, code, output)

    def close(self) -> None:
        """End the server, and with it what runs in a fork."""
        with suppress(OSError):
            self._connection.send_bytes(b"")
        if self.process is not None:
            self.process.wait()
        with self._lock:
            self._connection.close()


def environment() -> dict[str, str]:
    """The server must find modules where this process finds them, and leave the GPU alone."""
    return {**os.environ, "PYTHONPATH": python_path(), "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}


def load(preload: Sequence[str]) -> None:
    """Import these modules, as far as that is possible."""
    for name in preload:
        with suppress(Exception):  # not installed, or broken: then the trial that needs it says so in its record
            import_module(name)


def serve(connection: Connection, preload: Sequence[str]) -> None:
    """Load, then fork for each request until the other side is gone."""
    load(preload)
    with suppress(EOFError):
        while True:
            request = connection.recv_bytes()
            if not request:
                return
            with _scratch() as last_words:
                pid = os.fork()
                if pid == 0:
                    faulthandler.enable(last_words)
                    _work(connection, request)
                status = _wait(pid, connection)
                last_words.seek(0)
                connection.send(("ended", status, last_words.read().decode(errors="replace")))


def _scratch() -> IO[bytes]:
    """A file without a name, in memory where the system has that."""
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("last words"), "w+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def _wait(pid: int, connection: Connection) -> int:
    """The wait status of the fork; it is killed when the other side is gone.

    Raises:
        EOFError: the other side is gone.
    """
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        if connection.poll(POLL_SECONDS):  # while a fork is at work this can only be the end
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise EOFError


def _work(connection: Connection, request: bytes) -> NoReturn:
    word = "unfit"
    try:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        environment, function, arguments = pickle.loads(request)
        os.environ.clear()
        os.environ.update(environment)
        word = "raised"
        connection.send(("returned", function(*arguments)))
    except BaseException as error:
        traceback.print_exc()
        connection.send((word, f"{type(error).__name__}: {error}".splitlines()[0]))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def main() -> None:
    """The process of the server: the number of its connection, then what to load, stand among its arguments."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal sends them to all; the starter decides
        signal.signal(number, signal.SIG_IGN)
    serve(Connection(int(sys.argv[1])), sys.argv[2:])
