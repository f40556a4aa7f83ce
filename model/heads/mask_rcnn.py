"""Mask R-CNN (He et al. 2017): Faster R-CNN with a mask for each detection.

Its positives, and with them the customised queries, are Faster R-CNN's; the masks train the encoder through one loss
more (paper Table 8) and are evaluated by COCO's segmentation metrics.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.heads.base import AuxiliaryHead
from model.heads.configs import MaskRCNNConfig
from model.heads.masks import MaskBranch
from model.heads.two_stage import TwoStage
from model.inquiry import Inquiry, asking, inquiry
from model.types import Detections, Positives, Pyramid, Targets


class MaskRCNNHead(AuxiliaryHead):
    """Region proposals, then a class, a box and a mask for each."""

    needs_masks = True

    Config = MaskRCNNConfig

    def __init__(
        self,
        config: MaskRCNNConfig,
        *,
        channels: int,
        num_classes: int,
        strides: tuple[int, ...],
        anchor_scale: float = 1.0,
    ):
        super().__init__(config, channels=channels, num_classes=num_classes, strides=strides, anchor_scale=anchor_scale)
        self.config = config
        self.stages = TwoStage(
            config.rpn,
            config.roi,
            channels=channels,
            num_classes=num_classes,
            strides=tuple(strides),
            anchor_scale=anchor_scale,
        )
        self.masks = MaskBranch(config.mask, channels, num_classes)

    def loss_weights(self) -> dict[str, float]:
        """Weights within the head."""
        config = self.config
        return {
            "rpn_classification": config.rpn_classification_weight,
            "rpn_boxes": config.rpn_box_weight,
            "classification": config.classification_weight,
            "boxes": config.box_weight,
            "masks": config.mask_weight,
        }

    @asking
    def train_step(
        self, pyramid: Pyramid, targets: Targets, *, with_losses: bool
    ) -> Inquiry[tuple[dict[str, Tensor], Positives]]:
        """Losses of both stages and of the masks; positives as Faster R-CNN's."""
        step = yield from inquiry(self.stages.step, pyramid, targets, with_losses=with_losses)
        if with_losses:
            step.losses["masks"] = self.masks.loss(step.levels, self.stages.pooling, step.rois, targets)
        return step.losses, step.positives

    @torch.no_grad()
    def detect(self, pyramid: Pyramid, max_detections: int = 100) -> list[Detections]:
        """Score = softmax probability of the class; class-wise NMS; each with the mask of its class."""
        detections, levels = self.stages.detect(pyramid, max_detections)
        return self.masks.add_masks(levels, self.stages.pooling, detections)

    def positives(self, pyramid: Pyramid, targets: Targets) -> Positives:
        """Ground truths and all proposals, sampled or not."""
        return self.stages.positives(pyramid, targets)

    def score_positives(self, pyramid: Pyramid, targets: Targets) -> Tensor:
        """[B, G] mean log-odds of the class against the background; see the contract."""
        return self.stages.score_positives(pyramid, targets)
