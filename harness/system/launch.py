"""Starts the ranks of a trial as processes of this machine, watches them, and ends them all when one ends badly.

This process only watches: it passes on what the first rank reports, asks whether to stop, and holds the lease
(harness/schedule/execute.py). Whatever happens, no rank stays behind: they are killed here, and each ends by itself as
soon as it finds its starter gone. What a rank raises is raised here; a rank that is killed raises `RankLost`.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import subprocess
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

from harness.errors import RankLost
from harness.system.endings import story
from harness.system.entrance import python_command, python_path

POLL_SECONDS = 0.2  # between two looks for the request to stop, and for processes that are gone
GRACE_SECONDS = 1.0  # a failing rank makes others fail: for the first cause to show
CHILD = "from harness.system.launch import run_rank; run_rank(int(sys.argv[1]))"


@dataclass
class _Rank:
    """A rank as its starter sees it."""

    number: int
    process: subprocess.Popen[bytes]
    connection: Connection
    output: Path
    done: bool = False
    result: Any = None
    error: tuple[float, BaseException] | None = None  # when and what
    closed: bool = False

    def listen(self, report: Callable[[dict[str, Any]], None]) -> None:
        """Take in everything that it has said so far."""
        while not self.closed:
            try:
                if not self.connection.poll():
                    return
                kind, value = self.connection.recv()
            except (EOFError, OSError):
                self.closed = True
                return
            if kind == "event":
                report(value)
            elif kind == "done":
                self.done, self.result = True, value
            else:
                self.error = value[0], _unpickled(*value[1:])

    @property
    def lost(self) -> bool:
        """Has it ended without a word?"""
        return self.process.poll() is not None and not self.done and self.error is None


def run_ranks(
    size: int,
    main: Callable[..., Any],
    arguments: Sequence[Any],
    *,
    report: Callable[[dict[str, Any]], None],
    should_stop: Callable[[], bool],
) -> Any:
    """Run `main` once per rank and wait for all of them.

    Args:
        size: number of ranks.
        main: a function of a module; called as `main(rank, size, meeting_file, *arguments, report=…, should_stop=…)`,
            where `report` passes events of the first rank on (those of others are dropped) and `should_stop` tells
            the first rank what it tells here.
        arguments: anything that can be pickled.
        report: takes the events of the first rank.
        should_stop: asked several times a second.

    Returns:
        What `main` returned at the first rank.

    Raises:
        RankLost: a process was killed or crashed.
        BaseException: what a rank raised first, with its traceback as a note.
    """
    with tempfile.TemporaryDirectory(prefix="codetr-ranks-") as folder:
        ranks: list[_Rank] = []
        try:
            for number in range(size):
                ranks.append(_start(number, Path(folder)))
                job = (number, size, str(Path(folder) / "meeting"), main, tuple(arguments))
                ranks[-1].connection.send_bytes(pickle.dumps(job))
            return _watch(ranks, report, should_stop)
        finally:
            for rank in ranks:
                rank.process.kill()
            for rank in ranks:
                rank.process.wait()
                rank.connection.close()


def _start(number: int, folder: Path) -> _Rank:
    here, there = Pipe()
    output = folder / f"rank{number}.txt"
    environment = os.environ | {"PYTHONPATH": python_path()}
    with there, open(output, "wb") as file:
        process = subprocess.Popen(
            [*python_command(CHILD), str(there.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            pass_fds=[there.fileno()],
            env=environment,
        )
    return _Rank(number, process, here, output)


def _watch(ranks: list[_Rank], report: Callable[[dict[str, Any]], None], should_stop: Callable[[], bool]) -> Any:
    told = False
    heard: dict[str, Any] = {}  # the last event that had a step

    def listening(event: dict[str, Any]) -> None:
        if "step" in event:
            heard.update(event)
        report(event)

    deadline = None  # after which no better explanation is waited for
    while not all(rank.done for rank in ranks):
        wait([rank.connection for rank in ranks if not rank.closed], POLL_SECONDS)
        lost = [rank for rank in ranks if rank.lost]  # before listening: its last words may be on the way
        for rank in ranks:
            rank.listen(listening)
        for rank in lost:
            if rank.lost:
                raise _loss(rank, len(ranks), heard)
        errors = [rank for rank in ranks if rank.error]
        if errors:
            deadline = deadline or time.monotonic() + GRACE_SECONDS
            if time.monotonic() > deadline or len(errors) == len(ranks):
                raise min((rank.error for rank in errors if rank.error), key=lambda error: error[0])[1]
        if not told and should_stop():
            told = True
            for rank in ranks:
                _say(rank.connection, "stop")
    return ranks[0].result


def _say(connection: Connection, message: Any) -> None:
    with suppress(OSError):  # it is gone, which will be noticed
        connection.send(message)


def _loss(rank: _Rank, size: int, heard: dict[str, Any]) -> RankLost:
    error = RankLost(f"rank {rank.number} of {size} {story(rank.process.returncode, heard)}")
    output = rank.output.read_text(encoding="utf-8", errors="replace")[-4000:].strip()
    if output:
        error.add_note(f"The last it wrote:\n{output}")
    return error


# ---- inside a rank ------------------------------------------------------------------------------------------------


def run_rank(descriptor: int) -> None:
    """The process of a rank; `descriptor` leads to its starter."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal sends them to all; the starter decides
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable()
    connection, parent = Connection(descriptor), os.getppid()
    os.set_inheritable(descriptor, False)
    try:
        job = connection.recv_bytes()
    except EOFError:
        return
    stop = threading.Event()
    threading.Thread(target=_obey, args=(connection, parent, stop), daemon=True).start()
    try:
        rank, size, meeting_file, main, arguments = pickle.loads(job)

        def report(event: dict[str, Any]) -> None:
            if rank == 0:
                connection.send(("event", event))

        result = main(rank, size, meeting_file, *arguments, report=report, should_stop=stop.is_set)
        connection.send(("done", result if rank == 0 else None))
    except BaseException as error:  # noqa: BLE001 - everything is for the starter to judge
        connection.send(("error", (time.time(), _pickled(error), _line(error), traceback.format_exc())))


def _obey(connection: Connection, parent: int, stop: threading.Event) -> None:
    """Hear the starter; end with it."""
    try:
        while os.getppid() == parent:
            if connection.poll(1.0):
                connection.recv()
                stop.set()
    except (EOFError, OSError):
        pass
    os._exit(1)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _pickled(error: BaseException) -> bytes | None:
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
    except Exception:  # noqa: BLE001 - many exceptions cannot be rebuilt
        return None
    return data


def _unpickled(data: bytes | None, line: str, log: str) -> BaseException:
    error = RuntimeError(line) if data is None else pickle.loads(data)
    error.add_note(f"In a rank:\n{log}")
    return error
