"""Candidates of the dense heads: boxes or points at every position of every pyramid level.

Order: levels fine to coarse, row-major over (y, x) inside a level, then ratio (outer) and scale (inner).
Grids depend only on the levels' sizes and are cached; nothing here looks at an image except `valid_flags`.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

Sizes = tuple[tuple[int, int], ...]  # (h, w) of each level


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # a grid first made at evaluation must still serve training
def anchor_grid(
    sizes: Sizes,
    strides: tuple[int, ...],
    scales: tuple[float, ...],
    ratios: tuple[float, ...] = (1.0,),
    device: torch.device | str = "cpu",
) -> Tensor:
    """[A, 4] xyxy pixels. A side is `scale * stride`, `ratio` is height / width at equal area.

    Anchors are centred at (x * stride, y * stride), not at the middle of a cell (official behaviour).
    The result is shared between callers: do not write into it.
    """
    height_factor = torch.tensor(ratios).sqrt()[:, None]
    sides = torch.tensor(scales)[None, :]
    widths, heights = (sides / height_factor).flatten(), (sides * height_factor).flatten()
    shapes = torch.stack([-widths, -heights, widths, heights], -1) / 2  # [per location, 4] in strides
    levels = []
    for (height, width), stride in zip(sizes, strides, strict=True):
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        centres = torch.stack([x, y, x, y], -1).reshape(-1, 1, 4) * float(stride)
        levels.append((centres + shapes * stride).reshape(-1, 4))
    return torch.cat(levels).to(device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def point_grid(sizes: Sizes, strides: tuple[int, ...], device: torch.device | str = "cpu") -> Tensor:
    """[A, 2] (x, y) pixels of the middle of every cell. Shared between callers: do not write into it."""
    levels = []
    for (height, width), stride in zip(sizes, strides, strict=True):
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        levels.append((torch.stack([x, y], -1).reshape(-1, 2) + 0.5) * stride)
    return torch.cat(levels).to(device)


def valid_flags(sizes: Sizes, strides: tuple[int, ...], valid_hw: Tensor, per_location: int = 1) -> Tensor:
    """[B, A] bool: the candidate's cell begins inside the image's valid area `valid_hw` [B, 2]."""
    levels = []
    for (height, width), stride in zip(sizes, strides, strict=True):
        cells = torch.div(valid_hw + stride - 1, stride, rounding_mode="floor")  # ceil(valid / stride)
        rows = torch.arange(height, device=valid_hw.device) < cells[:, :1]
        columns = torch.arange(width, device=valid_hw.device) < cells[:, 1:]
        inside = rows[:, :, None] & columns[:, None, :]
        levels.append(inside.flatten(1).repeat_interleave(per_location, 1))
    return torch.cat(levels, 1)
