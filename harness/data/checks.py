"""What can be wrong with a COCO-layout data set, found before any training, all in one report.

Each problem is one line: what, where (image id, annotation id, file) and what to do. `files` checks the images.
"""

from __future__ import annotations

import reprlib
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.data.readings import other_reading
from harness.errors import UserError

EDGE_TOLERANCE = 1.0  # pixels over the border that count as rounding
THIN = 1e-3  # pixels: below it nothing is left of a side where the network works with 32-bit numbers
MAX_SIDE = 1_000_000  # pixels
LINES_PER_KIND = 5  # of a report
FEWEST_MISREAD, MISREAD_SHARE = 3, 0.1  # boxes outside their images that make another order of numbers likely
# COCO 2017's own training annotations hold exactly these two boxes without height, (image, annotation);
# they are left out, as everybody does (github.com/cocodataset/cocoapi/issues/355).
KNOWN_EMPTY_BOXES = {(200365, 918), (550395, 2206849)}


_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxlist, _REPR.maxdict, _REPR.maxstring, _REPR.maxother = 2, 8, 4, 60, 40


def brief(value: Any) -> str:
    """`repr` that stays short whatever stands in the file, and whose depth has an end."""
    return _REPR.repr(value)


class Problems:
    """Collects problems by kind and raises them as one `UserError`; remarks on what is odd, but can be used, too."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self.count = 0  # of problems
        self.notes: list[str] = []
        self._lines: dict[str, list[str]] = defaultdict(list)

    def add(self, kind: str, line: str) -> None:
        """Note a problem; lines of one kind stand together and only the first few are shown."""
        self._lines[kind].append(line)
        self.count += 1

    def note(self, line: str) -> None:
        """Keep a remark for a person, who may know better."""
        self.notes.append(f"note: {self._source}: {line}")

    def raise_if_any(self) -> None:
        """Raise `UserError`: one line for one problem, else a heading and a line each."""
        if self.count == 0:
            return
        if self.count == 1:
            raise UserError(f"{self._source}: {next(iter(self._lines.values()))[0]}")
        report = [f"{self._source}: {self.count:,} problems"]
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
    """Ids are distinct whole numbers (gaps and 0 are fine), names are distinct texts of one line."""
    _check_ids("category", categories, problems)
    names = Counter(row["name"] for row in categories if is_text(row.get("name")))
    for row in categories:
        if not is_text(row.get("name")):
            told = f"name {brief(row['name'])}, which is no text" if row.get("name") is not None else "no name"
            problems.add("category name", f"category {brief(row.get('id'))} has {told}; add one")
        elif not is_line(row["name"]):
            told = f"name {brief(row['name'])}, which has control characters; write it without"
            problems.add("category name", f"category {brief(row.get('id'))} has {told}")
    for name, count in names.items():
        if count > 1:
            problems.add("category name", f"{count} categories are called {brief(name)}; give each its own name")


def check_images(images: list[dict[str, Any]], problems: Problems) -> None:
    """Ids, names and sizes as the annotation file tells them."""
    _check_ids("image", images, problems)
    for row in images:
        if not isinstance(row.get("file_name"), str):
            problems.add("file name", f"image {brief(row.get('id'))} has no file_name (nor a coco_url); add it")
        for side in ("width", "height"):
            if not is_side(row.get(side)):
                told = f"{side} {brief(row.get(side))}; must be whole pixels, 1 to {MAX_SIDE:,}"
                problems.add("image size", f"image {brief(row.get('id'))} has {told}")


def check_annotations(content: dict[str, Any], problems: Problems, *, clips: bool = False) -> list[dict[str, Any]]:
    """Ids, references, areas and boxes; returns the annotations that nothing is wrong with.

    Args:
        content: the annotation file's; annotations that are left out are taken from it.
        problems: takes what is wrong.
        clips: boxes may reach out of their images, and those of which nothing lies within are left out, with a note.
    """
    annotations = content["annotations"]
    _check_ids("annotation", annotations, problems)
    sizes = {row["id"]: (row.get("width"), row.get("height")) for row in content["images"] if is_whole(row.get("id"))}
    categories = {row["id"] for row in content["categories"] if is_whole(row.get("id"))}
    sound, outside, nowhere = [], [], []
    for row in annotations:
        image_id, category, area = row.get("image_id"), row.get("category_id"), row.get("area")
        if not is_whole(image_id) or image_id not in sizes:
            told = f"is of image {brief(image_id)}, which is not listed"
            problems.add("unknown image", f"annotation {brief(row.get('id'))} {told}")
            continue
        before = problems.count
        if not is_whole(category) or category not in categories:
            told = f"has category {brief(category)}, which is not listed; add it to categories or remove the annotation"
            problems.add("unknown category", f"annotation {brief(row.get('id'))} (image {image_id}) {told}")
        if row.get("iscrowd", 0) not in (0, 1):
            problems.add(
                "crowd", f"annotation {brief(row.get('id'))} has iscrowd {brief(row['iscrowd'])}; must be 0 or 1"
            )
        if area is not None and not (is_number(area) and area >= 0):
            problems.add(
                "area",
                f"annotation {brief(row.get('id'))} has area {brief(area)}; must be a number of square pixels",
            )
        if clips and _is_nowhere(row.get("bbox"), *sizes[image_id]):
            nowhere.append(row)
            continue
        empty = _box_trouble(row.get("bbox"))
        if empty and not (is_whole(row.get("id")) and (image_id, row["id"]) in KNOWN_EMPTY_BOXES):
            problems.add("box", f"annotation {brief(row.get('id'))} (image {image_id}): {empty}")
        if empty or not all(map(is_side, sizes[image_id])):
            continue
        if _is_outside(row["bbox"], *sizes[image_id]):
            outside.append(row)
        elif problems.count == before:
            sound.append(row)
    is_misread = _report_outside(outside, sound, sizes, problems, clips=clips)
    if nowhere:
        left = set(map(id, nowhere))
        content["annotations"] = [row for row in annotations if id(row) not in left]
        example = f"annotation {brief(nowhere[0].get('id'))} has bbox {brief(nowhere[0]['bbox'])}"
        problems.note(f"{len(nowhere):,} boxes without any area in their images are left out: {example}")
    return sound if is_misread or not clips else sound + outside


def _report_outside(
    outside: list[dict[str, Any]],
    sound: list[dict[str, Any]],
    sizes: dict[int, tuple[int, int]],
    problems: Problems,
    *,
    clips: bool,
) -> bool:
    """A line for each box outside its image unless they are clipped, or one for all that are another four numbers.

    Returns whether it is another order of the four numbers that explains them.
    """
    reading, count = None, len(outside) + len(sound)
    if len(outside) >= max(FEWEST_MISREAD, MISREAD_SHARE * count):
        rows = outside + sound
        reading = other_reading([row["bbox"] for row in rows], [sizes[row["image_id"]] for row in rows])
    for row in outside:
        place = f"annotation {brief(row.get('id'))} (image {brief(row['image_id'])})"
        if reading:
            told = f"{len(outside):,} of {count:,} boxes reach outside their images, but all fit as {reading}"
            problems.add("box", f"{told}: {place} has bbox {brief(row['bbox'])}; convert them to x, y, width, height")
            return True
        if clips:
            break
        size = "x".join(map(str, sizes[row["image_id"]]))
        told = f"(x, y, width, height) reaches outside the image of {size} pixels; clip or remove it"
        setting = "or set data.outside_boxes=clipped"
        problems.add("box", f"{place}: bbox {brief(row['bbox'])} {told}, {setting}")
    return False


def _check_ids(what: str, rows: Iterable[dict[str, Any]], problems: Problems) -> None:
    seen: set[int] = set()
    for row in rows:
        number: Any = row.get("id")
        if not is_whole(number) or abs(number) >= 2**63:
            problems.add(f"{what} id", f"{what} id {brief(number)} must be a whole number below 2^63")
        elif number in seen:
            problems.add(f"{what} id", f"{what} id {number} is there twice; ids must be distinct")
        else:
            seen.add(number)


def is_whole(value: Any) -> bool:
    """Whether this is a whole number; `true` is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_side(value: Any) -> bool:
    """Whether an image can be so many pixels wide or high."""
    return is_whole(value) and 1 <= value <= MAX_SIDE


