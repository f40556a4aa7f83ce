"""Two of a kind in a data set: one image under two ids or in both splits, one object annotated twice."""

from __future__ import annotations

import filecmp
import os
import posixpath
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from harness.data.checks import Problems, is_whole
from harness.data.content import file_hash
from harness.data.disk import shown


class Mark(NamedTuple):
    """By which a file is known."""

    file: int  # the same for all names of one file, as links are
    size: int  # bytes
    time: int  # of its last modification, in nanoseconds


GONE = Mark(0, -1, -1)  # of a file that is not there
THREADS, FILES_AT_ONCE = 8, 4096


def file_marks(folder: Path, names: Iterable[Any]) -> dict[str, Mark]:
    """Of each file by its name; what is no name, or not there, is left out."""
    marks = ((name, _mark(str(folder), name)) for name in names if isinstance(name, str))
    return {name: mark for name, mark in marks if mark != GONE}


def marks_of(folder: Path, names: Sequence[str]) -> np.ndarray:
    """[I, 3] int64, the mark of each file in order, `GONE` of what is no file."""

    def some(start: int) -> list[Mark]:
        return [_mark(place, name, stat.S_ISREG) for name in names[start : start + FILES_AT_ONCE]]

    place = str(folder)
    with ThreadPoolExecutor(THREADS) as pool:  # storage answers several questions at once
        parts = pool.map(some, range(0, len(names), FILES_AT_ONCE))
        return np.array([mark for part in parts for mark in part], np.int64).reshape(-1, 3)


def _mark(folder: str, name: str, kind: Callable[[int], bool] = lambda mode: True) -> Mark:
    try:
        found = os.stat(os.path.join(folder, name))
    except (OSError, ValueError):
        return GONE
    if not kind(found.st_mode):
        return GONE
    return Mark(hash((found.st_dev, found.st_ino)), found.st_size, found.st_mtime_ns)


def check_same_image(
    images: Sequence[dict[str, Any]],
    sound: Sequence[dict[str, Any]],
    marks: Mapping[str, Mark],
    problems: Problems,
) -> None:
    """Is one file listed under several ids? Each would teach that the objects of the others are background.

    Equal objects under all ids only make the image count more often, and are noted.

    Args:
        images: as the annotation file lists them.
        sound: its annotations that nothing is wrong with.
        marks: of each file, by its name.
        problems: takes what is wrong, and notes.
    """
    names: dict[int, str] = {}
    ids: dict[str, list[Any]] = defaultdict(list)
    for row in images:
        if (mark := marks.get(row["file_name"]) if isinstance(row.get("file_name"), str) else None) is not None:
            ids[names.setdefault(mark.file, row["file_name"])].append(row.get("id"))
    shared = {name: own for name, own in ids.items() if len(own) > 1 and all(map(is_whole, own))}
    objects: dict[int, set[tuple[Any, ...]]] = {key: set() for own in shared.values() for key in own}
    for row in sound if shared else ():
        if row["image_id"] in objects:
            box = tuple(map(float, row["bbox"]))
            objects[row["image_id"]].add((row["category_id"], *box, bool(row.get("iscrowd", 0))))
    harmless = []
    for name, own in shared.items():
        if len(set(own)) < len(own):
            continue  # reported as ids that are there twice
        if all(objects[key] == objects[own[0]] for key in own):
            harmless.append((name, own))
            continue
        told = f"images {_listed(own)} are one file ({shown(name)}) with different objects, background to each other"
        problems.add("same image", f"{told}; give all of them one id, or remove those that should not be there")
    if harmless:
        name, own = harmless[0]
        more = f", and so are {len(harmless) - 1:,} more" if len(harmless) > 1 else ""
        told = f"images {_listed(own)} are one file ({shown(name)}) with the same objects"
        problems.note(f"{told}{more}: it counts each time")


