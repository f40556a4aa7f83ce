"""FCOS (Tian et al. 2019): no anchors; points near an object's centre regress the distances to its sides.

Each level answers for a range of sizes. Two towers shared by all levels; class, distance and centerness outputs.
Losses: focal, GIoU weighted by centerness, and centerness (paper Table 1). The defaults are those of the improved
head (points near the centre, distances in strides, centerness beside the boxes); the first one's are options.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.anchor_assignment import assign_points
from model.anchors import point_grid
from model.boxes import decode_distances, encode_distances
from model.heads import dense
from model.heads.base import AuxiliaryHead
from model.heads.configs import FCOSConfig
from model.inquiry import Inquiry, asking, counted
from model.layers import zero_padding
from model.losses import (
    binary_cross_entropy,
    centerness_of_distances,
    giou_loss,
    iou_log_loss,
    sigmoid_focal_loss,
    weighted_mean,
)
from model.share import total
from model.types import IGNORED, Detections, Positives, Pyramid, Targets

QUERY_SIDE = 8.0  # strides, of the square around a positive point (paper Table 1)


class Predictions(NamedTuple):
    """Outputs for every point, levels concatenated."""

    logits: Tensor  # [B, A, C]
    distances: Tensor  # [B, A, 4] pixels to (left, top, right, bottom), not negative
    centerness: Tensor  # [B, A], logits


class FCOSHead(AuxiliaryHead):
    """FCOS on the encoder's pyramid; squares around its points are the customised queries' coordinates."""

    Config = FCOSConfig

    def __init__(
        self,
        config: FCOSConfig,
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
        logits, distances, centerness = [], [], []
        by_level = zip(pyramid.levels, pyramid.masks, self.strides, self.level_scales, strict=True)
        for level, mask, stride, scale in by_level:
            level = zero_padding(level, mask)
            class_features = dense.run_tower(self.class_tower, level, mask)
            box_features = dense.run_tower(self.box_tower, level, mask)
            logits.append(dense.flatten_output(self.classification(class_features)))
            output = dense.flatten_output(self.box(box_features)) * scale
            exponential = self.config.distance == "exp"
            distances.append(output.exp() if exponential else output.relu() * (stride * self.anchor_scale))
            source = box_features if self.config.centerness_from == "box" else class_features
            centerness.append(dense.flatten_output(self.centerness(source)))
        return Predictions(torch.cat(logits, 1), torch.cat(distances, 1), torch.cat(centerness, 1).squeeze(-1))

    def points(self, pyramid: Pyramid) -> Tensor:
        """[A, 2] (x, y) pixels, in the middle of the cells."""
        return point_grid(pyramid.sizes, self.strides, device=pyramid.levels[0].device)

    def assign(self, pyramid: Pyramid, targets: Targets) -> Tensor:
        """[B, A] gt_index; points outside the valid area are IGNORED, or background where nothing is masked."""
        return assign_points(
            self.points(pyramid),
            dense.level_areas(pyramid),
            self.strides,
            targets,
            center_radius=self.config.center_radius,
            range_scale=self.anchor_scale,
            valid=None if pyramid.masks[0] is None else dense.flags_of(pyramid),
        )

    @asking
    def train_step(
        self, pyramid: Pyramid, targets: Targets, *, with_losses: bool
    ) -> Inquiry[tuple[dict[str, Tensor], Positives]]:
        """Losses "classification", "boxes", "centerness"; positives are squares of 8 strides around points."""
        points = self.points(pyramid)
        gt_index = self.assign(pyramid, targets)
        predictions = self(pyramid) if with_losses else None
        counts = yield from counted(gt_index)
        losses: dict[str, Tensor] = {}
        if predictions is not None:
            losses = self._losses(predictions, points, dense.matches_of(gt_index, targets, counts), gt_index)
        halves = torch.cat(
            [
                points.new_full((size, 4), QUERY_SIDE / 2 * self.anchor_scale * stride)
                for size, stride in zip(dense.level_areas(pyramid), self.strides, strict=True)
            ]
        )
        boxes = decode_distances(points, halves).expand(len(gt_index), -1, -1)
        token_index = torch.arange(len(points), device=points.device)
        return losses, Positives(boxes, gt_index, token_index=token_index, counts=counts)

    def _losses(
        self, predictions: Predictions, points: Tensor, matches: dense.Matches, gt_index: Tensor
    ) -> dict[str, Tensor]:
        where = (matches.image, matches.candidate)
        count = total(len(matches.image), minimum=1)
        focal = sigmoid_focal_loss(predictions.logits, matches.labels)
        points = points[matches.candidate]
        centerness = centerness_of_distances(encode_distances(points, matches.boxes_xyxy))
        boxes = decode_distances(points, predictions.distances[where])
        box_loss = giou_loss if self.config.box_loss == "giou" else iou_log_loss
        return {
            "classification": weighted_mean(focal, (gt_index != IGNORED)[..., None], count),
            "boxes": weighted_mean(
                box_loss(boxes, matches.boxes_xyxy), centerness, total(centerness.sum(), minimum=1e-6)
            ),
            "centerness": weighted_mean(binary_cross_entropy(predictions.centerness[where], centerness), None, count),
        }

    @torch.no_grad()
    def detect(self, pyramid: Pyramid, max_detections: int = 100) -> list[Detections]:
        """Score = class probability x centerness; see `detect_dense`."""
        predictions = self(pyramid)
        return dense.detect_dense(
            dense.valid_probabilities(predictions.logits.sigmoid(), pyramid),
            predictions.centerness.sigmoid(),
            decode_distances(self.points(pyramid), predictions.distances),
            dense.level_areas(pyramid),
            pyramid.valid_hw,
            nms_threshold=self.config.nms_threshold,
            max_detections=max_detections,
        )

    def score_positives(self, pyramid: Pyramid, targets: Targets) -> Tensor:
        """[B, G]; see the contract."""
        return dense.mean_positive_logit(self(pyramid).logits, self.assign(pyramid, targets), targets)
