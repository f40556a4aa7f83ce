"""The fingerprint of a data set's content: part of a trial's identity, so it must be cheap to ask for.

It decodes no image, and what it had to read once it remembers while the file is the same. There are two kinds:

- *By listing*, of a data set whose annotations name only image files that a listing of the split's folder finds: the
  annotation files' bytes, and the names and sizes of all image files in these folders. Where images are named from the
  data set's folder (LVIS, Objects365), only the folders in it count that hold some of them. Of the named BMP and TIFF
  files, whose size does not follow their pixels, the content counts too.
- *By naming*, of any other (images in another folder, with another suffix, hidden): the annotation files' bytes, and of
  every file that they name its size and content. Of compressed formats the beginning and the end stand for the content,
  since a change in between moves or changes the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.data.disk import is_folder, list_images, no_access, open_file, state, status
from harness.data.layout import find_splits
from harness.data.names import BY_FILE_NAME, Naming, is_root, naming_of
from harness.data.ticker import Progress, Ticker, print_aside
from harness.files import cache_dir, write_atomic

THREADS, FILES_AT_ONCE = 8, 256
SAMPLE = 65_536  # bytes at the beginning and at the end that stand for a compressed file
UNCOMPRESSED = (".bmp", ".tif", ".tiff")  # suffixes of listed files whose size may stay when they are repainted
COMPRESSED = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"\x00\x00\x00\x0cjP  ", b"\xff\x4f\xff\x51")
MISSING = "missing"  # of a file that is not there
CONTENTS = 2  # the version of what is remembered of contents

_Parts = tuple[Path, Path]  # annotation file, image folder


def folder_fingerprint(root: Path) -> str:
    """16 hex characters that change with the content of the data set at `root`, not with its place.

    Listing takes about a second per 100,000 images on a local disk. BMP and TIFF files, and images elsewhere, are read
    once; what takes long is told on stderr.

    Args:
        root: a folder in COCO layout.

    Raises:
        UserError: parts of the data set are missing, or the system lets us not see them.
    """
    splits = find_splits(root)
    hashes = {split: _annotation_hash(annotation_file) for split, (annotation_file, _) in splits.items()}
    named = {split: _named_files(*splits[split], hashes[split]) for split in splits}
    listed = {split: _listed(*splits[split], named[split]) for split in splits}
    digest = hashlib.sha256()
    if any(_names_others(splits[split][1], named[split], listed[split]) for split in splits):
        digest.update(b"by naming\0")
        parts = {split: [_contents(*splits[split], named[split], print_aside)] for split in splits}
    else:
        parts = {
            split: [{name: str(size) for name, size in listed[split].items()}, _pixels(*own, named[split], print_aside)]
            for split, own in splits.items()
        }
    for split in splits:
        digest.update(f"{split}\0{hashes[split]}\0".encode())
        for files in parts[split]:
            for name, content in sorted(files.items()):
                digest.update(f"{name}\0{content}\0".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def _pixels(annotation_file: Path, folder: Path, named: list[str], progress: Progress) -> dict[str, str]:
    """What the listed files hold whose size does not tell it. One that is not there is told by the listing."""
    names = [name for name in named if name.lower().endswith(UNCOMPRESSED)]
    contents = _contents(annotation_file, folder, names, progress) if names else {}
    return {name: content for name, content in contents.items() if content != MISSING}


def _listed(annotation_file: Path, folder: Path, named: list[str]) -> dict[str, int]:
    """Bytes of the image files in the folders of a split, by name."""
    if not is_root(annotation_file, folder):
        return dict(list_images(folder))
    first = sorted({name.partition("/")[0] for name in named if "/" in name})
    below = ((part, folder / part) for part in first)
    return {f"{part}/{name}": size for part, path in below if is_folder(path) for name, size in list_images(path)}


def _names_others(folder: Path, names: list[str], listed: Mapping[str, int]) -> bool:
    """Whether one of the named files is there and is none of the listed ones, under whatever name."""
    place = os.path.realpath(folder)
    for name in names:
        if name in listed:
            continue
        path = os.path.join(folder, name)
        if status(path) is not None and os.path.relpath(os.path.realpath(path), place) not in listed:
            return True
    return False


# ---- what annotations name ----------------------------------------------------------------------------------------


def _named_files(annotation_file: Path, folder: Path, file_hash: str) -> list[str]:
    """Names of a split's images, each once; remembered by the file's hash. Nothing of a file that is no annotation."""
    naming = naming_of(annotation_file, folder)
    way = hashlib.sha256(json.dumps(naming).encode("utf-8", "surrogatepass")).hexdigest()[:8]
    record = cache_dir() / "names" / f"{file_hash[:32]}-{way}.json"
    names = _remembered(record)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        names = _read_names(annotation_file, naming)
        with suppress(OSError):  # a cache that cannot be written costs time, nothing else
            write_atomic(record, json.dumps(names), durable=False)
    return names


def _read_names(annotation_file: Path, naming: Naming = BY_FILE_NAME) -> list[str]:
    try:
        with open_file(annotation_file) as stream:
            content = stream.read()
    except OSError as error:
        raise no_access(annotation_file, error) from error
    try:
        images = _images_alone(content)
        if images is None:
            whole = json.loads(content, object_hook=_names_only)
            images = whole.get("images") if isinstance(whole, dict) else None
    except (ValueError, RecursionError):
        return []  # the checks tell
    rows = [row for row in images if isinstance(row, dict)] if isinstance(images, list) else []
    return sorted({name for row in rows if isinstance(name := naming.of(row), str)})


def _images_alone(content: bytes) -> Any:
    """The table of images without the objects, which fill a hundred times its space; None where it is not so simple."""
    start = content.find(b'"images"')
    if start < 0 or content.find(b'"images"', start + 1) >= 0:
        return None
    end = content.find(b'"annotations"', start)
    text = content[start + len(b'"images"') : end if end >= 0 else None].decode("utf-8", "surrogatepass")
    colon = re.match(r"\s*:\s*", text)
    with suppress(ValueError):  # `end` may be the name of a file
        return None if colon is None else _IMAGES.raw_decode(text, colon.end())[0]
    return None


def _names_only(row: dict[str, Any]) -> dict[str, Any]:
    """Of a JSON object what this room reads; the rest of a large file would fill the memory."""
    return {key: row[key] for key in ("images", "file_name", "coco_url") if key in row}


_IMAGES = json.JSONDecoder(object_hook=_names_only)


def _remembered(record: Path) -> Any:
    try:
        return json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


# ---- what files hold ----------------------------------------------------------------------------------------------


def file_hash(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits, remembered while the file is the same (see `state`).

    Raises:
        OSError: it cannot be read.
    """
    marks = state(os.stat(path))
    key = b"\0".join([os.fsencode(path.absolute()), *(str(mark).encode() for mark in marks)])
    record = cache_dir() / "hashes" / hashlib.sha256(key).hexdigest()[:32]
    with suppress(OSError, UnicodeDecodeError):
        if re.fullmatch("[0-9a-f]{64}", known := record.read_text(encoding="utf-8")):
            return known
    with open_file(path) as stream:
        value = hashlib.file_digest(stream, "sha256").hexdigest()
        after = state(os.fstat(stream.fileno()))
    if after == marks:  # else somebody is writing it
        with suppress(OSError):  # a cache that cannot be written costs time, nothing else
            write_atomic(record, value, durable=False)
    return value


