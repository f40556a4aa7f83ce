"""The data set's fingerprint: what it follows, what it leaves alone, and what it costs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

RECORDED = "53bc0097189bfbd9"  # of `plain_folder`, by the code that made the first records


def write_names(root: Path, names: dict[str, list[str]]) -> Path:
    """Annotation files that name these images; of a split's folder and its files nothing is written."""
    for split, own in names.items():
        images = [{"id": n, "file_name": name, "width": 8, "height": 8} for n, name in enumerate(own, 1)]
        content: dict[str, Any] = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "ant"}]}
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        (root / split).mkdir(exist_ok=True)
    return root


def fill(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def plain_folder(root: Path) -> Path:
    """Every way to name an image below the split's folder, and files that nobody names."""
    write_names(
        root,
        {
            "train": ["a.jpg", "sub/b.PNG", "./c.tiff", "../train/d.bmp", "é.webp", "sub//e.jpeg", "linked.gif"],
            "val": ["a.jpg", "gone.jpg"],
        },
    )
    for number, name in enumerate(("a.jpg", "sub/b.PNG", "c.tiff", "d.bmp", "é.webp", "sub/e.jpeg", "stray.jpg")):
        fill(root / "train" / name, bytes(1000 + number))
    fill(root / "train" / ".hidden.jpg", bytes(5))
    fill(root / "train" / "notes.txt", b"x")
    fill(root / "val" / "a.jpg", bytes(77))
    fill(root / "elsewhere.gif", bytes(50))
    (root / "train" / "linked.gif").symlink_to(os.path.join("..", "elsewhere.gif"))
    return root
