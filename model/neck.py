"""From the backbone's stages to maps of one width, and the multi-scale adapter's coarser level.

`mask` arguments are [B, h, w] bool, True = padding, at the size of the layer's OUTPUT; None means nothing is
masked. With masks every layer gives, in an image's valid area, what it would give for that image alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.linear import Conv2d
from model.types import padding_mask


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


class Neck(nn.Module):
    """1x1 convolutions bring each stage to one width; further levels are stride-2 convolutions.

    The first further level starts from the last BACKBONE stage, the next from the level before (Deformable-DETR).
    """

    def __init__(self, in_channels: tuple[int, ...], channels: int, num_levels: int):
        super().__init__()
        self.lateral = nn.ModuleList(conv_norm(c, channels, 1) for c in in_channels)
        sources = [in_channels[-1]] + [channels] * num_levels
        self.extra = nn.ModuleList(conv_norm(sources[i], channels, 3, 2) for i in range(num_levels - len(in_channels)))

    def forward(self, stages: list[Tensor], masks: tuple[Tensor | None, ...]) -> list[Tensor]:
        """Stages [B, C_i, h, w] and one mask per output level → levels [B, D, h, w], fine to coarse."""
        levels = [conv(x, mask) for conv, x, mask in zip(self.lateral, stages, masks, strict=False)]
        source = stages[-1]
        for conv, mask in zip(self.extra, masks[len(levels) :], strict=True):
            source = conv(source, mask)
            levels.append(source)
        return levels


class CoarserLevel(nn.Module):
    """The multi-scale adapter for a multi-scale encoder: one level more, by a 3x3 stride-2 convolution (paper 3.2)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, 2, padding=1)
        self.norm = MaskedGroupNorm(num_norm_groups(channels), channels)

    def forward(self, coarsest: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, D, h, w] → [B, D, ceil(h/2), ceil(w/2)]."""
        return self.norm(self.conv(coarsest), mask)


def level_masks(
    valid_hw: Tensor, sizes: list[tuple[int, int]], strides: list[int], enabled: bool
) -> tuple[Tensor | None, ...]:
    """Padding masks [B, h, w] of levels with these `sizes` and `strides`; None where `enabled` is False.

    A position is valid when its own pixel is: index < ceil(valid / stride), the size that the image alone would give.
    """
    if not enabled:
        return (None,) * len(sizes)
    return tuple(padding_mask(torch.ceil(valid_hw / s).long(), h, w) for (h, w), s in zip(sizes, strides, strict=True))


def downsample_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, H, W] bool → [B, *size] bool, by nearest interpolation (official)."""
    return F.interpolate(mask[:, None].float(), size=size).bool()[:, 0]
