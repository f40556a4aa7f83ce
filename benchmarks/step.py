"""A whole training step against `transformers`' Deformable-DETR of the same size.

Both do forward, losses with Hungarian matching, backward, clipping and AdamW on the same images and boxes. Sizes: the
digits preset (batch 8), and ResNet-50 at 480 x 640 (batch 1). Each runs in a process
of its own, ours with the settings of a trial. Needs the extra `backbones`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec

import torch

from benchmarks.elsewhere import Elsewhere
from benchmarks.table import Row, compare
from harness.config import TrainConfig
from harness.trial.train import build_optimizer, train_step
from model.backbones.configs import ResNetConfig
from model.backbones.from_transformers import INSTALL
from model.config import DetectorConfig, TransformerConfig
from model.detector import Detector
from model.heads import HEADS
from model.types import Batch, Targets

TRAIN = TrainConfig(drop_epochs=())
DIGITS = DetectorConfig(
    ResNetConfig(block="basic", depths=(1, 1, 1, 1), width=24, stem="conv3", norm="group", frozen_stages=-1),
    TransformerConfig(64, 3, 4, 4, 2, 3, 128),
    num_queries=40,
    anchor_scale=0.375,
)
R50 = DetectorConfig()


def random_batch(batch_size: int, height: int, width: int, num_classes: int, num_boxes: int) -> Batch:
    """Noise images with boxes of 5 to 30 % of the image."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.rand(batch_size, num_boxes, 2, generator=generator) * 0.6 + 0.2
    half = torch.rand(batch_size, num_boxes, 2, generator=generator) * 0.125 + 0.025
    boxes = torch.cat([centre - half, centre + half], -1) * torch.tensor([width, height, width, height])
    labels = torch.randint(0, num_classes, (batch_size, num_boxes), generator=generator)
    images = torch.randn(batch_size, 3, height, width, generator=generator)
    return Batch(images, torch.tensor([[height, width]] * batch_size), Targets(boxes, labels), tuple(range(batch_size)))


def our_step(config: DetectorConfig, batch: Batch, num_classes: int) -> Callable[[], object]:
    """The step of `harness.trial.train`."""
    torch.manual_seed(0)
    detector = Detector(config, num_classes).train()
    optimizer = build_optimizer(detector, TRAIN)
    return lambda: train_step(detector, [batch], optimizer, TRAIN, step=0, total_steps=9, steps_per_epoch=9)


def transformers_step(config: DetectorConfig, batch: Batch, num_classes: int) -> Callable[[], object]:
    """`DeformableDetrForObjectDetection`, two-stage with box refinement, as large as `config` without heads."""
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection, ResNetConfig

    width, bottleneck = config.backbone.width, config.backbone.block == "bottleneck"
    backbone = ResNetConfig(
        embedding_size=width,
        hidden_sizes=[width * 2**i * (4 if bottleneck else 1) for i in range(4)],
        depths=list(config.backbone.depths),
        layer_type=config.backbone.block,
        out_features=["stage2", "stage3", "stage4"],
    )
    transformer = config.transformer
    theirs = DeformableDetrConfig(
        backbone_config=backbone,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        num_labels=num_classes,
        num_queries=config.num_queries,
        d_model=transformer.channels,
        num_feature_levels=transformer.num_levels,
        encoder_layers=transformer.num_encoder_layers,
        decoder_layers=transformer.num_decoder_layers,
        encoder_ffn_dim=transformer.feedforward_channels,
        decoder_ffn_dim=transformer.feedforward_channels,
        encoder_attention_heads=transformer.num_attention_heads,
        decoder_attention_heads=transformer.num_attention_heads,
        two_stage=True,
        with_box_refine=True,
        auxiliary_loss=True,
        dropout=0.0,
    )
    torch.manual_seed(0)
    model = DeformableDetrForObjectDetection(theirs).train()
    train_what_ours_does(model, config.backbone.frozen_stages)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    boxes = batch.targets.boxes_cxcywh(batch.valid_hw)
    labels = [{"class_labels": c, "boxes": b} for c, b in zip(batch.targets.labels, boxes, strict=True)]

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(pixel_values=batch.images, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()

    return step


def train_what_ours_does(model: torch.nn.Module, frozen_stages: int) -> None:
    """A reference's own rule for what of a backbone to train matches no name of this one and freezes all of it."""
    for name, parameter in model.named_parameters():
        if "backbone" in name:
            stage = int(name.split("stages.")[1][0]) + 1 if "stages." in name else 0
            parameter.requires_grad_(stage > frozen_stages)


def rows() -> Iterator[Row]:
    """The suite; empty, with a line that says why, where `transformers` is not installed."""
    if find_spec("transformers") is None:
        print(f"training steps: left out, transformers is not installed ({INSTALL})")
        return
    for name, config, batch, num_classes, repeats in (
        ("digits preset, batch 8", DIGITS, random_batch(8, 160, 160, 10, 5), 10, 15),
        ("R50, 480 x 640, batch 1", R50, random_batch(1, 480, 640, 80, 8), 80, 5),
    ):
        arguments = batch, num_classes
        with closing(Elsewhere(transformers_step, config, *arguments, as_trial=False)) as theirs:
            for heads in ((), ("atss",)):
                own = replace(config, heads=tuple(HEADS[head].Config() for head in heads))
                with closing(Elsewhere(our_step, own, *arguments, as_trial=True)) as ours:
                    yield compare(
                        f"training step, {name}, K = {len(heads)}",
                        ours,
                        theirs,
                        reference_name="transformers, K = 0",
                        repeats=repeats,
                    )
