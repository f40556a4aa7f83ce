"""Poses among YOLO's label files, which look like polygons where no kpt_shape: tells of them.

A pose's line is a class, a box, and then x and y of each point, or x, y and whether it is seen (0, 1 or 2). One line
alone could be a polygon by chance, so all of a data set are judged together.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from harness.data.checks import FEWEST_MISREAD, Problems

BOX = 4  # numbers: centre x, centre y, width, height
SEEN = {0.0, 1.0, 2.0}
NEARLY_ALL = 0.9  # of the lines that are no boxes
SPREAD = 0.25  # of the box's longer reach: what a pose's points span at least, as dense polygons around a point do not
TOLERANCE = 0.01  # share of the image's sides: a point may lie so far outside its box


class Poses:
    """Counts lines that could be poses.

    Args:
        problems: takes what is told of them.
    """

    def __init__(self, problems: Problems) -> None:
        self._problems = problems
        self._polygons = 0
        self._lengths: dict[int, Counter[int]] = defaultdict(Counter)  # by numbers of a point, 2 or 3
        self._first: dict[tuple[int, int], str] = {}

    def see(self, numbers: Sequence[float], where: str) -> None:
        """Take the numbers after the class of a line that is read as a polygon."""
        self._polygons += 1
        for point in (3, 2):
            if _is_pose(numbers, point):
                self._lengths[point][len(numbers)] += 1
                self._first.setdefault((point, len(numbers)), where)
                return

    def tell(self) -> None:
        """A problem, or a note where it cannot be known, if nearly all polygons of the data set could be poses."""
        for point, told in {3: "points in it, each with a 0, 1 or 2", 2: "points in it"}.items():
            # All poses of a data set have the same points, so their lines are equally long; polygons seldom are.
            for length, count in self._lengths[point].most_common(1):
                if count < NEARLY_ALL * self._polygons:
                    continue
                first = self._first[point, length]
                told = f"{count:,} of {self._polygons:,} lines with more than five numbers fit as a box and {told}"
                told = f"{told}, as poses have ({first} is the first)"
                if point == 3 and count >= FEWEST_MISREAD:
                    self._problems.add("pose", f"{told}; keep the first five numbers of each line")
                elif point == 3 or count >= FEWEST_MISREAD:
                    self._problems.note(f"{told}: they are read as polygons; keep the first five numbers if they are")


def _is_pose(numbers: Sequence[float], point: int) -> bool:
    """Whether numbers fit as a box and points of so many numbers in it."""
    if (len(numbers) - BOX) % point or len(numbers) < BOX + 2 * point:
        return False
    box, points = np.array(numbers[:BOX]), np.array(numbers[BOX:]).reshape(-1, point)
    if point == 3:
        if not set(points[:, 2].tolist()) <= SEEN:
            return False
        points = points[points[:, 2] > 0]
    points = points[points[:, :2].any(1), :2]  # what was not found stands at 0, 0
    low, high = box[:2] - box[2:] / 2, box[:2] + box[2:] / 2
    if box[2:].min() <= 0 or low.min() < -TOLERANCE or high.max() > 1 + TOLERANCE:
        return False
    if (points < low - TOLERANCE).any() or (points > high + TOLERANCE).any():
        return False
    return point == 3 or (len(points) > 1 and bool((np.ptp(points, 0) >= SPREAD * box[2:]).any()))
