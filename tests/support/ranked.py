"""What the ranks of tests/test_ranks.py do; a rank's process imports this file, not the tests."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from harness.config import TrainConfig
from harness.trial.checkpoint import Progress, load_checkpoint, save_checkpoint
from harness.trial.ranks import ALONE, Ranks, join
from harness.trial.train import build_optimizer, train_step
from model.detector import Detector
from model.heads import HEADS
from model.heads.masks import MaskConfig
from model.heads.roi import RoIConfig
from model.heads.rpn import RPNConfig
from model.share import Share
from model.types import Batch
from tests.support.tiny import NUM_CLASSES, tiny_batch, tiny_config

CPU = torch.device("cpu")
TRAIN = TrainConfig(learning_rate=1e-4, batch_size=4, backbone_lr_factor=1.0, sampling_lr_factor=1.0, drop_epochs=())
SIZES = ((64, 64), (48, 64), (64, 40), (56, 64))
RPN = RPNConfig(num_samples=32, num_proposals=24, train_candidates=64)
ROI = RoIConfig(num_samples=16, fc_channels=16)  # fewer than there are proposals: some are left to chance
SMALL: dict[str, dict[str, Any]] = {
    "faster_rcnn": {"rpn": RPN, "roi": ROI},
    "mask_rcnn": {"rpn": RPN, "roi": ROI, "mask": MaskConfig(num_convs=1, pooled_size=4)},
}

# Name: heads, images of each batch by their numbers of objects, parts of a step, steps, changes of the detector.
Case = tuple[tuple[str, ...], tuple[tuple[int, ...], ...], int, int, dict[str, Any]]
FULL = ((3, 1, 2, 4), (0, 2, 5, 1))
CASES: dict[str, Case] = {
    "no head": ((), FULL, 1, 3, {}),
    "atss and faster_rcnn": (("atss", "faster_rcnn"), FULL, 1, 6, {}),
    **{name: ((name,), FULL, 1, 3, {}) for name in sorted(HEADS)},
    "official": (("atss", "faster_rcnn"), FULL, 1, 3, {"compatibility": "official"}),
    "one rank without objects": (("atss", "faster_rcnn"), ((0, 0, 2, 3), (4, 1, 0, 0)), 1, 3, {}),
    "no objects at all": (("atss", "faster_rcnn"), ((0, 0, 0, 0),), 1, 2, {}),
    "uneven shares": (("atss", "faster_rcnn"), ((3, 1, 2),), 1, 3, {}),
    "an empty share": (("atss", "faster_rcnn"), ((3,), (0,)), 1, 3, {}),
    "accumulation": (("atss", "faster_rcnn"), ((3, 1), (0, 2), (4, 2), (1,)), 2, 4, {}),
    "no auxiliary losses": (("atss",), FULL, 1, 3, {"auxiliary_loss": False}),
}


def detector_of(case: str) -> Detector:
    heads, _, _, _, changes = CASES[case]
    torch.manual_seed(0)
    configs = tuple(HEADS[name].Config(**SMALL.get(name, {})) for name in heads)
    return Detector(replace(tiny_config(**changes), heads=configs), NUM_CLASSES)


def share_of(batch: Batch, ranks: Ranks) -> Batch:
    """What the loader gives a rank of this batch."""
    if ranks.size == 1:
        return batch
    count = len(batch.images)
    first, last = count * ranks.rank // ranks.size, count * (ranks.rank + 1) // ranks.size
    share = Share(first, count) if first < last else Share(0, count, borrowed=True)
    own = slice(first, last) if first < last else slice(0, 1)
    return Batch(
        batch.images[own], batch.valid_hw[own], batch.targets.of_images(own), batch.image_ids[own], None, share
    )


def train(case: str, ranks: Ranks = ALONE, **resume: Any) -> dict[str, Any]:
    """See `train_detector`."""
    _, batches, parts, steps, _ = CASES[case]
    return train_detector(detector_of(case), batches, steps=steps, parts=parts, ranks=ranks, **resume)


def train_detector(
    detector: Detector,
    batches: tuple[tuple[int, ...], ...],
    *,
    steps: int,
    parts: int = 1,
    ranks: Ranks = ALONE,
    folder: str = "",
    start: int = 0,
    stop: int | None = None,
    device: torch.device = CPU,
) -> dict[str, Any]:
    """Losses of each step and the final weights; from a checkpoint in `folder` if `start`, to one if `stop`."""
    optimizer = build_optimizer(detector, TRAIN)
    if start:
        assert load_checkpoint(Path(folder), detector, optimizer)[0] == Progress(step=start)
    ranks.take_random_state(CPU)
    losses = []
    for step in range(start, stop or steps):
        ranks.seed_own(0, step)
        chosen = [batches[(step * parts + part) % len(batches)] for part in range(parts)]
        made = [tiny_batch(counts, SIZES[: len(counts)], seed=step) for counts in chosen]
        own = [share_of(batch, ranks).to(device) for batch in made]
        losses.append(
            train_step(detector, own, optimizer, TRAIN, step=step, total_steps=50, steps_per_epoch=50, ranks=ranks)
        )
    if stop and ranks.is_first:
        ranks.return_random_state()
        save_checkpoint(Path(folder), detector, optimizer, Progress(step=stop))
    weights = {name: value.cpu().numpy() for name, value in detector.state_dict().items()}
    return {"losses": losses, "weights": weights}


Report = Callable[[dict[str, Any]], None]


def train_all(rank: int, size: int, meeting_file: str, folder: str, *, report: Report, **_: Any) -> dict[str, Any]:
    """Every case, one after the other, and two halves of one case with a checkpoint between."""
    torch.set_num_threads(1)
    ranks = join(rank, size, meeting_file, CPU)
    found = {case: train(case, ranks) for case in CASES}
    if rank == 0:
        first = train(HALVES, stop=2, folder=f"{folder}/alone")
        found["alone, then together"] = {"losses": first["losses"]}
    ranks.wait()
    rest = train(HALVES, ranks, folder=f"{folder}/alone", start=2)
    if rank == 0:
        found["alone, then together"]["losses"] += rest["losses"]
    found["together"] = train(HALVES, ranks, folder=f"{folder}/together", stop=2)
    return found


HALVES = "atss"


def misbehave(rank: int, size: int, meeting_file: str, how: str, *, report: Report, should_stop: Any) -> str:
    """The last rank ends in a certain way while the others wait for it; `how` "wait" waits for the request to stop."""
    ranks = join(rank, size, meeting_file, CPU)
    report({"rank": rank, "pid": os.getpid()})
    ranks.wait()  # so that it has been told
    if rank == size - 1 and how != "wait":
        if how == "raise":
            raise KeyError("told to")
        if how == "kill":
            print("these are my last words", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "exit":
            os._exit(3)
    while not ranks.any(should_stop()):
        time.sleep(0.01)
    return f"stopped, as rank {rank}"
