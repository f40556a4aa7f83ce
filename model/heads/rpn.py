"""Region proposal network (Ren et al. 2015): class-agnostic boxes from nine anchors per position.

The first stage of the R-CNN heads. Proposals are constants to whatever comes after them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.anchor_assignment import assign_max_iou
from model.anchors import anchor_grid
from model.boxes import clip_boxes, decode_deltas, encode_deltas
from model.heads.configs import RPNConfig
from model.heads.dense import flags_of, flatten_output, level_areas, places_after_nms
from model.inquiry import Inquiry, asking, places
from model.layers import zero_padding
from model.linear import Conv2d
from model.losses import binary_cross_entropy, l1_loss, weighted_mean
from model.sampling import choose
from model.share import largest, total
from model.types import Pyramid, Targets


class Outputs(NamedTuple):
    """Raw outputs for every anchor, levels concatenated."""

    objectness: Tensor  # [B, A], logits
    deltas: Tensor  # [B, A, 4], relative to the anchors


class Proposals(NamedTuple):
    """Boxes of a batch, best first, padded to the largest count."""

    boxes_xyxy: Tensor  # [B, P, 4] pixels inside the valid area; zeros in padding rows
    scores: Tensor  # [B, P] probability of an object; 0 in padding rows
    valid: Tensor  # [B, P] bool, False in padding rows


class RegionProposals(nn.Module):
    """A 3x3 convolution shared by all levels, then objectness and box of each anchor."""

    def __init__(self, config: RPNConfig, *, channels: int, strides: tuple[int, ...], anchor_scale: float):
        super().__init__()
        self.config, self.strides = config, strides
        steps = range(config.scales_per_octave)
        self.scales = tuple(config.anchor_side * anchor_scale * 2 ** (i / config.scales_per_octave) for i in steps)
        self.per_location = len(self.scales) * len(config.ratios)
        self.conv = Conv2d(channels, channels, 3, padding=1)
        self.objectness = Conv2d(channels, self.per_location, 1)
        self.box = Conv2d(channels, 4 * self.per_location, 1)
        for module in (self.conv, self.objectness, self.box):
            nn.init.normal_(module.weight, std=0.01)
            assert module.bias is not None
            nn.init.zeros_(module.bias)

    def forward(self, pyramid: Pyramid) -> Outputs:
        """Outputs of all levels, at least float32."""
        objectness, deltas = [], []
        for level, mask in zip(pyramid.levels, pyramid.masks, strict=True):
            features = self.conv(zero_padding(level, mask)).relu()
            objectness.append(flatten_output(self.objectness(features), self.per_location))
            deltas.append(flatten_output(self.box(features), self.per_location))
        return Outputs(torch.cat(objectness, 1).squeeze(-1), torch.cat(deltas, 1))

    def anchors(self, pyramid: Pyramid) -> Tensor:
        """[A, 4] xyxy pixels."""
        device = pyramid.levels[0].device
        return anchor_grid(pyramid.sizes, self.strides, self.scales, self.config.ratios, device)

    @asking
    def losses(self, outputs: Outputs, pyramid: Pyramid, targets: Targets) -> Inquiry[dict[str, Tensor]]:
        """Scalars: cross entropy of a sample of the anchors and L1 of its positives, over the size of the sample."""
        config, anchors = self.config, self.anchors(pyramid)
        valid = flags_of(pyramid, self.per_location)
        gt_index, _ = assign_max_iou(
            anchors,
            targets,
            positive_iou=config.positive_iou,
            negative_iou=config.negative_iou,
            min_best_iou=config.min_best_iou,
            valid=valid,
        )
        chosen = choose(gt_index, config.num_samples, config.positive_fraction)
        # Official normaliser: an image without any positive, or negative, counts as one of it.
        positives = (chosen & (gt_index >= 0)).sum(1)
        num_chosen, num_positive = (int(count) for count in (yield (chosen.sum(), positives.sum())))
        image, anchor = places(chosen, num_chosen)
        owner = gt_index[image, anchor]
        is_positive = owner >= 0
        number = total((positives.clamp(min=1) + (chosen.sum(1) - positives).clamp(min=1)).sum())
        cross_entropy = binary_cross_entropy(outputs.objectness[image, anchor], is_positive)
        (own,) = places(is_positive, num_positive)
        image, anchor, owner = image[own], anchor[own], owner[own]
        goal = encode_deltas(anchors[anchor], targets.boxes_xyxy[image, owner])
        return {
            "rpn_classification": weighted_mean(cross_entropy, None, number),
            "rpn_boxes": weighted_mean(l1_loss(outputs.deltas[image, anchor], goal), None, number),
        }

    @asking
    @torch.no_grad()
    def propose(self, outputs: Outputs, pyramid: Pyramid, *, training: bool) -> Inquiry[Proposals]:
        """The best boxes of each image: the best candidates of each level, NMS within levels, then the best of all.

        How many, and how far apart, the configuration says for training and for inference.
        """
        config = self.config
        candidates_per_level = config.train_candidates if training else config.test_candidates
        limits = (config.nms_threshold, config.num_proposals) if training else config.test_limits
        scores = outputs.objectness.sigmoid()
        if pyramid.masks[0] is not None:  # official: anchors in the padding propose too
            valid = flags_of(pyramid, self.per_location)
            scores = scores.masked_fill(~valid, -1.0)
        chosen, levels, start = [], [], 0
        for number, size in enumerate(level_areas(pyramid, self.per_location)):
            best = scores[:, start : start + size].topk(min(candidates_per_level, size), 1).indices
            chosen.append(best + start)
            levels.append(torch.full_like(best[0], number))
            start += size
        index, level = torch.cat(chosen, 1), torch.cat(levels)
        scores = scores.gather(1, index)
        deltas = outputs.deltas.gather(1, index[..., None].expand(-1, -1, 4))
        boxes = clip_boxes(decode_deltas(self.anchors(pyramid)[index], deltas), pyramid.valid_hw[:, None])
        usable = (scores >= 0) & (boxes[..., 2:] > boxes[..., :2]).all(-1)
        by_image = zip(boxes, scores, usable, strict=True)
        kept = torch.stack([places_after_nms(own, score, level, there, *limits) for own, score, there in by_image])
        valid = kept >= 0
        (counts,) = yield (valid.sum(1),)
        most = largest(int(counts.max()))
        kept, valid = kept[:, :most].clamp(min=0), valid[:, :most]
        boxes = boxes.gather(1, kept[..., None].expand(-1, -1, 4)).masked_fill(~valid[..., None], 0)
        return Proposals(boxes, scores.gather(1, kept).masked_fill(~valid, 0), valid)
