"""Two of a kind in a data set: one image under two ids or in both splits, one object annotated twice."""

from __future__ import annotations

import filecmp
import os
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.checks import Problems, is_whole

Mark = tuple[int, int]  # bytes and modification time of a file


def check_same_image(
    images: Sequence[dict[str, Any]],
    sound: Sequence[dict[str, Any]],
    folder: Path,
    marks: Mapping[str, Mark],
    problems: Problems,
) -> None:
    """Is one file listed under several ids? Each would teach that the objects of the others are background.

    Equal objects under all ids only make the image count more often, and are noted.

    Args:
        images: as the annotation file lists them.
        sound: its annotations that nothing is wrong with.
        folder: of the images.
        marks: of each file, by its name.
        problems: takes what is wrong, and notes.
    """
    ids: dict[str, list[Any]] = defaultdict(list)
    same = _same_files(folder, marks)
    for row in images:
        if isinstance(row.get("file_name"), str):
            name = posixpath.normpath(row["file_name"])
            ids[same.get(name, name)].append(row.get("id"))
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
        told = f"images {_listed(own)} are one file ({name}) with different objects, which are background to each other"
        problems.add("same image", f"{told}; give all of them one id, or remove those that should not be there")
    if harmless:
        name, own = harmless[0]
        more = f", and so are {len(harmless) - 1:,} more" if len(harmless) > 1 else ""
        problems.note(f"images {_listed(own)} are one file ({name}) with the same objects{more}: it counts each time")


def _same_files(folder: Path, marks: Mapping[str, Mark]) -> dict[str, str]:
    """The first name of a file for every other name that links lead to it by."""
    by_mark = defaultdict(list)
    for name, mark in marks.items():
        by_mark[mark].append(name)
    first: dict[tuple[int, int], str] = {}
    found = {}
    for name in (name for names in by_mark.values() if len(names) > 1 for name in names):
        with suppress(OSError):
            status = os.stat(folder / name)
            known = first.setdefault((status.st_dev, status.st_ino), posixpath.normpath(name))
            found[posixpath.normpath(name)] = known
    return found


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


def shared_images(
    train: tuple[Path, Sequence[str], Sequence[Mark]], val: tuple[Path, Sequence[str], Sequence[Mark]]
) -> list[tuple[str, str]]:
    """(name in train, name in val) of images that are in both splits: one file, or copies of one name or time.

    Args:
        train: folder, names and marks of its images.
        val: the same.
    """
    (folder, names, marks), (other_folder, other_names, other_marks) = train, val
    of_mark, of_name = defaultdict(list), defaultdict(list)
    for name, mark in zip(names, marks, strict=True):
        of_mark[mark].append(name)
        of_name[posixpath.basename(name), mark[0]].append(name)
    inodes: dict[Mark, dict[tuple[int, int], str]] = {}
    found = []
    for name, mark in zip(other_names, other_marks, strict=True):
        own = other_folder / name
        with suppress(OSError):
            if mark in of_mark:
                if mark not in inodes:
                    inodes[mark] = _inodes(folder, of_mark[mark])
                twin = inodes[mark].get(_inode(own))
                if twin is not None:
                    found.append((twin, name))
                    continue
            alone = of_mark[mark] if len(of_mark.get(mark, ())) == 1 else []
            twins = of_name.get((posixpath.basename(name), mark[0])) or alone
            twin = next((twin for twin in twins if filecmp.cmp(folder / twin, own, shallow=False)), None)
            if twin is not None:
                found.append((twin, name))
    return found


def _inodes(folder: Path, names: Iterable[str]) -> dict[tuple[int, int], str]:
    return {_inode(folder / name): name for name in names}


def _inode(path: Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _listed(ids: Sequence[int]) -> str:
    return f"{', '.join(map(str, ids[:-1][:4]))}{', …' if len(ids) > 5 else ''} and {ids[-1]}"
