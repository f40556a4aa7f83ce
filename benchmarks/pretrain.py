"""Pretrains the backbone of the digits preset: what ImageNet is to the paper's detectors, single digits are to it.

    python -m benchmarks.pretrain --out ablations/presets/digits_backbone.safetensors

Crops around one digit each, from scenes of a seed that no data set has, are classified from the mean feature of each
stage that a detector may read alone; the classifiers are thrown away.
The digits of validation scenes take no part: they are disjoint from those of training scenes, and tell how good it is.
The file's content is part of the ids of the trials that start from it, so it is made once and stays.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from harness.data.scenes import Scene, draw_scene, load_parts
from model.backbones.configs import ResNetConfig
from model.backbones.resnet import ResNet

BACKBONE = ResNetConfig(
    block="basic", depths=(1, 1, 1, 1), width=24, stem="conv3", norm="group", stages=(2, 3, 4), frozen_stages=-1
)
SCENE_SIDE, DIFFICULTY = 160, 0.2  # as in the digits preset
SIDE, CROPS_PER_DIGIT, LARGEST_CROP = 64, 2, 3.0  # pixels; a crop's side is 1 to 3 times the digit's
SEEDS = {"train": 1_000_000, "val": 2_000_000}
BATCH, LEARNING_RATE, WEIGHT_DECAY, SMOOTHING = 64, 3e-3, 0.05, 0.1
MEAN, STD = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])  # of the data pipeline


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file to write, .safetensors")
    parser.add_argument("--scenes", type=int, default=6000)
    parser.add_argument("--steps", type=int, default=6000)
    args = parser.parse_args()
    torch.manual_seed(0)
    began = time.process_time()
    train, val = crops("train", args.scenes), crops("val", max(args.scenes // 10, 1))
    print(f"{len(train[1]):,} crops, {len(val[1]):,} of other digits, {time.process_time() - began:.0f} s", flush=True)
    backbone = ResNet(BACKBONE)
    classifiers = nn.ModuleList(nn.Linear(channels, 10) for channels in backbone.channels)
    fit(backbone, classifiers, train, args.steps)
    told = ", ".join(f"{share:.1%}" for share in accuracy(backbone, classifiers, val))
    print(f"of the other digits stages {BACKBONE.stages} tell {told}; {time.process_time() - began:.0f} s")
    # Half precision: the file is part of the repository, and training goes on in float32.
    save_file({name: value.half().contiguous() for name, value in backbone.state_dict().items()}, args.out)


def crops(split: Literal["train", "val"], scenes: int) -> tuple[Tensor, Tensor]:
    """Images [N, SIDE, SIDE, 3] uint8 of one digit each, and their classes [N]."""
    parts = load_parts(split)
    images, labels = [], []
    for index in range(scenes):
        rng = np.random.default_rng([SEEDS[split], index])
        scene = draw_scene(rng, parts, SCENE_SIDE, DIFFICULTY)
        for image, label in _crops_of(scene, rng):
            images.append(image)
            labels.append(label)
    return torch.from_numpy(np.stack(images)), torch.tensor(labels)


def _crops_of(scene: Scene, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, int]]:
    picture = Image.fromarray(scene.image)
    for item in scene.objects:
        rows, columns = np.flatnonzero(item.mask.any(1)), np.flatnonzero(item.mask.any(0))
        if item.crowd or len(rows) == 0:
            continue
        ends = np.array([[columns[0], rows[0]], [columns[-1] + 1, rows[-1] + 1]], float)
        extent, middle = (ends[1] - ends[0]).max(), ends.mean(0)
        for _ in range(CROPS_PER_DIGIT):
            side = extent * rng.uniform(1.0, LARGEST_CROP)
            centre = middle + rng.uniform(-0.2, 0.2, 2) * (side - extent)
            box = (*(centre - side / 2), *(centre + side / 2))
            crop = picture.transform((SIDE, SIDE), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR)
            yield np.asarray(crop), item.label


def fit(backbone: ResNet, classifiers: nn.ModuleList, crops: tuple[Tensor, Tensor], steps: int) -> None:
    """Trains all of it, with a progress line now and then."""
    parameters = [*backbone.parameters(), *classifiers.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    images, labels = crops
    for step in range(1, steps + 1):
        chosen = torch.randint(len(labels), (BATCH,))
        losses = [
            F.cross_entropy(scores, labels[chosen], label_smoothing=SMOOTHING)
            for scores in _scores(backbone, classifiers, images[chosen])
        ]
        optimiser.zero_grad()
        torch.stack(losses).sum().backward()
        optimiser.step()
        schedule.step()
        if step % 500 == 0:
            told = ", ".join(f"{loss.item():.3f}" for loss in losses)
            print(f"step {step:,} of {steps:,}, losses of the stages {told}", flush=True)


@torch.no_grad()
def accuracy(backbone: ResNet, classifiers: nn.ModuleList, crops: tuple[Tensor, Tensor]) -> list[float]:
    """By stage the share of the classes that are right."""
    right = torch.zeros(len(classifiers))
    for images, labels in zip(crops[0].split(256), crops[1].split(256), strict=True):
        scores = torch.stack(_scores(backbone, classifiers, images))
        right += (scores.argmax(2) == labels).sum(1)
    shares: list[float] = (right / len(crops[1])).tolist()
    return shares


def _scores(backbone: ResNet, classifiers: nn.ModuleList, images: Tensor) -> list[Tensor]:
    """By stage [N, 10], of [N, SIDE, SIDE, 3] uint8."""
    pixels = ((images - MEAN) / STD).permute(0, 3, 1, 2)
    features = backbone(pixels, lambda stride: None)
    return [classifier(own.mean((2, 3))) for classifier, own in zip(classifiers, features, strict=True)]


if __name__ == "__main__":
    main()
