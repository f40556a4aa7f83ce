"""Hand-made splits for tests of errors: objects and detections as short tuples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from harness.trial.detections import DetectionTable

Box = Sequence[float]  # x, y, width, height


def truth(
    objects: Iterable[tuple[int, int, Box]],
    crowds: Iterable[tuple[int, int, Box]] = (),
    *,
    images: Iterable[int] = (1, 2),
    classes: Iterable[int] = (1, 2),
    **lists: Any,
) -> dict[str, Any]:
    """COCO's JSON of (image, class, box); `lists` are keys of every image, as LVIS's."""
    rows = [(own, 0) for own in objects] + [(own, 1) for own in crowds]
    return {
        "images": [{"id": image, **lists} for image in images],
        "categories": [{"id": label, "name": f"class {label}"} for label in classes],
        "annotations": [
            {"id": number, "image_id": image, "category_id": label, "bbox": list(box), "iscrowd": crowd}
            for number, ((image, label, box), crowd) in enumerate(rows, 1)
        ],
    }


def found(*rows: tuple[int, int, float, Box]) -> DetectionTable:
    """Detections (image, class, score, box)."""
    return DetectionTable.of(
        {"image_id": image, "category_id": label, "score": score, "bbox": list(box)}
        for image, label, score, box in rows
    )


def drawn(seed: int, images: int = 30, classes: int = 5, crowds: float = 0.1) -> tuple[dict[str, Any], DetectionTable]:
    """A split with everything: shifted and repeated objects, other classes, inventions, crowds; no two scores equal.

    The last class has detections and no object, the last but one objects and no detection; the first image is empty.
    """
    rng = np.random.default_rng(seed)
    objects, crowd, rows = [], [], []

    def box() -> np.ndarray:
        return np.concatenate([rng.uniform(0, 60, 2), rng.uniform(5, 40, 2)]).round(1)

    for image in range(1, images):
        for _ in range(int(rng.integers(0, 6))):
            label, own = int(rng.integers(0, classes - 1)), box()
            (crowd if rng.random() < crowds else objects).append((image, label, own.tolist()))
            for _ in range(int(rng.integers(0, 4))):
                other = int(rng.choice([0, 1, classes - 1])) if rng.random() < 0.3 else label
                moved = own + rng.normal(0, 0.15, 4) * own[[2, 3, 2, 3]]
                if other != classes - 2 and moved[2:].min() > 1:
                    rows.append((image, other, 0.0, moved.tolist()))
    for image in rng.integers(0, images, 2 * images):
        rows.append((int(image), int(rng.integers(0, classes - 2)), 0.0, box().tolist()))
    scores = rng.permutation(len(rows)) / len(rows)
    rows = [(image, label, float(score), own) for (image, label, _, own), score in zip(rows, scores, strict=True)]
    return truth(objects, crowd, images=range(images), classes=range(classes)), found(*rows)
