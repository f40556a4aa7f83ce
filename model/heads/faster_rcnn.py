"""Faster R-CNN (Ren et al. 2015) on the encoder's pyramid: positives by IoU with proposals.

The second head of the paper's K = 2 models. Losses: cross entropy and L1 of the proposals, cross entropy and GIoU of
the regions (paper Table 1). Proposals, and ground truths among them, are the customised queries' coordinates; their
features are the pooled ones.
"""

from __future__ import annotations

from torch import Tensor

from model.heads.base import AuxiliaryHead
from model.heads.configs import FasterRCNNConfig
from model.heads.two_stage import TwoStage
from model.inquiry import Inquiry, asking, inquiry
from model.types import Detections, Positives, Pyramid, Targets


class FasterRCNNHead(AuxiliaryHead):
    """Region proposals, then a class and a box for each."""

    Config = FasterRCNNConfig

    def __init__(
        self,
        config: FasterRCNNConfig,
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

    def loss_weights(self) -> dict[str, float]:
        """Weights within the head."""
        config = self.config
        return {
            "rpn_classification": config.rpn_classification_weight,
            "rpn_boxes": config.rpn_box_weight,
            "classification": config.classification_weight,
            "boxes": config.box_weight,
        }

    @asking
    def train_step(
        self, pyramid: Pyramid, targets: Targets, *, with_losses: bool
    ) -> Inquiry[tuple[dict[str, Tensor], Positives]]:
        """Losses of both stages; positives are the sampled proposals with their pooled features."""
        step = yield from inquiry(self.stages.step, pyramid, targets, with_losses=with_losses)
        return step.losses, step.positives

    def detect(self, pyramid: Pyramid, max_detections: int = 100) -> list[Detections]:
        """Score = softmax probability of the class; class-wise NMS."""
        return self.stages.detect(pyramid, max_detections)[0]

    def positives(self, pyramid: Pyramid, targets: Targets) -> Positives:
        """Ground truths and all proposals, sampled or not."""
        return self.stages.positives(pyramid, targets)

    def score_positives(self, pyramid: Pyramid, targets: Targets) -> Tensor:
        """[B, G] mean log-odds of the class against the background; see the contract."""
        return self.stages.score_positives(pyramid, targets)
