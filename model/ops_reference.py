"""The operators in pure torch: their definition, and what runs where the compiled ones cannot.

Signatures and meaning are those of `model.ops`. The compiled operators are tested against these. `REGISTERED` has them,
and their gradients, with the signatures of the operators that `model.ops_compiled` registers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: tuple[tuple[int, int], ...],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Bilinear `grid_sample` of each level; all arguments of one floating type."""
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


def roi_align(feature: Tensor, rois: Tensor, output_size: int, spatial_scale: float) -> Tensor:
    """One `grid_sample` for all regions of an image that need the same number of samples."""
    batch, channels, height, width = feature.shape
    corners = rois[:, 1:] * spatial_scale - 0.5
    bins = (corners[:, 2:] - corners[:, :2]) / output_size  # [N, 2] width and height of a bin, in cells
    counts = bins.ceil().clamp(min=0).nan_to_num(0).long()
    pooled = feature.new_zeros(len(rois), channels, output_size, output_size)
    images = rois[:, :1].floor().nan_to_num(-1).long()
    kinds, kind_of = torch.cat([images, counts], 1).unique(dim=0, return_inverse=True)
    for kind, (image, across, down) in enumerate(kinds.tolist()):
        if not 0 <= image < batch:
            raise ValueError(f"roi_align: the first column of rois must be an image index below {batch}")
        if across == 0 or down == 0:
            continue  # an empty region has no samples
        chosen = (kind_of == kind).nonzero()[:, 0]
        grid, inside = [], []
        for axis, count, size in ((0, across, width), (1, down, height)):
            steps = (torch.arange(output_size * count, device=rois.device, dtype=rois.dtype) + 0.5) / count
            position = corners[chosen, axis, None] + steps * bins[chosen, axis, None]
            grid.append((2 * position + 1) / size - 1)
            inside.append((position >= -1) & (position <= size))
        x, y = grid[0][:, None, :].expand(-1, down * output_size, -1), grid[1][:, :, None]
        points = torch.stack([x, y.expand_as(x)], -1)  # [n, rows, columns, 2]
        sampled = F.grid_sample(  # all regions below one another: one map, read once
            feature[image, None], points.flatten(0, 1)[None], padding_mode="border", align_corners=False
        ).view(channels, *points.shape[:3])
        sampled = sampled * (inside[1][:, :, None] & inside[0][:, None, :])
        means = sampled.view(channels, -1, output_size, down, output_size, across).mean((3, 5))
        pooled = pooled.index_copy(0, chosen, means.transpose(0, 1))
    return pooled


def pairwise_iou(boxes_xyxy: Tensor, others_xyxy: Tensor) -> Tensor:
    """[N, 4] and [M, 4] → [N, M]; 0 where neither box has an area."""
    left_top = torch.maximum(boxes_xyxy[:, None, :2], others_xyxy[None, :, :2])
    right_bottom = torch.minimum(boxes_xyxy[:, None, 2:], others_xyxy[None, :, 2:])
    intersection = (right_bottom - left_top).clamp(min=0).prod(-1)
    area, other_area = ((b[:, 2:] - b[:, :2]).clamp(min=0).prod(-1) for b in (boxes_xyxy, others_xyxy))
    return intersection / (area[:, None] + other_area[None, :] - intersection).clamp(min=1e-12)


def nms(boxes_xyxy: Tensor, labels: Tensor, iou_threshold: float) -> Tensor:
    """[N] bool, which boxes stay; the boxes come by descending score."""
    suppresses = (pairwise_iou(boxes_xyxy, boxes_xyxy) > iou_threshold) & (labels[:, None] == labels[None, :])
    rows = suppresses.triu(1).cpu().numpy()
    keep = torch.ones(len(boxes_xyxy), dtype=torch.bool)
    kept = keep.numpy()
    for i in range(len(rows)):  # greedy by definition; each step is one vectorised row
        if kept[i]:
            kept &= ~rows[i]
    return keep.to(boxes_xyxy.device)


def soft_nms(
    boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, min_score: float
) -> tuple[Tensor, Tensor]:
    """As `model.ops.soft_nms`."""
    iou = pairwise_iou(boxes_xyxy, boxes_xyxy)
    decays = (iou >= iou_threshold) & (labels[:, None] == labels)
    factors = torch.where(decays, 1 - iou, 1.0).cpu().numpy()  # [N, N]
    left, there = scores.cpu().numpy().copy(), np.ones(len(scores), bool)
    taken: list[int] = []
    taken_scores: list[float] = []
    while there.any():  # greedy by definition; each step is one vectorised row
        best = int(np.where(there, left, -np.inf).argmax())
        if taken and not left[best] >= min_score:
            break
        taken.append(best)
        taken_scores.append(float(left[best]))
        left *= factors[best]
        there[best] = False
    return (
        torch.tensor(taken, dtype=torch.int64, device=scores.device),
        torch.tensor(taken_scores, dtype=scores.dtype, device=scores.device),
    )


# ---- as they are registered ---------------------------------------------------------------------------------------


def pairs(sizes: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """(height, width) of each level; `sizes` are h, w, h, w, ..."""
    return tuple(zip(sizes[::2], sizes[1::2], strict=True))


@contextmanager
def autograd() -> Iterator[None]:
    """Record gradients even inside a registered operator, where torch has turned all of autograd off, not only grad."""
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in ("AutogradFunctionality", "AutogradOther", "AutogradNestedTensor"):
        excluded = excluded.remove(getattr(torch._C.DispatchKey, key))
    included = torch._C._dispatch_tls_local_include_set()
    with torch.inference_mode(False), torch.enable_grad(), torch._C._ForceDispatchKeyGuard(included, excluded):
        yield


def _attention(value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    return ms_deform_attn(value.to(weights.dtype), pairs(sizes), locations, weights).contiguous()


def _attention_gradients(
    gradient: Tensor, value: Tensor, sizes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    with autograd():
        leaves = [tensor.detach().requires_grad_() for tensor in (value, locations, weights)]
        found = torch.autograd.grad(_attention(leaves[0], sizes, leaves[1], leaves[2]), leaves, gradient)
    return found[0].contiguous(), found[1].contiguous(), found[2].contiguous()


def _pooled(feature: Tensor, rois: Tensor, output_size: int, spatial_scale: float) -> Tensor:
    return roi_align(feature, rois, output_size, spatial_scale).contiguous()


def _pooled_gradient(gradient: Tensor, rois: Tensor, feature_shape: Sequence[int], spatial_scale: float) -> Tensor:
    with autograd():
        feature = gradient.new_zeros(tuple(feature_shape)).requires_grad_()
        output = roi_align(feature, rois, gradient.shape[-1], spatial_scale)
        (found,) = torch.autograd.grad(output, feature, gradient) if len(rois) else (torch.zeros_like(feature),)
    return found.detach().contiguous(memory_format=torch.channels_last)


REGISTERED: dict[str, Callable[..., Any]] = {
    "ms_deform_attn": _attention,
    "ms_deform_attn_backward": _attention_gradients,
    "roi_align": _pooled,
    "roi_align_backward": _pooled_gradient,
    "nms": nms,
}
