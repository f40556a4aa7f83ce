"""Who may work on a trial: one lease file per trial, alive only as long as its holder shows signs of life.

A lease is a small JSON file beside the record. Its holder touches it every few seconds. Whoever finds a lease whose
process is gone (same machine), or that nobody touched for `STALE_AFTER` seconds (another machine), takes it over.
Ages are differences of file times, so the clocks of the nodes need not agree.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.errors import UserError

BEAT_EVERY = 5.0  # seconds between two signs of life
STALE_AFTER = 60.0  # seconds without a sign of life after which a holder on another machine counts as dead


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path` (created if absent) for a short critical section, also across nodes (NFSv4).

    Raises:
        UserError: the storage cannot lock files.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            raise UserError(f"{path}: this storage cannot lock files ({error}); keep the store elsewhere") from error
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)


@lru_cache(maxsize=1)
def machine_id() -> str:
    """What process ids are relative to: host, boot and (in containers) process namespace."""
    parts = [socket.gethostname()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:
        pass  # not Linux: the host name has to do
    return " ".join(parts)


def _process_start(pid: int) -> str | None:
    """A value that tells this process from a later one with the same id; None when the process is dead."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
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
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name in parentheses may hold blanks
    return None if fields[0] in "ZX" else fields[19]


def holder(owner: str = "") -> dict[str, Any]:
    """Who this process is, as written into leases and heartbeats."""
    return {
        "owner": owner,
        "host": socket.gethostname(),
        "machine": machine_id(),
        "pid": os.getpid(),
        "process_start": _process_start(os.getpid()),
        "since": time.time(),
    }


def _storage_now(folder: Path) -> float:
    """The time as the storage of `folder` stamps files."""
    probe = folder / f".now-{uuid.uuid4().hex}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        probe.unlink(missing_ok=True)


def read_holder(path: Path) -> dict[str, Any] | None:
    """The holder named in the file, or None when there is no readable file."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def is_alive(path: Path) -> bool:
    """Whether the holder named in the file (a lease or a heartbeat) still lives."""
    found = read_holder(path)
    if found is None:
        return False
    if found.get("machine") == machine_id():
        pid = found.get("pid")
        start = _process_start(pid) if isinstance(pid, int) else None
        return start is not None and start == found.get("process_start")
    try:
        touched = path.stat().st_mtime
    except OSError:
        return False
    return _storage_now(path.parent) - touched < STALE_AFTER


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

    def _mine(self) -> bool:
        found = read_holder(self.path)
        return found is not None and found.get("token") == self.token

    def _beat(self) -> None:
        while not self._released.wait(self._beat_every):
            try:
                if not self._mine():
                    self.lost = True
                    return
                os.utime(self.path)
            except FileNotFoundError:
                self.lost = True
                return
            except OSError:
                continue  # storage hiccup: the next beat tells

    def release(self) -> None:
        """Give the trial back. Does nothing when the lease was lost."""
        self._released.set()
        self._thread.join()
        with file_lock(self.path.with_name(".lock")):
            if self._mine():
                self.path.unlink(missing_ok=True)

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def claim(path: Path, owner: str = "", beat_every: float = BEAT_EVERY) -> Lease | None:
    """Take the lease at `path`, or return None when someone else holds it.

    A dead holder is replaced. So is a living one of the same non-empty `owner`: a launch that starts a trial again
    knows that its first attempt is lost.
    """
    token = uuid.uuid4().hex
    with file_lock(path.with_name(".lock")):
        found = read_holder(path)
        superseded = found is not None and bool(owner) and found.get("owner") == owner
        if not superseded and is_alive(path):
            return None
        temporary = path.with_name(f".{path.name}.{token}")
        temporary.write_text(json.dumps({**holder(owner), "token": token}))
        os.replace(temporary, path)
    return Lease(path, token, beat_every)