def _annotation_hash(path: Path) -> str:
    try:
        return file_hash(path)
    except OSError as error:
        raise no_access(path, error) from error


def _contents(annotation_file: Path, folder: Path, names: list[str], progress: Progress) -> dict[str, str]:
    """Of each named file its size and a digest; `MISSING` where there is none."""
    place = b"\0".join(os.fsencode(path.absolute()) for path in (annotation_file, folder))
    key = hashlib.sha256(place).hexdigest()[:16]
    record = cache_dir() / "contents" / f"{key}-{CONTENTS}.json"
    remembered = _remembered(record)
    known = remembered if isinstance(remembered, dict) else {}
    seen: dict[str, list[Any]] = {}
    files: dict[str, str] = {}
    ticker = Ticker(progress, f"reading the images of {folder.name}/ for its fingerprint", len(names))
    with ThreadPoolExecutor(THREADS) as pool:  # storage answers several questions at once
        for start in range(0, len(names), FILES_AT_ONCE):
            some = names[start : start + FILES_AT_ONCE]
            paths = [os.path.join(folder, name) for name in some]
            for name, entry in zip(some, pool.map(_content, paths, map(known.get, some)), strict=True):
                files[name] = MISSING if entry is None else f"{entry[0][0]}\0{entry[1]}"
                if entry is not None:
                    seen[name] = entry
            ticker.at(start + len(some))
    if seen != known:
        with suppress(OSError):  # a cache that cannot be written costs time, nothing else
            write_atomic(record, json.dumps(seen), durable=False)
    return files


def _content(path: str, known: Any) -> list[Any] | None:
    """[state, digest] of a file; None where there is none."""
    found = status(path)
    if found is None or not stat.S_ISREG(found.st_mode):
        return None
    marks = state(found)
    if isinstance(known, list) and known[:1] == [marks] and isinstance(known[-1], str):
        return known
    digest = hashlib.sha256()
    try:
        with open_file(path) as stream:
            beginning = stream.read(SAMPLE)
            digest.update(beginning)
            if _is_compressed(beginning):
                stream.seek(max(len(beginning), found.st_size - SAMPLE))
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise no_access(path, error) from error
    return [marks, digest.hexdigest()[:32]]


def _is_compressed(beginning: bytes) -> bool:
    """Whether a file that begins so is of a format that always compresses its pixels."""
    webp = beginning[:4] == b"RIFF" and beginning[8:12] == b"WEBP"
    avif = beginning[4:8] == b"ftyp"
    return webp or avif or beginning.startswith(COMPRESSED)
