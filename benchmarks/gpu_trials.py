"""What a trial needs of a device beside its steps, for `benchmarks.gpu`: checkpoints, and two ranks there.

Both train a small detector with two heads and compare losses with those of one process that went through.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.step import DIGITS, TRAIN, random_batch
from harness.system.launch import run_ranks
from harness.trial.checkpoint import Progress, load_checkpoint, save_checkpoint
from harness.trial.ranks import ALONE, Ranks, join
from harness.trial.train import build_optimizer, train_step
from model.config import DetectorConfig
from model.detector import Detector
from model.heads import HEADS
from model.share import Share
from model.types import Batch

STEPS, RESUMED_AT, IMAGES = 4, 2, 4


def with_heads(config: DetectorConfig, heads: tuple[str, ...]) -> DetectorConfig:
    """The detector with these auxiliary heads."""
    return replace(config, heads=tuple(HEADS[head].Config() for head in heads))


def detector_on(device: str) -> Detector:
    """The same one each time, in training mode."""
    torch.manual_seed(0)
    return Detector(with_heads(DIGITS, ("atss", "faster_rcnn")), 10).to(device).train()


def batch_of(step: int, ranks: Ranks) -> Batch:
    """What a rank has of a step's batch."""
    whole = random_batch(IMAGES, 160, 160, 10, 3 + step)
    if ranks.size == 1:
        return whole
    first, last = (IMAGES * number // ranks.size for number in (ranks.rank, ranks.rank + 1))
    own = slice(first, last)
    return Batch(
        *(whole.images[own], whole.valid_hw[own], whole.targets.of_images(own), whole.image_ids[own], None),
        Share(first, IMAGES),
    )


def train(device: str, first: int = 0, last: int = STEPS, folder: Path | None = None, ranks: Ranks = ALONE) -> Any:
    """Losses of these steps; a training that begins later takes the checkpoint, one that ends earlier leaves it."""
    detector = detector_on(device)
    optimizer = build_optimizer(detector, TRAIN)
    torch.manual_seed(1)
    if folder is not None and first:
        load_checkpoint(folder, detector, optimizer)
    ranks.take_random_state(torch.device(device))
    losses = []
    for step in range(first, last):
        ranks.seed_own(0, step)
        batch = batch_of(step, ranks).to(device)
        counts = {"step": step, "total_steps": STEPS, "steps_per_epoch": STEPS}
        losses.append(train_step(detector, [batch], optimizer, TRAIN, ranks=ranks, **counts))
    if folder is not None and last < STEPS:
        save_checkpoint(folder, detector, optimizer, Progress(step=last))
    return losses


def as_a_rank(rank: int, size: int, meeting_file: str, device: str, **_: Any) -> Any:
    """What one of several ranks trains."""
    return train(device, ranks=join(rank, size, meeting_file, torch.device(device)))


def trials(device: str = "cuda") -> Iterator[dict[str, Any]]:
    """The largest relative difference of a loss from those of one process that went through."""
    whole = train(device)
    with tempfile.TemporaryDirectory() as folder:
        begun = train(device, last=RESUMED_AT, folder=Path(folder))
        resumed = begun + train(device, first=RESUMED_AT, folder=Path(folder))
    yield {"name": f"a training resumed after {RESUMED_AT} of {STEPS} steps", "loss_difference": apart(whole, resumed)}
    ranks = run_ranks(2, as_a_rank, (device,), report=lambda event: None, should_stop=lambda: False)
    yield {"name": "two ranks on one device", "loss_difference": apart(whole, ranks)}


def apart(one: Any, other: Any) -> float:
    """The largest relative difference of two trainings' losses."""
    pairs = zip(one, other, strict=True)
    return max(abs(own[name] - found[name]) / (abs(own[name]) + 1e-3) for own, found in pairs for name in own)
