"""Other orders in which four numbers of a box are written down: what a converter may have forgotten."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

TOLERANCE = 1.0  # pixels

_READINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "x1, y1, x2, y2": lambda box: box,
    "y1, x1, y2, x2": lambda box: box[:, [1, 0, 3, 2]],
    "centre x, centre y, width, height": lambda box: np.concatenate(
        [box[:, :2] - box[:, 2:] / 2, box[:, :2] + box[:, 2:] / 2], 1
    ),
    "y, x, height, width": lambda box: np.concatenate([box[:, [1, 0]], box[:, [1, 0]] + box[:, [3, 2]]], 1),
}


def other_reading(boxes: Sequence[Sequence[float]], sizes: Sequence[tuple[int, int]]) -> str | None:
    """The order of numbers, other than x, y, width, height, in which every box lies within its image, or None.

    Args:
        boxes: four numbers each.
        sizes: (width, height) of each box's image.
    """
    numbers = np.array([list(map(float, box)) for box in boxes]).reshape(-1, 4)
    limits = np.array([list(map(float, size)) for size in sizes]).reshape(-1, 2) + TOLERANCE
    with np.errstate(over="ignore", invalid="ignore"):
        for name, corners_of in _READINGS.items():
            corners = corners_of(numbers)
            within = (corners[:, :2] >= -TOLERANCE).all() and (corners[:, 2:] <= limits).all()
            if within and (corners[:, 2:] > corners[:, :2]).all():
                return name
    return None
