"""Shared by dense heads, from settings to detections: plain functions that any of them may call."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.anchor_assignment import assign_atss
from model.anchors import anchor_grid, valid_flags
from model.boxes import clip_boxes
from model.checks import require
from model.inquiry import Counts, places
from model.layers import ConvNorm, zero_padding
from model.ops import nms, survivors
from model.share import total
from model.types import BACKGROUND, Detections, Pyramid, Targets

CANDIDATES_PER_LEVEL = 1000  # best (position, class) pairs of a level that enter NMS (official)
PRIOR_PROBABILITY = 0.01  # of each class at initialisation
ANCHOR_SIDE = 8.0  # in strides, of the one anchor at each position that ATSS, GFL and PAA have (official)
DELTA_STDS = (0.1, 0.1, 0.2, 0.2)  # of the boxes that ATSS and PAA predict relative to it (official)


class Matches(NamedTuple):
    """The positives of a batch, P in all, in the order of images and candidates."""

    image: Tensor  # [P] int64
    candidate: Tensor  # [P] int64
    gt: Tensor  # [P] int64
    boxes_xyxy: Tensor  # [P, 4] of the ground truth
    class_labels: Tensor  # [P] int64 of the ground truth
    labels: Tensor  # [B, A] int64 of every candidate; BACKGROUND where it is no positive


class PlainConv(nn.Module):
    """A 3x3 convolution with a bias and without normalisation; what `ConvNorm` is to a tower with one."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, D, h, w] to the same shape, zero outside the mask."""
        return zero_padding(self.conv(x), mask)


def conv_tower(channels: int, num_convs: int, num_groups: int | None, norm: bool = True) -> nn.ModuleList:
    """Stacked 3x3 convolutions, each with group normalisation or else a bias; see `run_tower`.

    Raises:
        ValueError: `num_groups` does not divide `channels`.
    """
    require(
        num_groups is None or channels % num_groups == 0,
        f"num_groups ({num_groups}) must divide the number of channels ({channels})",
    )
    return nn.ModuleList(
        ConvNorm(channels, channels, 3, groups=num_groups) if norm else PlainConv(channels) for _ in range(num_convs)
    )


def run_tower(tower: nn.ModuleList, features: Tensor, mask: Tensor | None) -> Tensor:
    """[B, D, h, w] to the same shape; `features` must be zero outside the mask, and the result is."""
    for conv in tower:
        features = conv(features, mask).relu()
    return features


def initialise(head: nn.Module, classification: nn.Conv2d) -> None:
    """Official start: small weights, no biases, every class of `classification` at probability 0.01."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    assert classification.bias is not None
    nn.init.constant_(classification.bias, -math.log(1 / PRIOR_PROBABILITY - 1))


def flatten_output(output: Tensor, per_location: int = 1) -> Tensor:
    """[B, per_location * channels, h, w] to [B, h * w * per_location, channels] in at least float32."""
    rows = output.to(torch.promote_types(output.dtype, torch.float32)).flatten(2).transpose(1, 2)
    return rows if per_location == 1 else rows.reshape(len(rows), rows.shape[1] * per_location, -1)


def level_areas(pyramid: Pyramid, per_location: int = 1) -> tuple[int, ...]:
    """Candidates of each level."""
    return tuple(height * width * per_location for height, width in pyramid.sizes)


def flags_of(pyramid: Pyramid, per_location: int = 1) -> Tensor:
    """[B, A] bool, False for candidates outside their image's valid area."""
    return valid_flags(pyramid.sizes, pyramid.strides, pyramid.valid_hw, per_location)


def matches_of(gt_index: Tensor, targets: Targets, counts: Counts | None = None) -> Matches:
    """The positives of `gt_index` [B, A] with what they must predict; `counts` of it, or the host waits for them."""
    number = None if counts is None else sum(positives for positives, _ in counts)
    image, candidate = places(gt_index >= 0, number)
    gt = gt_index[image, candidate]
    class_labels = targets.labels[image, gt]
    labels = torch.full_like(gt_index, BACKGROUND)
    labels[image, candidate] = class_labels
    return Matches(image, candidate, gt, targets.boxes_xyxy[image, gt], class_labels, labels)


def square_anchors(pyramid: Pyramid, anchor_scale: float) -> Tensor:
    """[A, 4] xyxy pixels: one square at each position, of `anchor_scale` x `ANCHOR_SIDE` strides (ATSS, GFL, PAA)."""
    side = ANCHOR_SIDE * anchor_scale
    return anchor_grid(pyramid.sizes, pyramid.strides, (side,), device=pyramid.levels[0].device)


def assign_adaptively(pyramid: Pyramid, anchors_xyxy: Tensor, targets: Targets, top_k: int) -> Tensor:
    """[B, A] gt_index by ATSS, of the anchors [A, 4] of a pyramid; those outside the valid area are IGNORED."""
    gt_index, _ = assign_atss(anchors_xyxy, level_areas(pyramid), targets, top_k=top_k, valid=flags_of(pyramid))
    return gt_index


def num_positives(gt_index: Tensor) -> Tensor:
    """Official normaliser: positives of the batch, an image without any counting as one; int64 scalar."""
    return total((gt_index >= 0).sum(1).clamp(min=1).sum())


