"""COCO's segmentations as an annotation file gives them, checked before anything draws them.

pycocotools draws polygons and reads compressed run lengths without looking at them first: a coordinate that is no
number, or far away, takes all memory, and a broken text ends the process. Here they are read in Python and NumPy.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.data.checks import EDGE_TOLERANCE, Problems, brief, is_side, is_whole
from harness.data.columns import POLYGONS, TEXT, Segmentations

MISSING = (
    "which a mask branch learns from; add it or choose a head without masks "
    "(and data.copy_paste: 0, data.boxes_from_masks: false, which read it too)"
)
POLYGON_TOLERANCE = 0.1  # of the image's sides: how far a polygon may reach over the border, where it is cut
TEXTS_AT_ONCE = 4096  # compressed masks read in one go
PARTS_AT_ONCE = 65_536  # polygons looked at in one go
_FIRST, _LAST = ord("0"), ord("o")  # the 64 characters of compressed run lengths


def check_segmentations(content: dict[str, Any], problems: Problems) -> None:
    """Has every annotation a mask that fits its image? Lists of numbers have been made arrays (see `coco.py`)."""
    number = len(content["annotations"])
    if number > 1 and not any(row.get("segmentation") for row in content["annotations"]):
        problems.add("mask", f"none of its {number:,} annotations has a segmentation, {MISSING}")
        return
    sizes = {row["id"]: (row.get("height"), row.get("width")) for row in content["images"] if is_whole(row.get("id"))}
    compressed: list[dict[str, Any]] = []
    for row in content["annotations"]:
        if not is_whole(row.get("image_id")) or row["image_id"] not in sizes:
            continue  # reported as of an unknown image
        hw = sizes[row["image_id"]]
        if not all(map(is_side, hw)):
            continue  # reported as of an image without a size
        trouble = _mask_trouble(row.get("segmentation"), *hw)
        if trouble:
            _report(row, trouble, problems)
        elif isinstance(row["segmentation"], dict) and isinstance(row["segmentation"]["counts"], str):
            compressed.append(row)
    for start in range(0, len(compressed), TEXTS_AT_ONCE):
        rows = compressed[start : start + TEXTS_AT_ONCE]
        areas = decoded_areas([row["segmentation"]["counts"] for row in rows])
        for row, area in zip(rows, areas, strict=True):
            if area != math.prod(sizes[row["image_id"]]):
                _report(row, _text_trouble(area, *sizes[row["image_id"]]), problems)


def note_unseen(
    segmentations: Segmentations, boxes_xyxy: np.ndarray, ids: np.ndarray, images: np.ndarray, problems: Problems
) -> None:
    """Note masks that show nothing of their object: without a pixel, or beside its box.

    Args:
        segmentations: N, that nothing is wrong with.
        boxes_xyxy: [N, 4].
        ids: [N] of the annotations.
        images: [N] ids of their images.
        problems: takes the note.
    """
    has_pixels, is_near = np.zeros((2, len(ids)), bool)
    of_text = segmentations.kinds == TEXT
    has_pixels[of_text] = is_near[of_text] = segmentations.run_counts()[of_text] > 1  # the first is of background
    objects = np.repeat(np.arange(len(ids)), np.diff(segmentations.parts, prepend=0))
    for start in range(0, len(objects), PARTS_AT_ONCE):
        own = objects[start : start + PARTS_AT_ONCE]
        extents, covered = _extents(segmentations, start, start + len(own))
        low, high, of_polygon = extents[:, :2], extents[:, 2:], segmentations.kinds[own] == POLYGONS
        box = boxes_xyxy[own]
        apart = (high < box[:, :2] - EDGE_TOLERANCE) | (low > box[:, 2:] + EDGE_TOLERANCE)
        drawn = np.where(of_polygon, (high > low).all(1), covered > 0)
        np.logical_or.at(has_pixels, own, drawn)
        np.logical_or.at(is_near, own, drawn & ~(of_polygon & apart.any(1)))
    if not is_near.all():
        at = int(is_near.argmin())
        what = "polygons beside its box" if has_pixels[at] else "a mask without a pixel"
        told = f"{(~is_near).sum():,} of {len(ids):,} masks show nothing of their objects"
        problems.note(f"{told}: annotation {ids[at]} (image {images[at]}) has {what}; correct or remove it")


def _extents(segmentations: Segmentations, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Of parts that are polygons [P, 4] the least x and y and the largest; of those that are counts [P] pixels."""
    ends = segmentations.ends[start:end]
    first = segmentations.ends[start - 1] if start else 0
    numbers = segmentations.numbers[first : ends[-1]]
    lengths = np.diff(ends, prepend=first)
    starts = ends - first - lengths
    is_second = (np.arange(len(numbers)) - np.repeat(starts, lengths)) % 2 == 1  # y of a polygon, a run of the object
    low = [np.minimum.reduceat(np.where(mine, numbers, np.inf), starts) for mine in (~is_second, is_second)]
    high = [np.maximum.reduceat(np.where(mine, numbers, -np.inf), starts) for mine in (~is_second, is_second)]
    return np.stack([*low, *high], 1), np.add.reduceat(np.where(is_second, numbers, 0), starts)


