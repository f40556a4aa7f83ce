"""Who may work on a trial: one lease file per trial, alive only as long as its holder shows signs of life.

A lease is a small JSON file beside the record. Its holder touches it every few seconds. Whoever finds a lease whose
process is gone (same machine and boot), or that nobody touched for `STALE_AFTER` seconds (another machine, or this one
before it was started again), takes it over. Ages are differences of file times, so the clocks of the nodes need not
agree. Each lease has a token, and a store checks it before it writes (`RunStore.fenced`): a holder that was replaced
while it was suspended, or on a storage whose locks do not reach other nodes, can no longer spoil the record.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from harness.errors import ReadError, StorageError, UserError
from harness.files import ABSENT, attributes, read_bytes

BEAT_EVERY = 5.0  # seconds between two signs of life
STALE_AFTER = 60.0  # seconds without a sign of life after which a holder on another machine counts as dead
NO_WRITING = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)  # of a storage that does answer


class LeaseLost(RuntimeError):
    """Another process has taken over the trial: whatever this one still does must not be written."""


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path` (created if absent) for a short critical section, also across nodes (NFSv4).

    Raises:
        UserError: the storage cannot lock files.
        StorageError: the file cannot be made or opened.
    """
    while True:
        with _opened(path) as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
            except OSError as error:
                raise UserError(
                    f"{path}: this storage cannot lock files ({error}); keep the store elsewhere"
                ) from error
            try:
                if not _is_at(path, handle.fileno()):
                    continue  # its folder was moved away while we waited
                yield
                return
            finally:
                fcntl.flock(handle, fcntl.LOCK_UN)


def _opened(path: Path) -> IO[bytes]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "ab")
    except OSError as error:
        raise StorageError(path, error) from error


def _is_at(path: Path, descriptor: int) -> bool:
    found = attributes(path)
    return found is not None and os.path.samestat(os.fstat(descriptor), found)


