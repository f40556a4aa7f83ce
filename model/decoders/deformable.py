"""The deformable decoder with its class and box branches, one pass for all query groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from model.attention import DeformableAttention, FeedForward, GroupedSelfAttention, Visibility
from model.boxes import inverse_sigmoid
from model.branches import BoxBranch, class_branch
from model.config import DetectorConfig, TransformerConfig
from model.constants import constant
from model.decoders.configs import DeformableDecoderConfig
from model.linear import Linear
from model.position import box_position_encoding
from model.types import DecoderOutput, Memory, QueryGroup


class DecoderLayer(nn.Module):
    """Self-attention within groups, deformable cross-attention, feed-forward; post-normalised."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.self_attention = GroupedSelfAttention(config.channels, config.num_attention_heads, config.dropout)
        self.self_norm = nn.LayerNorm(config.channels)
        self.cross_attention = DeformableAttention(
            config.channels, config.num_attention_heads, config.num_levels, config.num_points
        )
        self.cross_norm = nn.LayerNorm(config.channels)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.channels)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        states: Tensor,
        position: Tensor,
        *,
        reference: Tensor,
        has_size: Tensor | None,
        visibility: Visibility,
        memory: Memory,
        looked_at: list[tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """[B, Q, D] → [B, Q, D].

        See `DeformableAttention.forward` for `reference` and `has_size`. `looked_at` takes what
        `DeformableAttention.sampling` gives; None: nobody asks.
        """
        states = self.self_norm(states + self.dropout(self.self_attention(states, position, visibility)))
        query = states + position
        if looked_at is not None:
            with torch.no_grad():
                looked_at.append(self.cross_attention.sampling(query, reference, has_size, memory.sizes))
        attended = self.cross_attention(query, reference, has_size, memory.tokens, memory.sizes, memory.padding)
        states = self.cross_norm(states + self.dropout(attended))
        return self.feed_forward_norm(states + self.feed_forward(states))


class ReferencePosition(nn.Sequential):
    """The position of a query from its reference, anew for each layer (DAB-DETR, DINO)."""

    def __init__(self, channels: int):
        super().__init__(Linear(2 * channels, channels), nn.ReLU(), Linear(channels, channels))
        self.channels = channels

    def forward(self, reference: Tensor) -> Tensor:
        """[B, Q, 4] normalised cxcywh → [B, Q, D]. A point's size is half the image: see `QueryGroup`."""
        x, y, width, height = reference.unbind(-1)
        in_order = torch.stack([y, x, width, height], -1)  # official
        encoded: Tensor = super().forward(box_position_encoding(in_order, self.channels // 2))
        return encoded


class DeformableDecoder(nn.Module):
    """N layers; with box refinement each moves the references of the next, by branches of its own or shared ones."""

    official_from_the_start = False  # its first weights: see `DetectorConfig.first_weights`

    def __init__(self, config: DeformableDecoderConfig, *, model: DetectorConfig, num_classes: int):
        super().__init__()
        transformer = model.transformer
        num_layers = transformer.num_decoder_layers
        self.refine, self.look_forward_twice = model.box_refinement, model.look_forward_twice
        self.epsilon = config.inverse_sigmoid_epsilon
        self.layers = nn.ModuleList(DecoderLayer(transformer) for _ in range(num_layers))
        channels = transformer.channels
        own_branches = self.refine and not config.shared_branches
        box_branches = [BoxBranch(channels) for _ in range(num_layers if own_branches else 1)]
        # Queries that start as points: begin with boxes of 12 % of the image (official). One branch for all layers
        # would shrink them in each.
        if not model.two_stage and (own_branches or not self.refine):
            nn.init.constant_(cast(Linear, box_branches[0][-1]).bias[2:], -2.0)
        self.class_branches = nn.ModuleList(class_branch(channels, num_classes) for _ in box_branches)
        self.box_branches = nn.ModuleList(box_branches)
        self.position = ReferencePosition(channels) if config.makes_position else None
        self.official = model.official
        self.norm = nn.LayerNorm(channels) if config.final_norm else None

    def forward(self, groups: Sequence[QueryGroup], memory: Memory, *, look: bool = False) -> DecoderOutput:
        """See the contract."""
        states = torch.cat([group.content for group in groups], 1)
        reference = torch.cat([group.reference_cxcywh for group in groups], 1)
        position = self._position(groups, reference, memory)
        has_size, visibility = _sizes_known(groups), Visibility.of(groups)
        ratios = memory.ratios.repeat(1, 1, 2)[:, None]  # [B, 1, L, 4]
        base = reference  # what a layer's box offset is added to, with gradient if looking forward twice
        logits, boxes = [], []
        looked_at: list[tuple[Tensor, Tensor]] = []
        for i, layer in enumerate(self.layers):
            last = i == len(self.layers) - 1
            states = layer(
                states,
                position,
                reference=reference[:, :, None] * ratios,
                has_size=has_size,
                visibility=visibility,
                memory=memory,
                looked_at=looked_at if look and last else None,
            )
            normed = states if self.norm is None else self.norm(states)
            offset = self._offset(i, normed)
            logits.append(self.class_branches[i % len(self.class_branches)](normed).float())
            boxes.append((offset + inverse_sigmoid(base, self.epsilon)).sigmoid())
            if self.refine and not last:
                moved = offset if self.norm is None else self._offset(i, states)
                base = (moved + inverse_sigmoid(reference, self.epsilon)).sigmoid()
                reference, has_size = base.detach(), None
                if not self.look_forward_twice:
                    base = reference
                if self.position is not None:
                    position = self._position(groups, reference, memory)
        return DecoderOutput(torch.stack(logits), torch.stack(boxes), looked_at[0] if looked_at else None)

    def _position(self, groups: Sequence[QueryGroup], reference: Tensor, memory: Memory) -> Tensor:
        """[B, Q, D]: the groups' own, or made from the references."""
        if self.position is None:
            return torch.cat([_position_of(group) for group in groups], 1)
        # Official: in shares of the padded map, so that an image's neighbours in the batch move its queries.
        made: Tensor = self.position(reference * memory.ratios[:, :1].repeat(1, 1, 2) if self.official else reference)
        return made

    def _offset(self, layer: int, states: Tensor) -> Tensor:
        """[B, Q, 4] in logits. Boxes stay in fp32 under autocast: their logits lose the small ones otherwise."""
        offset: Tensor = self.box_branches[layer % len(self.box_branches)](states).float()
        return offset


def _position_of(group: QueryGroup) -> Tensor:
    if group.position is None:
        raise ValueError("model.decoder: position: learned needs query groups with positions, and one has none")
    return group.position


def _sizes_known(groups: Sequence[QueryGroup]) -> Tensor | None:
    """[Q] bool, False for queries whose reference is a point; None: all have a size."""
    if all(group.has_size for group in groups):
        return None
    flags = [group.has_size for group in groups for _ in range(group.content.shape[1])]
    return constant(flags, groups[0].content, torch.bool)