def is_number(value: Any) -> bool:
    """Whether this is a finite number that a float can hold."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def is_text(value: Any) -> bool:
    """Whether this is text that can be written and printed (JSON may hold halves of characters)."""
    with suppress(UnicodeEncodeError):
        return isinstance(value, str) and value.encode() is not None
    return False


def is_line(text: str) -> bool:
    """Whether a text has neither ends of lines nor other control characters, which would spoil any table."""
    return not any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in text)


def _box_trouble(box: Any) -> str:
    """What is wrong with a COCO box (x, y, width, height) in any image; empty when nothing is."""
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        return f"bbox {brief(box)} must be four numbers: x, y, width, height; correct it"
    if box[2] <= 0 or box[3] <= 0:
        return f"bbox {brief(box)} has no area; correct or remove it"
    return ""


def _is_nowhere(box: Any, width: Any, height: Any) -> bool:
    """Whether nothing of a box lies in its image, or so little that no pixel shows it."""
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        return False
    x, y, w, h = box
    sides = (width, x, w), (height, y, h)
    return all(map(is_side, (width, height))) and any(
        min(end, at + size) - max(0, at) < THIN for end, at, size in sides
    )


def _is_outside(box: list[float], width: int, height: int) -> bool:
    """Whether a box reaches over the border by more than rounding does, or lies beyond it."""
    x, y, w, h = box
    over = max(-x, -y, x + w - width, y + h - height)
    inside = min(width, x + w) - max(0, x) > 0 and min(height, y + h) - max(0, y) > 0
    return over > EDGE_TOLERANCE or not inside