def decoded_areas(texts: Sequence[str]) -> list[int | None]:
    """Pixels that each text of compressed run lengths covers, background included; None: it is no such text.

    Five bits of each character are digits of a number, lowest first, the sixth says that more follow, and the highest
    digit bit of the last is the sign. From the fourth number on each is the difference to the one before the last.
    """
    found: list[int | None] = [None] * len(texts)
    usable = [index for index, text in enumerate(texts) if text and text.isascii()]
    if not usable:
        return found
    data = np.frombuffer("".join(texts[index] for index in usable).encode(), np.uint8)
    ends = np.cumsum([len(texts[index]) for index in usable])
    starts = ends - np.diff(ends, prepend=0)
    bits = data.astype(np.int64) - _FIRST
    last = (bits & 0x20) == 0  # of its number
    whole = np.logical_and.reduceat((data >= _FIRST) & (data <= _LAST), starts) & last[ends - 1]
    last[ends - 1] = True  # so that numbers of a broken text do not reach into the next
    number_ends = np.flatnonzero(last) + 1
    number_starts = np.concatenate([[0], number_ends[:-1]])
    digits = np.arange(len(data)) - np.repeat(number_starts, number_ends - number_starts)
    length = np.diff(number_ends, prepend=0)
    value = np.add.reduceat((bits & 0x1F) << (5 * digits.clip(max=6)), number_starts)
    negative = (bits[number_ends - 1] & 0x10) != 0
    value = np.where(negative, value - (1 << (5 * length.clip(max=7))), value)
    firsts = np.searchsorted(number_starts, starts)  # number of the first number of each text
    lasts = np.append(firsts[1:], len(value))
    too_long = np.logical_or.reduceat(length > 7, firsts)  # 35 bits hold any count of an image
    for index, good, first, end in zip(usable, whole & ~too_long, firsts, lasts, strict=True):
        if good:
            counts = value[first:end].copy()
            counts[1::2] = np.cumsum(counts[1::2])
            counts[2::2] = np.cumsum(counts[2::2])
            found[index] = int(counts.sum()) if counts.min() >= 0 else None
    return found


def _report(row: dict[str, Any], trouble: str, problems: Problems) -> None:
    problems.add("mask", f"annotation {brief(row.get('id'))} (image {row['image_id']}) {trouble}")


def _text_trouble(area: int | None, height: int, width: int) -> str:
    if area is None:
        return "has a mask whose compressed counts are broken; correct it"
    return f"has a mask whose compressed counts cover {area} pixels, but the image has {height * width}; correct it"


def _mask_trouble(segmentation: Any, height: int, width: int) -> str:
    """What is wrong with a COCO segmentation, polygons or run lengths; empty when nothing is, or in a text."""
    if isinstance(segmentation, dict):
        return _run_lengths_trouble(segmentation, height, width)
    if not segmentation and not isinstance(segmentation, bool | int | float):
        return f"has no segmentation, {MISSING}"
    if not isinstance(segmentation, list) or not all(isinstance(polygon, array) for polygon in segmentation):
        return "has a segmentation that is neither polygons (lists of x, y, …) nor run lengths; correct it"
    if any(len(polygon) < 6 or len(polygon) % 2 for polygon in segmentation):
        return "has a polygon of fewer than three points, or with half a point; correct it"
    return next(filter(None, (_polygon_trouble(polygon, height, width) for polygon in segmentation)), "")


def _polygon_trouble(polygon: array[float], height: int, width: int) -> str:
    if not math.isfinite(sum(polygon)):
        odd = next((number for number in polygon if not math.isfinite(number)), max(polygon, key=abs))
        return f"has a polygon with {odd:g}; correct it"
    for name, side, numbers in (("x", width, polygon[0::2]), ("y", height, polygon[1::2])):
        low, high, over = min(numbers), max(numbers), max(1.0, POLYGON_TOLERANCE * side)
        if low < -over or high > side + over:
            return (
                f"has a polygon that reaches outside the image of {width}x{height} pixels "
                f"({name} from {low:g} to {high:g}); clip or remove it"
            )
    return ""


def _run_lengths_trouble(segmentation: dict[str, Any], height: int, width: int) -> str:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size != [height, width] or not all(map(is_whole, size)):
        return f"has a mask of size {brief(size)}, but the image's is {[height, width]}; correct it"
    if isinstance(counts, str):
        return ""  # read with others
    if not isinstance(counts, array):
        return f"has a mask whose counts are {brief(counts)}, not a list of whole numbers or text; correct it"
    if min(counts, default=-1) < 0 or sum(counts) != height * width:
        return "has a mask whose counts do not add up to the image's area; correct it"
    return ""
