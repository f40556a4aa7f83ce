"""Slices of a batch: images in a row that decide together how many queries of a kind there are.

Officially these are the images of one GPU. Several slices in a batch make the same numbers here as on several GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def slice_largest(numbers: Tensor, images: int) -> Tensor:
    """[S] the largest of [B] numbers, none negative, in each slice of so many images; one slice where `images` is 0."""
    images = images or max(len(numbers), 1)
    return F.pad(numbers, (0, -len(numbers) % images)).view(-1, images).amax(1)


def largest_of_slices(numbers: Sequence[int], images: int) -> list[int]:
    """As `slice_largest`, of numbers that the host knows."""
    images = images or max(len(numbers), 1)
    return [max(numbers[start : start + images]) for start in range(0, len(numbers), images)]


def per_image(of_slices: Tensor, images: int, batch: int) -> Tensor:
    """[B] the number of each image's slice, of [S]."""
    return of_slices[torch.arange(batch, device=of_slices.device) // (images or max(batch, 1))]
