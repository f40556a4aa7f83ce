"""The simple feature pyramid of plain vision transformers (Li et al. 2022), as Co-DETR released it.

Each level is made of the same stage: finer ones by nearest upsampling and 3x3 convolutions, coarser ones by pooling.
Names are those of the released files: `p2` to `p6` by the logarithm of the stride, numbered within.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.layers import zero_padding
from model.linear import Conv2d
from model.necks.configs import SimpleFpnConfig

STRIDE = 16  # of the stage


class ChannelNorm(nn.LayerNorm):
    """Layer normalisation of a map's channels, position by position."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, h, w] → the same shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Doubled(nn.Module):
    """Every position four times."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, h, w] → [B, D, 2 h, 2 w]."""
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Halved(nn.MaxPool2d):
    """The largest of 3x3 positions, at every other one."""

    def __init__(self) -> None:
        super().__init__(3, 2, 1)


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> Conv2d:
    conv = Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.xavier_uniform_(conv.weight)
    return conv


class Level(nn.ModuleList):
    """One level, made of the stage: changes of size, then a 1x1 and a 3x3 convolution to its width.

    Args:
        changes: before these convolutions.
        in_channels: that these leave.
        channels: of the level.
    """

    def __init__(self, changes: list[nn.Module], in_channels: int, channels: int):
        one, three = _conv(in_channels, channels, 1), _conv(channels, channels, 3)
        super().__init__([*changes, one, ChannelNorm(channels), nn.GELU(), three, ChannelNorm(channels)])

    def forward(self, x: Tensor, mask_at: Callable[[int], Tensor | None]) -> Tensor:
        """Stage [B, C, h, w], zero behind its mask, to the level [B, D, h', w'], zero behind its own."""
        stride = STRIDE
        for step in self:
            if isinstance(step, Halved) and (mask := mask_at(stride)) is not None:
                x = x.masked_fill(mask[:, None], -torch.inf)  # zeros would be larger than what is negative beside them
            x = step(x)
            if isinstance(step, Doubled):
                stride //= 2
            elif isinstance(step, Halved) or (isinstance(step, Conv2d) and step.stride == (2, 2)):
                stride *= 2
            if isinstance(step, (Doubled, Halved, ChannelNorm)):
                x = zero_padding(x, mask_at(stride))
        return x


class SimpleFpn(nn.Module):
    """One level for each of the strides."""

    def __init__(
        self,
        config: SimpleFpnConfig,
        *,
        in_channels: tuple[int, ...],
        in_strides: tuple[int, ...],
        channels: int,
        num_levels: int,
    ):
        super().__init__()
        self.strides = config.strides_of(in_strides, num_levels)
        (width,) = in_channels
        for stride in self.strides:
            self.add_module(_name(stride), Level(*_changes(stride, width), channels))

    def forward(self, stages: list[Tensor], mask_at: Callable[[int], Tensor | None]) -> list[Tensor]:
        """See the contract."""
        (stage,) = stages
        return [getattr(self, _name(stride))(stage, mask_at) for stride in self.strides]


def _name(stride: int) -> str:
    return f"p{stride.bit_length() - 1}"


def _changes(stride: int, width: int) -> tuple[list[nn.Module], int]:
    """Modules that bring a stage of this width to a stride, and the channels that they leave."""
    steps: list[nn.Module] = []
    if stride > STRIDE:
        steps = [Halved()]
        if stride == 4 * STRIDE:
            steps += [_conv(width, width, 3, 2), ChannelNorm(width), nn.GELU()]
        return steps, width
    while stride < STRIDE:
        steps += [Doubled(), _conv(width, width // 2, 3), ChannelNorm(width // 2), nn.GELU()]
        stride, width = 2 * stride, width // 2
    return steps, width
