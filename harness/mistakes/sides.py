"""Ground truth and detections of a split in columns, image by image, each image's detections best first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from harness.data.federated import Judged, is_federated


class Columns(Protocol):
    """Detections as `harness.trial.detections.DetectionTable` has them."""

    @property
    def image_ids(self) -> np.ndarray:
        """[N] int64."""

    @property
    def category_ids(self) -> np.ndarray:
        """[N] int64."""

    @property
    def boxes_xywh(self) -> np.ndarray:
        """[N, 4] float64, pixels."""

    @property
    def scores(self) -> np.ndarray:
        """[N] float64."""


@dataclass(frozen=True)
class Objects:
    """Ground truth [G], sorted by image; classes and images are places in the lists of `Sides`."""

    image: np.ndarray  # [G]
    label: np.ndarray  # [G]
    boxes_xywh: np.ndarray  # [G, 4]
    is_crowd: np.ndarray  # [G] bool

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True)
class Detected:
    """Detections [N], sorted by image and of an image by score; of equal scores the earlier row first."""

    image: np.ndarray  # [N]
    label: np.ndarray  # [N]
    boxes_xywh: np.ndarray  # [N, 4]
    scores: np.ndarray  # [N]
    is_partly: np.ndarray  # [N] bool: of a class of which only some objects of the image are annotated
    row: np.ndarray  # [N] where it stands in the table

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True)
class Sides:
    """Both sides of a comparison."""

    category_ids: np.ndarray  # [C] in the order of the file
    num_images: int
    objects: Objects
    detected: Detected

    @property
    def num_objects(self) -> np.ndarray:
        """[C] objects of each class that are no crowd regions."""
        return np.bincount(self.objects.label[~self.objects.is_crowd], minlength=len(self.category_ids))


def sides_of(truth: Mapping[str, Any], table: Columns) -> Sides:
    """Columns of COCO's JSON and of detections.

    Of LVIS's data only those detections are there whose class the image is annotated for: what was not looked for is
    no mistake. So are detections of images and classes that the truth does not list.
    """
    images, categories = (np.array([row["id"] for row in truth[name]], np.int64) for name in ("images", "categories"))
    rows = truth["annotations"]
    objects = Objects(
        _places(images, np.array([row["image_id"] for row in rows], np.int64)),
        _places(categories, np.array([row["category_id"] for row in rows], np.int64)),
        np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4),
        np.array([bool(row.get("iscrowd")) for row in rows], bool),
    )
    order = np.argsort(objects.image, kind="stable")
    objects = Objects(*(column[order] for column in vars(objects).values()))
    return Sides(categories, len(images), objects, _detected(truth, table, images, categories))


def _detected(truth: Mapping[str, Any], table: Columns, images: np.ndarray, categories: np.ndarray) -> Detected:
    image, label = _places(images, table.image_ids), _places(categories, table.category_ids)
    counts, partly = (image >= 0) & (label >= 0), np.zeros(len(image), bool)
    if is_federated(truth):
        judged = Judged(truth)
        counts &= judged.counts(table.image_ids, table.category_ids)
        partly = judged.is_partly(table.image_ids, table.category_ids)
    row = np.flatnonzero(counts)
    row = row[np.lexsort((-table.scores[row], image[row]))]  # stable
    return Detected(image[row], label[row], table.boxes_xywh[row], table.scores[row], partly[row], row)


def _places(known: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """[N] where each id stands among the known ones, which may have any order; -1 where it does not."""
    if not len(known):
        return np.full(len(ids), -1)
    order = np.argsort(known)
    at = order[np.minimum(np.searchsorted(known, ids, sorter=order), len(known) - 1)]
    return np.where(known[at] == ids, at, -1)
