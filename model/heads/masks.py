"""The mask branch of Mask R-CNN (He et al. 2017): what part of a region is the object.

Masks are grids over a box: a ground truth's over its own box, the network's over the region it looks at. Going from
one box to the other takes the mean of the covered area, which is exact and separable.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.heads.configs import MaskConfig
from model.heads.roi import RoIPooling, RoIs
from model.linear import Conv2d
from model.losses import binary_cross_entropy, weighted_mean
from model.share import total
from model.types import Detections, Targets

MANY_CLASSES = 128  # from here on a region gets the mask of its own class alone; the masks of all would fill a memory


class MaskBranch(nn.Module):
    """Convolutions on the pooled features of a region, then one mask per class at twice the resolution."""

    def __init__(self, config: MaskConfig, channels: int, num_classes: int):
        super().__init__()
        self.config = config
        width = channels if config.channels is None else config.channels
        widths = [channels] + [width] * config.num_convs
        convs = [Conv2d(a, b, 3, padding=1) for a, b in zip(widths, widths[1:], strict=False)]
        self.convs = nn.ModuleList(convs)
        self.upsample = nn.ConvTranspose2d(widths[-1], width, 2, 2)
        self.logits = Conv2d(width, num_classes, 1)
        for layer in (*convs, self.upsample, self.logits):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor, labels: Tensor) -> Tensor:
        """[R, D, size, size] and classes [R] → logits [R, 2 * size, 2 * size], at least float32."""
        features = pooled
        for conv in self.convs:
            features = conv(features).relu()
        features = self.upsample(features).relu()
        if self.logits.out_channels < MANY_CLASSES:
            logits = self.logits(features)[torch.arange(len(labels), device=labels.device), labels]
        else:
            assert self.logits.bias is not None
            rows = self.logits.weight.flatten(1)[labels, None] @ features.flatten(2)  # [R, 1, cells]
            logits = rows.view(len(rows), *features.shape[2:]) + self.logits.bias[labels, None, None]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def loss(self, levels: list[Tensor], pooling: RoIPooling, rois: RoIs, targets: Targets) -> Tensor:
        """Scalar: mean cross entropy of the masks of all positive regions, each for its own class.

        Args:
            levels: [B, D, h, w] each, the maps that regions are read from.
            pooling: of these maps.
            rois: sampled regions of B images.
            targets: ground truth of B images, with masks.

        Raises:
            ValueError: the targets have no masks.
        """
        if targets.masks is None:
            raise ValueError("the mask branch needs targets with masks: load the data set with masks")
        image, row = rois.positives()
        owner, boxes = rois.gt_index[image, row], rois.boxes_xyxy[image, row]
        level = None if rois.level is None else rois.level[image, row]
        of_levels = None if rois.counts is None else [positives for positives, _ in rois.counts.levels]
        pooled = pooling(levels, image, boxes, self.config.pooled_size, level, of_levels)
        logits = self(pooled, targets.labels[image, owner])
        goal = resample(targets.masks[image, owner], targets.boxes_xyxy[image, owner], boxes, logits.shape[-1])
        loss = binary_cross_entropy(logits, goal >= 0.5 * 255)
        return weighted_mean(loss, None, total(loss.numel(), minimum=1))

    def add_masks(self, levels: list[Tensor], pooling: RoIPooling, detections: list[Detections]) -> list[Detections]:
        """The detections of B images with the masks of their classes, read from `levels`, [B, D, h, w] each."""
        device = levels[0].device
        counts = torch.tensor([len(found.labels) for found in detections], device=device)
        image = torch.arange(len(detections), device=device).repeat_interleave(counts)
        boxes = torch.cat([found.boxes_xyxy for found in detections])
        labels = torch.cat([found.labels for found in detections])
        masks = self(pooling(levels, image, boxes, self.config.pooled_size), labels).sigmoid()
        parts = masks.split(counts.tolist())
        return [
            Detections(found.boxes_xyxy, found.scores, found.labels, part)
            for found, part in zip(detections, parts, strict=True)
        ]


@torch.no_grad()
def resample(masks: Tensor, boxes_xyxy: Tensor, regions_xyxy: Tensor, size: int) -> Tensor:
    """Grids over boxes as grids over other regions: each new cell is the mean of what it covers, 0 outside the box.

    Args:
        masks: [R, m, m], each over its box.
        boxes_xyxy: [R, 4].
        regions_xyxy: [R, 4].
        size: cells per axis of the result.

    Returns:
        [R, size, size] float.
    """
    cells = masks.shape[-1]
    corner, side = boxes_xyxy[:, :2].repeat(1, 2), boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    relative = (regions_xyxy - corner) / side.clamp(min=1e-6).repeat(1, 2) * cells  # in cells of the box's grid
    rows, columns = (_shares(relative[:, axis], relative[:, axis + 2], size, cells) for axis in (1, 0))
    return rows @ masks.to(rows.dtype) @ columns.transpose(1, 2)


def _shares(start: Tensor, end: Tensor, size: int, cells: int) -> Tensor:
    """[R, size, cells]: share of each new cell, `size` of them from `start` to `end` [R], that lies in an old one."""
    side = (end - start) / size
    low = start[:, None] + torch.arange(size, device=start.device) * side[:, None]
    high = low + side[:, None]
    old = torch.arange(cells, device=start.device)
    overlap = torch.minimum(high[..., None], old + 1.0) - torch.maximum(low[..., None], old.to(low.dtype))
    return overlap.clamp(min=0) / side.clamp(min=1e-6)[:, None, None]
