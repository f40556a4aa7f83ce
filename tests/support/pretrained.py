"""A small backbone that files of weights fit, and the grids around it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import torch

from model.backbones.configs import ResNetConfig
from model.backbones.resnet import ResNet

ONE_ROW = "rows: [{label: a, set: {model.heads: []}}]"
SMALL = ("data.digits.num_train=4", "data.digits.num_val=2", "train.epochs=1", "train.batch_size=2")
FAST = ResNetConfig(
    block="basic", depths=(1, 1, 1, 1), width=16, stem="conv3", norm="group", stages=(3, 4), frozen_stages=-1
)  # of the preset digits_fast


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def state_of(config: ResNetConfig = FAST, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return ResNet(replace(config, weights=None)).state_dict()
