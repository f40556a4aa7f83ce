"""Layers that several parts are made of.

`mask` arguments are [B, h, w] bool, True = padding, at the size of the layer's OUTPUT; None means nothing is
masked. With masks every layer gives, in an image's valid area, what it would give for that image alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.config import TransformerConfig
from model.linear import Conv2d, Linear


def zero_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """`x` [B, D, h, w] with zeros where `mask` is True."""
    return x if mask is None else x.masked_fill(mask[:, None], 0.0)


def num_norm_groups(channels: int) -> int:
    """32 groups as the official heads, or the largest power-of-two divisor below that leaves 4 channels a group."""
    groups = 32
    while groups > 1 and (channels % groups or channels // groups < 4):
        groups //= 2
    return groups


class MaskedGroupNorm(nn.GroupNorm):
    """Group normalisation whose statistics are taken over the valid positions only."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, D, h, w] normalised; zero outside the mask."""
        if mask is None:
            return super().forward(x)
        x = x.to(torch.promote_types(x.dtype, torch.float32))  # sums of many squares, as autocast would have it
        batch, channels = x.shape[:2]
        keep = (~mask)[:, None].to(x.dtype)
        grouped = (x * keep).reshape(batch, self.num_groups, -1)
        count = keep.flatten(1).sum(1) * (channels // self.num_groups)
        mean = grouped.sum(-1) / count[:, None]
        centred = (x.reshape(batch, self.num_groups, -1) - mean[..., None]).reshape(x.shape) * keep
        variance = centred.reshape(batch, self.num_groups, -1).square().sum(-1) / count[:, None]
        scaled = centred.reshape(batch, self.num_groups, -1) * (variance + self.eps).rsqrt()[..., None]
        affine = scaled.reshape(x.shape) * self.weight[:, None, None] + self.bias[:, None, None]
        return affine * keep


class ConvNorm(nn.Module):
    """Convolution, then group normalisation; the state-dict names are `conv` and `norm`."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int | None = None):
        super().__init__()
        self.conv = Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = MaskedGroupNorm(groups or num_norm_groups(out_channels), out_channels)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, D, h, w] → [B, D', h', w'], zero outside the mask. `x` must already be zero at padding."""
        return self.norm(self.conv(x), mask)


def conv_norm(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int | None = None) -> ConvNorm:
    """A `ConvNorm` initialised as the official neck (Xavier uniform)."""
    module = ConvNorm(in_channels, out_channels, kernel, stride, groups)
    nn.init.xavier_uniform_(module.conv.weight)
    return module


class FeedForward(nn.Sequential):
    """Two linear layers with ReLU; dropout after each."""

    def __init__(self, config: TransformerConfig):
        super().__init__(
            Linear(config.channels, config.feedforward_channels, relu=True),
            nn.Dropout(config.dropout),
            Linear(config.feedforward_channels, config.channels),
            nn.Dropout(config.dropout),
        )
