"""Attention of Conditional-DETR and DAB-DETR: to where and to what, each with its own share.

A query's dot product with a token is that of their contents plus that of their positions, since in the cross-attention
the two stand side by side instead of being added (Meng et al. 2021, section 3.3).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.attention import FeedForward, Visibility
from model.config import TransformerConfig
from model.linear import Linear
from model.types import Memory


class ConditionalSelfAttention(nn.Module):
    """Self-attention within query groups; content and position have projections of their own, which are added."""

    def __init__(self, channels: int, num_heads: int, dropout: float = 0.0):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query_content, self.query_position = Linear(channels, channels), Linear(channels, channels)
        self.key_content, self.key_position = Linear(channels, channels), Linear(channels, channels)
        self.value, self.out_proj = Linear(channels, channels), Linear(channels, channels)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, states: Tensor, position: Tensor, visibility: Visibility) -> Tensor:
        """[B, Q, D] → [B, Q, D]."""
        query = self.query_content(states) + self.query_position(position)
        key = self.key_content(states) + self.key_position(position)
        query, key, value = (part.unflatten(2, (self.num_heads, -1)) for part in (query, key, self.value(states)))
        return self.out_proj(visibility.attend(query, key, value, self.dropout if self.training else 0.0))


class ConditionalCrossAttention(nn.Module):
    """Attention to all tokens; in each head content and position stand side by side."""

    def __init__(self, channels: int, num_heads: int, dropout: float = 0.0, *, first: bool):
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query_content = Linear(channels, channels)
        # The first layer's queries have next to no content yet, so their positions are added to it (official).
        self.query_position = Linear(channels, channels) if first else None
        self.query_sine = Linear(channels, channels)
        self.key_content, self.key_position = Linear(channels, channels), Linear(channels, channels)
        self.value, self.out_proj = Linear(channels, channels), Linear(channels, channels)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self,
        states: Tensor,
        position: Tensor,
        sine: Tensor,
        memory: Memory,
        looked_at: list[tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """[B, Q, D] → [B, Q, D].

        Args:
            states: [B, Q, D].
            position: [B, Q, D], read in the first layer only.
            sine: [B, Q, D] encoding of each query's centre, as the encodings of the tokens' places are made.
            memory: with those encodings.
            looked_at: takes `looked_at` of `model.types.DecoderOutput`; None: nobody asks.
        """
        query, key = self.query_content(states), self.key_content(memory.tokens)
        key_position = self.key_position(memory.position)
        if self.query_position is not None:
            query, key = query + self.query_position(position), key + key_position
        query, key = self._heads(query, self.query_sine(sine)), self._heads(key, key_position)
        value = self._heads(self.value(memory.tokens))
        seen = None if memory.padding is None else ~memory.padding[:, None, None]
        if looked_at is not None:
            looked_at.append(places_of(_mean_weights(query.detach(), key.detach(), seen), memory.sizes))
        attended = F.scaled_dot_product_attention(query, key, value, seen, self.dropout if self.training else 0.0)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    @torch.no_grad()
    def share_positions(self, factor: float) -> None:
        """Project the places of queries and tokens alike, so that those which are near each other have large products.

        With two projections drawn apart such a product says nothing about the distance, until training has made it.
        """
        self.query_sine.weight *= factor
        self.key_position.weight.copy_(self.query_sine.weight)
        for own in (self.query_sine, self.key_position):
            nn.init.zeros_(own.bias)

    def _heads(self, *parts: Tensor) -> Tensor:
        """n times [B, Q, D] → [B, heads, Q, n * D / heads]."""
        return torch.cat([part.unflatten(2, (self.num_heads, -1)) for part in parts], -1).transpose(1, 2)


def _mean_weights(query: Tensor, key: Tensor, seen: Tensor | None) -> Tensor:
    """[B, Q, S] attention weights, the mean over heads, of [B, heads, Q, d] and [B, heads, S, d]."""
    logits = query.float() @ key.float().transpose(2, 3) / math.sqrt(query.shape[3])
    if seen is not None:
        logits = logits.masked_fill(~seen, -torch.inf)
    return logits.softmax(-1).mean(1)


def places_of(weights: Tensor, sizes: tuple[tuple[int, int], ...]) -> tuple[Tensor, Tensor]:
    """`DecoderOutput.looked_at` of weights [B, Q, S] on the tokens of L levels, as of one attention head.

    The places of a level are the centres of its tokens; levels with fewer than the largest have more places there, of
    weight 0.
    """
    number = max(h * w for h, w in sizes)
    levels = weights.split([h * w for h, w in sizes], 2)
    filled = torch.stack([F.pad(own, (0, number - own.shape[2])) for own in levels], 2)
    centres = torch.stack([F.pad(_centres(*size), (0, 0, 0, number - size[0] * size[1])) for size in sizes])
    return centres.to(weights).expand(*weights.shape[:2], 1, -1, -1, -1), filled[:, :, None]


def _centres(height: int, width: int) -> Tensor:
    """[h * w, 2] (x, y) of a map's positions, normalised to it."""
    rows, columns = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    return torch.cartesian_prod(rows, columns).flip(1)


class ConditionalLayer(nn.Module):
    """Self-attention within groups, conditional cross-attention, feed-forward; post-normalised."""

    def __init__(self, config: TransformerConfig, activation: Literal["relu", "prelu"], *, first: bool):
        super().__init__()
        sizes = config.channels, config.num_attention_heads, config.dropout
        self.self_attention = ConditionalSelfAttention(*sizes)
        self.self_norm = nn.LayerNorm(config.channels)
        self.cross_attention = ConditionalCrossAttention(*sizes, first=first)
        self.cross_norm = nn.LayerNorm(config.channels)
        self.feed_forward = FeedForward(config, activation)
        self.feed_forward_norm = nn.LayerNorm(config.channels)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        states: Tensor,
        position: Tensor,
        sine: Tensor,
        *,
        visibility: Visibility,
        memory: Memory,
        looked_at: list[tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """[B, Q, D] → [B, Q, D]; see `ConditionalCrossAttention.forward` for `sine` and `looked_at`."""
        states = self.self_norm(states + self.dropout(self.self_attention(states, position, visibility)))
        attended = self.cross_attention(states, position, sine, memory, looked_at)
        states = self.cross_norm(states + self.dropout(attended))
        return self.feed_forward_norm(states + self.feed_forward(states))
