"""Training steps of every detector at paper size (R50, 480 x 640, one image) against `transformers` or Deformable++.

DAB- and Conditional-DETR have a reference of the same size in `transformers`, as a whole and from the backbone's map on
(the transformer, its losses and matching). The others are compared with the Deformable++ they extend. Dropout is off
everywhere: some presets have it and some have not, and its random numbers are 29 % of such a step on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.elsewhere import Elsewhere
from benchmarks.presets import preset_detector
from benchmarks.step import TRAIN, our_step, random_batch, train_what_ours_does
from benchmarks.table import Row, compare
from harness.trial.train import build_optimizer, train_step
from model.backbones.from_transformers import INSTALL
from model.config import DetectorConfig
from model.detector import Detector
from model.types import Batch

BATCH = (1, 480, 640, 80, 8)  # images, height, width, classes, objects of an image
SINGLE_SCALE = ("dab_c5", "conditional_c5")
EXTENSIONS = ("deformable", "dino_4scale", "dino_5scale", "h_deformable", "group_deformable")


class GivenMap(nn.Module):
    """Stands for a backbone: always the same map [B, 2048, 15, 20], which takes a gradient."""

    def __init__(self, own: nn.Module | None = None):
        super().__init__()
        self.map = nn.Parameter(torch.randn(1, 2048, 15, 20, generator=torch.Generator().manual_seed(0)))
        self.channels, self.strides = (2048,), (32,)
        self.lr_depth = own.lr_depth if own is not None else None

    def forward(self, images: Tensor, mask: Any) -> Any:
        """A list of maps for ours; of maps and masks for theirs, which give the images' mask."""
        if isinstance(mask, Tensor):
            return [(self.map, torch.ones(1, 15, 20, dtype=torch.bool))]
        return [self.map]


def without_dropout(name: str) -> DetectorConfig:
    """The detector `name` at paper size, and its dropout off."""
    config = preset_detector(name)
    return replace(config, transformer=replace(config.transformer, dropout=0.0))


def our_transformer_step(config: DetectorConfig, batch: Batch, num_classes: int) -> Callable[[], object]:
    """`our_step` from the backbone's map on."""
    torch.manual_seed(0)
    detector = Detector(config, num_classes).train()
    detector.backbone = GivenMap(detector.backbone)
    optimizer = build_optimizer(detector, TRAIN)
    return lambda: train_step(detector, [batch], optimizer, TRAIN, step=0, total_steps=9, steps_per_epoch=9)


def their_step(name: str, batch: Batch, num_classes: int, whole: bool) -> Callable[[], object]:
    """`DabDetrForObjectDetection` or `ConditionalDetrForObjectDetection` with the losses of every layer."""
    import transformers

    kind = {"dab_c5": "DabDetr", "conditional_c5": "ConditionalDetr"}[name]
    backbone = transformers.ResNetConfig(layer_type="bottleneck", depths=[3, 4, 6, 3], out_features=["stage4"])
    config = getattr(transformers, f"{kind}Config")(
        backbone_config=backbone,
        use_timm_backbone=False,
        num_labels=num_classes,
        num_queries=300,
        auxiliary_loss=True,
        dropout=0.0,
        attention_dropout=0.0,
        activation_dropout=0.0,
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForObjectDetection")(config).train()
    train_what_ours_does(model, frozen_stages=1)
    if not whole and name == "dab_c5":
        model.model.backbone.conv_encoder = GivenMap()
    elif not whole:
        model.model.backbone = GivenMap()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    boxes = batch.targets.boxes_cxcywh(batch.valid_hw)
    labels = [{"class_labels": c, "boxes": b} for c, b in zip(batch.targets.labels, boxes, strict=True)]

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(pixel_values=batch.images, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()

    return step


def rows() -> Iterator[Row]:
    """The suite; without `transformers`, only what is compared with Deformable++."""
    batch = random_batch(*BATCH)
    num_classes = BATCH[3]
    if find_spec("transformers") is None:
        print(f"DAB, Conditional: left out, transformers is not installed ({INSTALL})")
    else:
        for name in SINGLE_SCALE:
            config = without_dropout(name)
            for part, make, whole in (("step", our_step, True), ("transformer", our_transformer_step, False)):
                with (
                    closing(Elsewhere(their_step, name, batch, num_classes, whole, as_trial=False)) as theirs,
                    closing(Elsewhere(make, config, batch, num_classes, as_trial=True)) as ours,
                ):
                    yield compare(f"{part}, {name}", ours, theirs, reference_name="transformers", repeats=5)
    with closing(Elsewhere(our_step, without_dropout("deformable_pp"), batch, num_classes, as_trial=True)) as plain:
        for name in EXTENSIONS:
            with closing(Elsewhere(our_step, without_dropout(name), batch, num_classes, as_trial=True)) as ours:
                yield compare(f"step, {name}", ours, plain, reference_name="ours, deformable_pp", repeats=5)
