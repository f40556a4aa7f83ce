"""What can be wrong with a COCO-layout data set, found before any training, all in one report.

Each problem is one line: what, where (image id, annotation id, file) and what to do. `files` checks the images.
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.errors import UserError

EDGE_TOLERANCE = 1.0  # pixels over the border that count as rounding
LINES_PER_KIND = 5  # of a report
# COCO 2017's own training annotations hold exactly these two boxes without height, (image, annotation);
# they are left out, as everybody does (github.com/cocodataset/cocoapi/issues/355).
KNOWN_EMPTY_BOXES = {(200365, 918), (550395, 2206849)}


class Problems:
    """Collects problems by kind and raises them as one `UserError`."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._lines: dict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, line: str) -> None:
        """Note a problem; lines of one kind stand together and only the first few are shown."""
        self._lines[kind].append(line)

    def raise_if_any(self) -> None:
        """Raise `UserError`: one line for one problem, else a heading and a line each."""
        count = sum(map(len, self._lines.values()))
        if count == 0:
            return
        if count == 1:
            raise UserError(f"{self._source}: {next(iter(self._lines.values()))[0]}")
        report = [f"{self._source}: {count:,} problems"]
        for lines in self._lines.values():
            report += [f"  {line}" for line in lines[:LINES_PER_KIND]]
            if len(lines) > LINES_PER_KIND:
                report.append(f"  … and {len(lines) - LINES_PER_KIND:,} more like this")
        raise UserError("\n".join(report))


def check_tables(content: Any, problems: Problems) -> None:
    """Are the three lists there, each of JSON objects? Raises at once if not: nothing else can be looked at."""
    if not isinstance(content, dict):
        problems.add("layout", "must hold one JSON object with images, annotations and categories")
        problems.raise_if_any()
    for name in ("images", "annotations", "categories"):
        table = content.get(name)
        if not isinstance(table, list) or not all(isinstance(row, dict) for row in table):
            problems.add("layout", f"{name} is missing or not a list of objects; COCO's format has one")
        elif not table and name != "annotations":
            problems.add("layout", f"{name} is empty")
    problems.raise_if_any()


def check_categories(categories: list[dict[str, Any]], problems: Problems) -> None:
    """Ids are distinct whole numbers (gaps and 0 are fine), names are distinct texts."""
    _check_ids("category", categories, problems)
    names = Counter(str(row.get("name", "")) for row in categories)
    for row in categories:
        if not isinstance(row.get("name"), str):
            problems.add("category name", f"category {row.get('id')} has no name; add one")
    for name, count in names.items():
        if name and count > 1:
            problems.add("category name", f"{count} categories are called {name!r}; give each its own name")


def check_images(images: list[dict[str, Any]], problems: Problems) -> None:
    """Ids, names and sizes as the annotation file tells them."""
    _check_ids("image", images, problems)
    for row in images:
        if not isinstance(row.get("file_name"), str):
            problems.add("file name", f"image {row.get('id')} has no file_name; add it")
        for side in ("width", "height"):
            if not _is_whole(row.get(side)) or row[side] < 1:
                problems.add(
                    "image size", f"image {row.get('id')} has {side} {row.get(side)!r}; must be pixels, 1 or more"
                )


