"""ATSS (Zhang et al. 2020): one square anchor per position, positives by an adaptive IoU threshold.

The head of the paper's K = 1 models. Two towers of convolutions shared by all levels; class, box and centerness
outputs. Losses: focal, GIoU on decoded boxes weighted by centerness, and centerness (paper appendix B).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.boxes import decode_deltas
from model.heads import dense
from model.heads.base import AuxiliaryHead
from model.heads.configs import ATSSConfig
from model.inquiry import Inquiry, asking, counted
from model.layers import zero_padding
from model.losses import binary_cross_entropy, centerness_of_anchors, giou_loss, sigmoid_focal_loss, weighted_mean
from model.share import total
from model.types import BACKGROUND, IGNORED, Detections, Positives, Pyramid, Targets


class Predictions(NamedTuple):
    """Raw outputs for every anchor, levels concatenated."""

    logits: Tensor  # [B, A, C]
    deltas: Tensor  # [B, A, 4], relative to the anchors
    centerness: Tensor  # [B, A], logits


class ATSSHead(AuxiliaryHead):
    """ATSS on the encoder's pyramid; anchors are the customised queries' coordinates."""

    Config = ATSSConfig

    def __init__(
        self,
        config: ATSSConfig,
        *,
        channels: int,
        num_classes: int,
        strides: tuple[int, ...],
        anchor_scale: float = 1.0,
    ):
        super().__init__(config, channels=channels, num_classes=num_classes, strides=strides, anchor_scale=anchor_scale)
        self.config, self.num_classes, self.strides = config, num_classes, tuple(strides)
        self.anchor_scale = anchor_scale
        self.class_tower = dense.conv_tower(channels, config.num_convs, config.num_groups)
        self.box_tower = dense.conv_tower(channels, config.num_convs, config.num_groups)
        self.classification = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.box = nn.Conv2d(channels, 4, 3, padding=1)
        self.centerness = nn.Conv2d(channels, 1, 3, padding=1)
        self.level_scales = nn.Parameter(torch.ones(len(self.strides)))  # of the box output
        dense.initialise(self, self.classification)

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
            level = zero_padding(level, mask)
            class_features = dense.run_tower(self.class_tower, level, mask)
            box_features = dense.run_tower(self.box_tower, level, mask)
            logits.append(dense.flatten_output(self.classification(class_features)))
            deltas.append(dense.flatten_output(self.box(box_features)) * scale)
            centerness.append(dense.flatten_output(self.centerness(box_features)))
        return Predictions(torch.cat(logits, 1), torch.cat(deltas, 1), torch.cat(centerness, 1).squeeze(-1))

    def anchors(self, pyramid: Pyramid) -> Tensor:
        """[A, 4] xyxy pixels."""
        return dense.square_anchors(pyramid, self.anchor_scale)

    def assign(self, pyramid: Pyramid, targets: Targets) -> Tensor:
        """[B, A] gt_index; anchors outside the valid area are IGNORED."""
        return dense.assign_adaptively(pyramid, self.anchors(pyramid), targets, self.config.top_k)

    @asking
    def train_step(
        self, pyramid: Pyramid, targets: Targets, *, with_losses: bool
    ) -> Inquiry[tuple[dict[str, Tensor], Positives]]:
        """Losses "classification", "boxes", "centerness"; positives are anchors."""
        anchors = self.anchors(pyramid)
        gt_index = self.assign(pyramid, targets)
        predictions = self(pyramid) if with_losses else None
        counts = yield from counted(gt_index)
        losses: dict[str, Tensor] = {}
        if predictions is not None:
            losses = self._losses(predictions, anchors, dense.matches_of(gt_index, targets, counts), gt_index)
        boxes = anchors.expand(len(gt_index), -1, -1)
        if pyramid.masks[0] is None:  # official: boxes without area serve as background among the queries
            ignored = gt_index == IGNORED
            boxes, gt_index = boxes.masked_fill(ignored[..., None], 0.0), gt_index.masked_fill(ignored, BACKGROUND)
            counts = tuple((positives, len(anchors)) for positives, _ in counts)
        token_index = torch.arange(len(anchors), device=anchors.device)
        return losses, Positives(boxes, gt_index, token_index=token_index, counts=counts)

    def _losses(
        self, predictions: Predictions, anchors: Tensor, matches: dense.Matches, gt_index: Tensor
    ) -> dict[str, Tensor]:
        where = (matches.image, matches.candidate)
        count = dense.num_positives(gt_index)
        focal = sigmoid_focal_loss(predictions.logits, matches.labels)
        anchors = anchors[matches.candidate]
        centerness = centerness_of_anchors(anchors, matches.boxes_xyxy)
        boxes = decode_deltas(anchors, predictions.deltas[where], dense.DELTA_STDS)
        giou = giou_loss(boxes, matches.boxes_xyxy)
        return {
            "classification": weighted_mean(focal, (gt_index != IGNORED)[..., None], count),
            "boxes": weighted_mean(giou, centerness, total(centerness.sum(), minimum=1)),
            "centerness": weighted_mean(binary_cross_entropy(predictions.centerness[where], centerness), None, count),
        }

    @torch.no_grad()
    def detect(self, pyramid: Pyramid, max_detections: int = 100) -> list[Detections]:
        """Score = class probability x centerness; see `detect_dense`."""
        predictions = self(pyramid)
        return dense.detect_dense(
            dense.valid_probabilities(predictions.logits.sigmoid(), pyramid),
            predictions.centerness.sigmoid(),
            decode_deltas(self.anchors(pyramid), predictions.deltas, dense.DELTA_STDS),
            dense.level_areas(pyramid),
            pyramid.valid_hw,
            nms_threshold=self.config.nms_threshold,
            max_detections=max_detections,
        )

    def score_positives(self, pyramid: Pyramid, targets: Targets) -> Tensor:
        """[B, G]; see the contract."""
        return dense.mean_positive_logit(self(pyramid).logits, self.assign(pyramid, targets), targets)
