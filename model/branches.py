"""The small networks of a transformer: class and box branches behind a decoder layer or the encoder, and MLPs."""

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


class MLP(nn.Sequential):
    """Two linear layers with ReLU between them."""

    def __init__(self, in_channels: int, channels: int, out_channels: int):
        super().__init__(Linear(in_channels, channels, relu=True), Linear(channels, out_channels))


def xavier_matrices(module: nn.Module) -> None:
    """Every matrix Xavier uniform; vectors stay as they are (official, of the whole transformer)."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
