"""Training steps of one checkout on demand: a line with a case's name on stdin, its seconds on stdout.

`benchmarks.speed` runs this file with the checkout to look at first on the path, so it imports nothing of this package
and only what both sides have.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch

try:
    from harness.system.process import keep_freed_memory, wait_politely
    from harness.trial.train import build_optimizer, train_step
except ImportError:  # where these are modules on top of the package
    from harness.process import keep_freed_memory, wait_politely
    from harness.train import build_optimizer, train_step
from harness.config import TrainConfig
from model.config import DetectorConfig, TransformerConfig
from model.detector import Detector
from model.heads import HEADS
from model.types import Batch, Targets

RESNET = type(DetectorConfig().backbone)  # its name is not the same on both sides
DIGITS = DetectorConfig(
    RESNET(block="basic", depths=(1, 1, 1, 1), width=24, stem="conv3", norm="group", frozen_stages=-1),
    TransformerConfig(64, 3, 4, 4, 2, 3, 128),
    num_queries=40,
    anchor_scale=0.375,
)
ATSS = (HEADS["atss"].Config(),)
CASES = {  # detector, then images, height, width, classes and objects of an image
    "digits preset, batch 8, K = 0": (DIGITS, (8, 160, 160, 10, 5)),
    "digits preset, batch 8, K = 1": (replace(DIGITS, heads=ATSS), (8, 160, 160, 10, 5)),
    "R50, 480 x 640, batch 1, K = 0": (DetectorConfig(), (1, 480, 640, 80, 8)),
    "R50, 480 x 640, batch 1, K = 1": (DetectorConfig(heads=ATSS), (1, 480, 640, 80, 8)),
}
TRAIN = TrainConfig(drop_epochs=())


def step_of(config: DetectorConfig, size: tuple[int, int, int, int, int]) -> Callable[[], object]:
    """A training step on noise."""
    batch_size, height, width, num_classes, num_boxes = size
    torch.manual_seed(0)
    detector = Detector(config, num_classes).train()
    optimizer = build_optimizer(detector, TRAIN)
    centre, half = torch.rand(batch_size, num_boxes, 2) * 0.6 + 0.2, torch.rand(batch_size, num_boxes, 2) * 0.1 + 0.03
    boxes = torch.cat([centre - half, centre + half], -1) * torch.tensor([width, height, width, height])
    targets = Targets(boxes, torch.randint(0, num_classes, (batch_size, num_boxes)))
    images = torch.randn(batch_size, 3, height, width)
    batch = Batch(images, torch.tensor([[height, width]] * batch_size), targets, tuple(range(batch_size)))
    return lambda: train_step(detector, [batch], optimizer, TRAIN, step=0, total_steps=9, steps_per_epoch=9)


def main() -> None:
    """Answer until stdin ends. Memory and waiting are those of a trial."""
    wait_politely()
    keep_freed_memory()
    torch.set_num_threads(1)
    name, step = "", None
    for line in sys.stdin:
        if step is None or line.strip() != name:
            name = line.strip()
            step = step_of(*CASES[name])
            step()  # the first one reserves memory
        wall, processor = time.perf_counter(), time.process_time()
        step()
        print(time.perf_counter() - wall, time.process_time() - processor, flush=True)


if __name__ == "__main__":
    main()
