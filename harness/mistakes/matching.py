"""Which detections are right, by COCO's rules at one IoU threshold, for all images of a split.

The same rules as `harness.figures.matching.match`, which takes one image at a time; a test holds both together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from harness.mistakes.batches import batches, overlaps
from harness.mistakes.kinds import BACKGROUND_IOU, IGNORED, NONE, RIGHT, kinds_of
from harness.mistakes.sides import Sides

IOU = 0.5  # of an object that is found


@dataclass(frozen=True)
class Judgement:
    """What each detection of `Sides.detected` is, and what became of each of `Sides.objects`."""

    kind: np.ndarray  # [N] RIGHT, IGNORED or the kind of error
    object: np.ndarray  # [N] that it found, or that it would have found but for its error; NONE: there is none
    is_found: np.ndarray  # [G] bool; never of a crowd region
    best: np.ndarray  # [G] the detection of its class with the highest IoU, if that is at least `iou`; NONE

    @property
    def is_right(self) -> np.ndarray:
        """[N] bool."""
        return self.kind == RIGHT

    @property
    def is_wrong(self) -> np.ndarray:
        """[N] bool: neither right nor ignored."""
        return (self.kind != RIGHT) & (self.kind != IGNORED)


def judge(sides: Sides, iou: float = IOU, background: float = BACKGROUND_IOU) -> Judgement:
    """Match detections with objects, and say of each wrong one what is wrong.

    From the highest score down each detection takes the free object of its class with the highest IoU, if that is at
    least `iou`. One that finds none is ignored where a crowd region of its class covers that share of it, and where
    only some objects of its class are annotated.

    Args:
        sides: a split.
        iou: of an object that is found.
        background: up to this IoU with every object a detection is one of background.
    """
    objects, detected = sides.objects, sides.detected
    kind, cause = np.full(len(detected), IGNORED), np.full(len(detected), NONE)
    is_found, best = np.zeros(len(objects), bool), np.full(len(objects), NONE)
    for rows, places in batches(detected.image, objects.image, sides.num_images):
        is_there, is_box = rows >= 0, places >= 0
        is_crowd = objects.is_crowd[places] & is_box if len(objects) else is_box
        share = overlaps(_of(detected.boxes_xywh, rows), _of(objects.boxes_xywh, places), is_crowd)
        same = _of(detected.label, rows)[:, :, None] == _of(objects.label, places)[:, None, :]
        is_object = (is_box & ~is_crowd)[:, None, :] & is_there[:, :, None]
        own = np.where(is_object & same, share, -1.0)
        match, free = _matched(own, iou)
        covered = (np.where(is_crowd[:, None, :] & same, share, 0.0) >= iou).any(2)
        ignored = (match == NONE) & (covered | (_of(detected.is_partly, rows) & is_there))
        codes, causes = kinds_of(own, np.where(is_object & ~same, share, -1.0), match, free, iou, background)
        codes = np.where(ignored, IGNORED, codes)
        causes = np.where(ignored | (causes == NONE), NONE, _taken(places, causes))
        kind[rows[is_there]], cause[rows[is_there]] = codes[is_there], causes[is_there]
        is_found[places[is_box]] = ~free[is_box] & ~is_crowd[is_box]
        best[places[is_box]] = _best_of_objects(own, rows, iou)[is_box]
    return Judgement(kind, cause, is_found, best)


def _of(column: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Entries of a column by rows; of padding (-1) the last one, or zeros where there is none at all."""
    return column[rows] if len(column) else np.zeros((*rows.shape, *column.shape[1:]), column.dtype)


def _taken(places: np.ndarray, index: np.ndarray) -> np.ndarray:
    """[B, D] of [B, G] by [B, D]."""
    if not places.shape[1]:
        return np.full(index.shape, NONE)
    return np.take_along_axis(places, np.maximum(index, 0), 1)


def _matched(own: np.ndarray, iou: float) -> tuple[np.ndarray, np.ndarray]:
    """[B, D] object of each detection or NONE, and [B, G] whether each object is still free.

    Args:
        own: [B, D, G] IoU with objects of the same class, best score first; -1 where there is none.
        iou: that is enough.
    """
    size, number, count = own.shape
    match, free, images = np.full((size, number), NONE), np.ones((size, count), bool), np.arange(size)
    if not count:
        return match, free
    for place in np.flatnonzero((own >= iou).any((0, 2))):
        left = np.where(free, own[:, place], -1.0)
        chosen = left.argmax(1)
        hits = images[left[images, chosen] >= iou]
        match[hits, place] = chosen[hits]
        free[hits, chosen[hits]] = False
    return match, free


def _best_of_objects(own: np.ndarray, rows: np.ndarray, iou: float) -> np.ndarray:
    """[B, G] the row of the detection with the highest IoU, of equal ones the best-scored; NONE below `iou`."""
    chosen = own.argmax(1)  # the first, which has the best score
    highest = np.take_along_axis(own, chosen[:, None], 1)[:, 0]
    return np.where(highest >= iou, np.take_along_axis(rows, chosen, 1), NONE)
