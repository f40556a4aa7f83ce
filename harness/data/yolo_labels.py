"""YOLO's label files: an object a line, `class cx cy w h` or `class x1 y1 x2 y2 …`, as shares of the image's sides."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np

from harness.data.checks import FEWEST_MISREAD, MISREAD_SHARE, brief
from harness.data.foreign import Foreign, Row, Seen, box_trouble, decoded, lines_of, within
from harness.data.poses import Poses
from harness.data.readings import other_reading

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
BOX, CORNERS = 4, 8  # numbers after the class: of a box, of a polygon with four corners
MOST_UNNAMED = 1000  # classes that may be known by their numbers alone
KEYPOINT = 3  # numbers of a pose's point: x, y, visibility
VISIBLE = 2.0  # of a point that can be seen


class _Outside(NamedTuple):
    """A box that does not fit its image."""

    place: str
    numbers: list[float]  # as written
    size: tuple[int, int]


class YoloLabels:
    """Reads label files. Lines of both kinds may stand in one file; a polygon is kept, and its box is drawn around it.

    Args:
        found: the folder, whose problems and class names these are.
    """

    def __init__(self, found: Foreign) -> None:
        self._problems, self._names = found.problems, found.names
        self._classes: dict[int, str] = {}  # without names: number, and where it stands first
        self._inside: list[_Outside] = []  # a few, to compare with those outside
        self._outside: list[_Outside] = []
        self._seen = Seen()
        self._poses = Poses(found.problems)

    def rows(self, content: bytes, place: str, size: tuple[int, int]) -> list[Row]:
        """See `foreign.Labels`."""
        rows: list[Row] = []
        seen: set[tuple[float, ...]] = set()
        if b"\0" in content and not content.startswith((b"\xff\xfe", b"\xfe\xff")):
            self._problems.add("text", f"{place} is no text; write the label file again, or remove it")
            return rows
        for line, text in lines_of(decoded(content)):
            where = f"{place}:{line}"
            numbers = self._numbers(text, where)
            category = self._category(numbers[0], where) if numbers else None
            if not numbers or category is None:
                continue
            if tuple(numbers) in seen:
                self._seen.add("twice", where)
                continue
            seen.add(tuple(numbers))
            if len(numbers) > BOX + 1:
                self._poses.see(numbers[1:], where)
            row = self._box(numbers[1:], where, size) if len(numbers) == BOX + 1 else None
            row = self._polygon(numbers[1:], where, size) if len(numbers) > BOX + 1 else row
            if row is not None:
                rows.append({"category": category, **row, "iscrowd": 0})
        return rows

    def categories(self) -> dict[Any, Row]:
        """See `foreign.Labels`."""
        self._report_outside()
        self._poses.tell()
        for kind, told in {
            "clipped": "boxes clipped by at most 1 pixel",
            "twice": "lines stand there twice and count once",
            "corners": "objects have four corners, as oriented boxes do: the upright box around each is taken",
        }.items():
            count = self._seen.count[kind]
            if count and (kind != "corners" or count == self._seen.count["polygons"] + self._seen.count["boxes"]):
                self._problems.note(f"{count:,} {told} ({self._seen.first[kind]} is the first)")
        names = self._names
        if names is None:
            most = max(self._classes, default=-1)
            if most >= MOST_UNNAMED:
                told = f"class {most}, and no file names the classes"
                self._problems.add("class", f"{self._classes[most]}: {told}; write names: into data.yaml")
                return {}
            names = [str(number) for number in range(most + 1)]
            told = "no data.yaml, classes.txt or obj.names tells the names of the classes"
            self._problems.note(f"{told}: they go by their numbers, 0 to {most}")
        return {number: {"id": number, "name": name} for number, name in enumerate(names)}

    def _numbers(self, text: str, where: str) -> list[float]:
        """Of a line; empty where it is none of YOLO's, which is told."""
        words = text.split()
        if odd := next((word for word in words if not NUMBER.fullmatch(word)), None):
            told = f"{brief(odd)} is no number; a line is: class, centre x, centre y, width, height"
            self._problems.add("number", f"{where}: {told}")
            return []
        numbers = [float(word) for word in words]
        if not np.isfinite(numbers).all():
            self._problems.add("number", f"{where}: a number is too large for any; correct it")
            return []
        if trouble := _columns_trouble(numbers):
            self._problems.add(f"columns {trouble}", f"{where}: {len(words)} numbers{trouble}")
            return []
        return numbers

    def _category(self, number: float, where: str) -> int | None:
        """A class's number; None where there is no such class, which is told."""
        category = int(number) if number == int(number) and number >= 0 else None
        if category is None:
            self._problems.add("class", f"{where}: class {number:g} must be a whole number from 0; correct it")
        elif self._names is None:
            self._classes.setdefault(category, where)
        elif category >= len(self._names):
            told = f"class {category}, but {len(self._names)} classes have names (0 to {len(self._names) - 1})"
            self._problems.add("class", f"{where}: {told}; add its name or correct the line")
            return None
        return category

    def _box(self, numbers: list[float], where: str, size: tuple[int, int]) -> Row | None:
        (cx, cy, w, h), (width, height) = numbers, size
        self._seen.count["boxes"] += 1
        box = ((cx - w / 2) * width, (cy - h / 2) * height, w * width, h * height)
        return self._checked(box, _Outside(where, numbers, size))

    def _polygon(self, numbers: list[float], where: str, size: tuple[int, int]) -> Row | None:
        points = np.array(numbers).reshape(-1, 2) * size
        self._seen.count["polygons"] += 1
        if len(numbers) == CORNERS:
            self._seen.add("corners", where)
        (x, y), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
        row = self._checked((x, y, right - x, bottom - y), _Outside(where, numbers, size))
        if row is None:
            return None
        points = points.clip(0, size)
        area = abs(float((points[:, 0] * np.roll(points[:, 1], -1) - np.roll(points[:, 0], -1) * points[:, 1]).sum()))
        polygon = [round(value, 4) for value in points.ravel().tolist()]
        return row | {"segmentation": [polygon], "area": round(area / 2, 4) or row["area"]}

    def _checked(self, box: tuple[float, float, float, float], told: _Outside) -> Row | None:
        """The box of a row; None where it does not fit its image or is empty, which is told."""
        trouble = box_trouble(*box, told.size)
        if trouble == "empty":
            what = "has no width or height" if min(box[2:]) <= 0 else "is too thin for any pixel, or outside the image"
            self._problems.add("box", f"{told.place}: the object {what}; correct or remove the line")
        elif trouble:
            self._outside.append(told)
        if trouble:
            return None
        self._seen.count["inside"] += 1
        if len(self._inside) < FEWEST_MISREAD * 100:
            self._inside.append(told)
        if min(box[:2]) < -0.01 or box[0] + box[2] > told.size[0] + 0.01 or box[1] + box[3] > told.size[1] + 0.01:
            self._seen.add("clipped", told.place)
        bbox = within(*box, told.size)
        return {"bbox": bbox, "area": round(bbox[2] * bbox[3], 4)}

    def _report_outside(self) -> None:
        """A line for each object outside its image, or one for all where another form of the numbers explains them."""
        outside, count = self._outside, len(self._outside) + self._seen.count["inside"]
        pixels = [one for one in outside if max(one.numbers) > 2]
        boxes = [one for one in outside if len(one.numbers) == BOX]
        many = max(FEWEST_MISREAD, MISREAD_SHARE * count)
        first = None
        if pixels and 2 * len(pixels) >= count:
            first, told = pixels[0], f"{len(pixels):,} objects have numbers above 1, which look like pixels"
            wanted = "divide them by the image's width and height"
        elif len(boxes) >= many and _fit_as_corners(boxes + [one for one in self._inside if len(one.numbers) == BOX]):
            first, told = boxes[0], f"{len(boxes):,} boxes reach outside their images, but fit as x1, y1, x2, y2"
            wanted = "convert them to centre x, centre y, width, height"
        if first is not None:
            numbers = " ".join(f"{number:g}" for number in first.numbers[:CORNERS])
            self._problems.add("form", f"{told}: {first.place} has {numbers}; {wanted}")
            return
        for one in outside:
            numbers = " ".join(f"{number:g}" for number in one.numbers[:CORNERS])
            told = f"{numbers} reaches outside the image of {one.size[0]}x{one.size[1]} pixels"
            self._problems.add("outside", f"{one.place}: {told}; clip or remove it")


def _columns_trouble(numbers: list[float]) -> str:
    """What a line with so many numbers looks like, if no object that can be read; else empty."""
    after = len(numbers) - 1
    is_pose = after > BOX + 1 and (after - BOX) % KEYPOINT == 0
    if is_pose and (after % 2 or VISIBLE in numbers[BOX + KEYPOINT :: KEYPOINT]):
        return ", as a pose has (class, box, points with their visibility); keep the first five"
    if after == BOX + 1:
        return ", as predictions have (class, box, confidence); give what people drew, five numbers"
    if after < BOX:
        return "; a line is: class, centre x, centre y, width, height"
    if after > BOX and after % 2:
        return ", which is no box (5 numbers) and no polygon (class, then x and y of each point); correct it"
    return ""


def _fit_as_corners(boxes: list[_Outside]) -> bool:
    """Whether all boxes lie in their images where their numbers are two corners."""
    scaled = [[number * side for number, side in zip(one.numbers, one.size * 2, strict=True)] for one in boxes]
    return other_reading(scaled, [one.size for one in boxes]) == "x1, y1, x2, y2"
