"""Which positions of a padded batch's levels hold an image, and the layers that keep to them.

`mask` arguments are [B, h, w] bool, True = padding, at the size of the layer's OUTPUT; None means nothing is
masked. With masks every layer gives, in an image's valid area, what it would give for that image alone.

A position of a level is valid when its own pixel is: index < ceil(valid / stride), the size that the image alone would
give. The official code masks nothing before the encoder, and there what nearest interpolation of the pixels' mask says.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.gather import gather
from model.linear import Conv2d
from model.types import Batch, padding_mask


def zero_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """`x` [B, D, h, w] with zeros where `mask` is True."""
    return x if mask is None else x.masked_fill(mask[:, None], 0.0)


def repeat_edge(level: Tensor, valid_hw: Tensor, stride: int) -> Tensor:
    """`level` [B, D, h, w] with each image's last valid row and column repeated outwards, as beyond a map's edge."""
    channels, height, width = level.shape[1:]
    last = torch.div(valid_hw - 1, stride, rounding_mode="floor")  # [B, 2]
    rows = torch.minimum(torch.arange(height, device=level.device), last[:, :1])[:, None, :, None]
    columns = torch.minimum(torch.arange(width, device=level.device), last[:, 1:])[:, None, None]
    filled = gather(level, 2, rows.expand(-1, channels, -1, width))
    return gather(filled, 3, columns.expand(-1, channels, height, -1))


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

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        groups: int | None = None,
        bias: bool = False,
    ):
        super().__init__()
        self.conv = Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=bias)
        self.norm = MaskedGroupNorm(groups or num_norm_groups(out_channels), out_channels)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, D, h, w] → [B, D', h', w'], zero outside the mask. `x` must already be zero at padding."""
        return self.norm(self.conv(x), mask)


class MaskedConv(Conv2d):
    """Convolution with a bias, and no norm."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1):
        super().__init__(in_channels, out_channels, kernel, stride, padding=kernel // 2)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, D, h, w] → [B, D', h', w'], zero outside the mask. `x` must already be zero at padding."""
        return zero_padding(super().forward(x), mask)


def conv_norm(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int | None = None, bias: bool = False
) -> ConvNorm:
    """A `ConvNorm` initialised as the official neck (Xavier uniform)."""
    module = ConvNorm(in_channels, out_channels, kernel, stride, groups, bias)
    nn.init.xavier_uniform_(module.conv.weight)
    if module.conv.bias is not None:
        nn.init.zeros_(module.conv.bias)
    return module


class Padding:
    """The padding masks of one batch, each made once.

    Args:
        batch: images of mixed sizes.
        official: behave as the released code.
    """

    def __init__(self, batch: Batch, official: bool = False):
        self.batch = batch
        self.height, self.width = batch.images.shape[-2:]
        self.any = batch.is_padded()
        self.exact = self.any and not official
        self._masks: dict[int, Tensor] = {}

    def mask_at(self, stride: int) -> Tensor | None:
        """[B, ceil(H / stride), ceil(W / stride)] bool, True = padding; None: nothing is masked at this stride."""
        if not self.exact:
            return None
        if stride not in self._masks:
            size = (-(-self.height // stride), -(-self.width // stride))
            self._masks[stride] = stride_mask(self.batch.valid_hw, size, stride)
        return self._masks[stride]

    def of_levels(self, levels: list[Tensor], strides: tuple[int, ...]) -> list[Tensor]:
        """[B, h, w] bool of each level [B, D, h, w], also where nothing is masked."""
        if self.exact:
            return [mask for stride in strides if (mask := self.mask_at(stride)) is not None]
        return [downsample_mask(self.batch.padding_mask, (level.shape[-2], level.shape[-1])) for level in levels]


def stride_mask(valid_hw: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """[B, h, w] bool, True = padding, of a level of this `size` (h, w) and stride."""
    return padding_mask(torch.ceil(valid_hw / stride).long(), *size)


def downsample_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """[B, H, W] bool → [B, *size] bool, by nearest interpolation (official)."""
    return F.interpolate(mask[:, None].float(), size=size).bool()[:, 0]
