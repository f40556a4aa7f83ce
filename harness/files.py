"""Reading from (shared) storage, where what is not there is told from what does not answer; and writing whole files.

A missing file is a fact. An error of the storage (a stale handle, too many open files, no rights) says nothing about
the file. `Path.exists`, `glob` and their like take some errors for an absence, so nothing that decides about a record
may rest on them.
"""

from __future__ import annotations

import json
import math
import os
import stat as modes
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.errors import ReadError, StorageError, UserError

TEMPORARY = (".*.tmp", ".tmp*")  # what killed writers leave: files of `write_atomic` and the like, and of safetensors

ABSENT = (FileNotFoundError, NotADirectoryError)
CHUNK = 2**20  # bytes
LONGEST_KEPT = 200  # bytes of a file's name in that of its temporary file; disks take 255


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


def write_atomic(
    path: Path | str, data: bytes | str, *, durable: bool = True, confirm: Callable[[], object] | None = None
) -> None:
    """Replace the file at `path` by `data` whole or not at all; folders are made.

    Args:
        path: the file.
        data: text is written as UTF-8, and what has no such form (bytes of a file's name) as escapes.
        durable: wait until the disk has it; False for what may be lost with the machine (heartbeats).
        confirm: called before the file is replaced; what it raises keeps the file as it was.

    Raises:
        StorageError: it could not be written; the file is as it was.
    """
    path = Path(path)
    kept = os.fsencode(path.name)[:LONGEST_KEPT].decode("utf-8", "ignore")  # a disk takes no long one
    temporary = path.with_name(f".{kept}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as handle:
            handle.write(data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data)
            if durable:
                handle.flush()
                os.fsync(handle.fileno())
        if confirm is not None:
            confirm()
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, StorageError):
            raise StorageError(path, error) from error
        raise


def without_nan(value: Any) -> Any:
    """JSON has no nan or infinity: undefined numbers become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return value


def to_json(value: Any, indent: int | None = None) -> str:
    """Strict JSON; numbers that are not finite become null."""
    return json.dumps(without_nan(value), indent=indent, allow_nan=False)


def store_dir() -> Path:
    """The store of records: $CODETR_STORE, else ~/codetr. Absolute.

    Raises:
        UserError: neither is there.
    """
    if not os.environ.get("CODETR_STORE") and os.environ.get("CODETR_HOMELESS"):
        raise UserError("there is no home folder to keep records in: give --store DIR or set CODETR_STORE")
    return Path(os.path.expanduser(os.environ.get("CODETR_STORE") or "~/codetr")).absolute()


def cache_dir() -> Path:
    """Generated data sets and other things that can be made again: $CODETR_CACHE, else ~/.cache/codetr. Absolute."""
    return Path(os.path.expanduser(os.environ.get("CODETR_CACHE") or "~/.cache/codetr")).absolute()
