"""Fixed seeded training steps of one checkout, as JSON: losses to the last bit, and a digest of the weights after them.

`benchmarks.losses` runs this file with the checkout to look at first on the path, so it imports nothing of this
package and only what both sides have.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

try:
    from harness.trial.train import build_optimizer, train_step
except ImportError:  # where training is a module on top of the package
    from harness.train import build_optimizer, train_step
from harness.config import TrainConfig
from model.config import DetectorConfig, TransformerConfig
from model.detector import Detector
from model.heads import HEADS
from model.types import MASK_CELLS, Batch, Targets

STEPS = 3
NUM_CLASSES = 5
ONE_STAGE = {"two_stage": False, "box_refinement": False, "mixed_selection": False, "look_forward_twice": False}
SIZES = ((96, 96), (64, 80))  # the second image is padded
BATCHES = ((3, 2), (0, 4), (1, 0))  # objects of each image, by step
RESNET = type(DetectorConfig().backbone)  # its name is not the same on both sides
CONFIG = DetectorConfig(
    RESNET(block="basic", depths=(1, 1, 1, 1), width=16, stem="conv3", norm="group", frozen_stages=-1),
    TransformerConfig(32, 3, 4, 2, 1, 2, 64, dropout=0.1),
    num_queries=12,
    anchor_scale=0.375,
)
TRAIN = TrainConfig(learning_rate=1e-3, batch_size=2, drop_epochs=())


def detectors() -> Iterator[tuple[str, DetectorConfig]]:
    """K = 0 in both forms, each head alone, and two heads of different kinds."""
    yield "K = 0, one stage", replace(CONFIG, **ONE_STAGE)
    yield "K = 0", CONFIG
    for name in HEADS:
        yield f"K = 1, {name}", with_heads(name)
    yield "K = 2, atss + faster_rcnn", with_heads("atss", "faster_rcnn")


def with_heads(*names: str) -> DetectorConfig:
    """The small detector with heads at their defaults."""
    return replace(CONFIG, heads=tuple(HEADS[name].Config() for name in names))


def batch_of(step: int) -> Batch:
    """Noise with random boxes, each object the upper right half of its box."""
    generator = torch.Generator().manual_seed(step)
    images = torch.zeros(len(SIZES), 3, 96, 96)
    boxes, labels, masks = [], [], []
    for index, ((height, width), count) in enumerate(zip(SIZES, BATCHES[step], strict=True)):
        images[index, :, :height, :width] = torch.randn(3, height, width, generator=generator)
        centre = torch.rand(count, 2, generator=generator) * 0.6 + 0.2
        half = torch.rand(count, 2, generator=generator) * 0.15 + 0.04
        boxes.append(torch.cat([centre - half, centre + half], 1) * torch.tensor([width, height, width, height]))
        labels.append(torch.randint(0, NUM_CLASSES, (count,), generator=generator))
        masks.append(torch.full((count, MASK_CELLS, MASK_CELLS), 255, dtype=torch.uint8).triu())
    valid_hw = torch.tensor(SIZES)
    return Batch(images, valid_hw, Targets.stack(boxes, labels, masks), tuple(range(len(SIZES))), valid_hw.clone())


def steps(config: DetectorConfig, precision: str) -> dict[str, Any]:
    """Losses of each step by name, as hexadecimal floats, and the SHA-256 of all weights after the last one."""
    torch.manual_seed(0)
    detector = Detector(config, NUM_CLASSES).train()
    train = replace(TRAIN, precision=precision)
    optimizer = build_optimizer(detector, train)
    losses = []
    for step in range(STEPS):
        told = train_step(
            detector, [batch_of(step)], optimizer, train, step=step, total_steps=STEPS, steps_per_epoch=STEPS
        )
        losses.append({name: float(value).hex() for name, value in told.items()})
    digest = hashlib.sha256()
    for name, tensor in detector.state_dict().items():
        digest.update(name.encode() + tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return {"losses": losses, "weights": digest.hexdigest()}


def main() -> None:
    """Print every case."""
    torch.set_num_threads(1)
    found = {}
    for name, config in detectors():
        for compatibility in ("default", "official"):
            for precision in ("fp32", "bf16"):
                case = f"{name}, {compatibility}, {precision}"
                found[case] = steps(replace(config, compatibility=compatibility), precision)
                print(case, file=sys.stderr, flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
