"""Sine encodings of positions and boxes, and the geometry of reference points."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model.constants import constant

TEMPERATURE = 10000.0  # of the frequencies


def sine_position_encoding(
    mask: Tensor, channels: int, offset: float = -0.5, temperature: float = TEMPERATURE
) -> Tensor:
    """Encode each position of a map, normalised by the image's valid size (Deformable-DETR; offset 0, 20: DINO).

    Args:
        mask: [B, h, w] bool, True = padding.
        channels: D, a multiple of 4.
        offset: added to the 1-based position before normalising.
        temperature: of the frequencies.

    Returns:
        [B, D, h, w]: first half encodes y, second half x; sine and cosine interleaved.
    """
    valid = (~mask).float()
    y, x = valid.cumsum(1), valid.cumsum(2)
    y = (y + offset) / (y[:, -1:, :] + 1e-6) * (2 * math.pi)
    x = (x + offset) / (x[:, :, -1:] + 1e-6) * (2 * math.pi)
    frequency = temperature ** (2 * (torch.arange(channels // 2, device=mask.device) // 2) / (channels // 2))
    angles = torch.stack([y, x], -1)[..., None] / frequency  # [B, h, w, 2, D/2]
    encoded = torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], -1).flatten(-3)
    return encoded.permute(0, 3, 1, 2)


def box_position_encoding(boxes_cxcywh: Tensor, channels: int) -> Tensor:
    """[B, Q, 4] boxes in [0, 1] → [B, Q, 4 * channels], order x, y, w, h, sine and cosine interleaved."""
    frequency = TEMPERATURE ** (2 * (torch.arange(channels, device=boxes_cxcywh.device) // 2) / channels)
    angles = boxes_cxcywh[..., None] * (2 * math.pi) / frequency  # [B, Q, 4, channels]
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], -1).flatten(2)


def valid_ratios(masks: list[Tensor]) -> Tensor:
    """Share (w, h) of each level's map that holds the image: L masks [B, h, w] → [B, L, 2]."""
    ratios = []
    for mask in masks:
        height = (~mask[:, :, 0]).sum(1) / mask.shape[1]
        width = (~mask[:, 0, :]).sum(1) / mask.shape[2]
        ratios.append(torch.stack([width, height], -1))
    return torch.stack(ratios, 1).float()


def encoder_reference_points(sizes: list[tuple[int, int]], ratios: Tensor) -> Tensor:
    """Every token's own centre on every level: [B, S, L, 2] (x, y), normalised to each whole map.

    Args:
        sizes: (h, w) of the L levels.
        ratios: [B, L, 2] from `valid_ratios`.
    """
    points = []
    for level, (h, w) in enumerate(sizes):
        y, x = torch.meshgrid(
            torch.arange(h, device=ratios.device) + 0.5, torch.arange(w, device=ratios.device) + 0.5, indexing="ij"
        )
        size = ratios[:, None, level] * constant((w, h), ratios, torch.int64)
        points.append(torch.stack([x.flatten(), y.flatten()], -1)[None] / size)
    return torch.cat(points, 1)[:, :, None] * ratios[:, None]
