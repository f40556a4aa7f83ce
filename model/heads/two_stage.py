"""Shared by the R-CNN heads: proposals of the first stage, classes and boxes of the second, and how they are trained.

A part of `faster_rcnn.py` and `mask_rcnn.py`, not a head: a mask branch reads the same pooling and the same samples.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from model.boxes import clip_boxes
from model.heads.dense import best_after_nms, mean_by_gt
from model.heads.roi import BoxBranch, RoIConfig, RoIPooling, RoIs, candidates, sample_rois
from model.heads.rpn import Proposals, RegionProposals, RPNConfig
from model.inquiry import Inquiry, asking, inquiry, together
from model.types import Detections, Positives, Pyramid, Targets

FINEST_SCALE = 14.0  # strides of the finest level


class Step(NamedTuple):
    """One training step of both stages."""

    losses: dict[str, Tensor]  # scalars, normalised and unweighted
    rois: RoIs
    positives: Positives
    levels: list[Tensor]  # the maps that regions are read from


class TwoStage(nn.Module):
    """Region proposals, pooling, and the box branch."""

    def __init__(
        self,
        rpn: RPNConfig,
        roi: RoIConfig,
        *,
        channels: int,
        num_classes: int,
        strides: tuple[int, ...],
        anchor_scale: float,
    ):
        super().__init__()
        if len(strides) < 2:
            raise ValueError("an R-CNN head needs a pyramid of at least two levels")
        self.roi_config, self.num_classes = roi, num_classes
        self.proposals = RegionProposals(rpn, channels=channels, strides=strides, anchor_scale=anchor_scale)
        self.pooling = RoIPooling(strides, roi.finest_scale or FINEST_SCALE * strides[0] * anchor_scale)
        self.boxes = BoxBranch(roi, channels, num_classes)

    @asking
    def step(self, pyramid: Pyramid, targets: Targets, *, with_losses: bool) -> Inquiry[Step]:
        """Losses "rpn_classification", "rpn_boxes", "classification", "boxes"; positives are sampled proposals."""
        outputs = self.proposals(pyramid)
        asked: list[Inquiry[Any]] = [inquiry(self.proposals.losses, outputs, pyramid, targets)] if with_losses else []
        asked.append(inquiry(self.proposals.propose, outputs, pyramid, training=True))
        *found, proposals = yield from together(asked)
        losses = found[0] if with_losses else {}
        step = yield from inquiry(self.step_on, proposals, pyramid, targets, with_losses=with_losses)
        return step._replace(losses=losses | step.losses)

    @asking
    def step_on(self, proposals: Proposals, pyramid: Pyramid, targets: Targets, *, with_losses: bool) -> Inquiry[Step]:
        """The second stage's part of `step`."""
        rois = yield from self.pooling.counted(sample_rois(proposals, targets, self.roi_config))
        assert rois.level is not None and rois.counts is not None
        image, row = rois.rows()
        levels, of_levels = self.pooling.levels(pyramid), [boxes for _, boxes in rois.counts.levels]
        pooled = self._pool(levels, image, rois.boxes_xyxy[image, row], rois.level[image, row], of_levels)
        losses = self.boxes.losses(pooled, rois, targets) if with_losses else {}
        mean = pooled.mean((2, 3))
        features = mean.new_zeros(*rois.gt_index.shape, mean.shape[1]).index_put((image, row), mean)
        positives = Positives(rois.boxes_xyxy, rois.gt_index, features=features, counts=rois.counts.images)
        return Step(losses, rois, positives, levels)

    def _pool(self, levels: list[Tensor], image: Tensor, boxes_xyxy: Tensor, *counted: Any) -> Tensor:
        return self.pooling(levels, image, boxes_xyxy, self.roi_config.pooled_size, *counted)

    @torch.no_grad()
    def detect(self, pyramid: Pyramid, max_detections: int) -> tuple[list[Detections], list[Tensor]]:
        """Detections of each image, best first, and the maps that regions are read from.

        Score = softmax probability of the class; every (proposal, class) pair takes part in the class-wise NMS.
        """
        proposals = self.proposals.propose(self.proposals(pyramid), pyramid, training=False)
        return self.detect_on(proposals, pyramid, max_detections)

    @torch.no_grad()
    def detect_on(
        self, proposals: Proposals, pyramid: Pyramid, max_detections: int
    ) -> tuple[list[Detections], list[Tensor]]:
        """The second stage's part of `detect`."""
        image, row = proposals.valid.nonzero(as_tuple=True)
        rois = proposals.boxes_xyxy[image, row]
        levels = self.pooling.levels(pyramid)
        logits, deltas = self.boxes(self._pool(levels, image, rois))
        probabilities = logits.softmax(1)[:, :-1]
        boxes = clip_boxes(self.boxes.decode(rois[:, None], deltas), pyramid.valid_hw[image][:, None])
        boxes = boxes.expand(-1, self.num_classes, -1)
        detections = []
        for number in range(len(pyramid.valid_hw)):
            own = image == number
            scores = probabilities[own].flatten()
            labels = torch.arange(self.num_classes, device=scores.device).repeat(len(scores) // self.num_classes)
            usable = (scores > 0).nonzero().squeeze(1)
            found = boxes[own].flatten(0, 1)[usable], scores[usable], labels[usable]
            keep = best_after_nms(*found, self.roi_config.nms_threshold, max_detections)
            detections.append(Detections(found[0][keep], found[1][keep], found[2][keep]))
        return detections, levels

    @torch.no_grad()
    def positives(self, pyramid: Pyramid, targets: Targets) -> Positives:
        """Ground truths and all proposals, sampled or not; they carry no features."""
        proposals = self.proposals.propose(self.proposals(pyramid), pyramid, training=True)
        rois = candidates(proposals, targets, self.roi_config.positive_iou)
        return Positives(rois.boxes_xyxy, rois.gt_index)

    def score_positives(self, pyramid: Pyramid, targets: Targets) -> Tensor:
        """[B, G] mean log-odds of the class against the background, over all positives, sampled or not."""
        rois = self.positives(pyramid, targets)
        image, row = (rois.gt_index >= 0).nonzero(as_tuple=True)
        owner = rois.gt_index[image, row]
        logits, _ = self.boxes(self._pool(self.pooling.levels(pyramid), image, rois.boxes_xyxy[image, row]))
        scores = logits.gather(1, targets.labels[image, owner][:, None]).squeeze(1) - logits[:, -1]
        return mean_by_gt(scores, image, owner, targets)
