"""Errors meant for a person: one line that says what, where and what to do."""

from __future__ import annotations

import errno
import os

from harness.passwords import masked

RIGHTS = [os.strerror(code) for code in (errno.EACCES, errno.EPERM, errno.EROFS)]  # what room or time does not mend

NO_FOLDER = [os.strerror(code) for code in (errno.ENOENT, errno.ENOTDIR, errno.EEXIST)]
ADVICE = dict.fromkeys(RIGHTS, "see to the rights there") | dict.fromkeys(NO_FOLDER, "name a folder that can be there")


class UserError(ValueError):
    """A mistake in a file, a path or an option. The command line prints it without a traceback and exits 2."""


class RankLost(RuntimeError):
    """A process of a trial was killed or crashed; started again, the trial continues from its checkpoint."""


class Interrupted(Exception):
    """The trial was asked to stop and has left a checkpoint: an outcome, not an error."""


class OutOfMemory(RuntimeError):
    """The trial does not fit; the one line says where, by how much, and what would make it fit."""


class NonFiniteLoss(RuntimeError):
    """A loss became infinite or not a number; the trial stops and names the terms, the step and the images."""


class StorageError(OSError):
    """A file could not be written (disk full, quota, rights). What was there before is still whole."""

    def __init__(self, path: object, cause: object) -> None:
        self.path = str(path)
        self.reason = (isinstance(cause, OSError) and cause.strerror) or str(cause)
        super().__init__(self.path, self.reason)

    def __str__(self) -> str:
        advice = ADVICE.get(self.reason, "make room there")
        return f"{self.path} cannot be written ({self.reason}); {advice}, then run the same command again"


class ReadError(StorageError):
    """A file could not be read, for a reason that says nothing about what it holds or whether it is there."""

    def __str__(self) -> str:
        advice = "see to the rights there" if self.reason in RIGHTS else "try again later"
        return f"{self.path} cannot be read ({self.reason}), which says nothing about its content; {advice}"


def install_hint(extra: str) -> str:
    """The command that brings the packages of an extra in the versions that are tested, from a copy of the source."""
    return f"pip install -c constraints.txt -e '.[{extra}]'"


def one_line(error: BaseException) -> str:
    """The first line of an error's text, without passwords; of a broken connection, what the system says of it."""
    root = error
    while (below := root.__cause__ or root.__context__) is not None:
        root = below
    if isinstance(root, OSError) and root.strerror:
        return root.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return masked(lines[0])[:300] if lines else type(error).__name__
