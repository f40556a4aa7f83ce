"""Ray's workers: how one begins, and why one cannot.

Ray prints pages of tracebacks about workers that fail, and tries for ever where none can begin. Here one line is made
of that. Nothing is imported in a worker before `entrance` has put our packages first there.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.errors import one_line

WORKER_SECONDS = 20.0  # that a worker has to begin before what Ray notes of dead ones is believed
MESSAGES = 20  # of Ray that are kept
CAUSE = re.compile(r"^\w+(?:Error|Exception|Exit): .+", re.MULTILINE)  # the last line of a traceback


class NoWorkers(RuntimeError):
    """No process that could run a trial can be started; the text says why."""


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


def prepare(count: int, task: bytes, root: str, path: list[str]) -> list[Any]:
    """Have `count` workers begin and do `task` (see `entrance`) before trials come; returns the promises of that."""
    import ray

    work = ray.remote(num_cpus=0)(entrance(root, path))
    return [work.remote({}, task) for _ in range(count)]


def await_worker(promises: list[Any], log: Path) -> None:
    """Wait until a first worker has begun, as `promises` of `prepare` tell; `log` is Ray's of those that died.

    Raises:
        NoWorkers: none can.
    """
    import ray

    begun = time.monotonic()
    while not (ready := ray.wait(promises, timeout=0.5)[0]):
        if time.monotonic() - begun < WORKER_SECONDS:
            continue
        with suppress(OSError):
            if causes := CAUSE.findall(log.read_text(encoding="utf-8", errors="replace")):
                raise NoWorkers(f"its worker could not start: {causes[-1]} (on {socket.gethostname()})")
    try:
        ray.get(ready[0])
    except ray.exceptions.RayError as error:
        raise NoWorkers(f"its worker could not start: {one_line(error)}") from None


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