def note_same_objects(
    keys: np.ndarray, boxes_xywh: np.ndarray, ids: np.ndarray, images: np.ndarray, problems: Problems
) -> None:
    """Note objects that are there twice: the second one is a miss for any detector.

    Args:
        keys: [N, 3] image, category and crowd of each object.
        boxes_xywh: [N, 4].
        ids: [N] of the annotations.
        images: [N] ids of their images.
        problems: takes the note.
    """
    columns = np.concatenate([keys.astype(np.float64), boxes_xywh + 0.0], 1)  # -0.0 becomes 0.0
    mixed = np.zeros(len(columns), np.uint64)
    for column in np.ascontiguousarray(columns.T).view(np.uint64):
        mixed = (mixed ^ column) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    order = np.argsort(mixed, kind="stable")
    first, second = order[:-1], order[1:]
    twice = (mixed[first] == mixed[second]) & (columns[first] == columns[second]).all(1)
    if twice.any():
        at = int(twice.argmax())
        pair = f"annotations {ids[first[at]]} and {ids[second[at]]} (image {images[first[at]]})"
        told = f"{twice.sum():,} objects are annotated twice, with equal box and category: {pair}"
        problems.note(f"{told}; a detector can find only one of them: remove the other")


def same_content(folder: Path, likely: Iterable[Sequence[str]]) -> list[list[str]]:
    """Names of files with equal content, two or more together, among those that may have it.

    Their hashes are remembered, so that of many likely ones nothing is read again.
    """

    def hashed(name: str) -> str:
        with suppress(OSError):  # it was there just now; whoever trains on it will tell
            return file_hash(folder / name)
        return name

    found: dict[tuple[int, str], list[str]] = defaultdict(list)
    with ThreadPoolExecutor(THREADS) as pool:  # storage answers several questions at once
        for number, names in enumerate(likely):
            for name, value in zip(names, pool.map(hashed, names), strict=True):
                found[number, value].append(name)
    return [names for names in found.values() if len(names) > 1]


def shared_images(
    train: tuple[Path, Sequence[str], np.ndarray], val: tuple[Path, Sequence[str], np.ndarray]
) -> list[tuple[str, str]]:
    """(name in train, name in val) of images that are in both splits: one file, or copies of one name or time.

    Args:
        train: folder, names and [I, 3] marks of its images.
        val: the same.
    """
    (folder, names, marks), (other_folder, other_names, other_marks) = train, val
    near = np.isin(marks[:, 0], other_marks[:, 0]) | np.isin(marks[:, 1], other_marks[:, 1])  # few of many
    one: dict[int, str] = {}
    alike: dict[tuple[Any, ...], list[str]] = defaultdict(list)
    for index in np.flatnonzero(near).tolist():
        name, mark = names[index], Mark(*marks[index].tolist())
        one[mark.file] = name
        for key in _keys(name, mark):
            alike[key].append(name)
    found = []
    for name, mark in zip(other_names, map(Mark._make, other_marks.tolist()), strict=True):
        twin = one.get(mark.file)
        if twin is None:
            twins = [own[0] for key in _keys(name, mark) if len(own := alike.get(key, [])) == 1]
            twin = next(
                (twin for twin in dict.fromkeys(twins) if _same_bytes(folder / twin, other_folder / name)), None
            )
        if twin is not None:
            found.append((twin, name))
    return found


def _keys(name: str, mark: Mark) -> tuple[tuple[Any, ...], ...]:
    """What a copy shares with its original: size, and its bare name or its time."""
    return (posixpath.basename(name), mark.size), (mark.size, mark.time)


def _same_bytes(first: Path, second: Path) -> bool:
    with suppress(OSError):
        return filecmp.cmp(first, second, shallow=False)
    return False


def _listed(ids: Sequence[int]) -> str:
    return f"{', '.join(map(str, ids[:-1][:4]))}{', …' if len(ids) > 5 else ''} and {ids[-1]}"
