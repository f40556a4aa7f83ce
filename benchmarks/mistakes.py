"""The error columns at COCO's size: `python -m benchmarks mistakes`, 100 drawn detections on each of 5,000 images.

Nothing is read or detected: ground truth and detections are drawn, as many objects and classes as COCO's validation
split has, shifted objects, repeated ones and inventions. Times are the processor's, of one thread.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.mistakes.duplicates import kept_by_nms
from harness.mistakes.measured import measure
from harness.trial.detections import DetectionTable

NUM_IMAGES, NUM_BOXES, NUM_CLASSES, FOUND = 5_000, 36_000, 80, 100


def draw(num_images: int, num_classes: int = NUM_CLASSES, seed: int = 0) -> tuple[dict[str, Any], DetectionTable]:
    """Ground truth as COCO's JSON, and detections."""
    rng = np.random.default_rng(seed)
    number = num_images * NUM_BOXES // NUM_IMAGES
    image = np.sort(rng.integers(0, num_images, number))
    label = rng.integers(0, num_classes, number)
    sides = np.exp(rng.uniform(np.log(8), np.log(300), (number, 2)))
    boxes = np.concatenate([rng.uniform(0, 1, (number, 2)) * ((640, 480) - sides), sides], 1)
    columns = zip(image.tolist(), label.tolist(), boxes.tolist(), (rng.random(number) < 0.01).tolist(), strict=True)
    truth = {
        "images": [{"id": own} for own in range(num_images)],
        "categories": [{"id": own} for own in range(num_classes)],
        "annotations": [{"image_id": i, "category_id": c, "bbox": b, "iscrowd": int(k)} for i, c, b, k in columns],
    }
    return truth, _drawn(rng, image, label, boxes, num_images, num_classes)


def _drawn(
    rng: np.random.Generator, image: np.ndarray, label: np.ndarray, boxes: np.ndarray, images: int, classes: int
) -> DetectionTable:
    """Each object about six times, of every tenth another class, and inventions up to `FOUND` of an image."""
    again = np.repeat(np.arange(len(image)), 6)
    places = image[again]
    start = np.searchsorted(places, np.arange(images))
    again = again[np.arange(len(again)) - start[places] < FOUND]
    others = FOUND - np.bincount(image[again], minlength=images)
    number = int(others.sum())
    corner, sides = rng.uniform(0, 400, (number, 2)), rng.uniform(5, 80, (number, 2))
    own = np.where(rng.random(len(again)) < 0.1, rng.integers(0, classes, len(again)), label[again])
    moved = boxes[again] + rng.normal(0, 0.05, (len(again), 4)) * boxes[again][:, [2, 3, 2, 3]]
    moved[:, 2:] = np.maximum(moved[:, 2:], 1.0)
    return DetectionTable(
        np.concatenate([image[again], np.repeat(np.arange(images), others)]),
        np.concatenate([own, rng.integers(0, classes, number)]),
        np.concatenate([moved, np.concatenate([corner, sides], 1)]),
        np.concatenate([rng.uniform(0.2, 1, len(again)), rng.uniform(0, 0.4, number)]),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks mistakes", description=__doc__)
    parser.add_argument("--images", type=int, default=NUM_IMAGES)
    parser.add_argument("--classes", type=int, default=NUM_CLASSES)
    args = parser.parse_args(argv)
    truth, table = draw(args.images, args.classes)
    started = time.process_time()
    found = measure(truth, table)
    seconds = time.process_time() - started
    kept = kept_by_nms(found.sides)
    suppressed = time.process_time() - started - seconds
    numbers = {"images": args.images, "detections": len(table), "classes": args.classes, "kept by NMS": len(kept)}
    times = {"errors, processor seconds": round(seconds, 1), "NMS, processor seconds": round(suppressed, 1)}
    print(json.dumps({**numbers, **times, **found.metrics}))
    return 0


if __name__ == "__main__":
    main()
