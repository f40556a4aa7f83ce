"""The neck of Deformable-DETR, and of DETR: one level and no norm."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from model.layers import MaskedConv, conv_norm
from model.necks.configs import ProjectionConfig


class Projection(nn.Module):
    """1x1 convolutions bring each stage to one width; further levels are stride-2 convolutions.

    The first further level starts from the last BACKBONE stage, the next from the level before.
    """

    def __init__(
        self,
        config: ProjectionConfig,
        *,
        in_channels: tuple[int, ...],
        in_strides: tuple[int, ...],
        channels: int,
        num_levels: int,
    ):
        super().__init__()
        self.strides = config.strides_of(in_strides, num_levels)
        convolution = MaskedConv if config.norm == "none" else partial(conv_norm, bias=config.bias)
        self.lateral = nn.ModuleList(convolution(c, channels, 1) for c in in_channels)
        sources = [in_channels[-1]] + [channels] * num_levels
        extra = range(num_levels - len(in_channels))
        self.extra = nn.ModuleList(convolution(sources[i], channels, 3, 2) for i in extra)

    def forward(self, stages: list[Tensor], mask_at: Callable[[int], Tensor | None]) -> list[Tensor]:
        """See the contract."""
        masks = [mask_at(stride) for stride in self.strides]
        levels = [conv(x, mask) for conv, x, mask in zip(self.lateral, stages, masks, strict=False)]
        source = stages[-1]
        for conv, mask in zip(self.extra, masks[len(levels) :], strict=True):
            source = conv(source, mask)
            levels.append(source)
        return levels
