"""ATSS (Zhang et al. 2020): one square anchor per position, positives by an adaptive IoU threshold.

The head of the paper's K = 1 models. Two towers of convolutions shared by all levels; class, box and centerness
outputs. Losses: focal, GIoU on decoded boxes weighted by centerness, and centerness (paper appendix B).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.anchors import anchor_grid, valid_flags
from model.assign import assign_atss
from model.boxes import decode_deltas
from model.config import FORBID_UNKNOWN, require
from model.heads.base import AuxiliaryHead
from model.heads.dense import detect_dense, flatten_output
from model.losses import binary_cross_entropy, centerness_of_anchors, giou_loss, sigmoid_focal_loss, weighted_mean
from model.neck import ConvNorm, zero_padding
from model.types import BACKGROUND, IGNORED, Detections, Positives, Pyramid, Targets

ANCHOR_SIDE = 8.0  # of an anchor in strides
DELTA_STDS = (0.1, 0.1, 0.2, 0.2)
PRIOR_PROBABILITY = 0.01  # of each class at initialisation


class Predictions(NamedTuple):
    """Raw outputs for every anchor, levels concatenated."""

    logits: Tensor  # [B, A, C]
    deltas: Tensor  # [B, A, 4], relative to the anchors
    centerness: Tensor  # [B, A], logits


class ATSSHead(AuxiliaryHead):
    """ATSS on the encoder's pyramid; anchors are the customised queries' coordinates."""

    @dataclass(frozen=True)
    class Config:
        """Settings of one ATSS head."""

        __pydantic_config__ = FORBID_UNKNOWN
        num_convs: int = 1  # stacked 3x3 convolutions per tower (paper Table 12)
        top_k: int = 9  # candidates per level and ground truth
        num_groups: int | None = None  # of the group norms; None: 32, fewer for narrow models
        nms_threshold: float = 0.6
        classification_weight: float = 1.0
        box_weight: float = 2.0
        centerness_weight: float = 1.0

        def __post_init__(self) -> None:
            require(self.num_convs >= 0, f"num_convs must not be negative, got {self.num_convs}")
            require(self.top_k >= 1, f"top_k must be at least 1, got {self.top_k}")
            require(
                self.num_groups is None or self.num_groups >= 1, f"num_groups must be positive, got {self.num_groups}"
            )
            require(0 < self.nms_threshold <= 1, f"nms_threshold must be in (0, 1], got {self.nms_threshold}")
            for name in ("classification_weight", "box_weight", "centerness_weight"):
                require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")

    def __init__(
        self, config: Config, *, channels: int, num_classes: int, strides: tuple[int, ...], anchor_scale: float = 1.0
    ):
        super().__init__(config, channels=channels, num_classes=num_classes, strides=strides, anchor_scale=anchor_scale)
        require(
            config.num_groups is None or channels % config.num_groups == 0,
            f"num_groups ({config.num_groups}) must divide the number of channels ({channels})",
        )
        self.config, self.num_classes, self.strides = config, num_classes, tuple(strides)
        self.anchor_side = ANCHOR_SIDE * anchor_scale
        self.class_tower = nn.ModuleList(
            ConvNorm(channels, channels, 3, groups=config.num_groups) for _ in range(config.num_convs)
        )
        self.box_tower = nn.ModuleList(
            ConvNorm(channels, channels, 3, groups=config.num_groups) for _ in range(config.num_convs)
        )
        self.classification = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.box = nn.Conv2d(channels, 4, 3, padding=1)
        self.centerness = nn.Conv2d(channels, 1, 3, padding=1)
        self.level_scales = nn.Parameter(torch.ones(len(self.strides)))  # of the box output
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        assert self.classification.bias is not None
        nn.init.constant_(self.classification.bias, -math.log(1 / PRIOR_PROBABILITY - 1))

    def loss_weights(self) -> dict[str, float]:
        """Weights within the head."""
        config = self.config
        return {
            "classification": config.classification_weight,
            "boxes": config.box_weight,
            "centerness": config.centerness_weight,
        }

    def forward(self, pyramid: Pyramid) -> Predictions:
        """Outputs of all levels, at least float32."""
        logits, deltas, centerness = [], [], []
        for level, mask, scale in zip(pyramid.levels, pyramid.masks, self.level_scales, strict=True):
            class_features = box_features = zero_padding(level, mask)
            for class_conv, box_conv in zip(self.class_tower, self.box_tower, strict=True):
                class_features = class_conv(class_features, mask).relu()
                box_features = box_conv(box_features, mask).relu()
            logits.append(flatten_output(self.classification(class_features)))
            deltas.append(flatten_output(self.box(box_features)) * scale)
            centerness.append(flatten_output(self.centerness(box_features)))
        return Predictions(torch.cat(logits, 1), torch.cat(deltas, 1), torch.cat(centerness, 1).squeeze(-1))

    def anchors(self, pyramid: Pyramid) -> Tensor:
        """[A, 4] xyxy pixels."""
        return anchor_grid(pyramid.sizes, self.strides, (self.anchor_side,), device=pyramid.levels[0].device)

    def assign(self, pyramid: Pyramid, targets: Targets) -> Tensor:
        """[B, A] gt_index; anchors outside the valid area are IGNORED."""
        valid = valid_flags(pyramid.sizes, self.strides, pyramid.valid_hw)
        anchors = self.anchors(pyramid)
        return assign_atss(anchors, _areas(pyramid), targets, top_k=self.config.top_k, valid=valid)[0]

    def train_step(
        self, pyramid: Pyramid, targets: Targets, *, with_losses: bool
    ) -> tuple[dict[str, Tensor], Positives]:
        """Losses "classification", "boxes", "centerness"; positives are anchors."""
        anchors = self.anchors(pyramid)
        gt_index = self.assign(pyramid, targets)
        losses = self._losses(self(pyramid), anchors, gt_index, targets) if with_losses else {}
        boxes = anchors.expand(len(gt_index), -1, -1)
        if pyramid.masks[0] is None:  # official: boxes without area serve as background among the queries
            ignored = gt_index == IGNORED
            boxes, gt_index = boxes.masked_fill(ignored[..., None], 0.0), gt_index.masked_fill(ignored, BACKGROUND)
        return losses, Positives(boxes, gt_index, token_index=torch.arange(len(anchors), device=anchors.device))

    def _losses(
        self, predictions: Predictions, anchors: Tensor, gt_index: Tensor, targets: Targets
    ) -> dict[str, Tensor]:
        positive = gt_index >= 0
        image, anchor = positive.nonzero(as_tuple=True)
        owner = gt_index[image, anchor]
        labels = torch.full_like(gt_index, BACKGROUND)
        labels[image, anchor] = targets.labels[image, owner]
        gt_boxes = targets.boxes_xyxy[image, owner]
        anchors = anchors[anchor]

        # Official normaliser: positives of the batch, an image without any counting as one.
        num_positives = positive.sum(1).clamp(min=1).sum()
        focal = sigmoid_focal_loss(predictions.logits, labels)
        counted = (gt_index != IGNORED)[..., None]
        centerness = centerness_of_anchors(anchors, gt_boxes)
        boxes = decode_deltas(anchors, predictions.deltas[image, anchor], DELTA_STDS)
        centerness_loss = binary_cross_entropy(predictions.centerness[image, anchor], centerness)
        return {
            "classification": weighted_mean(focal, counted, num_positives),
            "boxes": weighted_mean(giou_loss(boxes, gt_boxes), centerness, centerness.sum().clamp(min=1)),
            "centerness": weighted_mean(centerness_loss, None, num_positives),
        }

    @torch.no_grad()
    def detect(self, pyramid: Pyramid, max_detections: int = 100) -> list[Detections]:
        """Score = class probability x centerness; see `detect_dense`."""
        predictions = self(pyramid)
        probabilities = predictions.logits.sigmoid()
        if pyramid.masks[0] is not None:
            valid = valid_flags(pyramid.sizes, self.strides, pyramid.valid_hw)
            probabilities = probabilities * valid[..., None]
        return detect_dense(
            probabilities,
            predictions.centerness.sigmoid(),
            decode_deltas(self.anchors(pyramid), predictions.deltas, DELTA_STDS),
            _areas(pyramid),
            pyramid.valid_hw,
            nms_threshold=self.config.nms_threshold,
            max_detections=max_detections,
        )

    def score_positives(self, pyramid: Pyramid, targets: Targets) -> Tensor:
        """[B, G]; see the contract."""
        gt_index = self.assign(pyramid, targets)
        image, anchor = (gt_index >= 0).nonzero(as_tuple=True)
        owner = gt_index[image, anchor]
        logits = self(pyramid).logits[image, anchor, targets.labels[image, owner]]
        total = logits.new_zeros(targets.labels.shape).index_put((image, owner), logits, accumulate=True)
        count = torch.zeros_like(total).index_put((image, owner), torch.ones_like(logits), accumulate=True)
        return torch.where(count > 0, total / count.clamp(min=1), torch.nan)


def _areas(pyramid: Pyramid) -> tuple[int, ...]:
    return tuple(height * width for height, width in pyramid.sizes)
