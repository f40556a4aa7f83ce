"""An annotation file of COCO's size without COCO: drawn boxes, polygons if wanted, and a small picture for each image.

The pictures are of one grey, a few hundred bytes each, because a data set opens only when its images are there.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

NUM_CLASSES, HEIGHT, WIDTH, POINTS = 80, 480, 640, 22  # numbers of a polygon, as COCO's in the mean


def write_annotations(
    root: str | Path,
    split: str,
    num_images: int,
    num_boxes: int,
    *,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    polygons: bool = False,
    seed: int = 0,
) -> None:
    """Write `annotations/instances_SPLIT.json` and the images of a split below `root`.

    Args:
        root: of the data set.
        split: "train" or "val".
        num_images: how many.
        num_boxes: spread over them at random; one in a hundred is a crowd region.
        size: height and width of an image, pixels; the largest box has half its width.
        polygons: give each object a segmentation of one polygon.
        seed: of the draws.
    """
    root, rng = Path(root), np.random.default_rng(seed)
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    _write_pictures(root / split, num_images, size)
    sides = np.exp(rng.uniform(np.log(8), np.log(300), (num_boxes, 2))).round(2) * size[1] / WIDTH
    corner = (rng.uniform(0, 1, (num_boxes, 2)) * (np.array(size[::-1]) - sides)).round(2)
    columns = zip(
        np.sort(rng.integers(0, num_images, num_boxes)).tolist(),
        rng.integers(1, NUM_CLASSES + 1, num_boxes).tolist(),
        np.concatenate([corner, sides], 1).tolist(),
        (sides.prod(1) * 0.6).round(4).tolist(),
        (rng.random(num_boxes) < 0.01).astype(int).tolist(),
        strict=True,
    )
    images = [
        {
            "license": 3,
            "file_name": f"{number:012}.png",
            "coco_url": f"http://images.example/{split}/{number:012}.png",
            "height": size[0],
            "width": size[1],
            "date_captured": "2013-11-14 17:02:52",
            "id": number,
        }
        for number in range(num_images)
    ]
    categories = [{"supercategory": "thing", "id": n, "name": f"class {n}"} for n in range(1, NUM_CLASSES + 1)]
    with open(root / "annotations" / f"instances_{split}.json", "w", encoding="utf-8") as file:
        file.write(f'{{"info": {{}}, "images": {json.dumps(images)}, "annotations": [')
        for number, (image, category, box, area, crowd) in enumerate(columns):
            own = {"area": area, "iscrowd": crowd, "image_id": image, "bbox": box, "category_id": category}
            row = {"segmentation": [_polygon(box)] if polygons else []} | own | {"id": number + 1}
            file.write((", " if number else "") + json.dumps(row))
        file.write(f'], "categories": {json.dumps(categories)}}}')


def _polygon(box: list[float]) -> list[float]:
    """A closed line along the border of a box."""
    x, y, w, h = box
    around = np.linspace(0, 2 * np.pi, POINTS // 2, endpoint=False)
    points = np.stack([x + w / 2 * (1 + np.cos(around)), y + h / 2 * (1 + np.sin(around))], 1)
    return points.round(2).flatten().tolist()


def _write_pictures(folder: Path, count: int, size: tuple[int, int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    Image.new("L", size[::-1], 128).save(stream, "PNG")
    for number in range(count):
        (folder / f"{number:012}.png").write_bytes(stream.getvalue())
