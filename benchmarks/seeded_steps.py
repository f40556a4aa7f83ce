"""Fixed seeded training steps of one checkout, as JSON: losses to the last bit, and a digest of the weights after them.

With `leave FOLDER` also checkpoints of a training and its next steps, with `take FOLDER` the next steps of checkpoints
that another checkout left. `benchmarks.losses` runs this file with the checkout to look at first on the path, so it
imports nothing of this package and only what both sides have.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

try:
    from harness.trial.checkpoint import Progress, load_checkpoint, save_checkpoint
    from harness.trial.train import build_optimizer, train_step
except ImportError:  # where training is a module on top of the package
    from harness.train import Progress, build_optimizer, load_checkpoint, save_checkpoint, train_step
from harness.config import TrainConfig
from model.config import DetectorConfig, TransformerConfig
from model.detector import Detector
from model.heads import HEADS
from model.types import MASK_CELLS, Batch, Targets

STEPS = 3
CONTINUED = 5  # steps from a checkpoint on
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
    for index, ((height, width), count) in enumerate(zip(SIZES, BATCHES[step % len(BATCHES)], strict=True)):
        images[index, :, :height, :width] = torch.randn(3, height, width, generator=generator)
        centre = torch.rand(count, 2, generator=generator) * 0.6 + 0.2
        half = torch.rand(count, 2, generator=generator) * 0.15 + 0.04
        boxes.append(torch.cat([centre - half, centre + half], 1) * torch.tensor([width, height, width, height]))
        labels.append(torch.randint(0, NUM_CLASSES, (count,), generator=generator))
        masks.append(torch.full((count, MASK_CELLS, MASK_CELLS), 255, dtype=torch.uint8).triu())
    valid_hw = torch.tensor(SIZES)
    return Batch(images, valid_hw, Targets.stack(boxes, labels, masks), tuple(range(len(SIZES))), valid_hw.clone())


class Training:
    """A detector with its optimiser, step by step."""

    def __init__(self, config: DetectorConfig, precision: str = "fp32", seed: int = 0):
        torch.manual_seed(seed)
        self.detector = Detector(config, NUM_CLASSES).train()
        self.config = replace(TRAIN, precision=precision)
        self.optimizer = build_optimizer(self.detector, self.config)

    def take(self, steps: Sequence[int]) -> dict[str, Any]:
        """Losses of each step by name, as hexadecimal floats, and the SHA-256 of all weights after the last one."""
        losses = []
        for step in steps:
            lengths = {"total_steps": STEPS + CONTINUED, "steps_per_epoch": STEPS + CONTINUED}
            told = train_step(self.detector, [batch_of(step)], self.optimizer, self.config, step=step, **lengths)
            losses.append({name: float(value).hex() for name, value in told.items()})
        digest = hashlib.sha256()
        for name, tensor in self.detector.state_dict().items():
            digest.update(name.encode() + tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return {"losses": losses, "weights": digest.hexdigest()}


def seeded() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every case from its seed on."""
    for name, config in detectors():
        for compatibility in ("default", "official"):
            for precision in ("fp32", "bf16"):
                training = Training(replace(config, compatibility=compatibility), precision)
                yield f"{name}, {compatibility}, {precision}", training.take(range(STEPS))


def continued(folder: Path, leave: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every detector from its checkpoint in `folder` on, which is left there first with `leave`."""
    for number, (name, config) in enumerate(detectors()):
        training = Training(config, seed=0 if leave else 1)  # what is loaded takes the place of every weight
        place = folder / str(number)
        if leave:
            training.take(range(STEPS))
            save_checkpoint(place, training.detector, training.optimizer, Progress(step=STEPS))
        else:
            progress, warnings = load_checkpoint(place, training.detector, training.optimizer)
            if progress is None or progress.step != STEPS or warnings:
                raise SystemExit(f"{name}: the checkpoint of the other side cannot be continued: {warnings}")
        yield f"{name}, from a checkpoint", training.take(range(STEPS, STEPS + CONTINUED))


def main(arguments: Sequence[str] = ()) -> None:
    """Print every case."""
    torch.set_num_threads(1)
    found = {}
    cases = [seeded()]
    if arguments:
        leave, folder = arguments[0] == "leave", Path(arguments[1])
        cases.append(continued(folder, leave))
    for case, result in (pair for own in cases for pair in own):
        found[case] = result
        print(case, file=sys.stderr, flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
