"""The multi-scale adapter of detectors whose encoder has several levels."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from model.adapters.configs import CoarserConfig
from model.layers import MaskedGroupNorm, num_norm_groups, zero_padding
from model.linear import Conv2d
from model.types import Memory, Pyramid


class CoarserLevel(nn.Module):
    """The encoder's levels and one more, by a 3x3 stride-2 convolution (paper 3.2)."""

    def __init__(self, config: CoarserConfig, *, channels: int, strides: tuple[int, ...]):
        super().__init__()
        self.strides = (*strides, 2 * strides[-1])
        self.conv = Conv2d(channels, channels, 3, 2, padding=1)
        self.norm = MaskedGroupNorm(num_norm_groups(channels), channels)

    def forward(
        self, memory: Memory, valid_hw: Tensor, mask_at: Callable[[int], Tensor | None], image_hw: tuple[int, int]
    ) -> Pyramid:
        """See the contract."""
        masks = tuple(mask_at(stride) for stride in self.strides)
        levels = memory.maps()
        coarsest = zero_padding(levels[-1], masks[-2])
        return Pyramid((*levels, self.norm(self.conv(coarsest), masks[-1])), self.strides, valid_hw, masks)
