"""COCO-layout folders for tests: small, whole, and easy to break in one place."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

CATEGORIES = [{"id": 0, "name": "ant"}, {"id": 7, "name": "bee"}, {"id": 90, "name": "cow"}]
SIZES = [(64, 96), (96, 64), (80, 80), (50, 120)]  # (height, width)


def tables(seed: int = 0, sizes: list[tuple[int, int]] | None = None) -> dict[str, Any]:
    """Images with ids from 10 in steps of 10, two boxes each, the third image empty, the last with a crowd."""
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for index, (height, width) in enumerate(sizes or SIZES):
        image_id = 10 * (index + 1)
        images.append({"id": image_id, "file_name": f"{image_id}.jpg", "height": height, "width": width})
        for number in range(0 if index == 2 else 2):
            x, y = rng.integers(0, [width // 2, height // 2]).tolist()
            w, h = rng.integers(8, [width // 2, height // 2]).tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": CATEGORIES[(index + number) % 3]["id"],
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
    annotations[-1]["iscrowd"] = 1
    return {"images": images, "annotations": annotations, "categories": [dict(row) for row in CATEGORIES]}


def write_split(root: Path, split: str, content: dict[str, Any], seed: int = 0) -> None:
    """Annotations and noise images of a split."""
    rng = np.random.default_rng(seed)
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    (root / split).mkdir(exist_ok=True)
    for row in content["images"]:
        pixels = rng.integers(0, 255, (row["height"], row["width"], 3), np.uint8)
        Image.fromarray(pixels).save(root / split / row["file_name"])


def write_folder(root: Path) -> Path:
    """A whole folder with both splits."""
    write_split(root, "train", tables(0))
    write_split(root, "val", tables(1), seed=1)
    return root


def real_data(name: str) -> Path:
    """A folder of real data for development; the test is skipped where it is absent."""
    beside = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("CODETR_TEST_DATA", beside)) / name
    if not folder.is_dir():
        pytest.skip(f"{name} is not here; CODETR_TEST_DATA names the folder that holds it")
    return folder
