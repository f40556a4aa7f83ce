"""GFL (Li et al. 2020): the class score is the expected IoU, and each side of a box a distribution of distances.

Labels as ATSS. Two towers shared by all levels; class and distribution outputs, no centerness. Losses: quality
focal with the prediction's own IoU as target, distribution focal, and GIoU; the two of boxes are weighted by the
prediction's confidence (paper Table 1).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.boxes import decode_distances, encode_distances, iou_aligned, xyxy_to_cxcywh
from model.heads import dense
from model.heads.base import AuxiliaryHead
from model.heads.configs import GFLConfig
from model.inquiry import Inquiry, asking, counted
from model.layers import zero_padding
from model.losses import distribution_focal_loss, giou_loss, quality_focal_loss, weighted_mean
from model.share import total
from model.types import IGNORED, Detections, Positives, Pyramid, Targets


class Predictions(NamedTuple):
    """Raw outputs for every anchor, levels concatenated."""

    logits: Tensor  # [B, A, C]
    bins: Tensor  # [B, A, 4, max_distance + 1] logits of the distances from the centre to (left, top, right, bottom)


class GFLHead(AuxiliaryHead):
    """GFL on the encoder's pyramid; anchors are the customised queries' coordinates."""

    Config = GFLConfig

    def __init__(
        self, config: GFLConfig, *, channels: int, num_classes: int, strides: tuple[int, ...], anchor_scale: float = 1.0
    ):
        super().__init__(config, channels=channels, num_classes=num_classes, strides=strides, anchor_scale=anchor_scale)
        self.config, self.num_classes, self.strides = config, num_classes, tuple(strides)
        self.anchor_scale = anchor_scale
        self.class_tower = dense.conv_tower(channels, config.num_convs, config.num_groups)
        self.box_tower = dense.conv_tower(channels, config.num_convs, config.num_groups)
        self.classification = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.box = nn.Conv2d(channels, 4 * (config.max_distance + 1), 3, padding=1)
        self.level_scales = nn.Parameter(torch.ones(len(self.strides)))  # of the box output
        dense.initialise(self, self.classification)

    def loss_weights(self) -> dict[str, float]:
        """Weights within the head."""
        config = self.config
        return {
            "classification": config.classification_weight,
            "boxes": config.box_weight,
            "distribution": config.distribution_weight,
        }

    def forward(self, pyramid: Pyramid) -> Predictions:
        """Outputs of all levels, at least float32."""
        logits, bins = [], []
        for level, mask, scale in zip(pyramid.levels, pyramid.masks, self.level_scales, strict=True):
            level = zero_padding(level, mask)
            class_features = dense.run_tower(self.class_tower, level, mask)
            box_features = dense.run_tower(self.box_tower, level, mask)
            logits.append(dense.flatten_output(self.classification(class_features)))
            bins.append(dense.flatten_output(self.box(box_features)) * scale)
        return Predictions(torch.cat(logits, 1), torch.cat(bins, 1).unflatten(-1, (4, -1)))

    def anchors(self, pyramid: Pyramid) -> Tensor:
        """[A, 4] xyxy pixels."""
        return dense.square_anchors(pyramid, self.anchor_scale)

    def assign(self, pyramid: Pyramid, targets: Targets) -> Tensor:
        """[B, A] gt_index; anchors outside the valid area are IGNORED."""
        return dense.assign_adaptively(pyramid, self.anchors(pyramid), targets, self.config.top_k)

    def decode(self, bins: Tensor, anchors_xyxy: Tensor) -> Tensor:
        """[..., 4] boxes in pixels: the mean of each distribution of `bins` [..., 4, max_distance + 1]."""
        steps = torch.arange(bins.shape[-1], device=bins.device, dtype=bins.dtype)
        anchors = xyxy_to_cxcywh(anchors_xyxy)
        distances = (bins.softmax(-1) * steps).sum(-1)  # no matmul: autocast would round it
        return decode_distances(anchors[..., :2], distances * self._unit(anchors))

    def _unit(self, anchors_cxcywh: Tensor) -> Tensor:
        """[..., 1] pixels per bin: the stride, times the scale of the anchors."""
        return anchors_cxcywh[..., 2:3] / dense.ANCHOR_SIDE

    @asking
    def train_step(
        self, pyramid: Pyramid, targets: Targets, *, with_losses: bool
    ) -> Inquiry[tuple[dict[str, Tensor], Positives]]:
        """Losses "classification", "boxes", "distribution"; positives are anchors."""
        anchors = self.anchors(pyramid)
        gt_index = self.assign(pyramid, targets)
        predictions = self(pyramid) if with_losses else None
        counts = yield from counted(gt_index)
        losses: dict[str, Tensor] = {}
        if predictions is not None:
            losses = self._losses(predictions, anchors, dense.matches_of(gt_index, targets, counts), gt_index)
        boxes = anchors.expand(len(gt_index), -1, -1)
        token_index = torch.arange(len(anchors), device=anchors.device)
        return losses, Positives(boxes, gt_index, token_index=token_index, counts=counts)

    def _losses(
        self, predictions: Predictions, anchors: Tensor, matches: dense.Matches, gt_index: Tensor
    ) -> dict[str, Tensor]:
        where = (matches.image, matches.candidate)
        anchors, bins = anchors[matches.candidate], predictions.bins[where]  # [P, 4], [P, 4, bins]
        boxes = self.decode(bins, anchors)
        iou = iou_aligned(boxes.detach(), matches.boxes_xyxy)
        quality = predictions.logits.new_zeros(gt_index.shape).index_put(where, iou)
        focal = quality_focal_loss(predictions.logits, matches.labels, quality)

        confidence = predictions.logits[where].detach().sigmoid().amax(-1)
        total_confidence = total(confidence.sum(), minimum=1)
        centred = xyxy_to_cxcywh(anchors)
        unit = self._unit(centred)
        distances = encode_distances(centred[:, :2] / unit, matches.boxes_xyxy / unit, self.config.max_distance)
        distribution = distribution_focal_loss(bins.flatten(0, 1), distances.flatten()).view(-1, 4)
        return {
            "classification": weighted_mean(focal, (gt_index != IGNORED)[..., None], dense.num_positives(gt_index)),
            "boxes": weighted_mean(giou_loss(boxes, matches.boxes_xyxy), confidence, total_confidence),
            "distribution": weighted_mean(distribution.mean(-1), confidence, total_confidence),
        }

    @torch.no_grad()
    def detect(self, pyramid: Pyramid, max_detections: int = 100) -> list[Detections]:
        """Score = class output, which stands for probability and IoU together; see `detect_dense`."""
        predictions = self(pyramid)
        return dense.detect_dense(
            dense.valid_probabilities(predictions.logits.sigmoid(), pyramid),
            None,
            self.decode(predictions.bins, self.anchors(pyramid)),
            dense.level_areas(pyramid),
            pyramid.valid_hw,
            nms_threshold=self.config.nms_threshold,
            max_detections=max_detections,
        )

    def score_positives(self, pyramid: Pyramid, targets: Targets) -> Tensor:
        """[B, G]; see the contract."""
        return dense.mean_positive_logit(self(pyramid).logits, self.assign(pyramid, targets), targets)
