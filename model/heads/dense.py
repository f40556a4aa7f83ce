"""What dense heads share on the way from raw outputs to detections: plain functions that any of them may call."""

from __future__ import annotations

import torch
from torch import Tensor

from model.boxes import clip_boxes
from model.ops import nms
from model.types import Detections

CANDIDATES_PER_LEVEL = 1000  # best (position, class) pairs of a level that enter NMS (official)


def flatten_output(output: Tensor) -> Tensor:
    """[B, channels, h, w] to [B, h * w, channels] in at least float32."""
    return output.to(torch.promote_types(output.dtype, torch.float32)).flatten(2).transpose(1, 2)


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
    pairs = _best_pairs(probabilities, level_sizes)  # [B, N]
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


def _best_pairs(probabilities: Tensor, level_sizes: tuple[int, ...]) -> Tensor:
    """[B, N] indices into the flattened [A * C] of the best pairs of each level."""
    num_classes = probabilities.shape[-1]
    best = []
    start = 0
    for level in probabilities.split(level_sizes, 1):
        values = level.flatten(1)
        best.append(values.topk(min(CANDIDATES_PER_LEVEL, values.shape[1])).indices + start)
        start += level.shape[1] * num_classes
    return torch.cat(best, 1)
