"""Activation checkpointing changes what is kept for the backward pass, and no number."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from harness.config import TrainConfig
from harness.errors import UserError
from harness.trial.footprint import Kept
from harness.trial.train import recompute
from model import ops_compiled
from model.backbones.configs import ResNetConfig, SwinConfig
from model.config import DetectorConfig
from model.detector import Detector
from model.encoders.configs import NoneConfig
from tests.support.quickstart import trial_of
from tests.support.tiny import CONDITIONAL, DAB, NUM_CLASSES, tiny_batch, tiny_config, with_vit

BOTTLENECKS = ResNetConfig(block="bottleneck", depths=(1, 2, 1, 1), width=8, stem="conv3", norm="batch")
SWIN = SwinConfig(channels=8, depths=(1, 2, 1, 1), num_heads=(1, 1, 2, 2), window=4, drop_path=0.5)
DETECTORS: dict[str, DetectorConfig] = {
    "deformable": tiny_config("atss", dropout=0.0),
    "with dropout": tiny_config("atss", dropout=0.3),
    "batch norm": tiny_config(backbone=BOTTLENECKS, dropout=0.1),
    "swin": tiny_config(backbone=SWIN, dropout=0.0),
    "dab": tiny_config(dropout=0.3, **DAB),
    "conditional": tiny_config(**CONDITIONAL),
    "drop path": with_vit(tiny_config(), drop_path=0.5),
}
EVERYTHING = TrainConfig(checkpoint_encoder_layers=1, checkpoint_backbone=True)


def two_steps(config: DetectorConfig, train: TrainConfig, precision: torch.dtype | None) -> tuple[dict[str, Any], int]:
    """Losses, gradients and everything a norm remembers, the next random number, and the bytes kept of one step."""
    torch.manual_seed(0)
    detector = Detector(config, NUM_CLASSES).train()
    recompute(detector, train)
    told: dict[str, Any] = {}
    for step in range(2):
        with Kept() as kept, torch.autocast("cpu", precision, enabled=precision is not None):
            total, losses = detector(tiny_batch((3, 1), ((96, 96), (64, 80)), seed=step))
            size = kept.bytes(detector)
        total.backward()
        told |= {f"{step}/{name}": value.detach() for name, value in losses.items()}
    told |= {name: p.grad for name, p in detector.named_parameters() if p.grad is not None}
    told |= dict(detector.named_buffers())
    return told | {"next": torch.rand(1)}, size


@pytest.mark.parametrize("name", DETECTORS)
def test_losses_and_gradients_are_equal_to_the_last_bit(name: str) -> None:
    config, precision = DETECTORS[name], torch.bfloat16 if name == "with dropout" else None
    plain, kept = two_steps(config, TrainConfig(), precision)
    again, less = two_steps(config, EVERYTHING, precision)
    assert plain.keys() == again.keys() and any("encoder" in name for name in plain)
    assert [name for name in plain if not torch.equal(plain[name], again[name])] == []
    assert less < kept


def test_an_operator_may_be_used_for_the_first_time_in_a_part_that_is_computed_again() -> None:
    """It is compared with its definition then, and a gradient that this takes is none of the step's."""
    expected, _ = two_steps(DETECTORS["deformable"], EVERYTHING, None)
    ops_compiled._right.cache_clear()
    first, _ = two_steps(DETECTORS["deformable"], EVERYTHING, None)
    assert [name for name in expected if not torch.equal(expected[name], first[name])] == []


def test_each_asks_for_its_own_part() -> None:
    config = DETECTORS["deformable"]
    sizes = [
        two_steps(config, train, None)[1]
        for train in (TrainConfig(), TrainConfig(checkpoint_encoder_layers=1), TrainConfig(checkpoint_backbone=True))
    ]
    assert sizes[0] > sizes[1] and sizes[0] > sizes[2] and sizes[1] != sizes[2]


def test_names_of_weights_are_as_they_were() -> None:
    detector = Detector(DETECTORS["batch norm"], NUM_CLASSES)
    names = list(detector.state_dict())
    detector.recompute(encoder_layers=1, backbone=True)
    assert list(detector.state_dict()) == names and "backbone.layer2.1.conv3.weight" in names


def test_a_part_that_cannot_says_so() -> None:
    detector = Detector(replace(DETECTORS["deformable"], encoder=NoneConfig()), NUM_CLASSES)
    recompute(detector, TrainConfig(checkpoint_backbone=True))
    with pytest.raises(
        UserError, match=r"^train.checkpoint_encoder_layers.*: NoEncoder cannot compute its layers again"
    ):
        recompute(detector, EVERYTHING)
    with pytest.raises(UserError, match="the encoder has 1 layers, and 2 are to be computed again"):
        recompute(Detector(DETECTORS["deformable"], NUM_CLASSES), TrainConfig(checkpoint_encoder_layers=2))


def test_more_layers_than_there_are_is_a_mistake_of_the_file() -> None:
    with pytest.raises(ValueError, match="checkpoint_encoder_layers must not be negative"):
        TrainConfig(checkpoint_encoder_layers=-1)
    with pytest.raises(UserError, match="checkpoint_encoder_layers must not be above"):
        trial_of(0, "train.checkpoint_encoder_layers=9")
