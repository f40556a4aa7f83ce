"""Loss functions: each gives one value per element; `weighted_mean` reduces them.

No weights of an experiment appear here (they meet their loss in `model/criterion.py`).
A label outside [0, C) is background: an all-zero target.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from model.boxes import giou_aligned, iou_aligned, xyxy_to_cxcywh
from model.classification.configs import FocalConfig, QualityConfig
from model.sparse_losses import FocalTerm, QualityTerm, one_class

FOCAL_TERM = FocalTerm(alpha=0.25, gamma=2.0)  # Lin et al. 2017
AVERAGE_EPSILON = 1.1920929e-07  # float32 eps, added to the divisor by the official implementation


def weighted_mean(loss: Tensor, weight: Tensor | None, avg_factor: Tensor | float) -> Tensor:
    """Scalar: sum of `loss` [...] times `weight` (broadcast to it; None: 1) over `avg_factor`, a scalar."""
    total = loss.sum() if weight is None else (loss * weight).sum()
    return total / (avg_factor + AVERAGE_EPSILON)


def sigmoid_focal_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """[..., C] focal loss (Lin et al. 2017) of `logits` [..., C] and `labels` [...]."""
    return one_class(logits, labels, logits.new_ones(()).expand(labels.shape), FOCAL_TERM)


class Focal:
    """The decoder's classification by focal loss (`model/classification` has the contract)."""

    needs_iou = False

    def __init__(self, config: FocalConfig):
        self.config = config

    def __call__(self, logits: Tensor, labels: Tensor, iou: Tensor | None = None) -> Tensor:
        """[..., C]."""
        return sigmoid_focal_loss(logits, labels)


def quality_focal_loss(logits: Tensor, labels: Tensor, quality: Tensor, beta: float = 2.0) -> Tensor:
    """[..., C] quality focal loss (Li et al. 2020, Eq. 4): the target class's target is `quality` [...], an IoU.

    The quality is a constant to whatever is differentiated.
    """
    return one_class(logits, labels, quality, QualityTerm(beta))


class Quality:
    """The decoder's classification by quality focal loss, as Co-DINO's (`model/classification` has the contract)."""

    needs_iou = True

    def __init__(self, config: QualityConfig):
        self.config = config

    def __call__(self, logits: Tensor, labels: Tensor, iou: Tensor | None) -> Tensor:
        """[..., C]."""
        assert iou is not None
        return quality_focal_loss(logits, labels, iou, self.config.beta)


def distribution_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """[N] distribution focal loss (Li et al. 2020, Eq. 6) of `logits` [N, bins] for `target` [N] in [0, bins - 1)."""
    left = target.long()
    right_weight = target - left
    log_probability = logits.log_softmax(-1)
    left_term = log_probability.gather(-1, left.unsqueeze(-1)).squeeze(-1)
    right_term = log_probability.gather(-1, left.unsqueeze(-1) + 1).squeeze(-1)
    return -(left_term * (1 - right_weight) + right_term * right_weight)


def softmax_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """[N] cross entropy of `logits` [N, C + 1], whose last class is the background."""
    num_classes = logits.shape[-1] - 1
    known = (labels >= 0) & (labels < num_classes)
    return functional.cross_entropy(logits, labels.where(known, num_classes), reduction="none")


def binary_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """[...] cross entropy of a sigmoid with a target in [0, 1]."""
    return functional.binary_cross_entropy_with_logits(logits, target.to(logits), reduction="none")


def giou_loss(boxes_xyxy: Tensor, target_xyxy: Tensor, added_area: Tensor | None = None) -> Tensor:
    """[...] 1 - GIoU of box n with target n, both [..., 4]; `added_area` as in `giou_aligned`."""
    return 1 - giou_aligned(boxes_xyxy, target_xyxy, added_area)


def iou_log_loss(boxes_xyxy: Tensor, target_xyxy: Tensor) -> Tensor:
    """[...] -log IoU of box n with target n, both [..., 4]; an IoU below 1e-6 counts as 1e-6."""
    return -iou_aligned(boxes_xyxy, target_xyxy).clamp(min=1e-6).log()


def l1_loss(values: Tensor, target: Tensor) -> Tensor:
    """[...] absolute difference."""
    return (values - target).abs()


def centerness_of_distances(distances: Tensor) -> Tensor:
    """[...] centerness (Tian et al. 2019, Eq. 3) of distances (left, top, right, bottom) [..., 4]; 1 at the centre."""
    left_right, top_bottom = distances[..., 0::2], distances[..., 1::2]
    horizontal = left_right.amin(-1) / left_right.amax(-1)
    vertical = top_bottom.amin(-1) / top_bottom.amax(-1)
    return (horizontal * vertical).sqrt()


def centerness_of_anchors(anchors_xyxy: Tensor, boxes_xyxy: Tensor) -> Tensor:
    """[...] centerness of the anchors' centres, which must lie inside their boxes; both [..., 4]."""
    centres = xyxy_to_cxcywh(anchors_xyxy)[..., :2]
    return centerness_of_distances(torch.cat([centres - boxes_xyxy[..., :2], boxes_xyxy[..., 2:] - centres], -1))
