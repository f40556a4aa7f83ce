"""Regions of interest: which boxes are looked at, what is read there, and what it tells.

The second stage of the R-CNN heads, in three parts that do not know each other: `RoIs` and `sample_rois`, the pooling
of features (`RoIPooling`), and the layers that judge them (`BoxBranch`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.anchor_assignment import assign_max_iou
from model.boxes import decode_deltas
from model.heads.configs import RoIConfig
from model.heads.rpn import Proposals
from model.inquiry import Inquiry, places
from model.layers import ConvNorm, repeat_edge
from model.linear import Linear
from model.losses import giou_loss, softmax_cross_entropy, weighted_mean
from model.ops import roi_align
from model.sampling import sample
from model.share import total
from model.types import BACKGROUND, IGNORED, Pyramid, Targets


class RoICounts(NamedTuple):
    """How many regions of a kind there are."""

    images: tuple[tuple[int, int], ...]  # of each image: positives, boxes
    levels: tuple[tuple[int, int], ...]  # of each level of the pooling


class RoIs(NamedTuple):
    """Boxes of a batch with their ground truth: positives first, then background, then rows without a box."""

    boxes_xyxy: Tensor  # [B, M, 4] pixels
    gt_index: Tensor  # [B, M] int64, 0-based ground truth, BACKGROUND, or IGNORED where there is no box
    level: Tensor | None = None  # [B, M] the pooling's level of each box, see `RoIPooling`
    counts: RoICounts | None = None  # what the host knows; None: it waits where it must know

    def rows(self) -> tuple[Tensor, Tensor]:
        """(image, row) [R] of every box."""
        number = None if self.counts is None else sum(boxes for _, boxes in self.counts.images)
        image, row = places(self.gt_index != IGNORED, number)
        return image, row

    def positives(self) -> tuple[Tensor, Tensor]:
        """(image, row) [R] of every positive one."""
        number = None if self.counts is None else sum(positives for positives, _ in self.counts.images)
        image, row = places(self.gt_index >= 0, number)
        return image, row


def candidates(proposals: Proposals, targets: Targets, positive_iou: float) -> RoIs:
    """Ground truths, then proposals, each with its ground truth; not sampled."""
    gts = torch.arange(targets.labels.shape[1], device=targets.labels.device).where(targets.valid, IGNORED)
    gt_index, _ = assign_max_iou(
        proposals.boxes_xyxy, targets, positive_iou=positive_iou, negative_iou=positive_iou, valid=proposals.valid
    )
    return RoIs(torch.cat([targets.boxes_xyxy, proposals.boxes_xyxy], 1), torch.cat([gts, gt_index], 1))


def sample_rois(proposals: Proposals, targets: Targets, config: RoIConfig) -> RoIs:
    """Sample what the second stage is trained on: ground truths are added to the proposals (official)."""
    all_rois = candidates(proposals, targets, config.positive_iou)
    chosen = sample(all_rois.gt_index, config.num_samples, config.positive_fraction)
    return RoIs(all_rois.boxes_xyxy.gather(1, chosen.candidate[..., None].expand(-1, -1, 4)), chosen.gt_index)


class RoIPooling:
    """Reads each box on the level that suits its size (Lin et al. 2017, Eq. 1), of all levels but the coarsest.

    A box of `finest_scale` to twice that uses level 1, smaller ones level 0, and so on by factors of two.
    """

    def __init__(self, strides: tuple[int, ...], finest_scale: float):
        self.strides, self.finest_scale = strides[:-1], finest_scale

    def levels(self, pyramid: Pyramid) -> list[Tensor]:
        """Maps [B, D, h, w] that may be read, all but the coarsest.

        Behind an image's valid area lies its last row and column, as behind a map's edge.
        """
        maps = pyramid.levels[: len(self.strides)]
        if pyramid.masks[0] is None:
            return list(maps)
        return [repeat_edge(level, pyramid.valid_hw, stride) for level, stride in zip(maps, self.strides, strict=True)]

    def level_of(self, boxes_xyxy: Tensor) -> Tensor:
        """[...] of boxes [..., 4]."""
        side = (boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=0).prod(-1).sqrt()
        return torch.log2(side / self.finest_scale + 1e-6).floor().clamp(0, len(self.strides) - 1)

    def counted(self, rois: RoIs) -> Inquiry[RoIs]:
        """Ask what the host must know of regions that are read."""
        level = self.level_of(rois.boxes_xyxy)
        kinds = torch.stack([rois.gt_index >= 0, rois.gt_index != IGNORED])  # [2, B, M]
        numbers = torch.stack([(kinds & (level == number)).sum((1, 2)) for number in range(len(self.strides))])
        images, levels = (found.tolist() for found in (yield (kinds.sum(2).t(), numbers)))
        return rois._replace(level=level, counts=RoICounts(*(tuple(map(tuple, found)) for found in (images, levels))))

    def __call__(
        self,
        levels: list[Tensor],
        image: Tensor,
        boxes_xyxy: Tensor,
        size: int,
        level: Tensor | None = None,
        counts: Sequence[int] | None = None,
    ) -> Tensor:
        """[R, D, size, size] features of boxes [R, 4] in images [R], at least float32.

        `level` [R] is `level_of` them, and `counts` how many have each; without these the host waits for them.
        """
        target = self.level_of(boxes_xyxy) if level is None else level
        rois = torch.cat([image[:, None].to(boxes_xyxy), boxes_xyxy], 1)
        pooled, order = [], []
        for number, (features, stride) in enumerate(zip(levels, self.strides, strict=True)):
            (rows,) = places(target == number, None if counts is None else counts[number])
            pooled.append(roi_align(features, rois[rows], size, 1 / stride))
            order.append(rows)
        return torch.cat(pooled)[torch.cat(order).argsort()]


class BoxBranch(nn.Module):
    """Convolutions, if any, and fully connected layers, to class logits, background last, and a box, or one a class.

    Initial values are those of the official layers: Kaiming for convolutions, Xavier for what is fully connected.
    """

    def __init__(self, config: RoIConfig, channels: int, num_classes: int):
        super().__init__()
        self.num_classes, self.config = num_classes, config
        convs = [ConvNorm(channels, channels, 3) for _ in range(config.num_convs)]
        for conv in convs:
            nn.init.kaiming_normal_(conv.conv.weight, mode="fan_out", nonlinearity="relu")
        self.convs = nn.ModuleList(convs)
        width = 4 * channels if config.fc_channels is None else config.fc_channels
        widths = [channels * config.pooled_size**2] + [width] * config.num_fcs
        fcs = [Linear(a, b) for a, b in zip(widths, widths[1:], strict=False)]
        self.classification = Linear(width, num_classes + 1)
        self.box = Linear(width, 4 if config.class_agnostic else 4 * num_classes)
        for fc in fcs:
            nn.init.xavier_uniform_(fc.weight)
            nn.init.zeros_(fc.bias)
        self.fcs = nn.ModuleList(fcs)
        for layer, std in ((self.classification, 0.01), (self.box, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """[R, D, size, size] → logits [R, C + 1] and deltas [R, C or 1, 4], at least float32."""
        for block in self.convs:
            pooled = block(pooled).relu()
        features = pooled.flatten(1)
        for layer in self.fcs:
            features = layer(features).relu()
        dtype = torch.promote_types(features.dtype, torch.float32)
        return self.classification(features).to(dtype), self.box(features).to(dtype).unflatten(1, (-1, 4))

    def decode(self, boxes_xyxy: Tensor, deltas: Tensor) -> Tensor:
        """[..., 4] boxes of regions and what the layers say of them."""
        return decode_deltas(boxes_xyxy, deltas, self.config.delta_stds)

    def losses(self, pooled: Tensor, rois: RoIs, targets: Targets) -> dict[str, Tensor]:
        """Scalars: cross entropy of all sampled boxes and GIoU of the positive ones, over the number of samples.

        Args:
            pooled: [R, D, size, size] features of the boxes of `rois.rows()`.
            rois: sampled regions of B images.
            targets: ground truth of B images.
        """
        image, row = rois.rows()
        logits, deltas = self(pooled)
        owner = rois.gt_index[image, row]
        (positive,) = places(owner >= 0, None if rois.counts is None else sum(own for own, _ in rois.counts.images))
        labels = torch.full_like(owner, BACKGROUND)
        labels[positive] = targets.labels[image[positive], owner[positive]]
        own = deltas[positive, 0 if self.config.class_agnostic else labels[positive]]
        boxes = self.decode(rois.boxes_xyxy[image[positive], row[positive]], own)
        goal = targets.boxes_xyxy[image[positive], owner[positive]]
        number = total(len(owner), minimum=1)
        return {
            "classification": weighted_mean(softmax_cross_entropy(logits, labels), None, number),
            "boxes": weighted_mean(giou_loss(boxes, goal), None, number),
        }
