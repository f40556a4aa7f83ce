"""What can be wrong with the image files of a data set, and what must be said of them, all before any training.

Only their headers are read. Reading those of 118,000 images takes minutes on slow storage, so a good file's verdict is
remembered while the file is the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import unicodedata
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, NamedTuple
from urllib.parse import unquote

import PIL

from harness.data.checks import Problems
from harness.data.disk import ABSENT, KINDS, is_folder, list_images, open_file, shown, state
from harness.data.duplicates import same_content
from harness.data.pixels import TRAITS, UNREADABLE, open_image, refusal, traits
from harness.data.ticker import Progress, Ticker
from harness.errors import UserError
from harness.files import cache_dir, write_atomic

THREADS, FILES_AT_ONCE = 8, 256
VERDICTS = f"3-{PIL.__version__}"  # the version of what is remembered: of this room, and of what Pillow sees in a file
WHOLE = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}  # what stands at the end of a whole file
END = 4096  # bytes at the end of a file, and of uncompressed ones in the middle, by which likely copies are found
NAMED = 3  # files of a note
OTHER_SPLIT = re.compile("train|val|test")  # what a folder's name begins with that no file is looked for in
FOREIGN = {  # what begins so is something that Pillow does not read
    b"\xff\xd8\xff": "a damaged JPEG, or one of a kind (12-bit, lossless)",
    b"II*\0": "a damaged TIFF, or one of a kind (channels, bits)",
    b"MM\0*": "a damaged TIFF, or one of a kind (channels, bits)",
    b"II+\0": "a BigTIFF of a kind",
    b"#?RADIANCE": "a Radiance HDR, a kind of file",
    b"v/1\x01": "an OpenEXR, a kind of file",
    b"\x93NUMPY": "a NumPy array, a kind of file",
}

_Row = Mapping[str, Any]  # of an annotation file's images


class Verdict(NamedTuple):
    """What is known of a good image file."""

    state: list[int]  # of the file (see `disk.state`)
    width: int
    height: int
    traits: list[str]  # of the image (see `pixels.traits`)
    end: str  # digest of the file's last bytes (see `END`), by which a copy may be known


def check_files(folder: Path, images: list[dict[str, Any]], problems: Problems, progress: Progress | None) -> list[str]:
    """Is every image there, whole, readable, of a kind that can be trained on, and of the size that is annotated?

    A JPEG or PNG is whole when its end marker is there; one without is decoded to be sure. Damage in the
    middle of a file is found only when training decodes it.

    Returns:
        A line for each kind of image whose pixels are not simply taken as they are.
    """
    key = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:16]
    record = cache_dir() / "checked" / f"{key}-{VERDICTS}.json"
    known = _remembered(record)
    ticker = Ticker(progress, f"checking the images of {shown(folder)}", len(images))
    seen: dict[str, Verdict] = {}
    kinds: dict[str, list[str]] = defaultdict(list)
    nearest = _Nearest(folder)

    rows = [row for row in images if isinstance(row.get("file_name"), str)]
    with ThreadPoolExecutor(THREADS) as pool:  # storage answers several questions at once
        for start in range(0, len(rows), FILES_AT_ONCE):
            some = rows[start : start + FILES_AT_ONCE]
            names = [row["file_name"] for row in some]
            verdicts = pool.map(inspect, [folder / name for name in names], map(known.get, names))
            for row, (verdict, trouble) in zip(some, verdicts, strict=True):
                name = row["file_name"]
                if verdict is not None:
                    seen[name] = verdict
                    trouble = _other_size(row, verdict)
                    for trait in verdict.traits:
                        kind, label = _kind(trait, name, verdict)
                        kinds[kind].append(label)
                elif trouble.startswith("is missing"):
                    trouble += nearest.to(name)
                if trouble:
                    kind = "size" if verdict is not None else " ".join(trouble.split()[:2])
                    problems.add(kind, f"image {row.get('id')} ({shown(name)}) {trouble}")
            ticker.at(start + len(some))
    if {name: list(verdict) for name, verdict in seen.items()} != known:
        with suppress(OSError):  # a cache that cannot be written costs time, nothing else
            write_atomic(record, json.dumps(seen), durable=False)
    return [*(_note(folder, kind, labels) for kind, labels in sorted(kinds.items())), *_copies(folder, seen)]


def _copies(folder: Path, seen: Mapping[str, Verdict]) -> list[str]:
    """The note on images that are there several times, if any."""
    alike: dict[tuple[Any, ...], dict[int, str]] = defaultdict(dict)  # names by inode: links are told by other checks
    for name, (state_then, width, height, _, end) in seen.items():
        alike[state_then[0], width, height, end].setdefault(state_then[-1], name)
    groups = same_content(folder, [list(names.values()) for names in alike.values() if len(names) > 1])
    if not groups:
        return []
    count = sum(len(names) - 1 for names in groups)
    are = "image is a copy of another" if count == 1 else "images are copies of others"
    some = f"{shown(groups[0][0])} and {shown(groups[0][1])}{', …' if count > 1 else ''}"
    told = "what is marked in one of them alone is background in the other, and what is in both counts twice"
    return [f"note: {shown(folder)}: {count:,} {are}, byte for byte ({some}): {told}; keep one of them"]


def _remembered(record: Path) -> dict[str, Any]:
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


# ---- one file -----------------------------------------------------------------------------------------------------


def inspect(path: Path, known: Any) -> tuple[Verdict | None, str]:
    """What is known of a good image file, else None and what is wrong with it.

    Args:
        path: of the file.
        known: the verdict of another time, if any, as JSON has it; it is believed while the file is the same.
    """
    try:
        try:
            found = path.stat()
        except ValueError:  # a zero byte, or half of a surrogate pair
            return None, "cannot be the name of a file; correct it or remove the image from the annotation file"
        if not stat.S_ISREG(found.st_mode):
            what = KINDS.get(stat.S_IFMT(found.st_mode), "a device")
            return None, f"is {what}, not a file; put the image there or remove it from the annotation file"
        if isinstance(known, list) and len(known) == len(Verdict._fields) and known[0] == state(found):
            return Verdict(*known), ""
        with open_image(path) as (image, stream):
            if trouble := refusal(image):
                return None, trouble
            noted = traits(image, stream)
            end = WHOLE.get(image.format or "")
            stream.seek(0 if end else max(0, found.st_size // 2 - END))
            middle = b"" if end else stream.read(END)  # many pictures have the same border
            stream.seek(max(0, found.st_size - END))
            last = stream.read()
            verdict = Verdict(state(found), *image.size, noted, hashlib.sha256(middle + last).hexdigest()[:16])
            if end is None or end not in last[-64:]:
                with open_image(path) as (again, _):
                    again.load()
    except UNREADABLE as error:
        return None, _unreadable(path, error)
    return verdict, ""


def _unreadable(path: Path, error: BaseException) -> str:
    """What is wrong with a file that could not be opened or decoded."""
    remove = "or remove the image from the annotation file"
    if isinstance(error, OSError) and error.errno in ABSENT:
        link = f" (a link to {shown(os.readlink(path))} that leads nowhere)" if os.path.islink(path) else ""
        return f"is missing in {shown(path.parent)}{link}; add it {remove}"
    if "cannot identify" not in str(error):
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return f"cannot be read ({said.splitlines()[0] if said else type(error).__name__}); restore the file {remove}"
    with suppress(OSError), open_file(path) as stream:
        beginning = stream.read(16)
        for mark, kind in FOREIGN.items():
            if beginning.startswith(mark):
                return f"cannot be read ({kind} that Pillow does not read); store it as PNG or JPEG {remove}"
    return f"cannot be read (not an image); restore the file {remove}"


def _other_size(row: _Row, verdict: Verdict) -> str:
    """What is wrong when the file's size is not the annotated one; empty when it is."""
    told, real = [row.get("width"), row.get("height")], [verdict.width, verdict.height]
    if told == real or not all(type(side) is int for side in told):
        return ""
    if told != real[::-1]:
        what = "correct the file or its boxes"
    elif any(trait.startswith("orientation") for trait in verdict.traits):
        what = "it is annotated as its EXIF orientation shows it: store the image upright"
    elif "turned" in verdict.traits:
        what = "it is annotated as stored, and its orientation turns it: store the image without"
    else:
        what = "exchange the two there if they are mixed up, or store the image upright if the boxes are of it turned"
    return f"is {real[0]}x{real[1]} pixels, but the annotation file says {told[0]}x{told[1]}; {what}"


