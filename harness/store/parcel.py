"""An archive or folder of records that came from elsewhere: what it holds by name, and nothing that leads elsewhere."""

from __future__ import annotations

import errno
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from harness.errors import ReadError, UserError
from harness.files import ABSENT, files_below, is_folder, listed

LARGEST = 2**30  # bytes of a file that is read into memory
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError)  # cut off, encrypted and so on


class Refused(ValueError):
    """Why a record is not taken."""


class Parcel(Protocol):
    """Files by name: an archive or a folder."""

    names: list[str]

    def open(self, name: str) -> IO[bytes]:
        """The content of a file, to be read."""
        ...

    def size(self, name: str) -> int:
        """Its bytes."""
        ...


class _Archive:
    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self.names = [info.filename for info in archive.infolist() if not info.is_dir()]

    def open(self, name: str) -> IO[bytes]:
        return self._archive.open(name)

    def size(self, name: str) -> int:
        return self._archive.getinfo(name).file_size


class _Folder:
    def __init__(self, root: Path) -> None:
        self._root = root
        found = (path for part in ("runs", "grids") for folder in listed(root / part) for path in files_below(folder))
        self.names = [path.relative_to(root).as_posix() for path in found]

    def open(self, name: str) -> IO[bytes]:
        return (self._root / name).open("rb")

    def size(self, name: str) -> int:
        return (self._root / name).stat().st_size


@contextmanager
def opened(source: Path) -> Iterator[Parcel]:
    """The archive or folder at `source`.

    Raises:
        UserError: there is none, it is damaged, or it holds names that lead elsewhere.
        ReadError: the storage does not give it.
    """
    if is_folder(source):
        parcel: Parcel = _Folder(source)
        if not parcel.names:
            raise UserError(f"{source}: no records there; they lie in runs/<trial id>/ below it")
        yield parcel
        return
    try:
        archive = zipfile.ZipFile(source)
    except ABSENT:
        raise UserError(f"{source}: no such archive or folder") from None
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place before the beginning, which only a damaged archive names
            raise ReadError(source, error) from error
        raise UserError(f"{source}: cannot be read as an archive of records ({error}); export it again") from error
    except (zipfile.BadZipFile, ValueError) as error:
        raise UserError(f"{source}: cannot be read as an archive of records ({error}); export it again") from error
    with archive:
        parcel = _Archive(archive)
        for name in parcel.names:
            parts = name.split("/")
            if "\\" in name or ":" in parts[0] or any(part in ("", ".", "..") for part in parts):
                raise UserError(f"{source}: holds '{name}', which leads out of the store; nothing was taken")
        if len(set(parcel.names)) < len(parcel.names):
            raise UserError(f"{source}: holds a file twice; nothing was taken")
        yield parcel


def read(parcel: Parcel, name: str) -> bytes:
    """A file whole.

    Raises:
        Refused: it is damaged, or too large for a record.
        ReadError: the storage does not give it.
    """
    try:
        if parcel.size(name) > LARGEST:
            raise Refused(f"{name.rpartition('/')[2]} has {parcel.size(name):,} bytes, more than any record")
        with parcel.open(name) as handle:
            return handle.read()
    except OSError as error:
        if error.errno != errno.EINVAL:  # as in `opened`
            raise ReadError(name, error) from error
        raise Refused(f"{name.rpartition('/')[2]} cannot be read: {error}") from error
    except DAMAGE as error:
        raise Refused(f"{name.rpartition('/')[2]} cannot be read: {error}") from error


def unpack(parcel: Parcel, name: str, target: Path) -> None:
    """Write a file of any size to `target`.

    Raises:
        Refused: it is damaged.
    """
    target.parent.mkdir(parents=True)
    try:
        with parcel.open(name) as source, target.open("wb") as handle:
            shutil.copyfileobj(source, handle)
            handle.flush()
            os.fsync(handle.fileno())
    except DAMAGE as error:
        raise Refused(f"{name.rpartition('/')[2]} cannot be read: {error}") from error
