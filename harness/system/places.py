"""Folders that every process needs and that containers and batch systems may lack: a home, and one for temporary files.

What is missing is replaced in the environment before anything looks there, so that libraries and the processes started
from here (Ray's, MLflow's) find it too. Records are never put into a folder that may be gone tomorrow: without a home
folder a person must name one (`harness.files.store_dir`).
"""

from __future__ import annotations

import os
import pwd
import tempfile
from pathlib import Path

from harness.errors import UserError

SOCKET_BYTES = 107  # of a socket's path, at most
RAY_SOCKET = "/ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store_12"  # the longest below TMPDIR
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
CACHES = {"XDG_CACHE_HOME": ".cache", "CODETR_CACHE": ".cache/codetr", "MPLCONFIGDIR": ".config/matplotlib"}


def settle() -> list[str]:
    """Make the environment name a user, a home folder and a folder for temporary files; returns notes about it.

    Raises:
        UserError: no folder for temporary files can be written.
    """
    return [*_settle_temporary(), *_settle_home()]


def _settle_temporary() -> list[str]:
    asked = os.environ.get("TMPDIR")
    try:
        folder = tempfile.gettempdir()  # the first of several that takes a file
    except OSError as error:
        raise UserError(f"no folder for temporary files can be written ({error}); set TMPDIR") from None
    notes = []
    if asked and os.path.abspath(asked) != os.path.abspath(folder):
        notes.append(f"TMPDIR={asked} cannot be written; temporary files go to {folder}")
    if len(os.fsencode(folder + RAY_SOCKET)) > SOCKET_BYTES:
        short = next((other for other in SHORT_FOLDERS if _is_writable(other)), folder)
        if short != folder:
            notes.append(f"TMPDIR={folder} is too long for sockets, as Ray has; temporary files go to {short}")
        folder = short
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    return notes


def _settle_home() -> list[str]:
    if not _has_name():
        os.environ["USER"] = os.environ["LOGNAME"] = f"uid{os.getuid()}"  # `getpass.getuser` fails without
    home = os.path.expanduser("~")
    if _is_writable(home):
        return []
    own = Path(os.environ["TMPDIR"]) / f"codetr-{os.getuid()}"
    own.mkdir(mode=0o700, exist_ok=True)
    if own.stat().st_uid != os.getuid() or not _is_writable(str(own)):  # somebody else's trap
        own = Path(tempfile.mkdtemp(prefix="codetr-"))
    for name, place in CACHES.items():
        if not _is_writable(os.path.join(home, place)):  # as a volume may be
            os.environ.setdefault(name, str(own / place))
    if not os.path.isdir(home):
        os.environ["HOME"] = str(own)
        os.environ["CODETR_HOMELESS"] = "1"
        return [f"there is no home folder; caches go to {own}"]
    return [f"the home folder {home} cannot be written; caches go to {own}"]


def _has_name() -> bool:
    if any(os.environ.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")):
        return True
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return True


def _is_writable(folder: str) -> bool:
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)
