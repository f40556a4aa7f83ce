"""Gradients and transfer are measured on images one by one: the first two fifths of the analysed ones, by turns.

Every other image gives gradients; the images between them are held out, and say what a step along a gradient is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch

from harness.analyse.shared import HeadGradients, gradients, losses, see, shared_parameters, with_objects_of
from harness.analyse.transfer import LENGTHS, Transfer
from model.detector import Detector
from model.types import Batch

SHARE = 0.4  # of the analysed images: each costs several backward passes through the whole detector


class Collector(Protocol):
    """Gathers gradients image by image."""

    def add(self, own: HeadGradients, elsewhere: HeadGradients | None, again: HeadGradients | None) -> None:
        """An image."""


def measure(
    detector: Detector,
    images: Iterable[Batch],
    collectors: Sequence[Collector],
    device: torch.device,
    *,
    floor: Detector | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> None:
    """Show the gradients of each image that gives some to every collector, and let a `Transfer` try them.

    Args:
        detector: in evaluation mode, on `device`; afterwards what it was.
        images: batches of one image.
        collectors: of gradients.
        device: where to work.
        floor: another training of the same heads.
        on_batch: called with (images done, images in all); a held-out image counts once for each direction.
    """
    batches = list(images)
    taught, held_out = batches[::2], batches[1::2]
    transfer = next((own for own in collectors if isinstance(own, Transfer)), None)
    crosses = len(taught) > 1  # otherwise half the set away lies the image itself
    total = len(taught) + (len(held_out) * _steps(detector, floor, crosses) if transfer else 0)
    done = 0

    def tell() -> None:
        nonlocal done
        done += 1
        if on_batch:
            on_batch(min(done, total), total)

    for number, cpu_batch in enumerate(taught):
        batch = cpu_batch.to(device)
        other = taught[(number + len(taught) // 2) % len(taught)].to(device) if crosses else None
        own, crossed = _gradients(detector, batch, other, seed=number)
        again = _gradients(floor, batch, None, seed=number)[0] if floor else None
        for collector in collectors:
            collector.add(own, crossed, again)
        tell()
    if transfer is not None:
        transfer.try_out(detector, held_out, tell)


def _gradients(
    detector: Detector, batch: Batch, other: Batch | None, seed: int
) -> tuple[HeadGradients, HeadGradients | None]:
    """Of an image with its own objects, and with those of another where one is given."""
    parameters = shared_parameters(detector)
    torch.manual_seed(seed)  # samples that heads draw are those of every other training
    with torch.enable_grad():
        seen = see(detector, batch)
        own = gradients(losses(detector, seen, batch.targets), seen.step.memory, parameters)
        if other is None:
            return own, None
        crossed = losses(detector, seen, with_objects_of(other, batch))
        return own, gradients(crossed, seen.step.memory, parameters)


def _steps(detector: Detector, floor: Detector | None, crosses: bool) -> int:
    """How often a held-out image is looked at: at the start, and after a step along each direction."""
    heads = len(detector.heads)
    return 1 + len(LENGTHS) * (1 + heads + (heads if crosses else 0) + (heads if floor else 0))
