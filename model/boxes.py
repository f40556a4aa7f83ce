"""Boxes: formats, overlaps and the two ways of writing a box relative to a candidate.

Pure functions on the last axis; leading axes broadcast. The format is in the name: `xyxy` are two corners in
pixels, `cxcywh` centre and size. Coordinates are continuous: a width is `x1 - x0`, without + 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model.constants import constant

EPSILON = 1e-6  # smallest union and enclosing area, as the official implementation
MAX_LOG_RATIO = abs(math.log(16 / 1000))  # decoded sides change by at most a factor of 62.5
UNIT_STDS = (1.0, 1.0, 1.0, 1.0)


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """[..., 4] centre and size to corners."""
    cx, cy, width, height = boxes.unbind(-1)
    return torch.stack([cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2], -1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """[..., 4] corners to centre and size."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], -1)


def size_whwh(hw: Tensor) -> Tensor:
    """[..., 2] (height, width) to [..., 4] (width, height, width, height): turns normalised boxes into pixels."""
    return hw.flip(-1).repeat((1,) * (hw.dim() - 1) + (2,))


def clip_boxes(boxes_xyxy: Tensor, hw: Tensor) -> Tensor:
    """[..., 4] corners moved into the area [0, width] x [0, height] of `hw` [..., 2], which broadcasts."""
    return torch.minimum(boxes_xyxy.clamp(min=0), size_whwh(hw).to(boxes_xyxy))


def _overlap_and_union(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    ax0, ay0, ax1, ay1 = boxes1.unbind(-1)
    bx0, by0, bx1, by1 = boxes2.unbind(-1)
    width = (torch.minimum(ax1, bx1) - torch.maximum(ax0, bx0)).clamp(min=0)
    height = (torch.minimum(ay1, by1) - torch.maximum(ay0, by0)).clamp(min=0)
    overlap = width * height
    return overlap, (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - overlap


def iou_aligned(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor, least_union: Tensor | None = None) -> Tensor:
    """Intersection over union of box n with box n: [..., 4] and [..., 4] give [...].

    A union below `least_union`, which broadcasts to [...], counts as that.
    """
    overlap, union = _overlap_and_union(boxes1_xyxy, boxes2_xyxy)
    return overlap / union.clamp(min=EPSILON if least_union is None else least_union)


def giou_aligned(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor, added_area: Tensor | None = None) -> Tensor:
    """Generalised IoU (Rezatofighi et al. 2019) of box n with box n: [..., 4] and [..., 4] give [...].

    `added_area`, which broadcasts to [...], is added to the union and the enclosing area that are divided by: boxes
    that are not large beside it are told to overlap little, whatever they do (DAB-DETR).
    """
    overlap, union = _overlap_and_union(boxes1_xyxy, boxes2_xyxy)
    ax0, ay0, ax1, ay1 = boxes1_xyxy.unbind(-1)
    bx0, by0, bx1, by1 = boxes2_xyxy.unbind(-1)
    width = (torch.maximum(ax1, bx1) - torch.minimum(ax0, bx0)).clamp(min=0)
    height = (torch.maximum(ay1, by1) - torch.minimum(ay0, by0)).clamp(min=0)
    enclosing = width * height
    if added_area is not None:
        return overlap / (union + added_area) - (enclosing - union) / (enclosing + added_area)
    union, enclosing = union.clamp(min=EPSILON), enclosing.clamp(min=EPSILON)
    return overlap / union - (enclosing - union) / enclosing


def iou_pairwise(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor) -> Tensor:
    """IoU of every pair: [..., N, 4] and [..., M, 4] give [..., N, M]."""
    return iou_aligned(boxes1_xyxy.unsqueeze(-2), boxes2_xyxy.unsqueeze(-3))


def giou_pairwise(boxes1_xyxy: Tensor, boxes2_xyxy: Tensor, added_area: Tensor | None = None) -> Tensor:
    """Generalised IoU of every pair: [..., N, 4] and [..., M, 4] give [..., N, M]; see `giou_aligned`."""
    return giou_aligned(boxes1_xyxy.unsqueeze(-2), boxes2_xyxy.unsqueeze(-3), added_area)


def added_area(epsilon: float, hw: Tensor) -> Tensor | None:
    """[...] pixels of `giou_aligned` or `iou_aligned`, for `epsilon` as a share of images `hw` [..., 2]; None: 0."""
    return hw.prod(-1) * epsilon if epsilon else None


def encode_deltas(anchors_xyxy: Tensor, boxes_xyxy: Tensor, stds: tuple[float, ...] = UNIT_STDS) -> Tensor:
    """[..., 4] (dx, dy, dw, dh): shift in anchor sizes and log scale from anchor to box, divided by `stds`."""
    anchor = xyxy_to_cxcywh(anchors_xyxy)
    box = xyxy_to_cxcywh(boxes_xyxy)
    shift = (box[..., :2] - anchor[..., :2]) / anchor[..., 2:]
    scale = (box[..., 2:] / anchor[..., 2:]).log()
    return torch.cat([shift, scale], -1) / constant(stds, shift, shift.dtype)


def decode_deltas(anchors_xyxy: Tensor, deltas: Tensor, stds: tuple[float, ...] = UNIT_STDS) -> Tensor:
    """[..., 4] boxes in pixels; the inverse of `encode_deltas` for changes of size below a factor of 62.5."""
    deltas = deltas * constant(stds, deltas, deltas.dtype)
    anchor = xyxy_to_cxcywh(anchors_xyxy)
    centre = anchor[..., :2] + anchor[..., 2:] * deltas[..., :2]
    size = anchor[..., 2:] * deltas[..., 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def encode_distances(points: Tensor, boxes_xyxy: Tensor, max_distance: float | None = None) -> Tensor:
    """[..., 4] distances (left, top, right, bottom) from a point [..., 2] to the box's sides.

    With `max_distance` they are clamped to [0, max_distance - 0.1], the range of a discrete distribution.
    """
    distances = torch.cat([points - boxes_xyxy[..., :2], boxes_xyxy[..., 2:] - points], -1)
    return distances if max_distance is None else distances.clamp(0, max_distance - 0.1)


def decode_distances(points: Tensor, distances: Tensor) -> Tensor:
    """[..., 4] boxes of points [..., 2] and distances (left, top, right, bottom) [..., 4]."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], -1)


def inverse_sigmoid(values: Tensor, epsilon: float = 1e-5) -> Tensor:
    """Logit of values clamped to [0, 1], finite at the ends: nothing below `epsilon` enters the logarithm."""
    values = values.clamp(0, 1)
    return (values.clamp(min=epsilon) / (1 - values).clamp(min=epsilon)).log()
