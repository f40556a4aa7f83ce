"""The encoder of DETR, Conditional-DETR and DAB-DETR: every token attends to all tokens.

Attention grows with the square of the tokens. Its home is one level of stride 32 (C5); several levels are one sequence,
whose encodings say where a token is and not on which level.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from model.attention import FeedForward, GroupedSelfAttention, Visibility
from model.branches import MLP, xavier_matrices
from model.config import DetectorConfig, TransformerConfig
from model.encoders.configs import DenseEncoderConfig
from model.position import sine_position_encoding, valid_ratios
from model.recompute import run
from model.types import Memory


class DenseEncoderLayer(nn.Module):
    """Self-attention, then feed-forward; each with residual and post-normalisation."""

    def __init__(self, config: TransformerConfig, activation: Literal["relu", "prelu"]):
        super().__init__()
        self.attention = GroupedSelfAttention(config.channels, config.num_attention_heads, config.dropout)
        self.dropout = nn.Dropout(config.dropout)
        self.attention_norm = nn.LayerNorm(config.channels)
        self.feed_forward = FeedForward(config, activation)
        self.feed_forward_norm = nn.LayerNorm(config.channels)

    def forward(self, tokens: Tensor, position: Tensor, visibility: Visibility) -> Tensor:
        """[B, S, D] → [B, S, D]; `position` is added to queries and keys."""
        tokens = self.attention_norm(tokens + self.dropout(self.attention(tokens, position, visibility)))
        return self.feed_forward_norm(tokens + self.feed_forward(tokens))


class DenseEncoder(nn.Module):
    """A stack of `DenseEncoderLayer`; padding is attended to by nobody."""

    has_level_embedding = False
    recomputed_layers = 0

    def __init__(self, config: DenseEncoderConfig, *, model: DetectorConfig):
        super().__init__()
        transformer, channels = model.transformer, model.transformer.channels
        self.temperature = config.position_temperature
        self.layers = nn.ModuleList(
            DenseEncoderLayer(transformer, config.activation) for _ in range(transformer.num_encoder_layers)
        )
        self.query_scale = MLP(channels, channels, channels) if config.scaled_position else None
        xavier_matrices(self)

    def forward(
        self, levels: list[Tensor], padding: list[Tensor], *, padded: bool, level_embedding: Tensor | None
    ) -> Memory:
        """See the contract."""
        sizes = tuple((level.shape[-2], level.shape[-1]) for level in levels)
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], 1)
        encodings = [sine_position_encoding(mask, tokens.shape[2], 0.0, self.temperature) for mask in padding]
        position = torch.cat([own.flatten(2).transpose(1, 2) for own in encodings], 1).to(tokens.dtype)
        hidden = torch.cat([mask.flatten(1) for mask in padding], 1) if padded else None
        all_tokens = Visibility(((0, tokens.shape[1], 0),), hidden)
        for number, layer in enumerate(self.layers):
            scale = 1.0 if self.query_scale is None else self.query_scale(tokens)  # official: in the first layer too
            tokens = run(layer, tokens, position * scale, all_tokens, again=number < self.recomputed_layers)
        return Memory(tokens, sizes, hidden, valid_ratios(padding), position)
