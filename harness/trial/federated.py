"""LVIS's federated evaluation: what counts of the detections, and classes a few at a time.

Detections of classes that an image is not annotated for are left out, and of every class only the images that it counts
in are looked at. So 1,203 classes on 20,000 images take no memory for each of their 24 million pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from harness.data.federated import FREQUENCIES, KEYS, Judged
from harness.trial.detections import DetectionTable

PAIRS_AT_ONCE = 200_000  # of image and class: an evaluator holds a kilobyte for each

Side = tuple[dict[str, Any], DetectionTable]


def parts_of(truth: dict[str, Any], table: DetectionTable) -> Iterator[Side | int]:
    """Both sides in parts of some classes each, in order of their ids; the number of classes where no image counts.

    Args:
        truth: COCO's JSON with LVIS's keys.
        table: the detections that count of each image, at most 300 of each as LVIS has them.
    """
    judged = Judged(truth)
    table = table.at(np.flatnonzero(judged.counts(table.image_ids, table.category_ids)))
    categories = np.sort([int(row["id"]) for row in truth["categories"]])
    at_once = max(1, PAIRS_AT_ONCE // len(truth["images"]))
    for start in range(0, len(categories), at_once):
        chosen = categories[start : start + at_once]
        images = set(judged.images_of(chosen).tolist())
        yield _part(truth, table, set(chosen.tolist()), images) if images else len(chosen)


def _part(truth: dict[str, Any], table: DetectionTable, categories: set[int], images: set[int]) -> Side:
    """What concerns these classes; their images' lists name no others."""
    of_images = [
        {**row, **{key: [number for number in row[key] if number in categories] for key in KEYS}}
        for row in truth["images"]
        if row["id"] in images
    ]
    part = {
        **truth,
        "images": of_images,
        "annotations": [row for row in truth["annotations"] if row["category_id"] in categories],
        # The evaluator groups by frequency for a summary that is not used, and fails where there is none.
        "categories": [{**row, "frequency": "f"} for row in truth["categories"] if row["id"] in categories],
    }
    return part, table.at(np.flatnonzero(np.isin(table.category_ids, list(categories))))


def by_frequency(precision: np.ndarray, truth: dict[str, Any]) -> dict[str, np.ndarray]:
    """Precision of the rare, common and frequent classes, as `APr`, `APc` and `APf`; empty where none tells which.

    Args:
        precision: [10, 101, C, 4, 1], classes in order of their ids.
        truth: COCO's JSON.
    """
    of = np.array([row.get("frequency", "") for row in sorted(truth["categories"], key=lambda row: row["id"])])
    return {f"AP{group}": precision[:, :, of == group] for group in FREQUENCIES} if (of != "").all() else {}
