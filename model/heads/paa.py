"""PAA (Kim and Lee 2020): the head's own losses decide which anchors of an object are positive.

Candidates are all anchors with an IoU of 0.1. Of each object's candidates the best of every level compete: two
Gaussians fitted to their losses separate good from bad. Two towers shared by all levels; class, box and IoU outputs.
Losses: focal, GIoU on decoded boxes weighted by their IoU, and cross entropy of the predicted IoU (paper Table 1).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.anchor_assignment import assign_by_loss, assign_max_iou
from model.boxes import decode_deltas, iou_aligned
from model.heads import dense
from model.heads.base import AuxiliaryHead
from model.heads.configs import PAAConfig
from model.inquiry import Inquiry, asking, counted, inquiry
from model.layers import zero_padding
from model.losses import binary_cross_entropy, giou_loss, sigmoid_focal_loss, weighted_mean
from model.share import num_images, total
from model.types import IGNORED, Detections, Positives, Pyramid, Targets


class Predictions(NamedTuple):
    """Raw outputs for every anchor, levels concatenated."""

    logits: Tensor  # [B, A, C]
    deltas: Tensor  # [B, A, 4], relative to the anchors
    iou: Tensor  # [B, A], logits


class PAAHead(AuxiliaryHead):
    """PAA on the encoder's pyramid; anchors are the customised queries' coordinates."""

    Config = PAAConfig

    def __init__(
        self, config: PAAConfig, *, channels: int, num_classes: int, strides: tuple[int, ...], anchor_scale: float = 1.0
    ):
        super().__init__(config, channels=channels, num_classes=num_classes, strides=strides, anchor_scale=anchor_scale)
        self.config, self.num_classes, self.strides = config, num_classes, tuple(strides)
        self.anchor_scale = anchor_scale
        self.class_tower = dense.conv_tower(channels, config.num_convs, config.num_groups)
        self.box_tower = dense.conv_tower(channels, config.num_convs, config.num_groups)
        self.classification = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.box = nn.Conv2d(channels, 4, 3, padding=1)
        self.iou = nn.Conv2d(channels, 1, 3, padding=1)
        self.level_scales = nn.Parameter(torch.ones(len(self.strides)))  # of the box output
        dense.initialise(self, self.classification)

    def loss_weights(self) -> dict[str, float]:
        """Weights within the head."""
        config = self.config
        return {
            "classification": config.classification_weight,
            "boxes": config.box_weight,
            "iou": config.iou_weight,
        }

    def forward(self, pyramid: Pyramid) -> Predictions:
        """Outputs of all levels, at least float32."""
        logits, deltas, iou = [], [], []
        for level, mask, scale in zip(pyramid.levels, pyramid.masks, self.level_scales, strict=True):
            level = zero_padding(level, mask)
            class_features = dense.run_tower(self.class_tower, level, mask)
            box_features = dense.run_tower(self.box_tower, level, mask)
            logits.append(dense.flatten_output(self.classification(class_features)))
            deltas.append(dense.flatten_output(self.box(box_features)) * scale)
            iou.append(dense.flatten_output(self.iou(box_features)))
        return Predictions(torch.cat(logits, 1), torch.cat(deltas, 1), torch.cat(iou, 1).squeeze(-1))

    def anchors(self, pyramid: Pyramid) -> Tensor:
        """[A, 4] xyxy pixels."""
        return dense.square_anchors(pyramid, self.anchor_scale)

    def assign(self, predictions: Predictions, pyramid: Pyramid, targets: Targets) -> Tensor:
        """[B, A] of `assign_and_count`."""
        return self.assign_and_count(predictions, pyramid, targets)[0]

    @asking
    @torch.no_grad()
    def assign_and_count(
        self, predictions: Predictions, pyramid: Pyramid, targets: Targets
    ) -> Inquiry[tuple[Tensor, tuple[int, ...]]]:
        """[B, A] gt_index by what the head predicts, and the positives of each image on the host.

        Anchors outside the valid area are IGNORED.
        """
        config = self.config
        anchors = self.anchors(pyramid)
        candidate_gt, _ = assign_max_iou(
            anchors,
            targets,
            positive_iou=config.candidate_iou,
            negative_iou=config.candidate_iou,
            min_best_iou=0.0,
            valid=dense.flags_of(pyramid),
        )
        counts = yield from counted(candidate_gt)
        matches = dense.matches_of(candidate_gt, targets, counts)
        where = (matches.image, matches.candidate)
        boxes = decode_deltas(anchors[matches.candidate], predictions.deltas[where], dense.DELTA_STDS)
        focal = sigmoid_focal_loss(predictions.logits[where], matches.class_labels).sum(-1)
        loss = config.classification_weight * focal + config.box_weight * giou_loss(boxes, matches.boxes_xyxy)
        losses = torch.zeros_like(predictions.iou).index_put(where, loss)
        given = candidate_gt, losses, dense.level_areas(pyramid), targets.labels.shape[1]
        found = yield from inquiry(assign_by_loss, *given, top_k=config.top_k)
        return found

    @asking
    def train_step(
        self, pyramid: Pyramid, targets: Targets, *, with_losses: bool
    ) -> Inquiry[tuple[dict[str, Tensor], Positives]]:
        """Losses "classification", "boxes", "iou"; positives are anchors, and need the predictions either way."""
        anchors = self.anchors(pyramid)
        with torch.set_grad_enabled(with_losses and torch.is_grad_enabled()):
            predictions = self(pyramid)
        gt_index, positives = yield from inquiry(self.assign_and_count, predictions, pyramid, targets)
        counts = tuple((number, len(anchors)) for number in positives)
        matches = dense.matches_of(gt_index, targets, counts)
        losses = self._losses(predictions, anchors, matches, gt_index) if with_losses else {}
        boxes, token_index = anchors.expand(len(gt_index), -1, -1), torch.arange(len(anchors), device=anchors.device)
        return losses, Positives(boxes, gt_index, token_index=token_index, counts=counts)

    def _losses(
        self, predictions: Predictions, anchors: Tensor, matches: dense.Matches, gt_index: Tensor
    ) -> dict[str, Tensor]:
        where = (matches.image, matches.candidate)
        count = total(len(matches.image), minimum=1)
        per_image = total(len(matches.image), minimum=num_images(len(gt_index)))
        focal = sigmoid_focal_loss(predictions.logits, matches.labels)
        boxes = decode_deltas(anchors[matches.candidate], predictions.deltas[where], dense.DELTA_STDS)
        iou = iou_aligned(boxes.detach(), matches.boxes_xyxy)
        predicted_iou = binary_cross_entropy(predictions.iou[where], iou)
        return {
            # Official: at least one positive per image on average, not at least one in each.
            "classification": weighted_mean(focal, (gt_index != IGNORED)[..., None], per_image),
            "boxes": weighted_mean(giou_loss(boxes, matches.boxes_xyxy), iou, total(iou.sum())),
            "iou": weighted_mean(predicted_iou, None, count),
        }

    @torch.no_grad()
    def detect(self, pyramid: Pyramid, max_detections: int = 100) -> list[Detections]:
        """Score = square root of class probability x predicted IoU; see `detect_dense`."""
        predictions = self(pyramid)
        scores = (predictions.logits.sigmoid() * predictions.iou.sigmoid()[..., None]).sqrt()
        return dense.detect_dense(
            dense.valid_probabilities(scores, pyramid),
            None,
            decode_deltas(self.anchors(pyramid), predictions.deltas, dense.DELTA_STDS),
            dense.level_areas(pyramid),
            pyramid.valid_hw,
            nms_threshold=self.config.nms_threshold,
            max_detections=max_detections,
        )

    def score_positives(self, pyramid: Pyramid, targets: Targets) -> Tensor:
        """[B, G]; see the contract."""
        predictions = self(pyramid)
        return dense.mean_positive_logit(predictions.logits, self.assign(predictions, pyramid, targets), targets)
