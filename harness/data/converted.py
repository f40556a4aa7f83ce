"""YOLO and VOC folders in COCO layout: annotation files in the cache, beside links to the folders of the images.

Converted once, and again when a file of the folder has changed. A record remembers which conversion belongs to which
state of the files. Conversions appear by a rename, whole, under a name that follows their content and the folder's
place. Their annotation files hold no place, so the fingerprint of the data set is the same wherever it lies.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from harness.data.conversion import folders_and_names, read_all
from harness.data.disk import is_folder, shown
from harness.data.duplicates import marks_of
from harness.data.foreign import Foreign, names_in
from harness.data.layout import SPLITS, is_coco
from harness.data.ticker import Progress, locked
from harness.data.voc import find_voc
from harness.data.yolo import find_yolo
from harness.errors import UserError
from harness.files import cache_dir, write_atomic

MOST_BELOW = 20  # folders in a folder that is none, which are looked at for what may be meant
CONVERSION = 3  # part of what a conversion is known by: raise it with every change of what is written or refused


class Own(NamedTuple):
    """A data set of the user's, in COCO layout."""

    folder: Path  # in COCO layout
    name: str  # for people
    source: Path | None  # that it was converted from; None: the folder itself
    lines: tuple[str, ...] = ()  # what a person must know of the conversion
    is_new: bool = False  # it was converted just now


def own_folder(path: Path, progress: Progress) -> Own:
    """The COCO-layout folder of a data set: `path` itself, or its conversion where it is a YOLO or VOC folder.

    Args:
        path: a folder, or a file that describes a YOLO data set.
        progress: takes lines about a conversion that is made now.

    Raises:
        UserError: everything that is wrong with a YOLO or VOC folder; or the cache cannot be written.
    """
    found = _recognised(Path(os.path.abspath(path)))
    if found is None:
        return Own(path, path.absolute().name, None)
    found.problems.raise_if_any()
    root = os.path.abspath(found.root)
    place = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    record = cache_dir() / "converted" / f"{place}-{_state(found)}.json"
    known, is_new = _known(record), False
    if known is None:
        try:
            known, is_new = _convert_once(found, place, record, progress), True
        except OSError as error:
            told = f"cannot be written into {record.parent} ({error.strerror or error})"
            raise UserError(f"{shown(root)}: its conversion {told}; set CODETR_CACHE to another folder") from error
    return Own(record.parent / known["folder"], Path(root).name, path, tuple(known["lines"]), is_new)


def _recognised(path: Path) -> Foreign | None:
    """A YOLO or VOC data set; None for anything else, whose faults are told of a folder in COCO layout."""
    if is_folder(path) and is_coco(path):
        return None
    yolo = find_yolo(path)
    voc = None if yolo and yolo.is_described else find_voc(path)
    if yolo and voc:
        told = "holds YOLO labels (.txt) and VOC annotations (.xml); move one of them away"
        raise UserError(f"data set {shown(path)} {told}, or name a data.yaml")
    if not yolo and not voc and is_folder(path):
        found = None
        for below in filter(is_folder, (path / name for name in names_in(path, MOST_BELOW))):
            with suppress(UserError):
                found = None if is_coco(below) else find_yolo(below) or find_voc(below)
            if found:
                told = f"no data set here; did you mean {shown(below)}, a {found.kind} folder?"
                raise UserError(f"data set {shown(path)}: {told}")
    return yolo or voc


def _state(found: Foreign) -> str:
    """A digest of what is known of the files without reading them: names, sizes, times, inodes."""
    digest = hashlib.sha256(f"{CONVERSION} {found.kind} {found.names} {found.problems.notes}".encode(errors="replace"))
    for split in SPLITS:
        for part in zip(*found.pictures[split], strict=True) if found.pictures[split] else ():
            names = [name or "" for name in part]
            digest.update("\0".join([split, *names, ""]).encode("utf-8", "surrogateescape"))
            digest.update(marks_of(Path(os.sep), names).tobytes())
    return digest.hexdigest()[:32]


def _known(record: Path) -> dict[str, Any] | None:
    """What a record tells of a conversion that is there."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        known = json.loads(record.read_text(encoding="utf-8"))
        if is_folder(record.parent / known["folder"]) and all(isinstance(line, str) for line in known["lines"]):
            return dict(known)
    return None


def _convert_once(found: Foreign, place: str, record: Path, progress: Progress) -> dict[str, Any]:
    """The conversion's record, made by one process while others wait for it and say so."""
    record.parent.mkdir(parents=True, exist_ok=True)

    def waiting(seconds: float) -> None:
        progress(f"{shown(found.root)}: another process converts it, waited {seconds:.0f} s")

    with locked(record.with_name(f"{place}.lock"), waiting):
        if known := _known(record):  # another process has just made it
            return known
        for leftover in record.parent.glob(f"{place}.*.tmp"):  # of a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        known = _written(found, place, record.parent, progress)
        write_atomic(record, json.dumps(known))
    return known


# ---- writing ------------------------------------------------------------------------------------------------------


def _written(found: Foreign, place: str, folder: Path, progress: Progress) -> dict[str, Any]:
    """The record of a conversion that is written into `folder`, whole, unless an equal one is there."""
    tables, categories = read_all(found, progress)
    contents = {split: json.dumps(table).encode() for split, table in tables.items()}
    folders = {split: folders_and_names([picture.image for picture in found.pictures[split]])[0] for split in SPLITS}
    digest = hashlib.sha256(json.dumps(folders).encode())
    for split in SPLITS:
        digest.update(contents[split])
    name = f"{place}-{digest.hexdigest()[:16]}"
    if not is_folder(folder / name):
        temporary = folder / f"{place}.{uuid.uuid4().hex}.tmp"
        for split in SPLITS:
            write_atomic(temporary / "annotations" / f"instances_{split}.json", contents[split])
            for link, target in folders[split].items():
                path = temporary / split / link
                path.parent.mkdir(parents=True, exist_ok=True)
                os.symlink(target, path)
        os.rename(temporary, folder / name)
    counts = " and ".join(f"{len(tables[split]['images']):,} {split} images" for split in SPLITS)
    objects = sum(len(table["annotations"]) for table in tables.values())
    told = f"{shown(found.root)}: a {found.kind} folder, {counts}, {objects:,} objects of {categories:,} classes"
    return {"folder": name, "lines": [f"{told}; converted once, into {folder / name}", *found.problems.notes]}
