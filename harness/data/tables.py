"""A split's annotation file as checked columns: read and checked once per machine, and mapped from then on.

The columns of a large file lie in the cache. They are believed while the annotation file, all image files and the code
that checks them are the same as then; otherwise everything is read and checked again, as of a small file each time.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from harness.data.checks import (
    KNOWN_EMPTY_BOXES,
    Problems,
    brief,
    check_annotations,
    check_categories,
    check_images,
    check_tables,
    is_number,
)
from harness.data.columns import Segmentations, Texts
from harness.data.content import file_hash
from harness.data.disk import no_access, open_file
from harness.data.duplicates import GONE, check_same_image, file_marks, marks_of, note_same_objects
from harness.data.federated import check_protocol, frequencies_of, lists_of, note_contradictions
from harness.data.files import VERDICTS, check_files
from harness.data.mapped import Mapped, map_arrays, write_arrays
from harness.data.names import naming_of
from harness.data.plausibility import check_boxes, object_areas
from harness.data.segmentations import check_segmentations, note_unseen
from harness.data.ticker import Progress, locked
from harness.errors import UserError
from harness.files import cache_dir

COCO_AREA_BOUNDS = (32.0**2, 96.0**2)
LARGE_FILE = 50_000_000  # bytes of an annotation file that take long enough to say so
_Pairs = list[tuple[str, Any]]  # of a JSON object, as they stand in the file
MAPPED_FROM = 5_000_000  # bytes of an annotation file whose columns are kept; smaller ones are read in no time


class Wanted(NamedTuple):
    """How a split is read."""

    masks: bool = False  # the segmentations too
    clips: bool = False  # boxes may reach out of their images (`DataConfig.outside_boxes`)


def open_tables(annotation_file: Path, folder: Path, wanted: Wanted, progress: Progress) -> tuple[Mapped, np.ndarray]:
    """The checked columns of a split, and [I, 3] what its image files are known by (see `Mark`).

    Args:
        annotation_file: of the split.
        folder: of its images.
        wanted: how it is read.
        progress: takes lines about work that takes long, and remarks.

    Returns:
        Header: `category_ids`, `category_names`, `protocol`, `frequencies`, `area_bounds`, `num_clipped`,
        `most_clipped` (pixels), `num_left_out`, `notes`. Columns of images, sorted by id: `image_ids`, `image_hw`,
        `names`, `name_ends`, `starts` (first row of each image's annotations, and their number), and those of
        `lists_of`. Columns of annotations, sorted by image: `ids`, `image`, `labels`, `crowd`, `xywh`, `areas`, `xyxy`
        (clipped to the image), and those of `Segmentations`.

    Raises:
        UserError: everything that is wrong with the split, in one message.
    """
    try:
        size = annotation_file.stat().st_size
        about = _about(annotation_file, folder, wanted) if size >= MAPPED_FROM else None
    except OSError as error:
        raise no_access(annotation_file, error) from error
    if about is None:
        return _read(annotation_file, folder, wanted, progress)[:2]
    key = hashlib.sha256(json.dumps([about["file"], about["folder"], wanted]).encode()).hexdigest()[:32]
    path = cache_dir() / "annotations" / f"{key}.arrays"
    if found := _known(path, about, folder):
        return found
    with _alone(path, annotation_file, progress):
        if found := _known(path, about, folder):  # another process has just read it
            return found
        tables, marks, is_steady = _read(annotation_file, folder, wanted, progress)
        with suppress(OSError):  # a cache that cannot be written costs time and memory, nothing else
            if is_steady and _about(annotation_file, folder, wanted) == about:
                files = {"files": marks[:, 1:], "same_file": _same_file(marks)}
                write_arrays(path, {**tables.header, **about}, {**tables.arrays, **files})
                return map_arrays(path, about) or tables, marks
    return tables, marks


# ---- what is remembered -------------------------------------------------------------------------------------------


def _about(annotation_file: Path, folder: Path, wanted: Wanted) -> dict[str, Any]:
    """By which remembered columns are known. Notes name the files as they were asked for."""
    return {
        "file": [str(annotation_file), str(annotation_file.absolute())],
        "folder": str(folder.absolute()),
        "content": file_hash(annotation_file),
        "wanted": list(wanted),
        "checks": f"{VERDICTS} {_code()}",
    }


@cache
def _code() -> str:
    """A digest of this room: what other code has checked is checked again."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _known(path: Path, about: Mapping[str, Any], folder: Path) -> tuple[Mapped, np.ndarray] | None:
    """The remembered columns, where every image file is still the one that was checked."""
    tables = map_arrays(path, about)
    if tables is None:
        return None
    marks = marks_of(folder, Texts(tables.arrays["names"], tables.arrays["name_ends"]))
    same = np.array_equal(marks[:, 1:], tables.arrays["files"])
    return (tables, marks) if same and np.array_equal(_same_file(marks), tables.arrays["same_file"]) else None


def _same_file(marks: np.ndarray) -> np.ndarray:
    """[I] a number for each image, the same for all names of one file."""
    _, first, inverse = np.unique(marks[:, 0], return_index=True, return_inverse=True)
    return first[inverse].astype(np.int64)


@contextmanager
def _alone(path: Path, annotation_file: Path, progress: Progress) -> Iterator[None]:
    """Only one process at a time reads a file; where nothing can be locked, each does."""
    lock = path.with_suffix(".lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(lock, os.O_RDWR | os.O_CREAT, 0o666))
    except OSError:
        yield
        return
    with locked(
        lock, lambda seconds: progress(f"{annotation_file}: another process checks it, waited {seconds:.0f} s")
    ):
        yield


# ---- read and check -----------------------------------------------------------------------------------------------


def _read(annotation_file: Path, folder: Path, wanted: Wanted, progress: Progress) -> tuple[Mapped, np.ndarray, bool]:
    """Columns and marks of a split, and whether no image file has changed meanwhile."""
    content = _read_json(annotation_file, progress, wanted.masks)
    problems = Problems(annotation_file)
    check_tables(content, problems)
    naming = naming_of(annotation_file, folder)
    for row in content["images"]:
        if (name := naming.of(row)) is not None:
            row["file_name"] = name
    if annotation_file.stat().st_size > LARGE_FILE:
        progress(f"checking {len(content['annotations']):,} annotations")
    check_categories(content["categories"], problems)
    check_images(content["images"], problems)
    protocol = check_protocol(content["images"], content["categories"], problems)
    sound = check_annotations(content, problems, clips=wanted.clips)
    check_boxes(sound, content["images"], problems)
    if wanted.masks:
        check_segmentations(content, problems)
    names = [row.get("file_name") for row in content["images"]]
    before = file_marks(folder, names)
    notes = check_files(folder, content["images"], problems, progress)
    marks = file_marks(folder, names)
    check_same_image(content["images"], sound, marks, problems)
    area_bounds = _area_bounds(content, problems)
    problems.raise_if_any()
    header, arrays, files = _columns(content, wanted.masks, protocol, problems)
    header |= {"area_bounds": area_bounds, "notes": [*notes, *problems.notes]}
    of_files = np.array([marks.get(name, GONE) for name in files], np.int64)
    return Mapped(header, arrays), of_files, before == marks and GONE not in map(marks.get, files)


def _columns(
    content: dict[str, Any], with_masks: bool, protocol: str, problems: Problems
) -> tuple[dict[str, Any], dict[str, np.ndarray], list[str]]:
    """Checked lists as columns, and the names of the images. What is odd is noted in `problems`."""
    categories = sorted(content["categories"], key=lambda row: row["id"])
    images = sorted(content["images"], key=lambda row: row["id"])
    files = [row["file_name"] for row in images]
    names = Texts.of(files)
    image_ids = np.array([row["id"] for row in images], np.int64)
    image_hw = np.array([(row["height"], row["width"]) for row in images], np.int64)
    position = {row["id"]: index for index, row in enumerate(images)}
    label = {row["id"]: index for index, row in enumerate(categories)}
    kept = [row for row in content["annotations"] if (row["image_id"], row["id"]) not in KNOWN_EMPTY_BOXES]
    kept.sort(key=lambda row: position[row["image_id"]])
    count = len(kept)
    ids = np.fromiter((row["id"] for row in kept), np.int64, count)
    image = np.fromiter((position[row["image_id"]] for row in kept), np.int64, count)
    labels = np.fromiter((label[row["category_id"]] for row in kept), np.int64, count)
    crowd = np.fromiter((bool(row.get("iscrowd", 0)) for row in kept), bool, count)
    xywh = np.array([row["bbox"] for row in kept], np.float64).reshape(count, 4)
    areas = object_areas(kept, xywh, problems)
    note_same_objects(np.stack([image, labels, crowd], 1), xywh, ids, image_ids[image], problems)
    corners = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1)
    clipped = np.clip(corners, 0, image_hw.astype(np.float64)[image][:, [1, 0, 1, 0]])
    over = np.abs(clipped - corners).max(1, initial=0)
    header = {
        "category_ids": [row["id"] for row in categories],
        "category_names": [row["name"] for row in categories],
        "protocol": protocol,
        "frequencies": frequencies_of(categories) if protocol == "lvis" else [],
        "num_clipped": int((over > 0.01).sum()),
        "most_clipped": float(over.max(initial=0)),
        "num_left_out": len(content["annotations"]) - count,
    }
    arrays = {
        **{"image_ids": image_ids, "image_hw": image_hw, "names": names.data, "name_ends": names.ends},
        "starts": np.searchsorted(image, np.arange(len(images) + 1)),
        **{"ids": ids, "image": image, "labels": labels, "crowd": crowd, "xywh": xywh, "areas": areas},
        "xyxy": clipped.astype(np.float32),
    }
    if protocol == "lvis":
        arrays |= lists_of(images, label)
        note_contradictions(images, kept, problems)
    if with_masks:
        segmentations = Segmentations.of(row["segmentation"] for row in kept)
        note_unseen(segmentations, corners, ids, image_ids[image], problems)
        arrays |= segmentations.columns()
    return header, arrays, files


def _read_json(path: Path, progress: Progress, with_masks: bool) -> Any:
    """The file's content; segmentations would fill the memory, so they are left out or made compact on the way."""
    if path.stat().st_size > LARGE_FILE:
        progress(f"reading {path} ({path.stat().st_size / 1e6:.0f} MB)")
    hook = _with_compact_segmentation if with_masks else _without_segmentation
    try:
        with open_file(path) as stream:
            return json.loads(stream.read(), object_pairs_hook=hook)  # the bytes are gone before the text is read
    except OSError as error:
        raise no_access(path, error) from error
    except _Repeated as error:
        raise UserError(f"{path}: {error}; keep one of them") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: broken JSON: {error}; repair or replace the file") from error


class _Repeated(ValueError):
    """One key of a JSON object is there twice; of both, JSON's readers take the last without a word."""

    def __init__(self, pairs: _Pairs) -> None:
        key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        super().__init__(f"{brief(key)} is there twice in {brief(dict(pairs))}")


def _without_segmentation(pairs: _Pairs) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise _Repeated(pairs)
    row.pop("segmentation", None)
    return row


def _with_compact_segmentation(pairs: _Pairs) -> dict[str, Any]:
    """Lists of numbers become arrays; what is none stays for the checks to tell."""
    row = dict(pairs)
    if len(row) < len(pairs):
        raise _Repeated(pairs)
    with suppress(TypeError, OverflowError):
        if isinstance(row.get("segmentation"), list):
            row["segmentation"] = [_compact("d", polygon) for polygon in row["segmentation"]]
        if isinstance(row.get("counts"), list):  # of run lengths, a mapping of their own
            row["counts"] = _compact("q", row["counts"])
    return row


def _compact(code: Literal["d", "q"], numbers: Any) -> array[Any]:
    """An array of numbers; `TypeError` where one is none, as `true` is."""
    if bool in map(type, numbers):
        raise TypeError
    return array(code, numbers)


def _area_bounds(content: dict[str, Any], problems: Problems) -> tuple[float, float]:
    """Bounds of small, medium and large in square pixels: COCO's unless `info.area_bounds` declares others."""
    info = content.get("info")
    bounds = info.get("area_bounds") if isinstance(info, dict) else None
    if bounds is None:
        return COCO_AREA_BOUNDS
    numbers = isinstance(bounds, list) and len(bounds) == 2 and all(map(is_number, bounds))
    if not numbers or not 0 < bounds[0] < bounds[1]:
        problems.add("area bounds", f"info.area_bounds {brief(bounds)} must be two rising areas in square pixels")
        return COCO_AREA_BOUNDS
    return float(bounds[0]), float(bounds[1])
