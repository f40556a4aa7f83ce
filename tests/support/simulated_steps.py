"""Training steps on the simulated device beside the same ones on the CPU: `python -m tests.support.simulated_steps`.

Prints a line of JSON for each case: the largest relative difference of a loss and of the gradient in two steps, and
what the second step counted. The first one makes what is kept from then on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch

from harness.trial.train import build_optimizer, train_step
from model import inquiry, ops
from model.detector import Detector
from model.heads import HEADS
from tests.support import simulated_device
from tests.support.ranked import TRAIN
from tests.support.tiny import NUM_CLASSES, PLAIN, tiny_batch, tiny_config
from tests.support.tiny_heads import TINY

STEPS = 2
OBJECTS = ((3, 2), (1, 4))  # of the images of each step
SIZES = ((96, 96), (64, 80))  # the second image is padded
CASES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "K = 0": ((), {}),
    "K = 0, one stage": ((), PLAIN),
    **{f"K = 1, {name}": ((name,), {}) for name in sorted(HEADS)},
    **{f"K = 6, {name}": ((name,) * 6, {}) for name in sorted(HEADS)},
    "K = 2, atss + faster_rcnn": (("atss", "faster_rcnn"), {}),
    "K = 2, atss + faster_rcnn, official": (("atss", "faster_rcnn"), {"compatibility": "official"}),
    "K = 6, all kinds": (("atss", "faster_rcnn", "retinanet", "fcos", "paa", "gfl"), {}),
}
QUICK = ("K = 0", "K = 6, all kinds")  # what the plain test run has time for; the second has the heads of K = 2, too


def measured(case: str) -> dict[str, Any]:
    """See the top of this file."""
    names, changes = CASES[case]
    torch.manual_seed(0)
    heads = tuple(HEADS[name].Config(**TINY[name]) for name in names)
    here = Detector(replace(tiny_config(**changes), heads=heads), NUM_CLASSES)
    there = simulated_device.move_module(deepcopy(here))
    optimizer = build_optimizer(here, TRAIN)
    with parts_side_by_side():
        expected = [trained(here, optimizer, step) for step in range(STEPS)]
    with simulated_device.counted():
        optimizer = build_optimizer(there, TRAIN)
    found = []
    for step in range(STEPS):
        with simulated_device.counted() as (waits, copies):
            found.append(trained(there, optimizer, step, simulated=True))
    pairs = zip(here.parameters(), there.parameters(), strict=True)
    gradients = [(one.grad, simulated_device.raw_of(two.grad)) for one, two in pairs if one.grad is not None]
    apart, size = (
        sum(float(g.square().sum()) for g in own) for own in ((a - b for a, b in gradients), (a for a, _ in gradients))
    )
    return {
        "losses": max(
            difference(one[name], two[name]) for one, two in zip(expected, found, strict=True) for name in one
        ),
        "gradients": (apart / size) ** 0.5,
        "waits": dict(waits),
        "copies": dict(copies),
    }


@contextmanager
def parts_side_by_side() -> Iterator[None]:
    """Within, parts draw random numbers on the CPU in the order of a GPU, where none waits until another is through."""
    at_hand, inquiry.is_at_hand = inquiry.is_at_hand, lambda question: False
    try:
        yield
    finally:
        inquiry.is_at_hand = at_hand


def trained(
    detector: Detector, optimizer: torch.optim.Optimizer, step: int, simulated: bool = False
) -> dict[str, float]:
    """The losses of one step, with all that belongs to it."""
    batch = tiny_batch(OBJECTS[step], SIZES, seed=step)
    torch.manual_seed(step)
    if simulated:
        batch = batch.to(f"{simulated_device.NAME}:0")
    return train_step(detector, [batch], optimizer, TRAIN, step=step, total_steps=50, steps_per_epoch=50)


def difference(one: float, two: float) -> float:
    """Relative."""
    return abs(one - two) / max(abs(one), 1e-6)


def start() -> None:
    """Make the device known to this process."""
    torch.set_num_threads(1)
    simulated_device.install()
    compiled = ops._compiled
    ops._compiled = lambda tensor: tensor.device.type == simulated_device.NAME or compiled(tensor)


if __name__ == "__main__":
    start()
    for case in sys.argv[1:] or CASES:
        print(json.dumps({"case": case, **measured(case)}), flush=True)
