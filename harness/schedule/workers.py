"""Ray's workers: how one begins, and why one cannot.

Ray prints pages of tracebacks about workers that fail, and tries for ever where none can begin. Here one line is made
of that. Nothing is imported in a worker before `entrance` has put our packages first there.
"""

from __future__ import annotations

import _thread
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from harness.schedule.execute import on_signals

LOOK_SECONDS = 1.0
WORKER_SECONDS = 20.0  # without another worker, before what Ray notes of dead ones is believed
MESSAGES = 20  # of Ray that are kept
CAUSE = re.compile(r"^\w+(?:Error|Exception|Exit): .+", re.MULTILINE)  # the last line of a traceback


class NoWorkers(BaseException):
    """No process that could run a trial can be started; the text says why. Nobody may take it for his own error."""


def entrance(root: str, path: list[str]) -> Callable[..., dict[str, Any]]:
    """What a worker is sent first: by value, as a name could mean another file there.

    It puts the packages below `root` first (on a node without that folder, those installed there), and only then
    unpickles its task, which imports them. Modules of `path`, the driver's, are found behind those.
    """

    def enter(config: dict[str, Any], task: bytes) -> dict[str, Any]:
        import os
        import pickle
        import platform
        import sys

        sys.path[:0] = [root] if os.path.exists(os.path.join(root, "codetr_harness.py")) else []
        try:
            import codetr_harness

            if codetr_harness.problem:
                raise ImportError(codetr_harness.problem)
            sys.path += [entry for entry in path if entry not in sys.path]
            work, arguments = pickle.loads(task)
        except Exception as error:
            text = str(error).strip().partition("\n")[0]
            return {"outcome": "failed", "reason": f"{type(error).__name__}: {text} (on node {platform.node()})"}
        return work(config, **arguments)

    return enter


@contextmanager
def no_start(begun: Callable[[], bool], log: Path | None) -> Iterator[None]:
    """Leave the body where no worker of this machine can begin: Ray tries for ever, and its `log` has the reason.

    Args:
        begun: whether a trial has begun, or ended.
        log: what Ray's daemon writes about workers that died; None: a cluster's, which is not here.

    Raises:
        NoWorkers: in the main thread, when the body was left.
    """
    ended = threading.Event()
    reasons: list[str] = []

    def watch(log: Path) -> None:
        while not ended.wait(LOOK_SECONDS):
            with suppress(OSError):
                if not (causes := CAUSE.findall(log.read_text(encoding="utf-8", errors="replace"))):
                    continue
                if begun():
                    return
                if time.time() - log.stat().st_mtime > WORKER_SECONDS:
                    reasons.append(f"its worker could not start: {causes[-1]} (on {socket.gethostname()})")
                    _thread.interrupt_main(signal.SIGUSR2)  # without a handler (any more) it does nothing
                    return

    def leave(*_: object) -> NoReturn:
        raise NoWorkers(reasons[0])

    if log is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    thread = threading.Thread(target=watch, args=(log,), name="no-start", daemon=True)
    with on_signals(leave, (signal.SIGUSR2,)):
        thread.start()
        try:
            yield
        except Exception:
            if reasons:  # Ray has made an error of its own of it
                raise NoWorkers(reasons[0]) from None
            raise
        finally:
            ended.set()
            thread.join()


def keep_quiet() -> None:
    """Note what Ray would print about its workers, pages of tracebacks; `unimportable` looks into it."""
    from ray._private import worker

    def note(data: dict[str, Any], *_: object, **__: object) -> None:
        _said.extend(data.get("lines") or ())
        del _said[:-MESSAGES]

    worker.print_to_stdstream = note


_said: list[str] = []


def unimportable() -> str:
    """Why a worker could not load what it was to do, as one line; empty where that was not its trouble."""
    for text in reversed(_said):
        if "failed to import on the worker" in text and (causes := CAUSE.findall(text)):
            return str(next((cause for cause in reversed(causes) if "failed to import" not in cause), causes[-1]))
    return ""
