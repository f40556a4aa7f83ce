"""The class and box branches behind a decoder layer, or behind the encoder."""

from __future__ import annotations

import math

from torch import nn

from model.linear import Linear


class BoxBranch(nn.Sequential):
    """Three linear layers to a box's offset from its reference, in logits."""

    def __init__(self, channels: int):
        last = Linear(channels, 4)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        super().__init__(Linear(channels, channels), nn.ReLU(), Linear(channels, channels), nn.ReLU(), last)


def class_branch(channels: int, num_classes: int) -> Linear:
    """Linear layer to class logits, with a prior of 1 % (focal loss)."""
    branch = Linear(channels, num_classes)
    nn.init.constant_(branch.bias, -math.log(99))
    return branch
