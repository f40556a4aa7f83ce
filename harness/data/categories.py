"""The classes that labels stand for: COCO's id and name of each, as files of weights carry them in their metadata.

A label is a place in these lists. Data sets number their classes by ascending ids.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from harness.config import DataConfig
from harness.data.converted import own_folder
from harness.data.digits import CATEGORIES
from harness.data.layout import SPLITS, find_split
from harness.data.ticker import print_aside
from harness.errors import UserError

KEY = "codetr_classes"  # of a safetensors file's metadata
FEW = 3  # classes that a message names
COCO_IDS = tuple(number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
COCO_NAMES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone"),
    *("microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear"),
    *("hair drier", "toothbrush"),
)


class Categories(NamedTuple):
    """Of C classes, in the order of their labels."""

    ids: tuple[int, ...]
    names: tuple[str, ...]

    def to_metadata(self) -> dict[str, str]:
        """For a safetensors file."""
        return {KEY: json.dumps(list(zip(self.ids, self.names, strict=True)))}

    def rows(self) -> list[dict[str, Any]]:
        """As in COCO's files."""
        return [{"id": number, "name": name} for number, name in zip(self.ids, self.names, strict=True)]


COCO = Categories(COCO_IDS, COCO_NAMES)


def of_metadata(metadata: Mapping[str, Any]) -> Categories | None:
    """The classes that a file of weights tells of; None where it tells of none.

    Raises:
        ValueError: what it tells is no list of classes.
    """
    if KEY not in metadata:
        return None
    with suppress(ValueError, TypeError, RecursionError):
        rows = json.loads(metadata[KEY])
        if all(type(number) is int and isinstance(name, str) for number, name in rows):
            return Categories(tuple(number for number, _ in rows), tuple(name for _, name in rows))
    raise ValueError(f"its metadata '{KEY}' is no list of ids and names")


def numbered(count: int) -> Categories:
    """What stands in for classes that nobody knows: their labels."""
    return Categories(tuple(range(count)), tuple(f"class {label}" for label in range(count)))


def coco_rows(count: int) -> Categories | None:
    """COCO's classes for weights with a row for each, or for each number up to its largest id; None for other counts.

    A row whose number is no category's keeps its number.
    """
    if count == len(COCO_IDS):
        return COCO
    names = dict(zip(COCO_IDS, COCO_NAMES, strict=True))
    of_ids = count == max(COCO_IDS) + 1
    return Categories(tuple(range(count)), tuple(names.get(n, f"class {n}") for n in range(count))) if of_ids else None


def categories_of(data: DataConfig) -> Categories | None:
    """Those of a data set, read from an annotation file and nothing else; None where none can be read."""
    if data.path is None:
        rows: Any = CATEGORIES
    else:
        rows = _listed(data.path)
    with suppress(KeyError, TypeError):
        known = sorted((row["id"], row["name"]) for row in rows or ())
        if known:
            return Categories(tuple(number for number, _ in known), tuple(name for _, name in known))
    return None


def _listed(path: str) -> Any:
    """The `categories` of the first annotation file that can be read."""
    with suppress(UserError):
        folder = own_folder(Path(os.path.expanduser(path)), print_aside).folder
        for split in reversed(SPLITS):  # the validation split's file is the smaller one
            with suppress(UserError, OSError, ValueError, KeyError, TypeError, RecursionError):
                return json.loads(find_split(folder, split)[0].read_bytes())["categories"]
    return None


def disagreement(weights: Categories, data: Categories) -> tuple[str, bool]:
    """How the classes of weights differ from those of data with as many, and whether that makes all numbers wrong.

    Names count, in small letters, and not ids, which both sides may number as they like. Another order is wrong; names
    that the other side does not have may be other words for the same.

    Returns:
        Some of the differences, empty where there are none; True where a name of one stands at another label of the
        other.
    """
    ours, theirs = ([name.strip().casefold() for name in own.names] for own in (weights, data))
    other = [label for label, (one, two) in enumerate(zip(ours, theirs, strict=True)) if one != two]
    moved = [label for label in other if ours[label] in theirs]
    named = [f"label {label} is '{weights.names[label]}' and '{data.names[label]}' there" for label in moved or other]
    more = f", and {len(named) - FEW} more" if len(named) > FEW else ""
    return ", ".join(named[:FEW]) + more, bool(moved)
