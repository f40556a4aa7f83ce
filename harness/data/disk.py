"""Files and folders as a disk may hold them: dangling links, loops, pipes, names that are not UTF-8, no rights.

What is not there is simply not there, however that came about. Anything else that the system says of a file (no
rights, a storage that does not answer) is told in one line and never taken for an absence.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from harness.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)  # links in a circle, too
KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


class NotAFile(OSError):
    """A pipe, a socket, a device or a folder, where a file is needed: reading it might never end."""


def shown(name: Path | str) -> str:
    """A file's name as it can stand in one line, on any terminal: what cannot be printed is escaped."""
    text = str(name)
    return text if text.isprintable() else ascii(text)[1:-1]


def no_access(path: Path | str, error: OSError) -> UserError:
    """The one line for a file or folder that the system refuses."""
    return UserError(f"{shown(path)} cannot be read ({error.strerror or error}); see to its rights and its storage")


def status(path: Path | str) -> os.stat_result | None:
    """Of what `path` leads to by whatever links; None where there is nothing, or where it cannot be a path.

    Raises:
        UserError: the system does not let us see.
    """
    try:
        return os.stat(path)
    except ValueError:  # a zero byte, or half of a surrogate pair
        return None
    except OSError as error:
        if error.errno in ABSENT:
            return None
        raise no_access(path, error) from error


def state(found: os.stat_result) -> list[int]:
    """Size, times of modification and of change, and inode: what is remembered of a file is believed while these stay.

    Size and modification time alone do not do: a file that is moved here, as one of several of the same size often is,
    keeps them.
    """
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def is_file(path: Path) -> bool:
    """Whether this is a regular file, by whatever links. Raises `UserError` as `status` does."""
    found = status(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def is_folder(path: Path) -> bool:
    """Whether this is a folder, by whatever links. Raises `UserError` as `status` does."""
    found = status(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def is_image(name: str) -> bool:
    """Whether a file's name ends as those of images do."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def open_file(path: Path | str) -> BufferedReader:
    """Open a regular file for reading; never waits for the other end of a pipe.

    Raises:
        NotAFile: it is something else.
        OSError: it cannot be opened.
        ValueError: it cannot be a path.
    """
    try:
        stream = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: SIM115
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise NotAFile(error.errno, "it is a socket, not a file") from error
        raise
    mode = os.fstat(stream.fileno()).st_mode
    if not stat.S_ISREG(mode):
        stream.close()
        raise NotAFile(errno.EINVAL, f"it is {KINDS.get(stat.S_IFMT(mode), 'a device')}, not a file")
    return stream


def list_images(folder: Path) -> Iterator[tuple[str, int]]:
    """(name relative to the folder, bytes) of every image file below it, in no order.

    Hidden files and folders are left out, and links that lead nowhere or back to a folder above them. What lies in a
    folder below that we may not look into is left out too: where an annotation names it, the checks tell.

    Raises:
        UserError: we may not look into the folder itself, or the storage does not answer.
    """
    waiting: list[tuple[str, str, tuple[tuple[int, int], ...]]] = [(str(folder), "", _above(folder))]
    while waiting:
        path, prefix, above = waiting.pop()
        try:
            with os.scandir(path) as found:
                entries = [entry for entry in found if not entry.name.startswith(".")]
        except OSError as error:
            if path != str(folder) and (isinstance(error, PermissionError) or error.errno in ABSENT):
                continue
            raise no_access(path, error) from error
        for entry in entries:
            try:
                status = entry.stat()
            except OSError as error:
                if isinstance(error, PermissionError) or error.errno in ABSENT:
                    continue
                raise no_access(entry.path, error) from error
            if not stat.S_ISDIR(status.st_mode):
                if is_image(entry.name):
                    yield f"{prefix}{entry.name}", status.st_size
            elif (place := (status.st_dev, status.st_ino)) not in above:
                waiting.append((entry.path, f"{prefix}{entry.name}/", (*above, place)))


def _above(folder: Path) -> tuple[tuple[int, int], ...]:
    """Device and number of a folder and of all above it, by which a link back is known."""
    found = []
    for path in (real := Path(os.path.realpath(folder)), *real.parents):
        try:
            status = path.stat()
        except OSError:
            continue  # nobody can link to what nobody can see
        found.append((status.st_dev, status.st_ino))
    return tuple(found)
