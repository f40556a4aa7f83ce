"""RetinaNet (Lin et al. 2017): nine anchors per position, positives by IoU.

Positive from an IoU of 0.5, background below 0.4, ignored between (paper Table 1); every object also claims its best
anchors. Two towers shared by all levels; class and box outputs. Losses: focal, and GIoU on decoded boxes
(paper appendix B), or L1 on their deltas as in the original.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.anchor_assignment import assign_max_iou
from model.anchors import anchor_grid
from model.boxes import decode_deltas, encode_deltas
from model.heads import dense
from model.heads.base import AuxiliaryHead
from model.heads.configs import RetinaNetConfig
from model.inquiry import Inquiry, asking, counted
from model.layers import zero_padding
from model.losses import giou_loss, l1_loss, sigmoid_focal_loss, weighted_mean
from model.types import IGNORED, Detections, Positives, Pyramid, Targets

ANCHOR_SIDES = tuple(4 * 2 ** (octave / 3) for octave in range(3))  # of square anchors, in strides
ANCHOR_RATIOS = (0.5, 1.0, 2.0)  # height / width
PER_LOCATION = len(ANCHOR_SIDES) * len(ANCHOR_RATIOS)


class Predictions(NamedTuple):
    """Raw outputs for every anchor, levels concatenated."""

    logits: Tensor  # [B, A, C]
    deltas: Tensor  # [B, A, 4], relative to the anchors


class RetinaNetHead(AuxiliaryHead):
    """RetinaNet on the encoder's pyramid; anchors are the customised queries' coordinates."""

    Config = RetinaNetConfig

    def __init__(
        self,
        config: RetinaNetConfig,
        *,
        channels: int,
        num_classes: int,
        strides: tuple[int, ...],
        anchor_scale: float = 1.0,
    ):
        super().__init__(config, channels=channels, num_classes=num_classes, strides=strides, anchor_scale=anchor_scale)
        self.config, self.num_classes, self.strides = config, num_classes, tuple(strides)
        self.anchor_sides = tuple(anchor_scale * side for side in ANCHOR_SIDES)
        norm = config.norm == "group"
        self.class_tower = dense.conv_tower(channels, config.num_convs, config.num_groups, norm)
        self.box_tower = dense.conv_tower(channels, config.num_convs, config.num_groups, norm)
        self.classification = nn.Conv2d(channels, PER_LOCATION * num_classes, 3, padding=1)
        self.box = nn.Conv2d(channels, PER_LOCATION * 4, 3, padding=1)
        dense.initialise(self, self.classification)

    def loss_weights(self) -> dict[str, float]:
        """Weights within the head."""
        return {"classification": self.config.classification_weight, "boxes": self.config.box_weight}

    def forward(self, pyramid: Pyramid) -> Predictions:
        """Outputs of all levels, at least float32."""
        logits, deltas = [], []
        for level, mask in zip(pyramid.levels, pyramid.masks, strict=True):
            level = zero_padding(level, mask)
            class_features = dense.run_tower(self.class_tower, level, mask)
            box_features = dense.run_tower(self.box_tower, level, mask)
            logits.append(dense.flatten_output(self.classification(class_features), PER_LOCATION))
            deltas.append(dense.flatten_output(self.box(box_features), PER_LOCATION))
        return Predictions(torch.cat(logits, 1), torch.cat(deltas, 1))

    def anchors(self, pyramid: Pyramid) -> Tensor:
        """[A, 4] xyxy pixels, the nine of a position one after the other."""
        device = pyramid.levels[0].device
        return anchor_grid(pyramid.sizes, self.strides, self.anchor_sides, ANCHOR_RATIOS, device=device)

    def assign(self, pyramid: Pyramid, targets: Targets) -> Tensor:
        """[B, A] gt_index; anchors of unclear overlap and those outside the valid area are IGNORED."""
        return assign_max_iou(
            self.anchors(pyramid),
            targets,
            positive_iou=self.config.positive_iou,
            negative_iou=self.config.negative_iou,
            min_best_iou=0.0,
            valid=dense.flags_of(pyramid, PER_LOCATION),
        )[0]

    @asking
    def train_step(
        self, pyramid: Pyramid, targets: Targets, *, with_losses: bool
    ) -> Inquiry[tuple[dict[str, Tensor], Positives]]:
        """Losses "classification" and "boxes"; positives are anchors."""
        anchors = self.anchors(pyramid)
        gt_index = self.assign(pyramid, targets)
        predictions = self(pyramid) if with_losses else None
        counts = yield from counted(gt_index)
        losses: dict[str, Tensor] = {}
        if predictions is not None:
            losses = self._losses(predictions, anchors, dense.matches_of(gt_index, targets, counts), gt_index)
        token_index = torch.arange(len(anchors), device=anchors.device) // PER_LOCATION
        boxes = anchors.expand(len(gt_index), -1, -1)
        return losses, Positives(boxes, gt_index, token_index=token_index, counts=counts)

    def _losses(
        self, predictions: Predictions, anchors: Tensor, matches: dense.Matches, gt_index: Tensor
    ) -> dict[str, Tensor]:
        count = dense.num_positives(gt_index)
        focal = sigmoid_focal_loss(predictions.logits, matches.labels)
        anchors = anchors[matches.candidate]
        deltas = predictions.deltas[matches.image, matches.candidate]
        if self.config.box_loss == "giou":
            boxes = giou_loss(decode_deltas(anchors, deltas), matches.boxes_xyxy)
        else:
            boxes = l1_loss(deltas, encode_deltas(anchors, matches.boxes_xyxy))
        return {
            "classification": weighted_mean(focal, (gt_index != IGNORED)[..., None], count),
            "boxes": weighted_mean(boxes, None, count),
        }

    @torch.no_grad()
    def detect(self, pyramid: Pyramid, max_detections: int = 100) -> list[Detections]:
        """Score = class probability; see `detect_dense`."""
        predictions = self(pyramid)
        return dense.detect_dense(
            dense.valid_probabilities(predictions.logits.sigmoid(), pyramid, PER_LOCATION),
            None,
            decode_deltas(self.anchors(pyramid), predictions.deltas),
            dense.level_areas(pyramid, PER_LOCATION),
            pyramid.valid_hw,
            nms_threshold=self.config.nms_threshold,
            max_detections=max_detections,
        )

    def score_positives(self, pyramid: Pyramid, targets: Targets) -> Tensor:
        """[B, G]; see the contract."""
        return dense.mean_positive_logit(self(pyramid).logits, self.assign(pyramid, targets), targets)
