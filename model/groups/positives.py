"""A head's customised positive queries: its positives, decoded again with the ground truth they have (paper 3.3)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from model.boxes import inverse_sigmoid, xyxy_to_cxcywh
from model.criterion import Objective, by_layer, layer_weights
from model.gather import rows
from model.groups.configs import PositivesConfig
from model.inquiry import Inquiry, asking, counted, inquiry
from model.linear import Linear
from model.position import box_position_encoding
from model.share import largest, rand, smallest
from model.slices import largest_of_slices, per_image, slice_largest
from model.types import BACKGROUND, IGNORED, DecoderOutput, Positives, PositiveSelection, Pyramid, QueryGroup, Step


class PositivesGroup(nn.Module):
    """Linear(PE(box)) + Linear(feature) of one head's positives (paper Eq. 2).

    Half of the first is the position, unless the decoder makes it; without features there is no more to the rest.
    """

    def __init__(self, config: PositivesConfig, *, name: str, objective: Objective):
        super().__init__()
        self.name, self.objective = name, objective
        detector = objective.config
        self.limits, self.official = (detector.min_positive_queries, detector.max_positive_queries), detector.official
        self.slice_images = detector.positive_query_images
        self.makes_position, self.has_features = detector.makes_position, detector.positive_features
        self.reference_epsilon: float | None = getattr(detector.decoder, "reference_epsilon", None)
        self.channels = channels = detector.transformer.channels
        width = channels if self.makes_position else 2 * channels
        self.box_proj = Linear(2 * channels, width)
        self.box_norm = nn.LayerNorm(width)
        if self.has_features:
            self.feature_proj = Linear(channels, channels)
            self.feature_norm = nn.LayerNorm(channels)
        # Official: one number per head, added to all channels (their own comment calls it a mistake), and none without
        # features.
        embedded = self.has_features and not self.makes_position
        embedding = nn.Parameter(torch.zeros(1 if self.official else channels)) if embedded else None
        self.register_parameter("head_embedding", embedding)

    @asking
    def select(self, positives: Positives, pyramid: Pyramid) -> Inquiry[PositiveSelection]:
        """The candidates that become queries of this step."""
        given = positives, pyramid, *self.limits
        return inquiry(select_positives, *given, official=self.official, images=self.slice_images)

    def queries(self, step: Step) -> QueryGroup:
        """P queries whose references are the positives' own boxes."""
        selection = step.positives[self.name]
        # The encoding sees the box clipped to the image, as the official sigmoid(inverse_sigmoid(box)) does.
        clipped = inverse_sigmoid(selection.boxes_cxcywh).sigmoid()
        encoded = box_position_encoding(clipped, self.channels // 2).to(selection.features.dtype)
        embedded = self.box_norm(self.box_proj(encoded))
        position, content = (None, embedded) if self.makes_position else embedded.chunk(2, -1)
        if self.has_features:
            content = content + self.feature_norm(self.feature_proj(selection.features))
        if position is not None and self.head_embedding is not None:
            position = position + self.head_embedding
        reference = selection.boxes_cxcywh
        if self.reference_epsilon is not None:
            reference = inverse_sigmoid(reference, self.reference_epsilon).sigmoid()
        return QueryGroup(
            content,
            position,
            reference,
            has_size=True,
            hidden=selection.hidden,
            gt_index=selection.gt_index,
            weight=selection.weight,
        )

    def losses(self, output: DecoderOutput, queries: QueryGroup, step: Step) -> dict[str, Tensor]:
        """`queries.<head>.<layer>/<term>`: each query keeps its ground truth through all layers (no matching)."""
        assert queries.gt_index is not None
        gt_index = queries.gt_index.expand(len(output.logits), -1, -1)
        losses = self.objective.losses(
            output.logits,
            output.boxes_cxcywh,
            gt_index,
            step.batch.targets,
            step.batch.valid_hw,
            weight=queries.weight,
        )
        return by_layer(f"queries.{self.name}", losses)

    def loss_weights(self) -> dict[str, float]:
        """lambda1 times the detector's `loss_weights`, in each layer (paper Eq. 5)."""
        return layer_weights(f"queries.{self.name}", self.objective.config, self.objective.config.lambda1)


@asking
def cut_to_shortest(positives: Positives, images: int = 0) -> Inquiry[Positives]:
    """Only as many candidates as every image has, where each has features of its own (official, for R-CNN).

    With slices of so many `images`, as every image of the slice has; what is cut counts as ignored then.
    """
    if positives.features is None:
        return positives
    counts = positives.counts or (yield from counted(positives.gt_index))
    number = positives.gt_index.shape[1]
    missing = largest_of_slices([number - regions for _, regions in counts], images)
    if images:
        regions = (positives.gt_index != IGNORED).sum(1)
        fewest = number - per_image(slice_largest(number - regions, images), images, len(regions))
        cut = torch.arange(number, device=regions.device) >= fewest[:, None]
        lengths = [number - missing[image // images] for image in range(len(counts))]
        short = replace(positives, gt_index=positives.gt_index.masked_fill(cut, IGNORED))
    else:
        count = smallest(number - missing[0])
        lengths = [count] * len(counts)
        boxes, gt_index, features = (
            values[:, :count] for values in (positives.boxes_xyxy, positives.gt_index, positives.features)
        )
        short = replace(positives, boxes_xyxy=boxes, gt_index=gt_index, features=features)
    if positives.counts is None:
        return short
    pairs = zip(counts, lengths, strict=True)
    return replace(short, counts=tuple((min(own, most), min(regions, most)) for (own, regions), most in pairs))


@asking
def select_positives(
    positives: Positives,
    pyramid: Pyramid,
    minimum: int,
    maximum: int,
    priority: Tensor | None = None,
    official: bool = False,
    images: int = 0,
) -> Inquiry[PositiveSelection]:
    """Choose P candidates per image: the largest number of positives in its slice, clamped to [minimum, maximum].

    Images with more positives keep a random P of them; images with fewer are filled with random negatives of the
    same head, supervised as background (official rule). Where slices differ, those with fewer queries have hidden ones.

    Args:
        positives: M candidates per image.
        pyramid: where dense heads' features are read.
        minimum: of P (official 9).
        maximum: of P (official 300).
        priority: [B, M] in [0, 1), higher is chosen first; None: random.
        official: cut candidates with features of their own to the fewest of an image, and give all of them weight 0
            where that leaves fewer than P (the official code loses their loss then); otherwise an image uses all it
            has, and only rows that it cannot fill have weight 0.
        images: of a slice; 0: the whole batch, over all ranks.
    """
    if official:
        positives = yield from inquiry(cut_to_shortest, positives, images)
    counts = positives.counts or (yield from counted(positives.gt_index))
    gt_index = positives.gt_index
    is_positive = gt_index >= 0
    numbers = largest_of_slices([own for own, _ in counts], images)
    numbers = numbers if images else [largest(numbers[0])]
    most = slice_largest(is_positive.sum(1), images) if images else gt_index.new_full((1,), numbers[0])
    wanted = per_image(most.clamp(minimum, maximum), images, len(gt_index))  # [B]
    count = min(max(minimum, min(max(numbers), maximum)), gt_index.shape[1])
    if priority is None:
        priority = rand(gt_index.shape, gt_index.device)
    rank = priority + is_positive  # positives in [1, 2), negatives in [0, 1)
    chosen = rank.masked_fill(gt_index == IGNORED, -1.0).topk(count, 1).indices  # [B, P]
    chosen_gt = gt_index.gather(1, chosen)
    boxes = positives.boxes_xyxy.gather(1, chosen[..., None].expand(-1, -1, 4))
    height, width = pyramid.valid_hw.to(boxes).unbind(1)
    normalised = xyxy_to_cxcywh(boxes) / torch.stack([width, height, width, height], -1)[:, None]
    source = positives.features
    if source is None:
        if positives.token_index is None:
            raise AssertionError("Positives need token_index or features")
        source, chosen = pyramid.tokens(), positives.token_index[chosen]
    features = rows(source, chosen)
    hidden = torch.arange(count, device=wanted.device) >= wanted[:, None] if images else None
    if hidden is not None:
        chosen_gt = chosen_gt.masked_fill(hidden, IGNORED)
    weight = (chosen_gt != IGNORED).to(boxes.dtype)
    if official:
        # Regions of which there are too few give nothing; a dense head's candidates are all of its anchors or points.
        candidates = (gt_index != IGNORED).sum(1) if positives.features is not None else gt_index.shape[1]
        weight = weight * (wanted <= candidates)[:, None]
    return PositiveSelection(normalised, chosen_gt.clamp(min=BACKGROUND), weight, features, hidden)
