"""The multi-scale adapter of detectors whose encoder has one level, such as DAB-DETR and Conditional-DETR."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from model.adapters.configs import SingleScaleConfig
from model.checks import require
from model.layers import ConvNorm, repeat_edge, zero_padding
from model.types import Memory, Pyramid


class SingleScale(nn.Module):
    """Finer levels by bilinear interpolation and a 3x3 convolution, coarser ones by a 3x3 stride-2 convolution.

    Each level is made of the one before it, starting from the encoder's (paper 3.2). Group norms follow as in the
    released adapter, which is for several levels; there is no official code of this one.
    """

    def __init__(self, config: SingleScaleConfig, *, channels: int, strides: tuple[int, ...]):
        super().__init__()
        require(len(strides) == 1, f"model.adapter: single_scale is for one level, the encoder has {len(strides)}")
        (self.stride,), self.strides = strides, config.strides
        require(
            self.stride in self.strides,
            f"model.adapter.strides {list(self.strides)} must name the encoder's stride {self.stride}",
        )
        number = self.strides.index(self.stride)
        self.finer, self.coarser = self.strides[:number][::-1], self.strides[number + 1 :]
        self.up = nn.ModuleList(ConvNorm(channels, channels, 3, bias=True) for _ in self.finer)
        self.down = nn.ModuleList(ConvNorm(channels, channels, 3, 2, bias=True) for _ in self.coarser)

    def forward(
        self, memory: Memory, valid_hw: Tensor, mask_at: Callable[[int], Tensor | None], image_hw: tuple[int, int]
    ) -> Pyramid:
        """See the contract."""
        masks = {stride: mask_at(stride) for stride in self.strides}
        (own,) = memory.maps()
        levels = {self.stride: own}
        level = own
        for conv, stride in zip(self.up, self.finer, strict=True):
            if masks[2 * stride] is not None:  # what interpolation at the image's border reads
                level = repeat_edge(level, valid_hw, 2 * stride)
            wider = F.interpolate(level, scale_factor=2, mode="bilinear", align_corners=False)
            height, width = (-(-side // stride) for side in image_hw)  # twice a size that was rounded up may exceed it
            level = levels[stride] = conv(zero_padding(wider[:, :, :height, :width], masks[stride]), masks[stride])
        level = zero_padding(own, masks[self.stride])
        for conv, stride in zip(self.down, self.coarser, strict=True):
            level = levels[stride] = conv(level, masks[stride])
        by_stride = [levels[stride] for stride in self.strides]
        return Pyramid(tuple(by_stride), self.strides, valid_hw, tuple(masks.values()))
