"""Where a COCO-layout data set keeps its files, and the fingerprint of their content.

The fingerprint is part of a trial's identity, so it must be cheap to ask for: it reads no image and no annotation.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from harness.errors import UserError
from harness.results import cache_dir, write_atomic

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
Split = Literal["train", "val"]
LAYOUT = "the layout is train/, val/, annotations/instances_train.json, annotations/instances_val.json"
SPLITS: tuple[Split, ...] = ("train", "val")


def find_split(root: Path, split: Split) -> tuple[Path, Path]:
    """(annotation file, image folder) of a split.

    Raises:
        UserError: the folder, the annotation file or the image folder is missing.
    """
    if not root.is_dir():
        raise UserError(f"data set {root}: no such folder; data.path must name a folder in COCO layout")
    for year in ("", "2017", "2014"):
        annotation_file = root / "annotations" / f"instances_{split}{year}.json"
        if annotation_file.is_file():
            folder = root / f"{split}{year}"
            if not folder.is_dir():
                raise UserError(f"data set {root}: image folder {folder.name}/ is missing; {_found(root)}; {LAYOUT}")
            return annotation_file, folder
    raise UserError(f"data set {root}: annotations/instances_{split}.json is missing; {_found(root)}; {LAYOUT}")


def _found(root: Path) -> str:
    """What is there instead: annotation files, then everything else beside `annotations/`."""
    names = sorted(f"annotations/{path.name}" for path in root.glob("annotations/*.json"))
    names += sorted(
        f"{path.name}/" if path.is_dir() else path.name for path in root.iterdir() if path.name != "annotations"
    )
    return (
        f"here {'are' if len(names) > 1 else 'is'} {', '.join(names[:6]) or 'nothing'}{', …' if len(names) > 6 else ''}"
    )


def folder_fingerprint(root: Path) -> str:
    """16 hex characters of the annotation files' bytes and the images' sorted names and sizes, of both splits.

    A copy elsewhere has the same. Hashes of annotation files are remembered by size and modification time.
    Listing takes about a second per 100,000 images on a local disk.
    """
    digest = hashlib.sha256()
    for split in SPLITS:
        annotation_file, folder = find_split(root, split)
        digest.update(f"{split}\0{file_hash(annotation_file)}\0".encode())
        for name, size in sorted(_list_images(str(folder))):
            digest.update(f"{name}\0{size}\0".encode())
    return digest.hexdigest()[:16]


def file_hash(path: Path, *, same_entry: bool = False) -> str:
    """SHA-256 of a file, 64 hex digits, remembered while its size and modification time stay.

    Args:
        path: the file.
        same_entry: its inode and time of change must stay as well: a file that is moved here, as one of several of the
            same size often is, keeps its modification time.

    Raises:
        OSError: it cannot be read.
    """
    status = path.stat()
    marks = [status.st_size, status.st_mtime_ns, *([status.st_ctime_ns, status.st_ino] if same_entry else [])]
    key = b"\0".join([os.fsencode(path.absolute()), *(str(mark).encode() for mark in marks)])
    record = cache_dir() / "hashes" / hashlib.sha256(key).hexdigest()[:32]
    with suppress(OSError, UnicodeDecodeError):
        if re.fullmatch("[0-9a-f]{64}", known := record.read_text()):
            return known
    with open(path, "rb") as stream:
        value = hashlib.file_digest(stream, "sha256").hexdigest()
        after = os.fstat(stream.fileno())
    if (after.st_size, after.st_mtime_ns) == (marks[0], marks[1]):  # else somebody is writing it
        with suppress(OSError):  # a cache that cannot be written costs time, nothing else
            write_atomic(record, value, durable=False)
    return value


def _list_images(folder: str, prefix: str = "") -> Iterator[tuple[str, int]]:
    """(name relative to the folder, bytes) of every image file below it; hidden files are left out."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _list_images(entry.path, f"{prefix}{entry.name}/")
            elif entry.name.lower().endswith(IMAGE_SUFFIXES):
                yield f"{prefix}{entry.name}", entry.stat().st_size
