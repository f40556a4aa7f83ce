"""The sampling operators of the detector: deformable attention and non-maximum suppression.

Each has one function that the rest of the package calls and a pure-torch reference that defines it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IMPLEMENTATION = "reference"  # written into every record: which implementation ran


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: tuple[tuple[int, int], ...],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Multi-scale deformable attention (Deformable-DETR Eq. 3), in at least float32 whatever autocast says.

    Args:
        value: [B, S, K, D], the tokens of all levels, level by level, row-major; K attention heads.
        spatial_shapes: (height, width) of each of the L levels; S is the sum of their areas.
        sampling_locations: [B, Q, K, L, P, 2], (x, y) normalised to [0, 1] over each whole map;
            `location * size - 0.5` is the pixel index and what lies outside counts as zero.
        attention_weights: [B, Q, K, L, P].

    Returns:
        [B, Q, K * D] float32 (float64 for float64 input).
    """
    with torch.autocast(value.device.type, enabled=False):
        dtype = torch.promote_types(value.dtype, torch.float32)
        return ms_deform_attn_reference(
            value.to(dtype), spatial_shapes, sampling_locations.to(dtype), attention_weights.to(dtype)
        )


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: tuple[tuple[int, int], ...],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """The definition of `ms_deform_attn`, as bilinear `grid_sample` of each level."""
    batch, _, num_heads, width = value.shape
    num_queries = sampling_locations.shape[1]
    grids = (2 * sampling_locations - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)  # [L, B*K, Q, P, 2]
    levels = value.split([h * w for h, w in spatial_shapes], dim=1)
    sampled = [
        F.grid_sample(
            level.permute(0, 2, 3, 1).reshape(batch * num_heads, width, h, w),
            grid,
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )
        for level, grid, (h, w) in zip(levels, grids, spatial_shapes, strict=True)
    ]
    weights = attention_weights.permute(0, 2, 1, 3, 4).reshape(batch * num_heads, 1, num_queries, -1)
    attended = (torch.cat(sampled, -1) * weights).sum(-1)  # [B*K, D, Q]
    return attended.view(batch, num_heads * width, num_queries).transpose(1, 2)


def nms(boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """Class-aware non-maximum suppression.

    Args:
        boxes_xyxy: [N, 4].
        scores: [N].
        labels: [N] int; boxes of different labels never suppress each other.
        iou_threshold: a box is dropped when its IoU with a better kept one is above this.

    Returns:
        [M] int64, indices of the kept boxes by descending score.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes, classes = boxes_xyxy[order].float(), labels[order]
    left_top = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    right_bottom = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    intersection = (right_bottom - left_top).clamp(min=0).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(-1)
    union = (area[:, None] + area[None, :] - intersection).clamp(min=1e-12)
    suppresses = (intersection / union > iou_threshold) & (classes[:, None] == classes[None, :])
    rows = suppresses.triu(1).cpu().numpy()
    keep = torch.ones(len(order), dtype=torch.bool)
    kept = keep.numpy()
    for i in range(len(order)):  # greedy by definition; each step is one vectorised row
        if kept[i]:
            kept &= ~rows[i]
    return order[keep.to(order.device)]
