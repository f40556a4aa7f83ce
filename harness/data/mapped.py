"""Arrays in one file, which every process of a machine maps instead of having its own.

The file is written whole or not at all. It is believed only if it is of this format, is about what is asked for, and
each of its bytes is as it was written: a torn or changed file counts as none.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import UserError
from harness.files import write_atomic

MAGIC, ALIGNMENT, CHUNK = b"codetr arrays 1\n", 64, 1 << 20
_HEAD = struct.Struct("<16sQI")  # magic, bytes of the header, checksum of the header


class Mapped:
    """Named arrays and a header, from a file where there is one; another process gets the map, not the numbers."""

    def __init__(self, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray], path: Path | None = None) -> None:
        self.header, self.arrays, self.path = dict(header), dict(arrays), path

    def __reduce__(self) -> tuple[Any, ...]:
        if self.path is None:
            return Mapped, (self.header, self.arrays)
        return _map_again, (self.path, self.header["checksum"])


def write_arrays(path: Path, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays and a header of JSON that says what they are about.

    Raises:
        StorageError: they could not be written; what was there stays.
    """
    places: dict[str, tuple[str, tuple[int, ...], int]] = {}
    pieces, size, checksum = [], 0, 0
    for name, values in arrays.items():
        data = np.ascontiguousarray(values).tobytes()
        data += b"\0" * (-len(data) % ALIGNMENT)
        places[name] = (values.dtype.str, values.shape, size)
        size, checksum = size + len(data), zlib.crc32(data, checksum)
        pieces.append(data)
    text = json.dumps({**header, "arrays": places, "size": size, "checksum": checksum}).encode()
    text += b" " * (-(_HEAD.size + len(text)) % ALIGNMENT)
    write_atomic(path, b"".join([_HEAD.pack(MAGIC, len(text), zlib.crc32(text)), text, *pieces]), durable=False)


def map_arrays(path: Path, about: Mapping[str, Any]) -> Mapped | None:
    """Map the arrays of a file; None where there is none, or none that is whole and about this.

    Args:
        path: the file.
        about: entries that its header must have.
    """
    with suppress(OSError, ValueError, KeyError, TypeError, struct.error), open(path, "rb") as file:
        magic, length, checksum = _HEAD.unpack(file.read(_HEAD.size))
        text = file.read(length) if magic == MAGIC and length <= os.fstat(file.fileno()).st_size else b""
        if not text or zlib.crc32(text) != checksum:
            return None
        header = json.loads(text)
        if any(header[name] != value for name, value in about.items()):
            return None
        found = 0
        while block := file.read(CHUNK):  # not through the map: what is only looked over stays out of this process
            found = zlib.crc32(block, found)
        start = _HEAD.size + length
        if found != header["checksum"] or file.tell() != start + header["size"]:
            return None
        whole = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)[start:]
        return Mapped(header, {name: _array(whole, *place) for name, place in header["arrays"].items()}, path)
    return None


def _array(whole: np.ndarray, dtype: str, shape: list[int], offset: int) -> np.ndarray:
    kind = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    return whole[offset : offset + size].view(kind).reshape(shape)


def _map_again(path: Path, checksum: int) -> Mapped:
    """In another process; the file may have been replaced meanwhile."""
    found = map_arrays(path, {"checksum": checksum})
    if found is None:
        raise UserError(f"{path} has changed: somebody changes a data set that is trained on; run it again")
    return found
