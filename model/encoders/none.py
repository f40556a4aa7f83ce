"""No encoder: the neck's levels are the memory (LW-DETR, whose backbone has attention of its own)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.config import DetectorConfig
from model.encoders.configs import NoneConfig
from model.position import sine_position_encoding, valid_ratios
from model.types import Memory


class NoEncoder(nn.Module):
    """Has no parameter and no layer, whatever `TransformerConfig.num_encoder_layers` says."""

    has_level_embedding = False

    def __init__(self, config: NoneConfig, *, model: DetectorConfig):
        super().__init__()

    def forward(
        self, levels: list[Tensor], padding: list[Tensor], *, padded: bool, level_embedding: Tensor | None
    ) -> Memory:
        """See the contract."""
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], 1)
        encodings = [sine_position_encoding(mask, tokens.shape[2]).flatten(2).transpose(1, 2) for mask in padding]
        hidden = torch.cat([mask.flatten(1) for mask in padding], 1) if padded else None
        sizes = tuple((level.shape[-2], level.shape[-1]) for level in levels)
        return Memory(tokens, sizes, hidden, valid_ratios(padding), torch.cat(encodings, 1).to(tokens.dtype))