def check_annotations(content: dict[str, Any], problems: Problems) -> None:
    """Ids, references and boxes."""
    annotations = content["annotations"]
    _check_ids("annotation", annotations, problems)
    sizes = {row["id"]: (row.get("width"), row.get("height")) for row in content["images"] if _is_whole(row.get("id"))}
    categories = {row["id"] for row in content["categories"] if _is_whole(row.get("id"))}
    for row in annotations:
        image_id, category = row.get("image_id"), row.get("category_id")
        if not isinstance(image_id, int) or image_id not in sizes:
            problems.add("unknown image", f"annotation {row.get('id')} is of image {image_id!r}, which is not listed")
            continue
        if not isinstance(category, int) or category not in categories:
            problems.add(
                "unknown category",
                f"annotation {row.get('id')} (image {image_id}) has category {category!r}, which is not listed; "
                f"add it to categories or remove the annotation",
            )
        if row.get("iscrowd", 0) not in (0, 1):
            problems.add("crowd", f"annotation {row.get('id')} has iscrowd {row['iscrowd']!r}; must be 0 or 1")
        area = row.get("area")
        if area is not None and not (is_number(area) and area >= 0):
            problems.add("area", f"annotation {row.get('id')} has area {area!r}; must be a number of square pixels")
        trouble = _box_trouble(row.get("bbox"), *sizes[image_id])
        if trouble and not (_is_whole(row.get("id")) and (image_id, row["id"]) in KNOWN_EMPTY_BOXES):
            problems.add("box", f"annotation {row.get('id')} (image {image_id}): {trouble}")


def check_segmentations(content: dict[str, Any], problems: Problems) -> None:
    """Has every annotation a mask? Lists of numbers have been made arrays (see `coco.py`)."""
    sizes = {row["id"]: (row.get("height"), row.get("width")) for row in content["images"] if _is_whole(row.get("id"))}
    for row in content["annotations"]:
        if not _is_whole(row.get("image_id")):
            continue  # reported as of an unknown image
        trouble = _mask_trouble(row.get("segmentation"), list(sizes.get(row["image_id"], ())))
        if trouble:
            problems.add("mask", f"annotation {row.get('id')} (image {row.get('image_id')}) {trouble}")


def _check_ids(what: str, rows: Iterable[dict[str, Any]], problems: Problems) -> None:
    seen: set[int] = set()
    for row in rows:
        number: Any = row.get("id")
        if not _is_whole(number) or abs(number) >= 2**63:
            problems.add(f"{what} id", f"{what} id {number!r} must be a whole number below 2^63")
        elif number in seen:
            problems.add(f"{what} id", f"{what} id {number} is there twice; ids must be distinct")
        else:
            seen.add(number)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether this is a finite number that a float can hold."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _box_trouble(box: Any, width: Any, height: Any) -> str:
    """What is wrong with a COCO box (x, y, width, height) in an image; empty when nothing is."""
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        return f"bbox {box!r} must be four numbers: x, y, width, height; correct it"
    x, y, w, h = box
    if w <= 0 or h <= 0:
        return f"bbox {box} has no area; correct or remove it"
    if not (_is_whole(width) and _is_whole(height)):
        return ""  # the image's own problem is reported
    over = max(-x, -y, x + w - width, y + h - height)
    inside = min(width, x + w) - max(0, x) > 0 and min(height, y + h) - max(0, y) > 0
    if over > EDGE_TOLERANCE or not inside:
        return (
            f"bbox {box} (x, y, width, height) reaches outside the image of {width}x{height} pixels; clip or remove it"
        )
    return ""


def _mask_trouble(segmentation: Any, hw: list[Any]) -> str:
    """What is wrong with a COCO segmentation, polygons or run lengths; empty when nothing is."""
    if isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        if hw and segmentation.get("size") != hw:
            return f"has a mask of size {segmentation.get('size')!r}, but the image's is {hw}; correct it"
        if isinstance(counts, str):
            return ""
        if not isinstance(counts, array) or min(counts, default=-1) < 0 or (hw and sum(counts) != hw[0] * hw[1]):
            return "has a mask whose counts do not add up to the image's area; correct it"
        return ""
    if not segmentation:
        return "has no segmentation, which a mask branch learns from; add it or choose a head without masks"
    if not isinstance(segmentation, list) or not all(isinstance(polygon, array) for polygon in segmentation):
        return "has a segmentation that is neither polygons (lists of x, y, …) nor run lengths; correct it"
    if any(len(polygon) < 6 or len(polygon) % 2 for polygon in segmentation):
        return "has a polygon of fewer than three points, or with half a point; correct it"
    return ""
