"""A detector and batches small enough for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from model.adapters.configs import SingleScaleConfig
from model.assign.configs import HungarianConfig
from model.backbones.configs import ResNetConfig, ViTConfig
from model.classification.configs import QualityConfig
from model.config import DetectorConfig, LossWeights, TransformerConfig
from model.decoders.configs import ConditionalDecoderConfig, DabDecoderConfig, DeformableDecoderConfig
from model.encoders.configs import DeformableEncoderConfig, DenseEncoderConfig
from model.groups.configs import DenoisingConfig
from model.heads import HEADS
from model.necks.configs import SimpleFpnConfig
from model.proposals.configs import AnchorsConfig, ClassesConfig, LearnedConfig
from model.types import MASK_CELLS, Batch, Targets

PLAIN = {"two_stage": False, "box_refinement": False, "mixed_selection": False, "look_forward_twice": False}
REFINED = {**PLAIN, "box_refinement": True}
OF_REFERENCES = {"decoder": DeformableDecoderConfig(position="reference", final_norm=True)}
ONE_LEVEL = {**PLAIN, "stages": (4,), "adapter": SingleScaleConfig()}  # of stride 32
DAB = {
    **{**ONE_LEVEL, "box_refinement": True, "look_forward_twice": True},
    "encoder": DenseEncoderConfig(position_temperature=20, scaled_position=True, activation="prelu"),
    "proposals": AnchorsConfig(),
    "decoder": DabDecoderConfig(),
}
CONDITIONAL = {
    **ONE_LEVEL,
    "encoder": DenseEncoderConfig(),
    "proposals": LearnedConfig(content="zero", points="mlp"),
    "decoder": ConditionalDecoderConfig(),
}
ON_ONE_LEVEL = {"deformable": ONE_LEVEL, "dab": DAB, "conditional": CONDITIONAL}  # detectors, by name
DINO = {
    "encoder": DeformableEncoderConfig(position_offset=0.0, position_temperature=20.0),
    "decoder": DeformableDecoderConfig(position="reference", final_norm=True, inverse_sigmoid_epsilon=1e-3),
    "proposals": ClassesConfig(),
    "groups": (DenoisingConfig(number=7),),
    "classification": QualityConfig(),
    "assign": HungarianConfig(classification=2.0),
    "loss_weights": LossWeights(classification=1.0),
    "positive_features": False,
}
SMALL_VIT = {"channels": 24, "depth": 2, "num_heads": 3, "window": 3, "global_blocks": (1,), "pretrained_size": 64}
NUM_CLASSES = 5


def tiny_config(
    *heads: str,
    backbone: ResNetConfig | None = None,
    stages: tuple[int, ...] = (2, 3, 4),
    dropout: float = 0.0,
    **changes,
) -> DetectorConfig:
    """Under 100,000 parameters; two-stage with everything on, unless changed. One encoder level for each stage."""
    backbone = backbone or ResNetConfig(
        block="basic", depths=(1, 1, 1, 1), width=8, stem="conv3", norm="group", frozen_stages=-1, stages=stages
    )
    transformer = TransformerConfig(
        channels=32,
        num_levels=len(stages),
        num_attention_heads=4,
        num_points=2,
        num_encoder_layers=1,
        num_decoder_layers=2,
        feedforward_channels=64,
        dropout=dropout,
    )
    return DetectorConfig(
        backbone=backbone,
        transformer=transformer,
        heads=tuple(HEADS[name].Config() for name in heads),
        **{"num_queries": 12, **changes},
    )


def with_vit(config: DetectorConfig, **settings: Any) -> DetectorConfig:
    """The same detector on a plain vision transformer, with strides from 8 on, or 4 where it has five levels."""
    backbone = ViTConfig(**{**SMALL_VIT, **settings})
    return replace(config, backbone=backbone, neck=SimpleFpnConfig())


def tiny_targets(counts: tuple[int, ...], valid_hw: torch.Tensor, seed: int = 0) -> Targets:
    """Random boxes inside each image's valid area, each object filling the upper right half of its box."""
    generator = torch.Generator().manual_seed(seed)
    boxes, labels, masks = [], [], []
    for count, (height, width) in zip(counts, valid_hw.tolist(), strict=True):
        centre = torch.rand(count, 2, generator=generator) * 0.6 + 0.2
        half = torch.rand(count, 2, generator=generator) * 0.15 + 0.04
        scale = torch.tensor([width, height, width, height])
        boxes.append(torch.cat([centre - half, centre + half], 1) * scale)
        labels.append(torch.randint(0, NUM_CLASSES, (count,), generator=generator))
        masks.append(torch.full((count, MASK_CELLS, MASK_CELLS), 255, dtype=torch.uint8).triu())
    return Targets.stack(boxes, labels, masks)


def tiny_batch(
    counts: tuple[int, ...] = (3, 1),
    sizes: tuple[tuple[int, int], ...] = ((96, 96), (96, 96)),
    canvas: tuple[int, int] | None = None,
    seed: int = 0,
) -> Batch:
    """Random images of the given (height, width) in a canvas that is a multiple of 32 pixels."""
    height = max(h for h, _ in sizes)
    width = max(w for _, w in sizes)
    height, width = canvas or (-(-height // 32) * 32, -(-width // 32) * 32)
    images = torch.zeros(len(sizes), 3, height, width)
    for i, (h, w) in enumerate(sizes):
        generator = torch.Generator().manual_seed(1000 * seed + i)
        images[i, :, :h, :w] = torch.randn(3, h, w, generator=generator)
    valid_hw = torch.tensor(sizes)
    targets = tiny_targets(counts, valid_hw, seed)
    return Batch(images, valid_hw, targets, tuple(range(len(sizes))), valid_hw.clone())


def single(batch: Batch, index: int, canvas: tuple[int, int]) -> Batch:
    """One image of a batch alone, in its own canvas."""
    h, w = batch.valid_hw[index].tolist()
    images = torch.zeros(1, 3, *canvas)
    images[0, :, :h, :w] = batch.images[index, :, :h, :w]
    count = int(batch.targets.num_boxes[index])
    targets = Targets.stack([batch.targets.boxes_xyxy[index, :count]], [batch.targets.labels[index, :count]])
    return Batch(images, batch.valid_hw[index : index + 1], targets, (batch.image_ids[index],), None)
