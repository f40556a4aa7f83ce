"""LVIS's size without LVIS: `python -m benchmarks lvis_size`, 19,809 images, 244,707 boxes of 1,203 classes.

The split is opened, 300 drawn detections of each image are evaluated, and the images' factors of repetition are
computed. Times are the processor's; memory is the peak of this process. How often classes are falls as 1 / rank.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

from harness.config import DataConfig
from harness.data.coco import CocoDataset
from harness.data.order import repeat_factors
from harness.trial.build import peak_memory_mb
from harness.trial.detections import DetectionTable
from harness.trial.evaluate import evaluate_detections

NUM_CLASSES, NUM_IMAGES, BOXES_PER_IMAGE, FOUND = 1_203, 19_809, 244_707 / 19_809, 300
POSITIVES, NEGATIVES = 4, 8  # classes of an image that are there, and that were looked for in vain
HEIGHT, WIDTH = 480, 640


def write_lvis(root: Path, split: str, num_images: int, *, num_classes: int = NUM_CLASSES, seed: int = 0) -> None:
    """Write `annotations/lvis_v1_SPLIT.json` and grey images below `train2017/`, whose URLs alone it names."""
    rng = np.random.default_rng(seed)
    shares = 1 / np.arange(1, num_classes + 1)
    classes = rng.permutation(num_classes) + 1
    drawn = rng.choice(classes, (num_images, POSITIVES + NEGATIVES), p=shares / shares.sum())
    count = int(num_images * BOXES_PER_IMAGE)
    images = np.sort(rng.integers(0, num_images, count))
    labels = drawn[images, rng.integers(0, POSITIVES, count)]
    sides = np.exp(rng.uniform(np.log(8), np.log(200), (count, 2))).round(2)
    corners = (rng.uniform(0, 1, (count, 2)) * (np.array([WIDTH, HEIGHT]) - sides)).round(2)
    rows = zip(images.tolist(), labels.tolist(), np.concatenate([corners, sides], 1).tolist(), strict=True)
    annotations = [
        {"id": n, "image_id": image, "category_id": label, "bbox": box, "area": round(box[2] * box[3] * 0.6, 2)}
        for n, (image, label, box) in enumerate(rows, 1)
    ]
    of_images = np.bincount(np.unique(np.stack([images, labels]), axis=1)[1], minlength=num_classes + 1)
    content = {
        "images": [_image(number, own.tolist()) for number, own in enumerate(drawn)],
        "annotations": annotations,
        "categories": [
            {"id": n, "name": f"class {n}", "image_count": int(of_images[n])} for n in range(1, num_classes + 1)
        ],
    }
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / "annotations" / f"lvis_v1_{split}.json").write_text(json.dumps(content), encoding="utf-8")
    (root / "train2017").mkdir(exist_ok=True)
    stream = io.BytesIO()
    Image.new("L", (WIDTH, HEIGHT), 128).save(stream, "PNG")
    for number in range(num_images):
        (root / "train2017" / f"{number:012}.png").write_bytes(stream.getvalue())


def _image(number: int, drawn: list[int]) -> dict[str, object]:
    there = set(drawn[:POSITIVES])
    return {
        "id": number,
        "height": HEIGHT,
        "width": WIDTH,
        "coco_url": f"http://images.cocodataset.org/train2017/{number:012}.png",
        "neg_category_ids": sorted(set(drawn[POSITIVES:]) - there),
        "not_exhaustive_category_ids": drawn[: number % 10 == 0],
    }


def draw_detections(data: CocoDataset, found: int = FOUND, seed: int = 0) -> DetectionTable:
    """Shifted ground truth, and inventions of any class, so many on each image."""
    rng = np.random.default_rng(seed)
    truth = data.ground_truth
    count = found * len(data)
    images = np.repeat(np.array(data.image_ids), found)
    corners = rng.uniform(0, 400, (count, 2))
    boxes = np.concatenate([corners, rng.uniform(5, 80, (count, 2))], 1)
    labels, scores = rng.choice(np.array(data.category_ids), count), rng.uniform(0, 0.4, count)
    place = np.searchsorted(images, [row["image_id"] for row in truth["annotations"]])
    place += np.arange(len(place)) % found
    boxes[place] = np.array([row["bbox"] for row in truth["annotations"]]) + rng.normal(0, 4, (len(place), 4))
    labels[place] = [row["category_id"] for row in truth["annotations"]]
    scores[place] = rng.uniform(0.2, 1, len(place))
    return DetectionTable(images, labels, boxes, scores)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks lvis_size", description=__doc__)
    parser.add_argument("--images", type=int, default=NUM_IMAGES)
    images = parser.parse_args(argv).images
    device, found = torch.device("cpu"), {"images": float(images)}

    def note(name: str, began: float) -> None:
        found[f"{name}, s"] = round(time.process_time() - began, 1)
        found[f"peak after it, MB ({name})"] = round(peak_memory_mb(device))

    with TemporaryDirectory(prefix="codetr-lvis-") as folder:
        write_lvis(Path(folder), "val", images)
        began = time.process_time()
        data = CocoDataset(folder, "val", progress=lambda line: None)
        note("open", began)
    began = time.process_time()
    factors = repeat_factors(*data.classes_of_images(), data.image_hw, DataConfig(repeat_threshold=1e-3))
    assert factors is not None
    note("factors", began)
    table = draw_detections(data)
    began = time.process_time()
    metrics = evaluate_detections(data, table, "faster_coco_eval")
    note("evaluation", began)
    print(json.dumps({**found, "AP": metrics["AP"], "APr": metrics["APr"], "factors": float(factors.sum())}))
    return 0
