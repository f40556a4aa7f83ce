"""Where the levels of a padded batch hold an image.

A position of a level is valid when its own pixel is: index < ceil(valid / stride), the size that the image alone would
give. The official code masks nothing before the encoder, and there what nearest interpolation of the pixels' mask says.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from model.types import Batch, padding_mask


class Padding:
    """The padding masks of one batch, each made once.

    Args:
        batch: images of mixed sizes.
        official: behave as the released code.
    """

    def __init__(self, batch: Batch, official: bool = False):
        self.batch = batch
        self.height, self.width = batch.images.shape[-2:]
        self.any = bool((batch.valid_hw != batch.valid_hw.new_tensor([self.height, self.width])).any())
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
