"""Contrastive denoising (DINO, Zhang et al. 2022, section 3.3): noised ground truths as queries, in training alone.

Official: `CdnQueryGenerator`. Each of several blocks holds two queries of every object: a positive one, whose box is
moved a little and must predict its object again, and a negative one, moved further, that must predict no object.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.boxes import cxcywh_to_xyxy, inverse_sigmoid, xyxy_to_cxcywh
from model.criterion import Objective, by_layer, layer_weights
from model.groups.configs import DenoisingConfig
from model.linear import Linear
from model.position import box_position_encoding
from model.share import largest, rand
from model.slices import largest_of_slices, per_image, slice_largest
from model.types import BACKGROUND, DecoderOutput, QueryGroup, Step, Targets

REFERENCE_EPSILON = 1e-3  # official: noised boxes come no nearer to 0 or 1, and no side becomes shorter
UNUSED = 0.5  # reference of a slot without an object (official: logit 0)


class Noise(NamedTuple):
    """Random numbers behind Q denoising queries of B images."""

    flip: Tensor  # [B, Q] in [0, 1): the label is replaced where this is below half of `label_noise`
    label: Tensor  # [B, Q] int64, the class that replaces it, perhaps the same
    sign: Tensor  # [B, Q, 4] -1 or 1, where each coordinate of the two corners moves
    part: Tensor  # [B, Q, 4] in [0, 1), how far: in half sides, one more for negative queries


class _Layout(NamedTuple):
    """Object, kind and block of each of Q queries of B images."""

    objects: Tensor  # [B, Q] int64, the object that it is made of
    negative: Tensor  # [B, Q] bool
    block: Tensor  # [B, Q] int64, number of its block
    hidden: Tensor  # [B, Q] bool, True beyond the queries of an image's slice
    blocks: tuple[int, ...]  # lengths, where they are the same in all images


class DenoisingGroup(nn.Module):
    """`number // G` blocks of 2 G queries: the positives of all objects, then their negatives.

    G is the largest number of objects of an image of the slice (`DetectorConfig.positive_query_images`), by default of
    the whole batch. An image with fewer leaves slots unused; they are seen by their block and trained as background
    (official). Where slices differ, those with fewer queries have hidden ones.
    """

    def __init__(self, config: DenoisingConfig, *, name: str, objective: Objective):
        super().__init__()
        self.config, self.name, self.objective = config, name, objective
        self.slice_images = objective.config.positive_query_images
        channels, decoder = objective.config.transformer.channels, objective.config.decoder
        self.reference_epsilon = max(REFERENCE_EPSILON, getattr(decoder, "reference_epsilon", 0.0))
        self.label_embedding = nn.Parameter(torch.randn(objective.num_classes, channels))
        self.box_position: nn.Sequential | None = None
        if not objective.config.makes_position:
            # DN-Deformable-DETR, whose positions follow from the boxes too: by weights of its own, as the positives'
            self.box_position = nn.Sequential(Linear(2 * channels, channels), nn.LayerNorm(channels))

    def draw(self, num_images: int, num_queries: int, device: torch.device) -> Noise:
        """The noise of one step."""
        numbers = rand((num_images, num_queries, 10), device)
        flip, label, sign, part = numbers.split([1, 1, 4, 4], -1)
        num_classes = self.objective.num_classes
        label = (label[..., 0] * num_classes).long().clamp(max=num_classes - 1)  # 1 - 2^-24 may round up
        return Noise(flip[..., 0], label, (sign >= 0.5) * 2.0 - 1, part)

    def queries(self, step: Step) -> QueryGroup:
        """No query where the whole batch holds no object."""
        targets = step.batch.targets
        layout = self._layout(targets)
        num_images, num_queries = layout.objects.shape
        noise = self.draw(num_images, num_queries, layout.objects.device)
        used = targets.valid.gather(1, layout.objects) & ~layout.hidden  # [B, Q]
        labels = targets.labels.gather(1, layout.objects)
        labels = noise.label.where(noise.flip < self.config.label_noise / 2, labels)
        content = self.label_embedding[labels.clamp(min=0)] * used[..., None]
        boxes = targets.boxes_cxcywh(step.batch.valid_hw)
        boxes = boxes.gather(1, layout.objects[..., None].expand(-1, -1, 4))
        distance = noise.sign * (noise.part + layout.negative[..., None]) * self.config.box_noise
        corners = cxcywh_to_xyxy(boxes) + distance * boxes[..., 2:].repeat(1, 1, 2) / 2
        moved = inverse_sigmoid(xyxy_to_cxcywh(corners.clamp(0, 1)), self.reference_epsilon).sigmoid()
        reference = moved.where(used[..., None], UNUSED)
        return QueryGroup(
            content,
            self._position(reference),
            reference,
            has_size=True,
            blocks=layout.blocks,
            sees="main",
            hidden=layout.hidden if self.slice_images else None,
            part=layout.block if self.slice_images else None,
            gt_index=layout.objects.where(used & ~layout.negative, BACKGROUND),
            weight=(~layout.hidden).to(boxes.dtype) if self.slice_images else None,
        )

    def _layout(self, targets: Targets) -> _Layout:
        """Which object each query is made of."""
        images, batch, device = self.slice_images, len(targets.labels), targets.labels.device
        counts = largest_of_slices(targets.host_counts(), images)
        counts = counts if images else [largest(counts[0])]
        blocks = [max(self.config.number // max(count, 1), 1) for count in counts]
        lengths = [2 * count * number for count, number in zip(counts, blocks, strict=True)]
        place = torch.arange(largest(max(lengths)) if images else lengths[0], device=device)  # [Q]
        most = slice_largest(targets.num_boxes, images) if images else torch.full((1,), counts[0], device=device)
        count = per_image(most, images, batch)[:, None]  # the same numbers where the device has them
        length = 2 * count * (self.config.number // count.clamp(min=1)).clamp(min=1)
        block, within = place // (2 * count).clamp(min=1), place % (2 * count).clamp(min=1)
        return _Layout(
            objects=within % count.clamp(min=1),
            negative=within >= count,
            block=block,
            hidden=place >= length,
            blocks=() if images else (2 * counts[0],) * blocks[0],
        )

    def _position(self, reference: Tensor) -> Tensor | None:
        if self.box_position is None:
            return None
        position: Tensor = self.box_position(box_position_encoding(reference, self.label_embedding.shape[1] // 2))
        return position

    def losses(self, output: DecoderOutput, queries: QueryGroup, step: Step) -> dict[str, Tensor]:
        """`<name>.<layer>/<term>`: each positive query keeps its object through all layers; by their number divided."""
        assert queries.gt_index is not None
        losses = self.objective.losses(
            output.logits,
            output.boxes_cxcywh,
            queries.gt_index.expand(len(output.logits), -1, -1),
            step.batch.targets,
            step.batch.valid_hw,
            weight=queries.weight,
        )
        return by_layer(self.name, losses)

    def loss_weights(self) -> dict[str, float]:
        """`weight` times the detector's `loss_weights`, in each layer."""
        return layer_weights(self.name, self.objective.config, self.config.weight)
