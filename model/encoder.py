"""The deformable encoder: every token of every level gathers from all levels around its own place."""

from __future__ import annotations

from torch import Tensor, nn

from model.attention import DeformableAttention
from model.config import TransformerConfig
from model.linear import Linear


class FeedForward(nn.Sequential):
    """Two linear layers with ReLU; dropout after each."""

    def __init__(self, config: TransformerConfig):
        super().__init__(
            Linear(config.channels, config.feedforward_channels, relu=True),
            nn.Dropout(config.dropout),
            Linear(config.feedforward_channels, config.channels),
            nn.Dropout(config.dropout),
        )


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
        """[B, S, D] → [B, S, D]."""
        attended = self.attention(tokens + position, reference, None, tokens, sizes, padding)
        tokens = self.attention_norm(tokens + self.dropout(attended))
        return self.feed_forward_norm(tokens + self.feed_forward(tokens))


class Encoder(nn.Module):
    """A stack of `EncoderLayer`."""

    def __init__(self, config: TransformerConfig):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_encoder_layers))

    def forward(
        self,
        tokens: Tensor,
        position: Tensor,
        reference: Tensor,
        sizes: tuple[tuple[int, int], ...],
        padding: Tensor | None,
    ) -> Tensor:
        """Encode.

        Args:
            tokens: [B, S, D], all levels, row-major.
            position: [B, S, D], sine encoding plus level embedding.
            reference: [B, S, L, 2], each token's centre (`encoder_reference_points`).
            sizes: (h, w) of the L levels.
            padding: [B, S] bool, True = padding; None: no padding.

        Returns:
            [B, S, D].
        """
        for layer in self.layers:
            tokens = layer(tokens, position, reference, sizes, padding)
        return tokens
