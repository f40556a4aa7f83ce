"""Annotations that are sound one by one, but make no sense together: found before training, as problems or as notes.

A problem is what makes every number of a training meaningless. A note says what was made of something odd.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.data.checks import THIN, Problems, brief, is_whole

CORNER = 1.001  # pixels: boxes that end here are shares of the image's sides
LARGEST_AREA = 2.0  # areas of its box that an object's pieces can cover together, and
AREA_SLACK = 4.0  # square pixels for each pixel of the box's sides, which drawing may add


def check_boxes(sound: Sequence[dict[str, Any]], images: Sequence[dict[str, Any]], problems: Problems) -> None:
    """Are the boxes in pixels, and of some size within their images?

    Args:
        sound: annotations whose box lies in its image.
        images: as the annotation file lists them.
        problems: takes what is wrong.
    """
    if not sound:
        return
    sizes = {row["id"]: (row.get("width"), row.get("height")) for row in images if is_whole(row.get("id"))}
    boxes = np.array([row["bbox"] for row in sound], np.float64)
    limits = np.array([sizes[row["image_id"]] for row in sound], np.float64)
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
    in_corner = np.flatnonzero((corners <= CORNER).all(1) & (limits > 1).all(1))
    tiny = np.flatnonzero((boxes[:, 2:] < 1).all(1))
    clipped = np.clip(corners, 0, np.tile(limits, 2))
    for index in map(int, np.flatnonzero((clipped[:, 2:] - clipped[:, :2] < THIN).any(1))):
        row = sound[index]
        problems.add("box", f"{_place(row)}: bbox {brief(row['bbox'])} is too thin for any pixel; correct or remove it")
    few = [what for what in (in_corner, tiny) if 2 * len(what) >= len(sound)]
    if few:
        kind = "lie in the first pixel of their images" if few[0] is in_corner else "are smaller than a pixel"
        told = f"{len(few[0]):,} of {len(sound):,} boxes {kind}, as shares of its sides (0 to 1) would"
        row = sound[few[0][0]]
        problems.add("box", f"{told}: {_place(row)} has bbox {brief(row['bbox'])}; give pixels: x, y, width, height")
    elif len(tiny):
        row = sound[tiny[0]]
        told = f"{len(tiny):,} of {len(sound):,} boxes are smaller than a pixel"
        problems.note(f"{told}: {_place(row)} has bbox {brief(row['bbox'])}")


def object_areas(rows: Sequence[dict[str, Any]], boxes_xywh: np.ndarray, problems: Problems) -> np.ndarray:
    """Area of each object in square pixels, [N]: as the file gives it, or of its box where that cannot be right.

    No area, 0, more than the box holds, or shares of the image instead of pixels are taken for missing, with a note.

    Args:
        rows: checked annotations.
        boxes_xywh: [N, 4] theirs.
        problems: takes the notes.
    """
    told = np.array([row.get("area") or 0 for row in rows], np.float64)
    box_areas = boxes_xywh[:, 2] * boxes_xywh[:, 3]
    missing = told <= 0
    too_large = told > LARGEST_AREA * box_areas + AREA_SLACK * boxes_xywh[:, 2:].sum(1)
    shares = told <= 1
    shares &= bool(shares.all() and len(rows) and np.median(box_areas) > AREA_SLACK)
    taken = "its box's area is taken instead, by which APS, APM and APL sort it"
    kinds = {
        "no area, or an area of 0": missing,
        "an area larger than the box": too_large,
        "areas that look like shares of the image": shares & ~missing,
    }
    for kind, where in kinds.items():
        if where.any():
            first = rows[int(where.argmax())]
            example = f"{_place(first)} has area {brief(first.get('area'))} and bbox {brief(first['bbox'])}"
            problems.note(f"{where.sum():,} of {len(rows):,} objects have {kind}: {example}; {taken}")
    return np.where(missing | too_large | shares, box_areas, told)


def _place(row: dict[str, Any]) -> str:
    return f"annotation {row['id']} (image {row['image_id']})"
