"""Evaluation at COCO's size: `python -m benchmarks evaluation`, 5,000 images of 36,000 objects and three branches.

Nothing is detected: detections are drawn beforehand, 100 on each image. Times are the processor's, so that other work
on the machine does not matter; memory is the peak of this process. The evaluator's own time is that of its two sides
and its run, with rows that are ready.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from benchmarks.coco_size import write_annotations
from harness.config import EvaluateConfig
from harness.data.coco import CocoDataset
from harness.trial import evaluate as room
from harness.trial import evaluators
from harness.trial.build import peak_memory_mb
from model.types import Batch, Detections, Targets

BRANCHES = ("decoder", "atss", "faster_rcnn")
NUM_IMAGES, NUM_BOXES, FOUND = 5_000, 36_000, 100


class Drawn:
    """Stands for a detector: shifted ground truth and inventions, with scores of all sizes."""

    def __init__(self, data: CocoDataset) -> None:
        rng = np.random.default_rng(0)
        self.training, self.config = False, SimpleNamespace(num_queries=300)
        self.found: dict[int, dict[str, Detections]] = {}
        for index, image_id in enumerate(data.image_ids):
            boxes, labels, _ = data.boxes(index)
            self.found[int(image_id)] = {name: _draw(rng, boxes, labels, data.num_classes) for name in BRANCHES}

    def eval(self) -> None:
        """As a detector's."""

    def train(self, mode: bool) -> None:
        """As a detector's."""

    def detect_and_match(self, batch: Batch, names: Sequence[str], limit: int) -> tuple[dict[str, Any], torch.Tensor]:
        """Of the images of a batch."""
        found = {name: [self.found[int(image)][name] for image in batch.image_ids] for name in names}
        return found, torch.zeros(len(batch.image_ids), 2, 300, dtype=torch.int32)


def _draw(rng: np.random.Generator, boxes: np.ndarray, labels: np.ndarray, num_classes: int) -> Detections:
    own = boxes + rng.normal(0, 5, boxes.shape)
    corner = rng.uniform(0, 400, (FOUND - len(own), 2))
    others = np.concatenate([corner, corner + rng.uniform(5, 80, corner.shape)], 1)
    classes = np.concatenate([labels, rng.integers(0, num_classes, len(others))])
    scores = np.concatenate([rng.uniform(0.2, 1, len(own)), rng.uniform(0, 0.4, len(others))])
    return Detections(
        torch.from_numpy(np.concatenate([own, others])).float(),
        torch.from_numpy(scores).float(),
        torch.from_numpy(classes),
    )


class Pictures:
    """Stands for a loader: batches without pixels."""

    def __init__(self, data: CocoDataset, size: int = 2) -> None:
        self.data, self.size = data, size

    def __len__(self) -> int:
        return -(-len(self.data) // self.size)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """All images in order."""
        for start in range(0, len(self.data), self.size):
            rows = range(start, min(start + self.size, len(self.data)))
            hw = torch.tensor([[int(side) for side in self.data.image_hw[row]] for row in rows])
            targets = Targets(torch.zeros(len(rows), 1, 4), torch.full((len(rows), 1), -1))
            ids = tuple(int(self.data.image_ids[row]) for row in rows)
            yield Batch(torch.zeros(len(rows), 3, 1, 1), hw, targets, ids, hw)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks evaluation", description=__doc__)
    parser.add_argument("--images", type=int, default=NUM_IMAGES)
    images = parser.parse_args(argv).images
    with TemporaryDirectory(prefix="codetr-evaluation-") as folder:
        write_annotations(folder, "val", images, images * NUM_BOXES // NUM_IMAGES)
        data = CocoDataset(folder, "val", progress=lambda line: None)
    detector, config, device = Drawn(data), EvaluateConfig(branches=BRANCHES), torch.device("cpu")
    before = peak_memory_mb(device)
    started, cpu = time.perf_counter(), time.process_time()
    found = room.evaluate(detector, Pictures(data), data, config, device)  # type: ignore[arg-type]
    seconds, used = time.perf_counter() - started, time.process_time() - cpu
    peak = peak_memory_mb(device)
    kept = json.dumps(found.detections) if isinstance(found.detections, list) else found.detections.to_json()
    rows = [{**row, "id": n, "area": 1.0, "iscrowd": 0} for n, row in enumerate(found.detections, 1)]
    small, large = data.area_bounds
    ranges = {"all": [0.0, 1e10], "small": [0.0, small], "medium": [small, large], "large": [large, 1e10]}
    cpu = time.process_time()
    for _ in BRANCHES:
        evaluators._run_faster_coco_eval(
            data.ground_truth, [dict(r) for r in rows], evaluators.Protocol(ranges, (1, 10, 100), "bbox")
        )
    own = time.process_time() - cpu
    print(
        json.dumps(
            {
                "images": images,
                "seconds": round(seconds, 1),
                "processor seconds": round(used, 1),
                "evaluator's own": round(own, 1),
                "ratio": round(used / own, 2),
                "peak MB": round(peak),
                "before it MB": round(before),
                "AP": found.metrics["AP"],
                "bytes": len(kept),
            }
        )
    )
    return 0


if __name__ == "__main__":
    main()
