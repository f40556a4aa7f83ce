"""Where the decoder's queries come from: learned, from encoder proposals, or from a head's positives (paper 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from model.boxes import inverse_sigmoid, xyxy_to_cxcywh
from model.linear import Linear
from model.position import box_position_encoding
from model.share import largest, rand, smallest
from model.types import BACKGROUND, IGNORED, Positives, Pyramid

if TYPE_CHECKING:
    from model.decoder import Memory


@dataclass(frozen=True)
class QueryGroup:
    """Queries that see each other and no other group."""

    content: Tensor  # [B, Q, D]
    position: Tensor  # [B, Q, D]
    reference_cxcywh: Tensor  # [B, Q, 4] normalised; w = h = 0.5 (logit 0) where the reference is a point
    has_size: bool  # False: references are points
    # [B, Q] int32, what stays the same from one epoch to the next: a slot, or a place on the encoder's maps
    source: Tensor | None = None


@dataclass(frozen=True)
class PositiveSelection:
    """The candidates that become customised queries, and what each must predict."""

    boxes_cxcywh: Tensor  # [B, P, 4] normalised by the valid size, not clipped
    gt_index: Tensor  # [B, P] int64, 0-based ground truth or BACKGROUND
    weight: Tensor  # [B, P] 1, or 0 where an image has too few candidates
    features: Tensor  # [B, P, D]


@dataclass(frozen=True)
class EncoderProposals:
    """Two-stage output of the encoder at every token."""

    logits: Tensor  # [B, S, C]; channel 0 is the objectness (official)
    boxes_cxcywh: Tensor  # [B, S, 4] normalised


class LearnedQueries(nn.Module):
    """One-stage: learned content and position; the reference is a point computed from the position."""

    def __init__(self, num_queries: int, channels: int):
        super().__init__()
        self.embedding = nn.Embedding(num_queries, 2 * channels)
        self.reference_points = Linear(channels, 2)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def forward(self, batch_size: int) -> QueryGroup:
        """One group of `num_queries` points."""
        position, content = self.embedding.weight.chunk(2, 1)
        points = self.reference_points(position).float().sigmoid()
        reference = torch.cat([points, torch.full_like(points, 0.5)], -1)
        expand = (batch_size, -1, -1)
        source = torch.arange(len(content), dtype=torch.int32, device=content.device)[None].expand(batch_size, -1)
        return QueryGroup(
            content.expand(expand), position.expand(expand), reference.expand(expand), has_size=False, source=source
        )


class ProposalQueries(nn.Module):
    """Two-stage: the encoder's best proposals become the references (Deformable-DETR; DINO's mixed selection)."""

    def __init__(self, num_queries: int, channels: int, mixed_selection: bool, class_branch: nn.Module, box: nn.Module):
        super().__init__()
        self.num_queries = num_queries
        self.token_proj = Linear(channels, channels)
        self.token_norm = nn.LayerNorm(channels)
        self.class_branch, self.box_branch = class_branch, box
        self.box_proj = Linear(2 * channels, 2 * channels)
        self.box_norm = nn.LayerNorm(2 * channels)
        self.content = nn.Embedding(num_queries, channels) if mixed_selection else None

    def forward(self, memory: Memory, exclude_invalid: bool) -> tuple[QueryGroup, EncoderProposals]:
        """The group of the best `num_queries` tokens, and the predictions at every token.

        Tokens in the padding, or whose centre lies within 1 % of the border, cannot carry a proposal. With
        `exclude_invalid` they are never chosen while valid ones are left; the official code ranks them too.
        """
        tokens, anchors, invalid = encoder_anchors(memory)
        if tokens.shape[1] < self.num_queries:
            raise ValueError(
                f"model.num_queries ({self.num_queries}) exceeds the {tokens.shape[1]} positions of the encoder at "
                f"this image size; use fewer queries or larger images"
            )
        tokens = self.token_norm(self.token_proj(tokens))
        logits = self.class_branch(tokens).float()
        boxes = (self.box_branch(tokens).float() + anchors).sigmoid()
        objectness = logits[..., 0].detach()
        if exclude_invalid:
            objectness = objectness.masked_fill(invalid, -torch.inf)
        best = objectness.topk(self.num_queries, dim=1).indices
        reference = boxes.detach().gather(1, best[..., None].expand(-1, -1, 4))
        channels = self.token_proj.out_features
        encoded = box_position_encoding(reference, channels // 2).to(tokens.dtype)
        position, content = self.box_norm(self.box_proj(encoded)).chunk(2, -1)
        if self.content is not None:
            content = self.content.weight.expand(len(tokens), -1, -1)
        group = QueryGroup(content, position, reference, has_size=True, source=_places(memory).to(best.device)[best])
        return group, EncoderProposals(logits, boxes)


def _places(memory: Memory) -> Tensor:
    """[S] int32: level, row and column of each token in one number, which does not depend on a batch's padding."""
    grids = [torch.cartesian_prod(torch.arange(h), torch.arange(w)) for h, w in memory.sizes]
    return torch.cat([(level << 26) + (grid[:, 0] << 13) + grid[:, 1] for level, grid in enumerate(grids)]).int()


