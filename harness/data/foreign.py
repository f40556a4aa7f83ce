"""What a YOLO and a VOC folder have in common: pictures with a label file each, by split, and how such files are read.

`yolo` and `voc` find the files of a folder, `yolo_labels` and `voc_labels` read them, `converted` writes what they say
in COCO's format. Nothing is ever written into the folder itself.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from harness.data.checks import EDGE_TOLERANCE, Problems
from harness.data.disk import ABSENT, is_image, no_access, open_file, shown
from harness.data.layout import SPLITS, Split
from harness.data.plausibility import THIN

Kind = Literal["YOLO", "VOC"]
Row = dict[str, Any]  # of COCO's annotations, without ids; `category` is a class's number (YOLO) or name (VOC)
FEW_ENTRIES = 5000  # of a folder that is only asked what kind it is
LARGEST_TEXT = 64_000_000  # bytes of a label file or a list


class Picture(NamedTuple):
    """Absolute paths of an image and of its label file; None where it has none."""

    image: str
    labels: str | None


@dataclass
class Foreign:
    """A folder of another layout, as far as its files are named: nothing of the images and labels is read yet."""

    kind: Kind
    root: Path
    problems: Problems
    pictures: dict[Split, list[Picture]] = field(default_factory=lambda: {split: [] for split in SPLITS})
    names: list[str] | None = None  # of the classes, where a file lists them
    is_described: bool = False  # by a file that says what it is, such as data.yaml

    def place(self, path: str | Path) -> str:
        """A file's name as lines show it, from the folder's root where it lies there."""
        text = str(path)
        inside = text.startswith(f"{self.root}{os.sep}")
        return shown(os.path.relpath(text, self.root) if inside else text)


class Labels(Protocol):
    """Reads the label files of both splits, one after the other."""

    def rows(self, content: bytes, place: str, size: tuple[int, int]) -> list[Row]:
        """The objects of an image of `size` (width, height) pixels; what is wrong goes to the problems."""

    def categories(self) -> dict[Any, Row]:
        """COCO's categories by `category`, once all files are read; tells what the files are together."""


class Seen:
    """What was met in label files that a note tells of: how often by kind, and where first."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    def add(self, kind: str, where: str) -> None:
        """One more of a kind."""
        self.count[kind] += 1
        self.first.setdefault(kind, where)


def read_text(path: str | Path) -> str:
    """The text of a list or a description.

    Raises:
        UserError: it cannot be read, or is no text.
    """
    try:
        with open_file(path) as stream:
            content = stream.read(LARGEST_TEXT)
    except OSError as error:
        raise no_access(path, error) from error
    return decoded(content)


def decoded(content: bytes) -> str:
    """Text of UTF-8 or, by their marks, UTF-16; what is neither (a class's name in an old encoding) as Latin-1."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", "replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of each line that is not empty; only line ends of Unix, Windows and old Macs count."""
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):
        if line := line.strip("\ufeff \t\v\f\0"):
            yield number, line


def names_in(folder: str | Path, most: int | None = None) -> list[str]:
    """Names of what lies in a folder, sorted, without hidden ones; nothing where there is no folder.

    Args:
        folder: to look into.
        most: so many entries are enough.

    Raises:
        UserError: the system does not let us see.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in islice(entries, most) if not entry.name.startswith("."))
    except ValueError:  # a zero byte, or half of a surrogate pair
        return []
    except OSError as error:
        if error.errno in ABSENT:
            return []
        raise no_access(folder, error) from error


def has(folder: str | Path, *suffixes: str) -> bool:
    """Whether a file in the folder ends so, in small letters or large ones."""
    return any(name.lower().endswith(suffixes) for name in names_in(folder, FEW_ENTRIES))


def images_by_stem(folder: str | Path) -> dict[str, list[str]]:
    """Names of the images in a folder by what stands before their suffix."""
    found: dict[str, list[str]] = {}
    for name in filter(is_image, names_in(folder)):
        found.setdefault(os.path.splitext(name)[0], []).append(name)
    return found


def by_stem(names: Iterable[str], suffix: str) -> dict[str, str]:
    """Names that end so, in small letters or large ones, by what stands before; small letters go first."""
    found = sorted(name for name in names if name.lower().endswith(suffix))  # capitals sort before small letters
    return {name[: -len(suffix)]: name for name in found}


def distinct(pictures: Iterable[Picture]) -> list[Picture]:
    """Each image once, in order of its path."""
    return sorted({picture.image: picture for picture in pictures}.values())


def box_trouble(x: float, y: float, w: float, h: float, size: tuple[int, int]) -> Literal["", "empty", "outside"]:
    """What is wrong with a box in an image of `size` (width, height), all in pixels."""
    if w <= 0 or h <= 0:
        return "empty"
    width, height = size
    if max(-x, -y, x + w - width, y + h - height) > EDGE_TOLERANCE + 1e-6:  # of a product of shares
        return "outside"
    thin = min(min(x + w, width) - max(x, 0), min(y + h, height) - max(y, 0)) < THIN
    return "empty" if thin else ""


def within(x: float, y: float, w: float, h: float, size: tuple[int, int]) -> list[float]:
    """A box that reaches over the border by no more than rounding does, cut there: x, y, width, height."""
    left, top = max(x, 0.0), max(y, 0.0)
    right, bottom = min(x + w, float(size[0])), min(y + h, float(size[1]))
    return [round(value, 4) for value in (left, top, right - left, bottom - top)]