def mean_positive_logit(logits: Tensor, gt_index: Tensor, targets: Targets) -> Tensor:
    """[B, G] mean of `logits` [B, A, C] of a ground truth's class over its positives; not-a-number without any."""
    matches = matches_of(gt_index, targets)
    own = logits[matches.image, matches.candidate, matches.class_labels]
    return mean_by_gt(own, matches.image, matches.gt, targets)


def mean_by_gt(scores: Tensor, image: Tensor, gt: Tensor, targets: Targets) -> Tensor:
    """[B, G] mean of `scores` [P] over the positives of each ground truth; not-a-number for one without any.

    Args:
        scores: [P], one for each positive.
        image: [P] int64.
        gt: [P] int64, 0-based ground truth of the image.
        targets: ground truth of B images.
    """
    total = scores.new_zeros(targets.labels.shape).index_put((image, gt), scores, accumulate=True)
    count = torch.zeros_like(total).index_put((image, gt), torch.ones_like(scores), accumulate=True)
    return torch.where(count > 0, total / count.clamp(min=1), torch.nan)


def valid_probabilities(probabilities: Tensor, pyramid: Pyramid, per_location: int = 1) -> Tensor:
    """[B, A, C] with 0 outside the valid area, if the pyramid masks its padding (officially nothing is left out)."""
    if pyramid.masks[0] is None:
        return probabilities
    return probabilities * flags_of(pyramid, per_location)[..., None]


def detect_dense(
    probabilities: Tensor,
    quality: Tensor | None,
    boxes_xyxy: Tensor,
    level_sizes: tuple[int, ...],
    valid_hw: Tensor,
    *,
    nms_threshold: float,
    max_detections: int,
) -> list[Detections]:
    """Detections of each image, best first.

    The best 1000 (candidate, class) pairs of each level are chosen by class probability; their score is probability
    x quality; class-wise NMS and the limit follow (official order).

    Args:
        probabilities: [B, A, C]; pairs of probability 0 are dropped.
        quality: [B, A] centerness or predicted IoU in [0, 1]; None: 1.
        boxes_xyxy: [B, A, 4], not yet clipped.
        level_sizes: candidates per level; they sum to A.
        valid_hw: [B, 2] pixels; boxes are clipped to it.
        nms_threshold: IoU above which the lower score goes.
        max_detections: per image.
    """
    num_classes = probabilities.shape[-1]
    pairs = _best_pairs(probabilities, level_sizes)  # [B, M]
    candidates, labels = pairs // num_classes, pairs % num_classes
    probability = probabilities.flatten(1).gather(1, pairs)
    scores = probability if quality is None else probability * quality.gather(1, candidates)
    boxes = clip_boxes(boxes_xyxy, valid_hw[:, None]).gather(1, candidates[..., None].expand(-1, -1, 4))
    detections = []
    for image in range(len(scores)):
        usable = (probability[image] > 0).nonzero().squeeze(1)
        image_boxes, image_scores, image_labels = boxes[image, usable], scores[image, usable], labels[image, usable]
        keep = best_after_nms(image_boxes, image_scores, image_labels, nms_threshold, max_detections)
        detections.append(Detections(image_boxes[keep], image_scores[keep], image_labels[keep]))
    return detections


def best_after_nms(boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, threshold: float, limit: int) -> Tensor:
    """[<= limit] indices: exactly `nms(...)[:limit]`, without comparing candidates that cannot come so far.

    Greedy NMS decides in the order of scores, so what it keeps of the best n candidates it also keeps of all.
    """
    order = scores.argsort(descending=True, stable=True)
    count = 4 * limit
    while True:
        best = order[:count]
        keep = best[nms(boxes_xyxy[best], scores[best], labels[best], threshold)]
        if len(keep) >= limit or count >= len(order):
            return keep[:limit]
        count *= 2


def places_after_nms(
    boxes_xyxy: Tensor, scores: Tensor, labels: Tensor, usable: Tensor, threshold: float, limit: int
) -> Tensor:
    """[limit] indices of `best_after_nms` among those that are `usable` [M] bool, BACKGROUND in rows beyond them.

    How many there are is not asked: away from the CPU all are compared.
    """
    if scores.device.type == "cpu":
        own = usable.nonzero().squeeze(1)
        kept = own[best_after_nms(boxes_xyxy[own], scores[own], labels[own], threshold, limit)]
        return functional.pad(kept, (0, limit - len(kept)), value=BACKGROUND)
    order = scores.masked_fill(~usable, -torch.inf).argsort(descending=True, stable=True)
    among = usable[order]
    keep = survivors(boxes_xyxy[order], labels[order].where(among, -1), threshold) & among
    first = torch.nonzero_static(keep, size=limit, fill_value=BACKGROUND).squeeze(1)
    return order[first.clamp(min=0)].where(first >= 0, BACKGROUND)


def _best_pairs(probabilities: Tensor, level_sizes: tuple[int, ...]) -> Tensor:
    """[B, M] indices into the flattened [A * C] of the best pairs of each level."""
    num_classes = probabilities.shape[-1]
    best = []
    start = 0
    for level in probabilities.split(level_sizes, 1):
        values = level.flatten(1)
        best.append(values.topk(min(CANDIDATES_PER_LEVEL, values.shape[1])).indices + start)
        start += level.shape[1] * num_classes
    return torch.cat(best, 1)
