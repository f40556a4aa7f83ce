"""Every detector's preset on the simulated device beside the CPU, and all that is done with a detector.

`python -m tests.support.simulated_uses` prints a line of JSON for each preset: the largest difference of a loss in a
step, of a detection of any branch, of what the analyses read, of the losses after a checkpoint; and how often a step
and an evaluation wait.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from copy import deepcopy
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.analyse import feed
from harness.trial.checkpoint import Progress, load_checkpoint, save_checkpoint
from harness.trial.train import build_optimizer, train_step
from model.detector import Detector
from tests.support import simulated_device
from tests.support.detectors import EVERY_HEAD, PRESETS, batch_of, scattered, tiny_preset
from tests.support.ranked import TRAIN
from tests.support.simulated_steps import parts_side_by_side, start
from tests.support.tiny import NUM_CLASSES

HEADS = dict(zip(PRESETS, cycle(EVERY_HEAD), strict=False))  # each preset beside one
DEVICE = f"{simulated_device.NAME}:0"


def measured(preset: str) -> dict[str, Any]:
    """See the top of this file."""
    config = tiny_preset(preset, HEADS[preset])
    here = scattered(config)
    there = simulated_device.move_module(deepcopy(here))
    batch = batch_of()
    with simulated_device.counted():
        on_device = batch.to(DEVICE)
        optimizers = [build_optimizer(here, TRAIN), build_optimizer(there, TRAIN)]
        with parts_side_by_side():
            expected = step(here, batch, optimizers[0], 0)
        found = step(there, on_device, optimizers[1], 0)
        resumed = after_checkpoint(there, optimizers[1], config, on_device)
    with simulated_device.counted() as (waits, _), parts_side_by_side():
        continued = step(there, on_device, optimizers[1], 1)
    here.eval(), there.eval()
    with simulated_device.counted() as (evaluation, _):
        detections = list(detected(there, on_device))
    there.load_state_dict(here.state_dict()), there.eval()
    with simulated_device.counted():
        detections = list(detected(there, on_device))
        read = list(analysed(there, on_device))
    return {
        "losses": max(apart(expected[name], found[name]) for name in expected),
        "resumed": max(apart(continued[name], resumed[name]) for name in continued),
        "detections": most_apart(detected(here, batch), detections),
        "analyses": most_apart(analysed(here, batch), read),
        "waits": dict(waits),
        "evaluation": dict(evaluation),
    }


def step(detector: Detector, batch: Any, optimizer: torch.optim.Optimizer, number: int) -> dict[str, float]:
    """The losses of one training step."""
    torch.manual_seed(number)
    detector.train()
    return train_step(detector, [batch], optimizer, TRAIN, step=number, total_steps=9, steps_per_epoch=9)


def after_checkpoint(detector: Detector, optimizer: torch.optim.Optimizer, config: Any, batch: Any) -> dict[str, float]:
    """The losses of the second step by another detector, which starts where the checkpoint of the first ends."""
    other = simulated_device.move_module(Detector(config, NUM_CLASSES))
    others = build_optimizer(other, TRAIN)
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder), detector, optimizer, Progress(step=1))
        load_checkpoint(Path(folder), other, others)
    return step(other, batch, others, 1)


def detected(detector: Detector, batch: Any) -> Iterator[Tensor]:
    """What evaluation sees of every branch, and of the matching."""
    branches = ("decoder", *(name for name, _ in detector.named_heads()))
    found, matching = detector.detect_and_match(batch, branches)
    for own in found.values():
        yield from (values for one in own for values in (one.boxes_xyxy, one.scores, one.labels.float()))
    yield matching.float()


def analysed(detector: Detector, batch: Any) -> Iterator[Tensor]:
    """What the analyses read: scores of every head, their gradients, attention, and positives."""
    root = feed.encode(detector, batch)
    decoded = feed.decode(detector, root, batch)
    yield from decoded.attention
    for score in feed.scores(detector, root, decoded, batch).values():
        yield score
        yield from feed.gradients(root, score, score.isfinite())
    for positives in feed.positives(detector, root, batch).values():
        yield positives.gt_index.float()


def apart(one: float, two: float) -> float:
    """The relative difference."""
    return abs(one - two) / max(abs(one), 1e-6)


def most_apart(expected: Iterator[Tensor], found: Sequence[Tensor]) -> float:
    """The largest difference, relative to each tensor's largest number."""
    most = 0.0
    for one, own in zip(expected, found, strict=True):
        one, two = one.detach(), simulated_device.raw_of(own).detach()
        assert one.shape == two.shape and torch.equal(one.isnan(), two.isnan())
        if one.numel():
            scale = float(one.nan_to_num().abs().max()) or 1.0
            most = max(most, float((one - two).nan_to_num().abs().max()) / scale)
    return most


if __name__ == "__main__":
    start()
    for preset in sys.argv[1:] or PRESETS:
        print(json.dumps({"case": preset, **measured(preset)}), flush=True)
