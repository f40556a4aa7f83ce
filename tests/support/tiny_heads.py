"""Heads small enough for tests, and pyramids and objects for them. A new head needs a line in `TINY`.

A case is the name of a head, or `<name>, <what is particular to it>`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from model.heads import HEADS
from model.heads.base import AuxiliaryHead
from model.heads.masks import MaskConfig
from model.heads.roi import RoIConfig
from model.heads.rpn import RPNConfig
from model.layers import stride_mask
from model.types import MASK_CELLS, Pyramid, Targets

TINY_RPN = RPNConfig(num_samples=10_000, num_proposals=30)  # more samples than candidates: nothing is left to chance
TINY: dict[str, dict[str, Any]] = {
    "atss": {"num_convs": 1, "top_k": 4},
    "faster_rcnn": {"rpn": TINY_RPN, "roi": RoIConfig(fc_channels=16)},
    "faster_rcnn, convolutions and one box": {
        "rpn": RPNConfig(num_samples=10_000, num_proposals=30, test_nms_threshold=0.9, test_proposals=40),
        "roi": RoIConfig(
            fc_channels=16, num_fcs=1, num_convs=2, class_agnostic=True, delta_stds=(0.05, 0.05, 0.1, 0.1)
        ),
    },
    "mask_rcnn": {"rpn": TINY_RPN, "roi": RoIConfig(fc_channels=16), "mask": MaskConfig(num_convs=1, pooled_size=4)},
    "retinanet": {"num_convs": 1},
    "fcos": {"num_convs": 1},
    "paa": {"num_convs": 1, "top_k": 4},
    "gfl": {"num_convs": 1, "top_k": 4, "max_distance": 6},
}
STRIDES, CHANNELS, CLASSES = (8, 16, 32, 64), 16, 3
HEIGHT, WIDTH = 96, 128


def build(name: str, **settings: Any) -> AuxiliaryHead:
    if name not in TINY:
        pytest.fail(f"head {name!r} has no tiny setting: add one to TINY in {__file__}")
    torch.manual_seed(0)
    head_class = HEADS[name.partition(",")[0]]
    config = head_class.Config(**(TINY[name] | settings))
    head = head_class(config, channels=CHANNELS, num_classes=CLASSES, strides=STRIDES)
    for parameter in head.parameters():  # away from the initial values, where every prediction is nearly the same
        torch.nn.init.normal_(parameter, std=0.05 if parameter.dim() == 2 else 0.3)
    return head.eval()


def sizes_of(height: int, width: int) -> list[tuple[int, int]]:
    return [(-(-height // stride), -(-width // stride)) for stride in STRIDES]


def pyramid_of(num_images: int, seed: int = 0) -> Pyramid:
    """Unpadded images, nothing masked."""
    generator = torch.Generator().manual_seed(seed)
    levels = tuple(torch.randn(num_images, CHANNELS, h, w, generator=generator) for h, w in sizes_of(HEIGHT, WIDTH))
    hw = torch.tensor([[HEIGHT, WIDTH]]).repeat(num_images, 1)
    return Pyramid(tuple(level.requires_grad_() for level in levels), STRIDES, hw, (None,) * len(STRIDES))


def targets_of(*counts: int, height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> Targets:
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([width, height, width, height])
    boxes, labels, masks = [], [], []
    for count in counts:
        corner = torch.rand(count, 2, generator=generator) * 0.6
        side = torch.rand(count, 2, generator=generator) * 0.35 + 0.05
        boxes.append(torch.cat([corner, corner + side], 1) * size)
        labels.append(torch.randint(0, CLASSES, (count,), generator=generator))
        masks.append(torch.full((count, MASK_CELLS, MASK_CELLS), 255, dtype=torch.uint8).triu())
    return Targets.stack(boxes, labels, masks)


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


@dataclass
class Padded:
    """The same images alone, and in the corners of larger maps."""

    alone: Pyramid
    padded: Pyramid
    inside: list[Tensor]  # [h, w] bool of each level: the image's own positions in the larger maps


def padded_pair() -> Padded:
    height, width = 81, 100  # not multiples of any stride
    alone_sizes, padded_sizes = sizes_of(height, width), sizes_of(HEIGHT + 32, WIDTH)
    hw = torch.tensor([[height, width], [height, width]])
    masks = tuple(stride_mask(hw, size, stride) for size, stride in zip(padded_sizes, STRIDES, strict=True))
    generator = torch.Generator().manual_seed(3)
    alone, padded, inside = [], [], []
    for (h, w), (padded_h, padded_w) in zip(alone_sizes, padded_sizes, strict=True):
        image = torch.randn(1, CHANNELS, h, w, generator=generator)
        both = torch.full((2, CHANNELS, padded_h, padded_w), 1e4)  # what lies in the padding must not matter
        both[:, :, :h, :w] = image
        here = torch.zeros(padded_h, padded_w, dtype=torch.bool)
        here[:h, :w] = True
        alone.append(image.repeat(2, 1, 1, 1).requires_grad_())
        padded.append(both.requires_grad_())
        inside.append(here)
    return Padded(
        Pyramid(tuple(alone), STRIDES, hw, (None,) * len(STRIDES)), Pyramid(tuple(padded), STRIDES, hw, masks), inside
    )
