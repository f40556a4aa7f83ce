"""Maps of images of different sizes in one padded tensor: what is valid, how they are resized and normalised.

Everything that an image gives here is what it would give alone, without its neighbours and their padding.
Letters as in `model/types.py`; N positions of a map, laid out row by row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.types import padding_mask


def valid_cells(valid_hw: Tensor, stride: int) -> Tensor:
    """[B, 2] (rows, columns) of a level that an image of `valid_hw` [B, 2] pixels has: ceil(valid / stride)."""
    return torch.div(valid_hw + stride - 1, stride, rounding_mode="floor")


def inside(cells: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, h, w] bool, True in each image's own `cells` [B, 2] of a map of this size."""
    return ~padding_mask(cells, *size)


def resize(maps: Tensor, cells: Tensor, size: tuple[int, int], new_cells: Tensor) -> Tensor:
    """Bilinear resizing of each image's own cells (align_corners=False), as if it were cut out first.

    Args:
        maps: [B, h, w]; what lies outside `cells` is never read.
        cells: [B, 2] valid rows and columns of `maps`.
        size: (h', w') of the result.
        new_cells: [B, 2] rows and columns of the result that the cells are spread over.

    Returns:
        [B, h', w'], zero outside `new_cells`.
    """
    rows = _interpolation(cells[:, 0], maps.shape[1], new_cells[:, 0], size[0], maps.dtype)
    columns = _interpolation(cells[:, 1], maps.shape[2], new_cells[:, 1], size[1], maps.dtype)
    valid = maps.masked_fill(~inside(cells, (maps.shape[1], maps.shape[2])), 0.0)
    return rows @ valid @ columns.transpose(1, 2)


def _interpolation(old: Tensor, length: int, new: Tensor, new_length: int, dtype: torch.dtype) -> Tensor:
    """[B, new_length, length] weights that stretch the first `old` [B] of a row over the first `new` [B]."""
    position = torch.arange(new_length, device=old.device, dtype=dtype)
    scale = old.to(dtype) / new.to(dtype).clamp(min=1)
    source = ((position + 0.5) * scale[:, None] - 0.5).clamp(min=0)
    low = source.floor().clamp(max=length - 1)
    low = torch.minimum(low, old[:, None] - 1.0)
    high = torch.minimum(low + 1, old[:, None] - 1.0)
    share = (source - low).clamp(max=1.0)
    cell = torch.arange(length, device=old.device, dtype=dtype)
    weights = (cell == low[..., None]) * (1 - share)[..., None] + (cell == high[..., None]) * share[..., None]
    return weights * (position < new[:, None])[..., None]


def divide_by_max(maps: Tensor) -> Tensor:
    """[..., h, w] non-negative maps over their own maximum; a map of zeros stays one."""
    largest = maps.amax((-2, -1), keepdim=True)
    return torch.where(largest > 0, maps / largest.where(largest > 0, 1.0), 0.0)
