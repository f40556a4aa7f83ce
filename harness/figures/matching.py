"""Which detections are right, at which score they are right most often, and which images come out worst.

Rows are COCO's: `bbox` is (x, y, width, height) in pixels of the image. No matplotlib here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.mistakes.thresholds import Threshold, threshold_of

Row = Mapping[str, Any]
SCORE, IOU = 0.5, 0.5  # what counts as a detection unless a split tells better, and as found


@dataclass(frozen=True)
class Matches:
    """Who is right on one image: indices into its annotations and detections."""

    true_positives: tuple[tuple[int, int], ...]  # (annotation, detection)
    false_negatives: tuple[int, ...]  # annotations
    false_positives: tuple[int, ...]  # detections without an object
    ignored: tuple[int, ...]  # detections below the score, within a crowd region, or of a class annotated in part

    @property
    def num_errors(self) -> int:
        """Missed objects and detections without an object."""
        return len(self.false_negatives) + len(self.false_positives)

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN); 1 where there is neither object nor detection."""
        total = 2 * len(self.true_positives) + self.num_errors
        return 2 * len(self.true_positives) / total if total else 1.0


def match(annotations: Sequence[Row], detections: Sequence[Row], score: float = SCORE, iou: float = IOU) -> Matches:
    """Match detections of at least `score` to objects of their category as COCO does, at one IoU threshold.

    From the highest score down each detection takes the free object of its category with the highest IoU, if that is
    at least `iou`. One that has none, but lies within a crowd region of its category by at least that share of itself,
    is neither right nor wrong, and so is one with a true `in_part`: of its category only some objects are annotated.
    """
    is_crowd = np.array([bool(row.get("iscrowd")) for row in annotations], bool)
    free = ~is_crowd
    counted = [index for index, row in enumerate(detections) if row["score"] >= score]
    order = sorted(counted, key=lambda index: -detections[index]["score"])
    overlaps = _overlaps([detections[index] for index in order], annotations, is_crowd)
    found, false = [], []
    ignored = [index for index, row in enumerate(detections) if row["score"] < score]
    for index, row in zip(order, overlaps, strict=True):
        candidates = np.where(free, row, -1.0)
        best = int(candidates.argmax()) if len(candidates) else 0
        if len(candidates) and candidates[best] >= iou:
            free[best] = False
            found.append((best, index))
        elif (row[is_crowd] >= iou).any() or detections[index].get("in_part"):
            ignored.append(index)
        else:
            false.append(index)
    return Matches(tuple(found), tuple(np.flatnonzero(free).tolist()), tuple(false), tuple(ignored))


def _overlaps(detections: Sequence[Row], annotations: Sequence[Row], is_crowd: np.ndarray) -> np.ndarray:
    """[D, A]: IoU with an object, the share within a crowd region; -1 between different categories."""
    first, second = (
        np.array([row["bbox"] for row in rows], float).reshape(-1, 4) for rows in (detections, annotations)
    )
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, :2] + first[:, None, 2:], second[None, :, :2] + second[None, :, 2:])
    common = np.clip(high - low, 0.0, None).prod(2)
    own, theirs = first[:, 2:].prod(1)[:, None], second[:, 2:].prod(1)[None]
    whole = np.where(is_crowd[None], own, own + theirs - common)
    share = np.divide(common, whole, out=np.zeros_like(common), where=whole > 0)
    categories = [np.array([row["category_id"] for row in rows], int) for rows in (detections, annotations)]
    return np.where(categories[0][:, None] == categories[1][None], share, -1.0)


def best_threshold(
    annotations: Mapping[int, Sequence[Row]], detections: Mapping[int, Sequence[Row]]
) -> Threshold | None:
    """The score with the best F1 over all images and classes; of equal ones the highest. None: nothing is right.

    Args:
        annotations: rows by image id; every image that takes part has an entry.
        detections: rows by image id; may lack images.
    """
    right: list[float] = []
    wrong: list[float] = []
    objects = 0
    for image, rows in annotations.items():
        own = detections.get(image, ())
        matches = match(rows, own, score=-np.inf)  # whoever comes before a detection does not depend on the threshold
        right += [own[index]["score"] for _, index in matches.true_positives]
        wrong += [own[index]["score"] for index in matches.false_positives]
        objects += len(matches.true_positives) + len(matches.false_negatives)
    return threshold_of(np.array(right), np.array(wrong), objects)


def worst_images(
    annotations: Mapping[int, Sequence[Row]], detections: Mapping[int, Sequence[Row]], count: int, score: float = SCORE
) -> dict[int, Matches]:
    """The `count` images with the lowest F1, worst first, with their matches.

    So an image whose few objects are all missed comes before a crowd of which most are found. Of images with equal F1
    the one with more errors is worse, then the one with the lower id. Errors are missed objects and detections of at
    least `score` without an object, at IoU 0.5 (see `match`).

    Args:
        annotations: rows by image id; every image that takes part has an entry.
        detections: rows by image id; may lack images.
        count: of images wanted.
        score: lowest score that counts as a detection.
    """
    matches = {image: match(rows, detections.get(image, ()), score) for image, rows in annotations.items()}
    order = sorted(matches, key=lambda image: (matches[image].f1, -matches[image].num_errors, image))
    return {image: matches[image] for image in order[:count]}