def encoder_anchors(memory: Memory) -> tuple[Tensor, Tensor, Tensor]:
    """One anchor per token: its centre, 5 % of the image wide on the finest level and doubling per level.

    Returns:
        tokens [B, S, D], zero where invalid; anchors [B, S, 4] logits of cxcywh, +inf where invalid;
        invalid [B, S] bool.
    """
    anchors = []
    for level, (h, w) in enumerate(memory.sizes):
        device = memory.ratios.device
        y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
        cells = (memory.ratios[:, level] * torch.tensor([w, h], device=device)).round()  # [B, 2] valid cells
        centre = (torch.stack([x.flatten(), y.flatten()], -1)[None] + 0.5) / cells[:, None]
        anchors.append(torch.cat([centre, torch.full_like(centre, 0.05 * 2**level)], -1))
    boxes = torch.cat(anchors, 1)
    invalid = ~((boxes > 0.01) & (boxes < 0.99)).all(-1)
    if memory.padding is not None:
        invalid |= memory.padding
    logits = torch.log(boxes / (1 - boxes)).masked_fill(invalid[..., None], torch.inf)
    return memory.tokens.masked_fill(invalid[..., None], 0.0), logits, invalid


class PositiveQueries(nn.Module):
    """Customised positive queries of one head: Linear(PE(box)) + Linear(feature) (paper Eq. 2)."""

    def __init__(self, channels: int, scalar_embedding: bool = False):
        super().__init__()
        self.box_proj = Linear(2 * channels, 2 * channels)
        self.box_norm = nn.LayerNorm(2 * channels)
        self.feature_proj = Linear(channels, channels)
        self.feature_norm = nn.LayerNorm(channels)
        # Official: one number per head, added to all channels (their own comment calls it a mistake).
        self.head_embedding = nn.Parameter(torch.zeros(1 if scalar_embedding else channels))

    def forward(self, selection: PositiveSelection) -> QueryGroup:
        """One group of P queries whose references are the positives' own boxes."""
        # The encoding sees the box clipped to the image, as the official sigmoid(inverse_sigmoid(box)) does.
        clipped = inverse_sigmoid(selection.boxes_cxcywh).sigmoid()
        encoded = box_position_encoding(clipped, self.feature_proj.out_features // 2).to(selection.features.dtype)
        position, content = self.box_norm(self.box_proj(encoded)).chunk(2, -1)
        content = content + self.feature_norm(self.feature_proj(selection.features))
        return QueryGroup(content, position + self.head_embedding, selection.boxes_cxcywh, has_size=True)


def cut_to_shortest(positives: Positives) -> Positives:
    """Only as many candidates as every image has, where each has features of its own (official, for R-CNN)."""
    if positives.features is None:
        return positives
    count = smallest(int((positives.gt_index != IGNORED).sum(1).min()))
    return Positives(
        positives.boxes_xyxy[:, :count], positives.gt_index[:, :count], features=positives.features[:, :count]
    )


def select_positives(
    positives: Positives,
    pyramid: Pyramid,
    minimum: int,
    maximum: int,
    priority: Tensor | None = None,
    official: bool = False,
) -> PositiveSelection:
    """Choose P candidates per image: the largest number of positives in the batch, clamped to [minimum, maximum].

    Images with more positives keep a random P of them; images with fewer are filled with random negatives of the
    same head, supervised as background (official rule).

    Args:
        positives: N candidates per image.
        pyramid: where dense heads' features are read.
        minimum: of P (official 9).
        maximum: of P (official 300).
        priority: [B, N] in [0, 1), higher is chosen first; None: random.
        official: cut candidates with features of their own to the fewest of an image, and give all of them weight 0
            where that leaves fewer than P (the official code loses their loss then); otherwise an image uses all it
            has, and only rows that it cannot fill have weight 0.
    """
    if official:
        positives = cut_to_shortest(positives)
    gt_index = positives.gt_index
    is_positive = gt_index >= 0
    count = largest(int(is_positive.sum(1).max()) if gt_index.numel() else 0)
    wanted = min(max(count, minimum), maximum)
    count = min(wanted, gt_index.shape[1])
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
    features = source.gather(1, chosen[..., None].expand(-1, -1, source.shape[-1]))
    weight = (chosen_gt != IGNORED).to(boxes.dtype)
    if official and count < wanted:
        weight = torch.zeros_like(weight)
    return PositiveSelection(normalised, chosen_gt.clamp(min=BACKGROUND), weight, features)