@lru_cache(maxsize=1)
def machine_id() -> str:
    """What process ids are relative to: host, boot and (in containers) process namespace."""
    parts = [socket.gethostname()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    except (*ABSENT, PermissionError):
        pass  # not Linux: the host name has to do
    return " ".join(parts)


def _process_start(pid: int) -> str | None:
    """A value that tells this process from a later one with the same id; None when the process is dead.

    Raises:
        OSError: the system does not tell, as when this process has too many files open.
    """
    try:
        line = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
        try:  # not Linux
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return "alive"
    except ProcessLookupError:
        return None  # it ended while it was looked at
    fields = line.rpartition(")")[2].split()  # the name in parentheses may hold blanks
    return None if fields[0] in "ZX" else fields[19]


def identity() -> dict[str, Any]:
    """What tells this process from every other one, on any machine, before and after."""
    return {"machine": machine_id(), "pid": os.getpid(), "process_start": _process_start(os.getpid())}


def holder(owner: str = "") -> dict[str, Any]:
    """Who this process is, as written into leases and heartbeats."""
    return {"owner": owner, "host": socket.gethostname(), **identity(), "since": time.time()}


def _storage_now(folder: Path) -> float:
    """The time as the storage of `folder` stamps files; where nothing can be written, this machine's.

    Raises:
        OSError: the storage does not answer.
    """
    probe = folder / f".now-{uuid.uuid4().hex}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError as error:
        if error.errno in NO_WRITING:
            return time.time()
        raise
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def read_holder(path: Path) -> dict[str, Any] | None:
    """The holder named in the file, or None when there is no file or nothing of use in it.

    Raises:
        ReadError: the storage does not answer; that says nothing about the holder.
    """
    data = read_bytes(path)
    try:
        found = None if data is None else json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _gone(process: dict[str, Any]) -> bool | None:
    """Whether the process with this `identity` has ended; None where it ran on another machine, or is hidden here."""
    if process.get("machine") != machine_id():
        return None
    pid = process.get("pid")
    try:
        start = _process_start(pid) if isinstance(pid, int) else None
    except PermissionError:
        return None
    return start is None or start != process.get("process_start")


def is_alive(path: Path) -> bool:
    """Whether the holder named in the file (a lease or a heartbeat) still lives.

    Raises:
        ReadError: the storage does not answer; that says nothing about the holder, so nobody may take over.
    """
    found = read_holder(path)  # opening the file also makes NFS ask the server for its age
    if found is None:
        return False
    try:
        gone = _gone(found)
        return not gone if gone is not None else _storage_now(path.parent) - path.stat().st_mtime < STALE_AFTER
    except FileNotFoundError:
        return False
    except OSError as error:
        raise ReadError(path, error) from error


def released(paths: Iterable[Path], poll: float = 0.25) -> list[Path]:
    """Those of the leases that nobody holds; waits where a holder seems alive and may not be.

    That is one on this machine whose driver (the process that started it) is dead, which ends within seconds, and one
    on another machine, until it gives a sign of life or was silent for `STALE_AFTER` seconds.

    Raises:
        ReadError: the storage did not answer for as long.
    """
    free, doubtful = [], {path: _stamp(path) for path in paths}
    answered = time.monotonic()
    while doubtful:
        for path, before in list(doubtful.items()):
            try:
                alive, in_doubt = is_alive(path), _in_doubt(path, before)
            except OSError:
                if time.monotonic() - answered > STALE_AFTER:
                    raise
                continue
            answered = time.monotonic()
            if alive and in_doubt:
                continue
            if not alive:
                free.append(path)
            del doubtful[path]
        if doubtful:
            time.sleep(poll)
    return free


def _in_doubt(path: Path, before: tuple[int, int] | None) -> bool:
    """Whether a living holder may be none: its driver is dead, or it is elsewhere and gave no sign since `before`."""
    found = read_holder(path) or {}
    return bool(_gone(found.get("driver") or {})) or (_gone(found) is None and _stamp(path) == before)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino


class Lease:
    """The right to work on one trial; gives signs of life from a thread until released.

    `lost` becomes true when someone else took it over (this process had been suspended, or its node cut off):
    then stop writing.
    """

    def __init__(self, path: Path, token: str, beat_every: float = BEAT_EVERY) -> None:
        self.path = path
        self.token = token
        self.lost = False
        self._beat_every = beat_every
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease {path.parent.name}", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._released.wait(self._beat_every):
            try:
                if not names(self.path, self.token):
                    self.lost = True
                    return
                os.utime(self.path)
            except FileNotFoundError:
                self.lost = True
                return
            except OSError:
                continue  # storage hiccup: the next beat tells

    def release(self) -> None:
        """Give the trial back. Does nothing when the lease was lost, or when the storage is (then it is a dead one)."""
        self._released.set()
        self._thread.join()
        for pause in (0.05, 0.5, 0.0):  # or what is over would count as running while this process lives
            with suppress(OSError, UserError):
                if names(self.path, self.token):  # else no lock is made where somebody may have removed everything
                    with file_lock(self.path.with_name(".lock")):
                        if names(self.path, self.token):
                            self.path.unlink(missing_ok=True)
                return
            time.sleep(pause)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def names(path: Path, token: str) -> bool:
    """Whether the lease at `path` is the one with this token.

    Raises:
        ReadError: the storage does not answer.
    """
    return (read_holder(path) or {}).get("token") == token


def claim(
    path: Path, owner: str = "", beat_every: float = BEAT_EVERY, driver: dict[str, Any] | None = None
) -> Lease | None:
    """Take the lease at `path`, or return None when someone else holds it.

    A dead holder is replaced. So is a living one of the same non-empty `owner`: a launch that starts a trial again
    knows that its first attempt is lost.

    Args:
        path: the lease file.
        owner: the launch for which this process works.
        beat_every: seconds between two signs of life.
        driver: `identity` of the process without which this one ends; None: this one itself.

    Raises:
        OSError: the storage cannot take it, or does not answer.
    """
    token = uuid.uuid4().hex
    with file_lock(path.with_name(".lock")):
        found = read_holder(path)
        superseded = found is not None and bool(owner) and found.get("owner") == owner
        if not superseded and is_alive(path):
            return None
        temporary = path.with_name(f".{path.name}.{token}")
        try:
            temporary.write_text(
                json.dumps({**holder(owner), "driver": driver or identity(), "token": token}), encoding="utf-8"
            )
            os.replace(temporary, path)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise StorageError(path, error) from error
            raise
    return Lease(path, token, beat_every)
