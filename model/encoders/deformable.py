"""The deformable encoder: every token of every level gathers from all levels around its own place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.attention import DeformableAttention, FeedForward
from model.config import DetectorConfig, TransformerConfig
from model.encoders.configs import DeformableEncoderConfig
from model.position import encoder_reference_points, sine_position_encoding, valid_ratios
from model.recompute import run
from model.types import Memory


class EncoderLayer(nn.Module):
    """Deformable self-attention, then feed-forward; each with residual and post-normalisation."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.attention = DeformableAttention(
            config.channels, config.num_attention_heads, config.num_levels, config.num_points
        )
        self.dropout = nn.Dropout(config.dropout)
        self.attention_norm = nn.LayerNorm(config.channels)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.channels)

    def forward(
        self,
        tokens: Tensor,
        position: Tensor,
        reference: Tensor,
        sizes: tuple[tuple[int, int], ...],
        padding: Tensor | None,
    ) -> Tensor:
        """[B, S, D] → [B, S, D]; `position` is added to queries, `reference` [B, S, L, 2] is each token's centre."""
        attended = self.attention(tokens + position, reference, None, tokens, sizes, padding)
        tokens = self.attention_norm(tokens + self.dropout(attended))
        return self.feed_forward_norm(tokens + self.feed_forward(tokens))


class DeformableEncoder(nn.Module):
    """A stack of `EncoderLayer` over the tokens of all levels."""

    has_level_embedding = True
    recomputed_layers = 0

    def __init__(self, config: DeformableEncoderConfig, *, model: DetectorConfig):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(
            EncoderLayer(model.transformer) for _ in range(model.transformer.num_encoder_layers)
        )

    def forward(
        self, levels: list[Tensor], padding: list[Tensor], *, padded: bool, level_embedding: Tensor | None
    ) -> Memory:
        """See the contract."""
        assert level_embedding is not None
        sizes = tuple((level.shape[-2], level.shape[-1]) for level in levels)
        channels, ratios = levels[0].shape[1], valid_ratios(padding)
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], 1)
        sine = self.config.position_offset, self.config.position_temperature
        encodings = [sine_position_encoding(mask, channels, *sine) for mask in padding]
        placed = [
            encoding.flatten(2).transpose(1, 2) + own for encoding, own in zip(encodings, level_embedding, strict=True)
        ]
        position = torch.cat(placed, 1).to(tokens.dtype)
        hidden = torch.cat([mask.flatten(1) for mask in padding], 1) if padded else None
        reference = encoder_reference_points(list(sizes), ratios)
        for number, layer in enumerate(self.layers):
            again = number < self.recomputed_layers
            tokens = run(layer, tokens, position, reference, sizes, hidden, again=again)
        return Memory(tokens, sizes, hidden, ratios, position)
