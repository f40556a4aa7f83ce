"""Reading from (shared) storage: what is not there is told from what does not answer.

A missing file is a fact. An error of the storage (a stale handle, too many open files, no rights) says nothing about
the file. `Path.exists`, `glob` and their like take some errors for an absence, so nothing that decides about a record
may rest on them.
"""

from __future__ import annotations

import os
import stat as modes
from collections.abc import Iterator
from pathlib import Path

from harness.errors import ReadError

ABSENT = (FileNotFoundError, NotADirectoryError)
CHUNK = 2**20  # bytes


def read_bytes(path: Path) -> bytes | None:
    """The content of a file; None where there is none.

    Raises:
        ReadError: the storage does not give it.
    """
    try:
        return path.read_bytes()
    except ABSENT:
        return None
    except OSError as error:
        raise ReadError(path, error) from error


def read_text(path: Path) -> str | None:
    """The content of a text file, whatever its bytes; None where there is none.

    Raises:
        ReadError: the storage does not give it.
    """
    data = read_bytes(path)
    return None if data is None else data.decode(errors="replace")


def chunks(path: Path) -> Iterator[bytes]:
    """The content of a file of any size, piece by piece.

    Raises:
        ReadError: there is none, or the storage does not give it.
    """
    try:
        with open(path, "rb") as handle:
            while piece := handle.read(CHUNK):
                yield piece
    except OSError as error:
        raise ReadError(path, error) from error


def attributes(path: Path) -> os.stat_result | None:
    """What the storage knows of a file or folder; None where there is none.

    Raises:
        ReadError: the storage does not tell.
    """
    try:
        return os.stat(path)
    except ABSENT:
        return None
    except OSError as error:
        raise ReadError(path, error) from error


def exists(path: Path) -> bool:
    """Is there something at `path`? Raises `ReadError` where the storage does not tell."""
    return attributes(path) is not None


def is_file(path: Path) -> bool:
    """Is there a file? Raises `ReadError` where the storage does not tell."""
    found = attributes(path)
    return found is not None and modes.S_ISREG(found.st_mode)


def is_folder(path: Path) -> bool:
    """Is there a folder? Raises `ReadError` where the storage does not tell."""
    found = attributes(path)
    return found is not None and modes.S_ISDIR(found.st_mode)


def listed(folder: Path) -> list[Path]:
    """What lies in a folder, sorted; nothing where there is none.

    Raises:
        ReadError: the storage does not tell.
    """
    try:
        return sorted(folder / name for name in os.listdir(folder))
    except ABSENT:
        return []
    except OSError as error:
        raise ReadError(folder, error) from error


def files_below(folder: Path) -> list[Path]:
    """All files in a folder and the folders below it, sorted; nothing where there is none. Links are left out.

    Raises:
        ReadError: the storage does not tell.
    """
    found: list[Path] = []
    for path in listed(folder):
        try:
            mode = os.lstat(path).st_mode
        except ABSENT:
            continue  # gone meanwhile
        except OSError as error:
            raise ReadError(path, error) from error
        if modes.S_ISDIR(mode):
            found += files_below(path)
        elif modes.S_ISREG(mode):
            found.append(path)
    return sorted(found)
