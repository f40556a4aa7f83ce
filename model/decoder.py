"""The deformable decoder with its class and box branches, one pass for all query groups."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from model.attention import DeformableAttention, GroupedSelfAttention
from model.boxes import inverse_sigmoid
from model.config import DetectorConfig, TransformerConfig
from model.encoder import FeedForward
from model.linear import Linear
from model.queries import QueryGroup


@dataclass(frozen=True)
class Memory:
    """The encoder's output, as the decoder and the queries see it."""

    tokens: Tensor  # [B, S, D]
    sizes: tuple[tuple[int, int], ...]  # (h, w) of the L levels
    padding: Tensor | None  # [B, S] bool, True = padding; None: no padding in the batch
    ratios: Tensor  # [B, L, 2] (w, h) share of each map that holds the image


@dataclass(frozen=True)
class DecoderOutput:
    """Predictions of every layer, all query groups one after the other."""

    logits: Tensor  # [N, B, Q, C], N decoder layers
    boxes_cxcywh: Tensor  # [N, B, Q, 4], normalised

    def split(self, lengths: list[int]) -> list[DecoderOutput]:
        """One output per query group."""
        pairs = zip(self.logits.split(lengths, 2), self.boxes_cxcywh.split(lengths, 2), strict=True)
        return [DecoderOutput(logits, boxes) for logits, boxes in pairs]


class BoxBranch(nn.Sequential):
    """Three linear layers to a box's offset from its reference, in logits."""

    def __init__(self, channels: int):
        last = Linear(channels, 4)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        super().__init__(Linear(channels, channels), nn.ReLU(), Linear(channels, channels), nn.ReLU(), last)


def class_branch(channels: int, num_classes: int) -> Linear:
    """Linear layer to class logits, with a prior of 1 % (focal loss)."""
    branch = Linear(channels, num_classes)
    nn.init.constant_(branch.bias, -math.log(99))
    return branch


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
        reference: Tensor,
        has_size: Tensor | None,
        groups: tuple[int, ...],
        memory: Memory,
    ) -> Tensor:
        """[B, Q, D] → [B, Q, D]; see `DeformableAttention.forward` for `reference` and `has_size`."""
        states = self.self_norm(states + self.dropout(self.self_attention(states, position, groups)))
        attended = self.cross_attention(
            states + position, reference, has_size, memory.tokens, memory.sizes, memory.padding
        )
        states = self.cross_norm(states + self.dropout(attended))
        return self.feed_forward_norm(states + self.feed_forward(states))


class Decoder(nn.Module):
    """N layers; with box refinement each has its own branches and moves the references of the next."""

    def __init__(self, config: DetectorConfig, num_classes: int):
        super().__init__()
        transformer = config.transformer
        num_layers = transformer.num_decoder_layers
        self.refine, self.look_forward_twice = config.box_refinement, config.look_forward_twice
        self.layers = nn.ModuleList(DecoderLayer(transformer) for _ in range(num_layers))
        channels, num_branches = transformer.channels, num_layers if self.refine else 1
        box_branches = [BoxBranch(channels) for _ in range(num_branches)]
        if not config.two_stage:  # queries start as points: begin with boxes of 12 % of the image (official)
            nn.init.constant_(cast(Linear, box_branches[0][-1]).bias[2:], -2.0)
        self.class_branches = nn.ModuleList(class_branch(channels, num_classes) for _ in range(num_branches))
        self.box_branches = nn.ModuleList(box_branches)

    def forward(self, groups: list[QueryGroup], memory: Memory) -> DecoderOutput:
        """Decode all groups in one pass; they share every weight and never see each other."""
        lengths = tuple(group.content.shape[1] for group in groups)
        states = torch.cat([group.content for group in groups], 1)
        position = torch.cat([group.position for group in groups], 1)
        reference = torch.cat([group.reference_cxcywh for group in groups], 1)
        has_size = None
        if not all(group.has_size for group in groups):
            flags = [group.has_size for group in groups for _ in range(group.content.shape[1])]
            has_size = torch.tensor(flags, device=states.device)
        ratios = memory.ratios.repeat(1, 1, 2)[:, None]  # [B, 1, L, 4]
        base = reference  # what a layer's box offset is added to, with gradient if looking forward twice
        logits, boxes = [], []
        for i, layer in enumerate(self.layers):
            states = layer(states, position, reference[:, :, None] * ratios, has_size, lengths, memory)
            branch = i if self.refine else 0
            # Boxes stay in fp32 under autocast: their logits lose the small ones otherwise.
            offset = self.box_branches[branch](states).float()
            logits.append(self.class_branches[branch](states).float())
            boxes.append((offset + inverse_sigmoid(base)).sigmoid())
            if self.refine:
                refined = (offset + inverse_sigmoid(reference)).sigmoid()
                reference, has_size = refined.detach(), None
                base = refined if self.look_forward_twice else reference
        return DecoderOutput(torch.stack(logits), torch.stack(boxes))
