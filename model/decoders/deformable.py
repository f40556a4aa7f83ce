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
from model.decoders.configs import DeformableDecoderConfig
from model.linear import Linear
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


class DeformableDecoder(nn.Module):
    """N layers; with box refinement each has its own branches and moves the references of the next."""

    def __init__(self, config: DeformableDecoderConfig, *, model: DetectorConfig, num_classes: int):
        super().__init__()
        transformer = model.transformer
        num_layers = transformer.num_decoder_layers
        self.refine, self.look_forward_twice = model.box_refinement, model.look_forward_twice
        self.layers = nn.ModuleList(DecoderLayer(transformer) for _ in range(num_layers))
        channels, num_branches = transformer.channels, num_layers if self.refine else 1
        box_branches = [BoxBranch(channels) for _ in range(num_branches)]
        if not model.two_stage:  # queries start as points: begin with boxes of 12 % of the image (official)
            nn.init.constant_(cast(Linear, box_branches[0][-1]).bias[2:], -2.0)
        self.class_branches = nn.ModuleList(class_branch(channels, num_classes) for _ in range(num_branches))
        self.box_branches = nn.ModuleList(box_branches)

    def forward(self, groups: Sequence[QueryGroup], memory: Memory, *, look: bool = False) -> DecoderOutput:
        """See the contract."""
        states = torch.cat([group.content for group in groups], 1)
        position = torch.cat([_position_of(group) for group in groups], 1)
        reference = torch.cat([group.reference_cxcywh for group in groups], 1)
        has_size, visibility = _sizes_known(groups), Visibility.of(groups)
        ratios = memory.ratios.repeat(1, 1, 2)[:, None]  # [B, 1, L, 4]
        base = reference  # what a layer's box offset is added to, with gradient if looking forward twice
        logits, boxes = [], []
        looked_at: list[tuple[Tensor, Tensor]] = []
        for i, layer in enumerate(self.layers):
            states = layer(
                states,
                position,
                reference=reference[:, :, None] * ratios,
                has_size=has_size,
                visibility=visibility,
                memory=memory,
                looked_at=looked_at if look and i == len(self.layers) - 1 else None,
            )
            branch = i if self.refine else 0
            # Boxes stay in fp32 under autocast: their logits lose the small ones otherwise.
            offset = self.box_branches[branch](states).float()
            logits.append(self.class_branches[branch](states).float())
            boxes.append((offset + inverse_sigmoid(base)).sigmoid())
            if self.refine:
                refined = (offset + inverse_sigmoid(reference)).sigmoid()
                reference, has_size = refined.detach(), None
                base = refined if self.look_forward_twice else reference
        return DecoderOutput(torch.stack(logits), torch.stack(boxes), looked_at[0] if looked_at else None)


def _position_of(group: QueryGroup) -> Tensor:
    if group.position is None:
        raise ValueError("model.decoder: position: learned needs query groups with positions, and one has none")
    return group.position


def _sizes_known(groups: Sequence[QueryGroup]) -> Tensor | None:
    """[Q] bool, False for queries whose reference is a point; None: all have a size."""
    if all(group.has_size for group in groups):
        return None
    flags = [group.has_size for group in groups for _ in range(group.content.shape[1])]
    return torch.tensor(flags, device=groups[0].content.device)
