"""How many classes a data set has, known before it is opened."""

from __future__ import annotations

import json
from pathlib import Path

from harness.config import DataConfig
from harness.data.layout import SPLITS, find_split
from harness.errors import UserError

DIGITS = 10
COCO = 80  # what is assumed of a data set that is not here


def num_classes_of(data: DataConfig) -> int:
    """Of the generated scenes, or of the smaller annotation file of a folder; COCO's where none can be read."""
    if data.path is None:
        return DIGITS
    files = []
    for split in SPLITS:
        try:
            files.append(find_split(Path(data.path).expanduser(), split)[0])
        except UserError:
            continue  # told by the checks
    for file in sorted(files, key=lambda file: file.stat().st_size):
        try:
            return max(1, len(json.loads(file.read_bytes())["categories"]))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            continue
    return COCO