class _Nearest:
    """Images of a data set by their bare names, listed when the first one is missing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def to(self, name: str) -> str:
        """`; here is images/7.jpg` for a file that is not there; empty where nothing has its name."""
        bare = PurePath(unquote(name).replace("\\", "/"))
        near = self._names.get(_as_seen(bare.name)) or self._names.get(_as_seen(bare.stem))
        if not near:
            return ""
        there = PurePath(near).name
        composed = (unicodedata.normalize("NFC", text) for text in (there, bare.name))
        only_code = there != bare.name and len(set(composed)) == 1
        other = f", whose letters are coded otherwise: {ascii(there)[1:-1]}" if only_code else ""
        return f"; here is {shown(near)}{other}"

    @cached_property
    def _names(self) -> dict[str, str]:
        """By name, and by name without suffix, as they are seen: the path from the split's folder."""
        found: dict[str, str] = {}
        with suppress(UserError):
            is_root = is_folder(self._folder / "annotations")  # the data set's own, and images lie below it
            for name, _ in sorted(list_images(self._folder if is_root else self._folder.parent)):
                path = PurePath(name)
                within = is_root or path.parts[0] == self._folder.name
                if not within and OTHER_SPLIT.match(name.lower()):
                    continue
                for key in (_as_seen(path.name), _as_seen(path.stem)):
                    if within or key not in found:
                        found[key] = name if is_root else os.path.relpath(name, self._folder.name)
        return found


def _as_seen(name: str) -> str:
    """A file's name in small letters, each of one code, and without the escapes of an address (`%20`)."""
    return unicodedata.normalize("NFC", unquote(name)).lower()


# ---- what is said -------------------------------------------------------------------------------------------------


def _kind(trait: str, name: str, verdict: Verdict) -> tuple[str, str]:
    """A trait as it is noted, and the file in that note; sides that differ tell which way the boxes were drawn."""
    if not trait.startswith("orientation"):
        return trait, shown(name)
    number = int(trait.split()[1])
    sure = number >= 5 and verdict.width != verdict.height
    return ("orientation, sides" if sure else "orientation"), f"{shown(name)}: {number}"


def _note(folder: Path, kind: str, labels: list[str]) -> str:
    """One line for all images of a kind."""
    one = len(labels) == 1
    some = ", ".join(labels[:NAMED]) + (", …" if len(labels) > NAMED else "")
    begin = f"note: {shown(folder)}: {len(labels):,} image{'' if one else 's'}"
    if kind.startswith("orientation"):
        begin += f" {'has' if one else 'have'} an EXIF orientation ({some}); pixels are taken as stored"
        if kind == "orientation, sides":
            return f"{begin}, as the annotated sides are"
        return f"{begin}: if boxes were drawn on the image as viewers show it, store it upright"
    are, done = TRAITS[kind]
    return f"{begin} {'is' if one else 'are'} {are} ({some}), {done}"
