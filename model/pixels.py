"""Pixels become the network's numbers where the network is: batches travel there as bytes, a quarter of the size."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # ImageNet, RGB in [0, 1]
STD = np.array([0.229, 0.224, 0.225], np.float32)
FACTOR, SHIFT = 1 / (255 * STD), MEAN / STD  # of each channel: a byte times one, less the other


def normalise(pixels: Tensor, padding: Tensor) -> Tensor:
    """Bytes as numbers by ImageNet's mean and standard deviation, zeros in the padding.

    Args:
        pixels: [B, 3, H, W] uint8 RGB.
        padding: [B, H, W] bool, True = padding.

    Returns:
        [B, 3, H, W] float32 on the device of `pixels`. Nothing is copied to it, and the host does not wait for it.
    """
    images = pixels.to(torch.float32)
    for channel, (factor, shift) in enumerate(zip(FACTOR.tolist(), SHIFT.tolist(), strict=True)):
        images[:, channel].mul_(factor).sub_(shift)  # two roundings, as everywhere
    return images.masked_fill_(padding[:, None], 0.0)
