"""Classes of a data set: how many it has, known before it is opened, and which of their names look alike."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.config import DataConfig
from harness.data.checks import brief
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


def note_alike(names: Sequence[str], counts: Iterable[int]) -> str:
    """What is noted of classes whose names differ in capitals, spaces or the coding of letters; empty without any.

    Args:
        names: of the classes.
        counts: of their objects.
    """
    alike: dict[str, list[str]] = {}
    for name, count in zip(names, counts, strict=True):
        alike.setdefault(_as_seen(name), []).append(f"{_spelt(name)} ({count:,} objects)")
    groups = [group for group in alike.values() if len(group) > 1]
    if not groups:
        return ""
    more = f", and so have {len(groups) - 1:,} more groups of classes" if len(groups) > 1 else ""
    told = " and ".join(groups[0][:4]) + (", …" if len(groups[0]) > 4 else "")
    return f"classes {told} have names that look alike{more}: if they are one class, give them one id"


def _as_seen(name: str) -> str:
    """A name without what the eye does not tell apart: capitals, spaces, composed letters, signs without a shape."""
    letters = unicodedata.normalize("NFKC", name).casefold()
    seen = "".join(letter for letter in letters if not letter.isspace() and unicodedata.category(letter) != "Cf")
    return unicodedata.normalize("NFKC", seen)  # small letters can be composed anew


def _spelt(name: str) -> str:
    """A name in quotes, its letters by their numbers where they are not those that a keyboard gives."""
    usual = unicodedata.normalize("NFC", name) == name and name.isprintable()
    return brief(name) if usual else ascii(name[:40])
